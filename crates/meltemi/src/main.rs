// SPDX-License-Identifier: Apache-2.0
//! The command line of Meltemi: one multi-call binary, every role and every tool.

#![expect(unreachable_pub, reason = "nobody calls a binary; pub says what a room offers")]

mod cli;
mod cmd;
mod machine;
mod manifests;
mod missing;
mod sample;
mod serve;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // Before anything else: the first process of a Pod must have one thread and knows no other words.
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == meltemi_runner::pod_init::WORD) {
        return meltemi_runner::pod_init::main(words);
    }
    if std::env::args_os().next().is_some_and(|name| serve::cni_plugin::is_plugin(&name)) {
        return serve::cni_plugin::run();
    }
    let cli = match cli::Cli::read(missing::without_experimental(std::env::args_os())) {
        Ok(cli) => cli,
        Err(error) => match missing::explained(&error) {
            Some(text) => {
                eprintln!("Error: {text}");
                return ExitCode::from(2);
            }
            None => error.exit(),
        },
    };
    if cli.answers() {
        meltemi_linux::process::end_on_broken_pipe();
    }
    let failure = cli.failure();
    match cli.run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("Error: {error:#}");
            failure
        }
    }
}
