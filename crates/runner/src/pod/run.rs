// SPDX-License-Identifier: Apache-2.0
//! Containers of a Pod: started, restarted with growing pauses, probed, ended.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as Spec, Lifecycle, LifecycleHandler};
use meltemi_linux::process::Exit;
use nix::libc;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::container::running::Running;
use crate::container::{self, Launch, StartError, StartReason};
use crate::context::{Context, PodEntry};
use crate::logs::Log;
use crate::pod::{backoff, ephemeral};
use crate::probe;
use crate::restart::RestartPolicy;
use crate::sandbox::Sandbox;
use crate::state::{Ended, Phase};
use crate::tail::read_tail;

const STARTED_POLL: Duration = Duration::from_millis(20);
const IMAGE_PAUSE: Duration = Duration::from_secs(2);

/// How one run of a container went.
enum Outcome {
    /// It ran and ended so.
    Ended(Exit),
    /// It could not be started; tried again after the pause.
    NotStarted { retry: Duration },
}

/// Runs the init containers one after the other, then all containers until none is to run again.
pub(super) async fn containers(ctx: &Arc<Context>, entry: &Arc<PodEntry>, sandbox: &Arc<Sandbox>) {
    let pod = entry.pod();
    let spec = pod.spec.clone().unwrap_or_default();
    let policy = RestartPolicy::of_pod(&pod);
    // Companions end with this function.
    let (_here, gone) = watch::channel(());
    for init in spec.init_containers.iter().flatten() {
        // An init container that always restarts is a companion: once started, it runs on beside the others.
        if init.restart_policy.as_deref() == Some("Always") {
            companion(ctx, entry, sandbox, init, gone.clone()).await;
            continue;
        }
        keep(ctx, entry, sandbox, init, policy.of_init_container()).await;
        if entry.state().init.get(&init.name).is_some_and(|c| !c.succeeded()) {
            return;
        }
    }
    entry.update(|s| {
        s.initialized = true;
        for container in s.main.values_mut() {
            if let Phase::Waiting { reason, .. } = &mut container.phase
                && reason == "PodInitializing"
            {
                "ContainerCreating".clone_into(reason);
            }
        }
    });
    let main = spec.containers.iter().map(|c| keep(ctx, entry, sandbox, c, policy));
    futures::future::join_all(main).await;
}

/// Runs a companion until `gone` closes; returns when it has started.
async fn companion(
    ctx: &Arc<Context>,
    entry: &Arc<PodEntry>,
    sandbox: &Arc<Sandbox>,
    spec: &Spec,
    mut gone: watch::Receiver<()>,
) {
    let (ctx2, entry2, sandbox, spec2) = (ctx.clone(), entry.clone(), sandbox.clone(), spec.clone());
    ctx.job("companion", async move {
        tokio::select! {
            () = keep(&ctx2, &entry2, &sandbox, &spec2, RestartPolicy::Always) => {}
            _ = gone.changed() => {}
        }
        Ok::<(), Infallible>(())
    });
    while !entry.state().container(&spec.name).is_some_and(|c| c.started) {
        tokio::time::sleep(STARTED_POLL).await;
    }
}

/// Runs a container, again and again as its policy says.
pub(super) async fn keep(
    ctx: &Arc<Context>,
    entry: &Arc<PodEntry>,
    sandbox: &Arc<Sandbox>,
    spec: &Spec,
    policy: RestartPolicy,
) {
    // It ended for good in an earlier life of the runner.
    if entry.state().container(&spec.name).is_some_and(|c| c.terminated()) {
        return;
    }
    let pace = backoff::Pace::of(&entry.pod());
    let mut pause = Duration::ZERO;
    loop {
        let begun = Instant::now();
        let exit = match once(ctx, entry, sandbox, spec).await {
            Outcome::Ended(exit) => exit,
            Outcome::NotStarted { retry } => {
                tokio::time::sleep(retry).await;
                continue;
            }
        };
        if !policy.runs_again(exit.success()) {
            return;
        }
        pause = pace.before_restart(pause, begun.elapsed());
        back_off(ctx, entry, spec, pause).await;
        pause = pace.after_restart(pause);
        entry.update(|s| {
            if let Some(c) = s.container(&spec.name) {
                c.restarts += 1;
            }
        });
    }
}

async fn back_off(ctx: &Arc<Context>, entry: &Arc<PodEntry>, spec: &Spec, pause: Duration) {
    if pause.is_zero() {
        return;
    }
    let full = format!("{}_{}({})", entry.name, entry.namespace, entry.uid);
    let text = format!("back-off {}s restarting failed container={} pod={full}", pause.as_secs(), spec.name);
    entry.update(|s| {
        if let Some(c) = s.container(&spec.name)
            && let Phase::Terminated(ended) = c.phase.clone()
        {
            c.last = Some(ended);
            c.phase = Phase::Waiting { reason: "CrashLoopBackOff".to_owned(), message: Some(text.clone()) };
        }
    });
    ctx.events.warning(
        &entry.pod(),
        Some(&spec.name),
        "BackOff",
        format!("Back-off restarting failed container {} in pod {full}", spec.name),
    );
    tokio::time::sleep(pause).await;
}

/// One run: image, environment, start, probes, end.
async fn once(ctx: &Arc<Context>, entry: &Arc<PodEntry>, sandbox: &Arc<Sandbox>, spec: &Spec) -> Outcome {
    let name = spec.name.as_str();
    let pod = entry.pod();
    let written = spec.image.clone().unwrap_or_default();
    let image = match container::image_of(ctx, spec) {
        Ok(image) => image,
        Err(error) => {
            waiting(entry, name, "ErrImagePull", &error.to_string());
            ctx.events.warning(
                &pod,
                Some(name),
                "Failed",
                format!("Failed to pull image {written:?}: {error}"),
            );
            tokio::time::sleep(Duration::from_millis(500)).await;
            waiting(entry, name, "ImagePullBackOff", &format!("Back-off pulling image {written:?}: {error}"));
            return Outcome::NotStarted { retry: IMAGE_PAUSE };
        }
    };
    let started = begin(ctx, entry, sandbox, spec, &image).await;
    let running = match started {
        Ok(running) => running,
        Err(error) if error.reason == StartReason::Config => {
            waiting(entry, name, error.reason.as_str(), &error.message);
            ctx.events.warning(&pod, Some(name), "Failed", format!("Error: {}", error.message));
            return Outcome::NotStarted { retry: IMAGE_PAUSE };
        }
        Err(error) => {
            ctx.events.warning(&pod, Some(name), "Failed", format!("Error: {}", error.message));
            ended(entry, name, Exit::Code(128), Timestamp::now(), Some(("StartError", error.message)));
            return Outcome::Ended(Exit::Code(128));
        }
    };
    let since = Timestamp::now();
    entry.running().insert(name.to_owned(), running.clone());
    let id = format!("{:x}{:x}", since.as_nanosecond(), running.child.pid());
    entry.update(|s| {
        if let Some(c) = s.container(name) {
            if let Phase::Terminated(ended) = &c.phase {
                c.last = Some(ended.clone());
            }
            c.phase = Phase::Running { since };
            c.image_id = image.reference.clone();
            c.id = id;
            c.started = spec.startup_probe.is_none();
            c.ready = c.started && spec.readiness_probe.is_none();
        }
    });
    ctx.events.normal(&pod, Some(name), "Started", format!("Started container {name}"));
    if let Some(handler) = spec.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) {
        hook(ctx, entry, sandbox, &running, handler, "PostStartHook").await;
    }
    let exit = watch_over(ctx, entry, sandbox, spec, &running).await;
    entry.running().remove(name);
    ended(entry, name, exit, since, termination(ctx, entry, spec, exit, &running));
    let _ = tokio::task::spawn_blocking(move || running.group.remove()).await;
    Outcome::Ended(exit)
}

async fn begin(
    ctx: &Arc<Context>,
    entry: &Arc<PodEntry>,
    sandbox: &Arc<Sandbox>,
    spec: &Spec,
    image: &crate::image::Image,
) -> Result<Arc<Running>, StartError> {
    let (name, pod) = (spec.name.as_str(), entry.pod());
    let written = spec.image.clone().unwrap_or_default();
    ctx.events.normal(
        &pod,
        Some(name),
        "Pulled",
        match &image.loaded {
            None => {
                format!("Container image {written:?} is in the image table: {}", image.entrypoint.join(" "))
            }
            Some(_) => format!("Container image {written:?} is loaded on this machine"),
        },
    );
    let held = container::hold(ctx, image)?;
    let target = ephemeral::target_of(entry, name)?;
    let built = container::spec(ctx, entry, spec, image).await?;
    ctx.events.normal(&pod, Some(name), "Created", format!("Created container: {name}"));
    let restarts = entry.state().container(name).map_or(0, |c| c.restarts);
    let folder = container::log_folder(ctx, entry, name);
    let log = Log::create(&folder.join(format!("{restarts}.log")));
    let log = log.map_err(|e| StartError { reason: StartReason::Run, message: format!("log: {e}") })?;
    // The log of the run before the last one is not asked for any more.
    let _ = std::fs::remove_file(folder.join(format!("{}.log", restarts - 2)));
    let launch = Launch { container: spec, spec: built, log, image: held, target };
    container::start(ctx, entry, sandbox.clone(), launch).await
}

/// Probes until the instance ends; a failed liveness or startup probe ends it.
async fn watch_over(
    ctx: &Arc<Context>,
    entry: &Arc<PodEntry>,
    sandbox: &Arc<Sandbox>,
    spec: &Spec,
    running: &Arc<Running>,
) -> Exit {
    tokio::select! {
        exit = running.ended() => exit,
        why = probe::watch(ctx, entry, sandbox, spec, running) => {
            ctx.events.normal(&entry.pod(), Some(&spec.name), "Killing", format!("Container {} {why}, will be restarted", spec.name));
            let grace = grace(entry);
            end(ctx, entry, sandbox, spec.lifecycle.as_ref(), running, grace).await
        }
    }
}

pub(super) fn waiting(entry: &PodEntry, name: &str, reason: &str, message: &str) {
    entry.update(|s| {
        if let Some(c) = s.container(name) {
            c.phase = Phase::Waiting { reason: reason.to_owned(), message: Some(message.to_owned()) };
            c.ready = false;
        }
    });
}

fn ended(entry: &PodEntry, name: &str, exit: Exit, started: Timestamp, why: Option<(&str, String)>) {
    let usual = if exit.success() { "Completed" } else { "Error" };
    let (reason, message) = match why {
        Some((reason, message)) => (reason.to_owned(), (!message.is_empty()).then_some(message)),
        None => (usual.to_owned(), None),
    };
    entry.update(|s| {
        if let Some(c) = s.container(name) {
            if let Phase::Terminated(before) = &c.phase {
                c.last = Some(before.clone());
            }
            let finished = Timestamp::now();
            c.phase = Phase::Terminated(Ended {
                code: exit.code(),
                signal: None,
                reason,
                message,
                started,
                finished,
            });
            c.ready = false;
            c.started = false;
        }
    });
}

/// Longest termination message in bytes: the end of the file, as in Kubernetes.
const MESSAGE: u64 = 4096;

/// What the container left as its last words.
fn termination(
    ctx: &Context,
    entry: &PodEntry,
    spec: &Spec,
    exit: Exit,
    running: &Running,
) -> Option<(&'static str, String)> {
    let path = ctx.config.pods_dir.join(&entry.uid).join("termination").join(&spec.name);
    let text = read_tail(&path, MESSAGE).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let reason = match exit {
        exit if exit.success() => "Completed",
        _ if running.group.is_oom_killed() => "OOMKilled",
        _ => "Error",
    };
    Some((reason, text))
}

fn grace(entry: &PodEntry) -> Duration {
    let pod = entry.pod();
    let asked = pod.metadata.deletion_grace_period_seconds;
    let own = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
    Duration::from_secs(u64::try_from(asked.or(own).unwrap_or(30)).unwrap_or(0))
}

/// Runs the preStop hook, asks, and kills when the grace is over.
async fn end(
    ctx: &Arc<Context>,
    entry: &Arc<PodEntry>,
    sandbox: &Arc<Sandbox>,
    lifecycle: Option<&Lifecycle>,
    running: &Arc<Running>,
    grace: Duration,
) -> Exit {
    let deadline = Instant::now() + grace;
    if !grace.is_zero()
        && let Some(handler) = lifecycle.and_then(|l| l.pre_stop.as_ref())
    {
        let hook = hook(ctx, entry, sandbox, running, handler, "PreStopHook");
        let _ = tokio::time::timeout_at(deadline, hook).await;
    }
    // A container's program is the first of its PID namespace, which SIGTERM does not end unless the program asks for it:
    // waiting for the grace period to pass would be in vain.
    if !grace.is_zero() && running.child.handles(libc::SIGTERM) {
        let _ = running.child.signal(libc::SIGTERM);
        // After a long hook there is still a moment for an orderly end.
        let deadline = deadline.max(Instant::now() + Duration::from_secs(2));
        if let Ok(exit) = tokio::time::timeout_at(deadline, running.ended()).await {
            return exit;
        }
    }
    let _ = running.child.signal(libc::SIGKILL);
    running.ended().await
}

async fn hook(
    ctx: &Arc<Context>,
    entry: &Arc<PodEntry>,
    sandbox: &Arc<Sandbox>,
    running: &Arc<Running>,
    handler: &LifecycleHandler,
    kind: &str,
) {
    if let Err(error) = probe::run_hook(entry, sandbox, running, handler).await {
        ctx.events.warning(&entry.pod(), None, &format!("Failed{kind}"), error.to_string());
    }
}

/// Ends all containers of a Pod that is to be deleted.
pub(super) async fn terminate(ctx: &Arc<Context>, entry: &Arc<PodEntry>) {
    let running: Vec<(String, Arc<Running>)> =
        entry.running().iter().map(|(n, r)| (n.clone(), r.clone())).collect();
    let Some(sandbox) = entry.sandbox() else { return };
    let pod = entry.pod();
    let spec = pod.spec.clone().unwrap_or_default();
    let grace = grace(entry);
    let ends = running.into_iter().map(|(name, running)| {
        let container = spec.containers.iter().find(|c| c.name == name).cloned();
        let (ctx, entry, sandbox) = (ctx.clone(), entry.clone(), sandbox.clone());
        async move {
            ctx.events.normal(&entry.pod(), Some(&name), "Killing", format!("Stopping container {name}"));
            let lifecycle = container.as_ref().and_then(|c| c.lifecycle.as_ref());
            let since = match entry.state().container(&name).map(|c| c.phase.clone()) {
                Some(Phase::Running { since }) => since,
                _ => Timestamp::now(),
            };
            let exit = end(&ctx, &entry, &sandbox, lifecycle, &running, grace).await;
            let why = container.as_ref().and_then(|c| termination(&ctx, &entry, c, exit, &running));
            ended(&entry, &name, exit, since, why);
        }
    });
    futures::future::join_all(ends).await;
}
