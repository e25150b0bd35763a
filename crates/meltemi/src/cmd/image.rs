// SPDX-License-Identifier: Apache-2.0
//! `meltemi image`: the user's part of the image table, kept in the data directory and watched by the runners.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Subcommand;

use crate::machine::paths::Paths;

/// What a Pod's image runs on this machine; no image is ever pulled.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example:\n  meltemi image add ghcr.io/acme/api:1.4 -- /usr/local/bin/api --port 8080"
)]
pub struct Args {
    /// Name of the mesh; else it is the one of $KUBECONFIG, else `default`
    #[arg(long, global = true, value_name = "N")]
    name: Option<String>,
    /// Data directory of the mesh
    #[arg(long, global = true, value_name = "D")]
    data_dir: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Let an image reference run a command of this machine
    #[command(
        after_help = "Example:\n  meltemi image add ghcr.io/acme/api:1.4 -- /usr/local/bin/api --port 8080\n  meltemi image add '*/acme/*' -- /bin/sleep infinity"
    )]
    Add {
        /// Image reference as in the manifest; `*` stands for any characters
        reference: String,
        /// The image's entrypoint: a command and its arguments
        #[arg(last = true, required = true, num_args = 1.., value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Print the entries
    #[command(after_help = "Example:\n  meltemi image list")]
    List {
        /// Output form
        #[arg(short, long, value_parser = ["table", "json"], default_value = "table")]
        output: String,
    },
    /// Remove an entry
    #[command(after_help = "Example:\n  meltemi image remove ghcr.io/acme/api:1.4")]
    Remove {
        /// The reference as `list` prints it
        reference: String,
    },
}

type Table = BTreeMap<String, Vec<String>>;

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let paths = Paths::meant(
        args.name.as_deref(),
        args.data_dir.as_deref(),
        std::env::var_os("KUBECONFIG").as_deref(),
    )?;
    let file = paths.images();
    let mut table = read(&file)?;
    match &args.verb {
        Verb::Add { reference, command } => {
            if reference.trim().is_empty() || reference.chars().any(char::is_whitespace) {
                bail!(
                    "image reference {reference:?}: expected a reference without blanks, e.g. docker.io/acme/api:1.4"
                );
            }
            paths.create()?;
            table.insert(reference.clone(), command.clone());
            write(&file, &table)?;
            println!("image {reference} runs: {} (mesh in {})", written(command), paths.data.display());
            if let Some(doubt) = command.first().and_then(|program| doubt(Path::new(program))) {
                eprintln!("warning: {doubt}");
            }
        }
        Verb::List { output } if output == "json" => println!("{}", serde_json::to_string_pretty(&table)?),
        Verb::List { .. } => {
            let width = table.keys().map(String::len).max().unwrap_or(0).max("REFERENCE".len());
            println!("{:width$}   COMMAND", "REFERENCE");
            for (reference, command) in &table {
                println!("{reference:width$}   {}", written(command));
            }
        }
        Verb::Remove { reference } => {
            if table.remove(reference).is_none() {
                bail!("image {reference:?} is not in the table; `meltemi image list` prints it");
            }
            write(&file, &table)?;
            println!("image {reference} removed");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A command as a shell would take it.
fn written(command: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    let word = |w: &String| {
        if !w.is_empty() && w.chars().all(plain) {
            w.clone()
        } else {
            format!("'{}'", w.replace('\'', "'\\''"))
        }
    };
    command.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// Why a program would not run in a Pod.
fn doubt(program: &Path) -> Option<String> {
    let own =
        ["/tmp", "/run", "/var", "/proc", "/dev", "/etc"].iter().find(|folder| program.starts_with(folder));
    match own {
        _ if !program.is_absolute() => None,
        Some(folder) => Some(format!(
            "{}: a Pod has a {folder} of its own and does not see this one; put the program elsewhere",
            program.display()
        )),
        None if !program.is_file() => {
            Some(format!("{}: there is no such file on this machine", program.display()))
        }
        None => None,
    }
}

fn read(file: &Path) -> anyhow::Result<Table> {
    match fs::read(file) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("reading {}", file.display())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Table::new()),
        Err(e) => Err(e).with_context(|| format!("reading {}", file.display())),
    }
}

/// Replaces the file in one step, so that a runner never reads half of it.
fn write(file: &Path, table: &Table) -> anyhow::Result<()> {
    let next = file.with_extension("json.next");
    fs::write(&next, serde_json::to_vec_pretty(table)?)
        .with_context(|| format!("writing {}", next.display()))?;
    fs::rename(&next, file).with_context(|| format!("writing {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_written_as_a_shell_takes_them() {
        let words = ["/bin/sh", "-c", "echo it's", ""].map(str::to_owned);
        assert_eq!(written(&words), r"/bin/sh -c 'echo it'\''s' ''");
    }

    #[test]
    fn a_program_that_no_pod_sees_is_doubted() {
        for (program, doubted) in [("/bin/sh", false), ("sh", false), ("/no/such", true), ("/tmp/a", true)] {
            assert_eq!(doubt(Path::new(program)).is_some(), doubted, "{program}");
        }
    }
}
