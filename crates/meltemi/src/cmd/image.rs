// SPDX-License-Identifier: Apache-2.0
//! `meltemi image`: the user's part of the image table and the roots of loaded images, kept in the data directory and watched
//! by the runners.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use clap::Subcommand;
use meltemi_runner::image::loaded::Store;
use meltemi_runner::image::{self, Entries, Entry, HostFolder};

use crate::cmd::columns;
use crate::cmd::output::TableOrJson;
use crate::machine::paths::Paths;

/// What a Pod's image runs on this machine; no image is ever pulled.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  meltemi image add ghcr.io/acme/api:1.4 -- /usr/local/bin/api --port 8080\n  meltemi image load ghcr.io/acme/web:2 web.tar"
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
        after_help = "Examples:\n  meltemi image add ghcr.io/acme/api:1.4 -- /usr/local/bin/api --port 8080\n  meltemi image add '*/acme/*' -- /bin/sleep infinity\n  meltemi image add acme/web --mount /srv/web --mount /home/ann/site:/site -- /srv/web/bin/web --root /site\n\nA program of more than one file needs its folders: containers see /usr, /bin and /lib of this machine and nothing else of it."
    )]
    Add {
        /// Image reference as in the manifest; `*` stands for any characters
        reference: String,
        /// Folder of this machine that the image's containers see, read-only, at PATH or at its own place
        #[arg(long = "mount", value_name = "DIR[:PATH]", value_parser = HostFolder::parse)]
        mounts: Vec<HostFolder>,
        /// The image's entrypoint: a command and its arguments
        #[arg(last = true, required = true, num_args = 1.., value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Give an image reference a root of its own: its containers see that, and nothing of this machine
    #[command(
        after_help = "Examples:\n  docker save -o web.tar ghcr.io/acme/web:2 && meltemi image load ghcr.io/acme/web:2 web.tar\n  skopeo copy docker://redis:8 oci:redis && meltemi image load redis:8 redis\n  meltemi image load acme/tools ./rootfs -- /bin/sh\n\nThe files are copied into the mesh's data directory. What a container changes of them is kept in memory and goes with the container. Loading a reference again replaces it for containers that start from then on."
    )]
    Load {
        /// Image reference as in the manifest
        reference: String,
        /// A folder that is a root file system, an OCI image layout (folder or tar), or a tar of `docker save`
        path: PathBuf,
        /// Takes the place of the image's own entrypoint and arguments
        #[arg(last = true, num_args = 1.., value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Print the entries
    #[command(after_help = "Example:\n  meltemi image list")]
    List {
        /// Output form
        #[arg(short, long, value_enum, default_value = "table")]
        output: TableOrJson,
    },
    /// Remove an entry, and the files of a loaded image
    #[command(after_help = "Example:\n  meltemi image remove ghcr.io/acme/api:1.4")]
    Remove {
        /// The reference as `list` prints it
        reference: String,
    },
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let paths = Paths::meant(
        args.name.as_deref(),
        args.data_dir.as_deref(),
        std::env::var_os("KUBECONFIG").as_deref(),
    )?;
    let file = paths.images();
    let store = Store::of(&file);
    let read = || image::load(&file).map_err(anyhow::Error::msg);
    match &args.verb {
        Verb::Add { reference, mounts, command } => {
            check_reference(reference)?;
            for mount in mounts {
                check_folder(&mount.source, &paths.data)?;
            }
            paths.create()?;
            let changing = store.change()?;
            let mut table = read()?;
            let entry = Entry { command: command.clone(), mounts: mounts.clone(), loaded: None };
            table.insert(reference.clone(), entry);
            write(&file, &table)?;
            changing.sweep(&table);
            println!("image {reference} runs: {} (mesh in {})", written(command), paths.data.display());
            if let Some(doubt) = command.first().and_then(|program| doubt(Path::new(program), mounts)) {
                eprintln!("warning: {doubt}");
            }
        }
        Verb::Load { reference, path, command } => load(reference, path, command, &paths, &store)?,
        Verb::List { output: TableOrJson::Json } => println!("{}", serde_json::to_string_pretty(&read()?)?),
        Verb::List { .. } => {
            let table = read()?;
            let heading = columns::row(["REFERENCE", "FILES", "COMMAND"]);
            let rows = table.iter().map(|(reference, entry)| {
                let default = entry.loaded.iter().flat_map(|loaded| &loaded.config.cmd);
                let command: Vec<String> = entry.command.iter().chain(default).cloned().collect();
                vec![reference.clone(), written_files(entry), written(&command)]
            });
            let rows: Vec<Vec<String>> = std::iter::once(heading).chain(rows).collect();
            print!("{}", columns::lay_out(&rows, 3));
        }
        Verb::Remove { reference } => {
            let missing =
                || anyhow!("image {reference:?} is not in the table; `meltemi image list` prints it");
            read()?.get(reference).ok_or_else(missing)?;
            let changing = store.change()?;
            let mut table = read()?;
            let entry = table.remove(reference).ok_or_else(missing)?;
            if entry.loaded.is_some_and(|loaded| changing.is_used(&loaded)) {
                bail!("image {reference}: containers of it are running; delete their Pods first");
            }
            write(&file, &table)?;
            changing.sweep(&table);
            println!("image {reference} removed");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn check_reference(reference: &str) -> anyhow::Result<()> {
    if reference.trim().is_empty() || reference.chars().any(char::is_whitespace) {
        bail!(
            "image reference {reference:?}: expected a reference without blanks, e.g. docker.io/acme/api:1.4"
        );
    }
    Ok(())
}

/// Gives a reference a root of its own. The table names it last of all: what is interrupted before leaves nothing that counts.
fn load(
    reference: &str,
    path: &Path,
    command: &[String],
    paths: &Paths,
    store: &Store,
) -> anyhow::Result<()> {
    check_reference(reference)?;
    if reference.contains('*') {
        bail!("image reference {reference:?}: `load` takes one reference, without `*`");
    }
    if path.is_dir() {
        check_keys("PATH", path, &paths.data)?;
    }
    paths.create()?;
    // Folders that the image does not describe are for all users of a Pod, whatever this user's habits are.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let changing = store.change()?;
    let table = image::load(&paths.images()).map_err(anyhow::Error::msg)?;
    let unpacked = changing.unpack(reference, path);
    let mut loaded = unpacked.with_context(|| format!("image {}: not loaded", path.display()))?;
    if !command.is_empty() {
        loaded.config.entrypoint = command.to_vec();
        loaded.config.cmd.clear();
    }
    let shown: Vec<String> = loaded.config.entrypoint.iter().chain(&loaded.config.cmd).cloned().collect();
    let mut next = table.clone();
    let entry = Entry { command: loaded.config.entrypoint.clone(), mounts: Vec::new(), loaded: Some(loaded) };
    let before = next.insert(reference.to_owned(), entry);
    if let Err(error) = write(&paths.images(), &next) {
        changing.sweep(&table);
        return Err(error);
    }
    changing.sweep(&next);
    match shown.as_slice() {
        [] => println!(
            "image {reference} loaded; it has no command, so its manifests need one (mesh in {})",
            paths.data.display()
        ),
        _ => println!(
            "image {reference} loaded; it runs: {} (mesh in {})",
            written(&shown),
            paths.data.display()
        ),
    }
    if before.and_then(|entry| entry.loaded).is_some_and(|loaded| changing.is_used(&loaded)) {
        eprintln!(
            "warning: containers run on the files that it had before; these go with the next `meltemi image` after their end"
        );
    }
    Ok(())
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

fn written_files(entry: &Entry) -> String {
    if entry.loaded.is_some() { "its own".to_owned() } else { written_mounts(&entry.mounts) }
}

fn written_mounts(mounts: &[HostFolder]) -> String {
    let one = |mount: &HostFolder| match mount.source == mount.target {
        true => mount.source.display().to_string(),
        false => format!("{}:{}", mount.source.display(), mount.target.display()),
    };
    if mounts.is_empty() { "-".to_owned() } else { mounts.iter().map(one).collect::<Vec<_>>().join(",") }
}

/// Refuses what no Pod can or may see: Pods that could read the mesh's data directory could be anybody.
fn check_folder(source: &Path, data: &Path) -> anyhow::Result<()> {
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let (folder, data) = (real(source), real(data));
    if !folder.is_dir() {
        bail!("--mount {}: there is no such folder on this machine", source.display());
    }
    if folder.starts_with("/run") || folder.starts_with("/proc") {
        bail!(
            "--mount {}: a mesh has a {} of its own",
            source.display(),
            if folder.starts_with("/run") { "/run" } else { "/proc" }
        );
    }
    check_keys("--mount", source, &data)
}

fn check_keys(what: &str, source: &Path, data: &Path) -> anyhow::Result<()> {
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let (folder, data) = (real(source), real(data));
    if data.starts_with(&folder) || folder.starts_with(&data) {
        bail!("{what} {}: the keys of the mesh are in {}", source.display(), data.display());
    }
    Ok(())
}

/// Why a program would not run in a Pod.
fn doubt(program: &Path, mounts: &[HostFolder]) -> Option<String> {
    if let Some(mount) = mounts.iter().find(|mount| program.starts_with(&mount.target)) {
        let file = mount.source.join(program.strip_prefix(&mount.target).unwrap_or(program));
        let missing = || format!("{}: there is no such file on this machine", file.display());
        return (!file.is_file()).then(missing);
    }
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

/// Replaces the file in one step, so that a runner never reads half of it.
fn write(file: &Path, table: &Entries) -> anyhow::Result<()> {
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
    fn a_folder_is_refused_where_it_is_not_or_holds_the_keys() {
        let folder = tempfile::tempdir().unwrap();
        let (data, app) = (folder.path().join("data"), folder.path().join("app"));
        for made in [&data.join("pki"), &app] {
            fs::create_dir_all(made).unwrap();
        }
        fs::write(app.join("run"), "").unwrap();
        std::os::unix::fs::symlink(&data, folder.path().join("link")).unwrap();
        let allowed = |path: &Path| check_folder(path, &data).is_ok();
        assert!(allowed(&app));
        for refused in ["data", "data/pki", "", "missing", "app/run", "link"] {
            assert!(!allowed(&folder.path().join(refused)), "{refused}");
        }
        assert!(!allowed(Path::new("/proc")) && !allowed(Path::new("/")));
        let mounts = [HostFolder { source: app.clone(), target: "/app".into() }];
        assert_eq!(doubt(Path::new("/app/run"), &mounts), None);
        assert!(doubt(Path::new("/app/other"), &mounts).is_some());
        assert_eq!(written_mounts(&mounts), format!("{}:/app", app.display()));
        assert_eq!(written_mounts(&[]), "-");
    }

    #[test]
    fn a_program_that_no_pod_sees_is_doubted() {
        for (program, doubted) in [("/bin/sh", false), ("sh", false), ("/no/such", true), ("/tmp/a", true)] {
            assert_eq!(doubt(Path::new(program), &[]).is_some(), doubted, "{program}");
        }
    }
}
