// SPDX-License-Identifier: Apache-2.0
//! One instance of a container: made, started, logged, ended.

mod error;
mod etc;
pub(crate) mod running;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::api::core::v1::{Container, Pod};
use meltemi_linux::process::{Exit, pipe};
use meltemi_linux::pty;
use nix::fcntl::Flock;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe as tokio_pipe;
use tokio::sync::{broadcast, watch};

pub(crate) use self::error::{StartError, StartReason};
use self::running::{Running, Stdin};
use crate::accounts::Accounts;
use crate::cgroups::Limits;
use crate::content::MountError;
use crate::context::{Context, PodEntry};
use crate::expand::expand;
use crate::image::Image;
use crate::image::loaded::Store;
use crate::logs::{Log, Stream};
use crate::pod::ephemeral;
use crate::pod_init::{Bind, ContainerSpec, ImageRoot};
use crate::sandbox::{Sandbox, Stdio};
use crate::{env, image, rights, volumes};

/// Folder of a container's logs.
pub(crate) fn log_folder(ctx: &Context, entry: &PodEntry, container: &str) -> PathBuf {
    let pod = format!("{}_{}_{}", entry.namespace, entry.name, entry.uid);
    ctx.config.logs_dir.join(pod).join(container)
}

/// Whether the containers of a Pod see each other's processes. Those of the mesh's own that may enter other Pods'
/// namespaces do: the runner knows them by the PID namespace of their Pod.
fn shares_processes(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    spec.share_process_namespace == Some(true) || rights::is_system(pod)
}

/// Looks the image up. Before one is said to be unknown the table is read again: it may have been added a moment ago.
pub(crate) fn image_of(ctx: &Context, container: &Container) -> Result<Image, image::ImageError> {
    let reference = container.image.as_deref().unwrap_or_default();
    let found = image::resolve(reference, &ctx.images());
    if !matches!(found, Err(image::ImageError::Unknown { .. })) {
        return found;
    }
    let Ok(entries) = image::load(&ctx.config.images) else { return found };
    ctx.set_images(entries);
    image::resolve(reference, &ctx.images())
}

/// The users that an image knows: its own, or those of the machine whose programs it runs.
fn accounts_of(ctx: &Context, image: &Image) -> Accounts {
    match &image.loaded {
        Some(loaded) => Accounts::of_image(&Store::of(&ctx.config.images).root(loaded)),
        None => Accounts::read(Path::new("/etc")),
    }
}

/// The users and groups that the images of a Pod say its programs are.
pub(crate) fn image_ids(ctx: &Context, pod: &Pod) -> BTreeSet<u32> {
    let Some(spec) = &pod.spec else { return BTreeSet::new() };
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let ids = containers.filter_map(|container| {
        let image = image_of(ctx, container).ok()?;
        let user = image.loaded.as_ref().map(|loaded| loaded.config.user.clone())?;
        rights::of_image(&user, &accounts_of(ctx, &image)).ok()
    });
    ids.flat_map(|(uid, gid)| [Some(uid), gid]).flatten().collect()
}

/// Marks the files of an image as used while the result lives. `None` for programs of the machine.
pub(crate) fn hold(ctx: &Context, image: &Image) -> Result<Option<Flock<File>>, StartError> {
    let held = image.loaded.as_ref().map(|loaded| Store::of(&ctx.config.images).hold(loaded));
    let removed = |e: io::Error| StartError {
        reason: StartReason::Config,
        message: format!("the files of image {} are being removed: {e}", image.reference),
    };
    held.transpose().map_err(removed)
}

/// Builds the spec of an instance.
pub(crate) async fn spec(
    ctx: &Arc<Context>,
    entry: &PodEntry,
    container: &Container,
    image: &Image,
) -> Result<ContainerSpec, StartError> {
    let config_error = |message: String| StartError { reason: StartReason::Config, message };
    let pod = entry.pod();
    let address = entry.state().address;
    let image_config = image.config();
    let accounts = accounts_of(ctx, image);
    let rights = rights::of(&pod, container, &image_config.user, &accounts).map_err(config_error)?;
    let built = env::build(ctx, &pod, container, &image_config.env, address).await;
    let mut variables = built.map_err(|e| config_error(e.to_string()))?;
    let has_home = container.env.iter().flatten().any(|variable| variable.name == "HOME")
        || image_config.env.iter().any(|variable| variable.starts_with("HOME="));
    if !has_home {
        variables.insert("HOME".to_owned(), accounts.home(rights.ids().0).to_owned());
    }
    let words = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|w| expand(w, &variables)).collect()
    };
    let argv = image.argv(words(&container.command), words(&container.args));
    if argv.is_empty() {
        return Err(config_error("no command specified".to_owned()));
    }
    let dir = ctx.config.pods_dir.join(&entry.uid);
    let root = dir.join("roots").join(&container.name);
    fs::create_dir_all(&root).map_err(|e| config_error(e.to_string()))?;
    let mut binds = Vec::new();
    // A root of its own shows nothing of the machine.
    if image.loaded.is_none() {
        binds.push(whole(ctx.config.binary.clone(), image::BINARY.into(), true));
        binds.extend(own_program(&image.entrypoint));
        binds.extend(image.binds());
    }
    binds.extend(
        volume_binds(ctx, &pod, container, &dir, &variables).map_err(|e| config_error(e.to_string()))?,
    );
    let termination = dir.join("termination").join(&container.name);
    let written = fs::create_dir_all(dir.join("termination")).and_then(|()| fs::write(&termination, ""));
    written.map_err(|e| config_error(e.to_string()))?;
    let target =
        container.termination_message_path.clone().unwrap_or_else(|| "/dev/termination-log".to_owned());
    let security = container.security_context.as_ref();
    let owner = entry.sandbox().map_or(0, |sandbox| sandbox.id_outside(0));
    let opened = fs::set_permissions(&termination, fs::Permissions::from_mode(0o666))
        .and_then(|()| lchown(&termination, Some(owner), Some(owner)));
    opened.map_err(|e| config_error(e.to_string()))?;
    binds.push(whole(termination, target.into(), false));
    let host = entry.host_network();
    let asked = container.working_dir.clone().filter(|d| !d.is_empty());
    let cwd = asked.or(Some(image_config.working_dir).filter(|d| !d.is_empty()));
    let image_root = image.loaded.as_ref().map(|loaded| ImageRoot {
        folder: Store::of(&ctx.config.images).root(loaded),
        copy: dir.join("copies").join(&container.name).join(&loaded.folder),
    });
    Ok(ContainerSpec {
        root,
        image: image_root,
        hostname: (!host).then(|| env::hostname(&pod, &ctx.config.node_name)),
        binds,
        files: etc::files(ctx, &pod, address, image.loaded.is_none().then_some(&accounts)),
        env: variables.into_iter().collect(),
        argv,
        cwd: cwd.unwrap_or_else(|| "/".to_owned()).into(),
        read_only_root: security.and_then(|s| s.read_only_root_filesystem) == Some(true),
        rights,
        share_processes: shares_processes(&pod),
        terminal: container.tty == Some(true),
    })
}

/// The image table's program, where it is outside of the folders that every container sees, is shown at its own path. No other
/// program of the machine is: what a manifest says does not open it.
fn own_program(argv: &[String]) -> Option<Bind> {
    let path = Path::new(argv.first()?);
    let common = [
        "/usr",
        "/bin",
        "/sbin",
        "/lib",
        "/lib64",
        "/opt/meltemi",
        "/proc",
        "/dev",
        "/run",
        "/var",
        "/tmp",
        "/etc",
    ];
    let shown = common.iter().any(|c| path.starts_with(c));
    (path.is_absolute() && !shown && path.is_file()).then(|| whole(path.to_owned(), path.to_owned(), true))
}

fn whole(source: PathBuf, target: PathBuf, read_only: bool) -> Bind {
    Bind { source, target, read_only, ..Bind::default() }
}

fn volume_binds(
    ctx: &Arc<Context>,
    pod: &Pod,
    container: &Container,
    dir: &Path,
    variables: &BTreeMap<String, String>,
) -> Result<Vec<Bind>, MountError> {
    let spec = pod.spec.clone().unwrap_or_default();
    let mut binds = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let volume = spec.volumes.iter().flatten().find(|v| v.name == mount.name);
        let volume = volume.ok_or_else(|| MountError::NoVolume { name: mount.name.clone() })?;
        let folder = match &volume.host_path {
            Some(host) => volumes::host_path(ctx, &host.path)?,
            None => volumes::folder(dir, &mount.name),
        };
        let sub =
            mount.sub_path.clone().or_else(|| mount.sub_path_expr.as_ref().map(|e| expand(e, variables)));
        let beneath = sub_path(&sub.unwrap_or_default())?;
        let contents = volume.config_map.is_some() || volume.secret.is_some();
        let made = contents || volume.projected.is_some() || volume.downward_api.is_some();
        let claim = volume.persistent_volume_claim.as_ref();
        let read_only =
            mount.read_only == Some(true) || made || claim.is_some_and(|c| c.read_only == Some(true));
        let (target, map_ids) = (mount.mount_path.clone().into(), claim.is_some());
        binds.push(Bind { source: folder, beneath, target, read_only, map_ids });
    }
    // Who may add a container to a Pod does not get the Pod's rights by that, as on Kubernetes.
    if volumes::automount(pod) && !ephemeral::is_one(pod, &container.name) {
        let source = volumes::folder(dir, volumes::TOKEN_VOLUME);
        binds.push(whole(source, volumes::TOKEN_PATH.into(), true));
    }
    // A mount above another one has to come first.
    binds.sort_by_key(|b| b.target.components().count());
    Ok(binds)
}

/// A path below a volume. It is opened below the volume when the container starts: only then is it certain that no link
/// leads out.
fn sub_path(sub: &str) -> Result<PathBuf, MountError> {
    if Path::new(sub).components().any(|c| !matches!(c, std::path::Component::Normal(_))) {
        return Err(MountError::SubPathLeadsOut { path: sub.to_owned() });
    }
    Ok(sub.into())
}

/// What an instance of a container is started from.
pub(crate) struct Launch<'a> {
    pub(crate) container: &'a Container,
    pub(crate) spec: ContainerSpec,
    pub(crate) log: Log,
    /// Keeps the files of its image from being removed.
    pub(crate) image: Option<Flock<File>>,
    /// The instance whose processes it sees.
    pub(crate) target: Option<Arc<Running>>,
}

/// Starts an instance and its log.
pub(crate) async fn start(
    ctx: &Arc<Context>,
    entry: &PodEntry,
    sandbox: Arc<Sandbox>,
    launch: Launch<'_>,
) -> Result<Arc<Running>, StartError> {
    let Launch { container, spec, log, image, target } = launch;
    let failed = |e: io::Error| StartError { reason: StartReason::Run, message: e.to_string() };
    let unprepared = |e: io::Error| StartError { reason: StartReason::Config, message: e.to_string() };
    let (output, _) = broadcast::channel(256);
    let wants_stdin = container.stdin == Some(true);
    let ends = Ends::open(spec.terminal, wants_stdin).map_err(failed)?;
    let (env, cwd, rights) = (spec.env.clone(), spec.cwd.clone(), spec.rights.clone());
    let stdio = ends.theirs;
    let limits = Limits::of(container).map_err(|e| unprepared(io::Error::other(e)))?;
    let (cgroups, uid, name) = (ctx.clone(), entry.uid.clone(), container.name.clone());
    let started = tokio::task::spawn_blocking(move || {
        let mounts = sandbox.open_mounts(&spec).map_err(unprepared)?;
        let group = Arc::new(cgroups.cgroups.container(&uid, &name, &limits).map_err(failed)?);
        let target = target.as_ref().map(|target| &target.child);
        match sandbox.start_mounted(&spec, mounts, stdio, Some(&group), target) {
            Ok(child) => Ok((child, group)),
            Err(_) if group.is_oom_killed() => {
                group.remove();
                Err(failed(io::Error::other("its memory limit is too small for a container to start in")))
            }
            Err(error) => {
                group.remove();
                Err(failed(error))
            }
        }
    });
    let (child, group) = started.await.map_err(|e| failed(io::Error::other(e)))??;
    let mut pumps = Vec::new();
    let mut stdin = None;
    let mut terminal = None;
    match ends.ours {
        Ours::Terminal(master) => {
            let master = Arc::new(pty::Master::new(master).map_err(failed)?);
            terminal = Some(master.clone());
            pumps.push(ctx.spawn_pump(Source::Terminal(master), Stream::Stdout, log, output.clone()));
        }
        Ours::Pipes { stdin: input, stdout, stderr } => {
            stdin = input.map(tokio_pipe::Sender::from_owned_fd).transpose().map_err(failed)?;
            for (fd, stream) in [(stdout, Stream::Stdout), (stderr, Stream::Stderr)] {
                let pipe = tokio_pipe::Receiver::from_owned_fd(fd).map_err(failed)?;
                pumps.push(ctx.spawn_pump(Source::Pipe(pipe), stream, log.clone(), output.clone()));
            }
        }
    }
    let (exit_tx, exit) = watch::channel(None);
    let running = Arc::new(Running {
        child,
        group,
        _image: image,
        env,
        cwd,
        rights,
        output,
        stdin: Stdin::new(stdin, container.stdin_once == Some(true)),
        terminal,
        exit,
    });
    let waiting = running.clone();
    ctx.job("container", async move {
        let exit = waiting.child.ended().await.unwrap_or(Exit::Code(255));
        // What it wrote last belongs to its log; a descendant that keeps the pipe open does not hold up the end.
        let drained =
            futures::future::join_all(pumps.into_iter().map(|mut p| async move { p.changed().await }));
        let _ = tokio::time::timeout(Duration::from_millis(500), drained).await;
        waiting.stdin.close();
        exit_tx.send_replace(Some(exit));
        Ok::<(), io::Error>(())
    });
    Ok(running)
}

/// Where an instance's output comes from.
pub(crate) enum Source {
    Pipe(tokio_pipe::Receiver),
    Terminal(Arc<pty::Master>),
}

impl Context {
    /// Copies output to the log and to whoever is attached; the receiver changes when it has ended.
    fn spawn_pump(
        &self,
        mut source: Source,
        stream: Stream,
        log: Log,
        output: broadcast::Sender<(Stream, Bytes)>,
    ) -> watch::Receiver<()> {
        let (done, ended) = watch::channel(());
        self.job("container output", async move {
            let mut writer = log.writer(stream);
            let mut buffer = vec![0; 16 << 10];
            let result = loop {
                let got = match &mut source {
                    Source::Pipe(pipe) => pipe.read(&mut buffer).await,
                    Source::Terminal(master) => master.read(&mut buffer).await,
                };
                let got = match got {
                    Ok(0) => break Ok(()),
                    Ok(got) => got,
                    Err(error) => break Err(error),
                };
                let _ = output.send((stream, Bytes::copy_from_slice(&buffer[..got])));
                if let Err(error) = writer.write(&buffer[..got]) {
                    tracing::warn!(%error, "a container's log");
                }
            };
            let result = result.and(writer.finish());
            drop(done);
            result
        });
        ended
    }
}

enum Ours {
    Terminal(OwnedFd),
    Pipes { stdin: Option<OwnedFd>, stdout: OwnedFd, stderr: OwnedFd },
}

struct Ends {
    ours: Ours,
    theirs: Stdio,
}

impl Ends {
    fn open(terminal: bool, wants_stdin: bool) -> io::Result<Self> {
        if terminal {
            let pty = pty::open()?;
            let theirs = Stdio {
                stdin: pty.slave.try_clone()?,
                stdout: pty.slave.try_clone()?,
                stderr: pty.slave,
                terminal: true,
            };
            return Ok(Self { ours: Ours::Terminal(pty.master), theirs });
        }
        let (stdout, out_end) = pipe()?;
        let (stderr, err_end) = pipe()?;
        let (stdin, in_end) = if wants_stdin {
            let (read, write) = pipe()?;
            (Some(write), read)
        } else {
            (None, File::open("/dev/null")?.into())
        };
        let theirs = Stdio { stdin: in_end, stdout: out_end, stderr: err_end, terminal: false };
        Ok(Self { ours: Ours::Pipes { stdin, stdout, stderr }, theirs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sources of what an instance shows, for a Pod whose container has this `command` and an image with this entrypoint.
    async fn shown(command: Option<&str>, entrypoint: &str) -> Vec<PathBuf> {
        let folder = tempfile::tempdir().unwrap();
        let (_trigger, watch) = meltemi_runtime::drain::channel();
        let (tasks, _supervisor) = meltemi_runtime::Tasks::new("test", watch);
        let node = std::net::Ipv4Addr::new(172, 30, 0, 11);
        let range = "10.244.1.0/24".parse().unwrap();
        let config = crate::Config::one_machine("node-1", node, range, folder.path(), folder.path()).unwrap();
        let api = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let client = kube::Client::try_from(api).unwrap();
        let users = crate::users::Supply::new(&config.ids_dir, 0).unwrap();
        let shares = crate::context::Shares { users, cgroups: crate::cgroups::Cgroups::default() };
        let ctx = Context::new(config, client, Vec::new(), tasks, image::Entries::new(), shares);
        let pod = serde_json::json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {
            "automountServiceAccountToken": false, "enableServiceLinks": false,
            "containers": [{"name": "c", "image": "x", "command": command.map(|c| [c])}]}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let container = pod.spec.as_ref().unwrap().containers[0].clone();
        let state = crate::state::State::of(&pod, node.into(), jiff::Timestamp::now());
        let entry = PodEntry::new(Arc::new(pod), state);
        let image = Image {
            reference: "x".into(),
            entrypoint: vec![entrypoint.into()],
            mounts: Vec::new(),
            loaded: None,
        };
        let spec = spec(&ctx, &entry, &container, &image).await.unwrap();
        let first = command.unwrap_or(entrypoint);
        assert_eq!(spec.argv, [first]);
        spec.binds.into_iter().map(|bind| bind.source).collect()
    }

    #[tokio::test]
    async fn a_manifests_command_opens_no_program_of_the_machine() {
        // A program outside of the folders that every container sees.
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let program = folder.path().join("program");
        fs::write(&program, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        let path = program.to_str().unwrap();
        assert!(!shown(Some(path), "curl").await.contains(&program));
        assert!(!shown(Some(path), "/usr/bin/curl").await.contains(&program));
        // What an administrator has put into the image table is shown.
        assert!(shown(None, path).await.contains(&program));
        assert!(shown(Some("/bin/sh"), path).await.contains(&program));
    }
}
