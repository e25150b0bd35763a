// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask reference`: the pages of `docs/reference/`, from the code and from `xtask/reference.toml`.
//!
//! Findings, environment, ports and metrics come from the code alone. Labels, annotations and conditions have texts that
//! no code holds: they are in the table, and a name that is only in the code, or only in the table, is an error.

mod pages;
mod source;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;

use self::source::Source;
pub(crate) use self::source::{documentation, is_test};

const FOLDER: &str = "docs/reference";

/// Whether to write the pages or to compare them.
#[derive(clap::Args)]
#[command(
    after_help = "Example: write the pages anew after a change of a label, metric, condition or setting\n  \
                  cargo xtask reference"
)]
pub(crate) struct Args {
    /// Compare the pages with the code instead of writing them; exit code 1 when one differs
    #[arg(long)]
    check: bool,
}

/// `xtask/reference.toml`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    /// Labels and annotations by name.
    names: BTreeMap<String, Name>,
    /// Condition types by name.
    conditions: BTreeMap<String, ConditionRow>,
}

/// A label, annotation or both.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Name {
    /// Kinds of object that may have it.
    on: String,
    /// Values that mean something.
    values: String,
    /// What it does.
    effect: String,
}

/// A type of condition.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct ConditionRow {
    on: String,
    meaning: String,
    /// What each reason means, by name.
    #[serde(default)]
    reasons: BTreeMap<String, String>,
}

/// Writes or compares the pages.
///
/// # Errors
/// A source file or a table that cannot be read.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let table: Table = toml::from_str(include_str!("../reference.toml")).context("xtask/reference.toml")?;
    let source = Source::read(Path::new("crates"))?;
    let faults = pages::faults(&table, &source);
    if !faults.is_empty() {
        eprintln!("reference: {}", faults.join("\nreference: "));
        return Ok(ExitCode::FAILURE);
    }
    let mut stale = Vec::new();
    for (name, text) in pages::all(&table, &source) {
        let file: PathBuf = Path::new(FOLDER).join(name);
        if !args.check {
            std::fs::create_dir_all(FOLDER)?;
            std::fs::write(&file, text)?;
        } else if std::fs::read_to_string(&file).unwrap_or_default() != text {
            stale.push(file.display().to_string());
        }
    }
    if stale.is_empty() {
        println!("reference: {FOLDER} agrees with the code");
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!(
        "reference: run `cargo xtask reference`; these pages differ from the code: {}",
        stale.join(", ")
    );
    Ok(ExitCode::FAILURE)
}
