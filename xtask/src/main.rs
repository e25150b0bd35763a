// SPDX-License-Identifier: Apache-2.0
//! Tools for the project's developers: `cargo xtask deps` checks the dependency table, `cargo xtask bench` measures the
//! data path, `cargo xtask reference` writes `docs/reference/`, `cargo xtask bounds` finds the test of each row of
//! `docs/bounds.md`, `cargo xtask style` counts what may only fall, `cargo xtask image` packs the binary for Kubernetes.

mod bench;
mod bounds;
mod deps;
mod image;
mod reference;
mod style;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Tools for Meltemi's developers")]
enum Command {
    /// Check the crates' dependencies against the table in xtask/deps.toml
    Deps,
    /// Measure the data path on a mesh of this machine
    Bench(bench::Args),
    /// Pack the binary as a container image: an OCI layout in a tar
    Image(image::Args),
    /// Write the pages of docs/reference/ from the code
    Reference(reference::Args),
    /// Find the tests that fill the bounds of docs/bounds.md
    Bounds,
    /// Count what may only fall: short names, short comments, closures, tuples, text as errors, circles
    Style,
}

fn main() -> anyhow::Result<ExitCode> {
    match Command::parse() {
        Command::Deps => deps::check(),
        Command::Bench(args) => bench::run(&args),
        Command::Image(args) => image::run(&args),
        Command::Reference(args) => reference::run(&args),
        Command::Bounds => bounds::check(),
        Command::Style => style::check(),
    }
}
