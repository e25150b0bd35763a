// SPDX-License-Identifier: Apache-2.0
//! Probes and lifecycle hooks. They are dialled inside the Pod's own network namespace, to the Pod's own address: they reach
//! nobody else, the capture need not let them pass, and no source address of the network stands for them.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use k8s_openapi::api::core::v1::{Container, ExecAction, HTTPGetAction, LifecycleHandler, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use meltemi_linux::process::Exit;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};

use self::error::ProbeError;
use crate::container::running::Running;
use crate::context::{Context, PodEntry};
use crate::sandbox::{Sandbox, Stdio};

mod error;
mod tls;

const MAX_BODY: usize = 10 << 10;

/// Who a probe is for, and what it needs.
struct Subject<'a> {
    entry: &'a Arc<PodEntry>,
    sandbox: &'a Arc<Sandbox>,
    container: &'a Container,
    running: &'a Arc<Running>,
}

/// Runs an instance's probes; ends when it has to be restarted, with the reason.
pub(crate) async fn watch(
    ctx: &Arc<Context>,
    entry: &Arc<PodEntry>,
    sandbox: &Arc<Sandbox>,
    container: &Container,
    running: &Arc<Running>,
) -> String {
    let subject = Subject { entry, sandbox, container, running };
    if let Some(probe) = &container.startup_probe {
        if !startup(ctx, &subject, probe).await {
            return "failed startup probe".to_owned();
        }
        entry.update(|s| {
            if let Some(c) = s.container(&container.name) {
                c.started = true;
                c.ready = container.readiness_probe.is_none();
            }
        });
    }
    let live = async {
        match &container.liveness_probe {
            Some(probe) => lively(ctx, &subject, probe).await,
            None => std::future::pending().await,
        }
    };
    let ready = async {
        match &container.readiness_probe {
            Some(probe) => readiness(ctx, &subject, probe).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = live => "failed liveness probe".to_owned(),
        () = ready => "ended its readiness probe".to_owned(),
    }
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(value.and_then(|v| u64::try_from(v).ok()).unwrap_or(default))
}

fn period(probe: &Probe) -> Duration {
    seconds(probe.period_seconds.filter(|p| *p > 0), 10)
}

fn threshold(value: Option<i32>, default: u32) -> u32 {
    value.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default)
}

async fn startup(ctx: &Context, subject: &Subject<'_>, probe: &Probe) -> bool {
    tokio::time::sleep(seconds(probe.initial_delay_seconds, 0)).await;
    let mut failures = 0;
    loop {
        match run(subject, probe).await {
            Ok(()) => return true,
            Err(error) => {
                unhealthy(ctx, subject, "Startup", &error);
                failures += 1;
                if failures >= threshold(probe.failure_threshold, 3) {
                    return false;
                }
            }
        }
        tokio::time::sleep(period(probe)).await;
    }
}

/// Returns when the probe has failed as often in a row as it may.
async fn lively(ctx: &Context, subject: &Subject<'_>, probe: &Probe) {
    tokio::time::sleep(seconds(probe.initial_delay_seconds, 0)).await;
    let mut failures = 0;
    loop {
        match run(subject, probe).await {
            Ok(()) => failures = 0,
            Err(error) => {
                unhealthy(ctx, subject, "Liveness", &error);
                failures += 1;
                if failures >= threshold(probe.failure_threshold, 3) {
                    return;
                }
            }
        }
        tokio::time::sleep(period(probe)).await;
    }
}

async fn readiness(ctx: &Context, subject: &Subject<'_>, probe: &Probe) {
    tokio::time::sleep(seconds(probe.initial_delay_seconds, 0)).await;
    let (mut good, mut bad) = (0, 0);
    let mut first = true;
    loop {
        let (ready, verdict) = match run(subject, probe).await {
            Ok(()) => {
                (good, bad) = (good + 1, 0);
                (true, good >= threshold(probe.success_threshold, 1))
            }
            Err(error) => {
                unhealthy(ctx, subject, "Readiness", &error);
                (good, bad) = (0, bad + 1);
                (false, bad >= threshold(probe.failure_threshold, 3))
            }
        };
        if verdict {
            subject.entry.update(|s| {
                if let Some(c) = s.container(&subject.container.name) {
                    c.ready = ready;
                }
            });
        }
        // While it is starting, look more often than asked: a Pod that is ready should be seen ready.
        let soon = !ready && first;
        tokio::time::sleep(if soon { period(probe).min(Duration::from_millis(250)) } else { period(probe) })
            .await;
        first = first && !ready && bad < 20;
    }
}

fn unhealthy(ctx: &Context, subject: &Subject<'_>, kind: &str, error: &ProbeError) {
    let pod = subject.entry.pod();
    ctx.events.warning(
        &pod,
        Some(&subject.container.name),
        "Unhealthy",
        format!("{kind} probe failed: {error}"),
    );
}

async fn run(subject: &Subject<'_>, probe: &Probe) -> Result<(), ProbeError> {
    let limit = seconds(probe.timeout_seconds.filter(|t| *t > 0), 1);
    let work = async {
        if let Some(get) = &probe.http_get {
            http_get(subject.entry, subject.sandbox, Some(subject.container), get).await
        } else if let Some(tcp) = &probe.tcp_socket {
            let port = port_of(&tcp.port, Some(subject.container))?;
            dial(subject.sandbox, target(subject.entry, tcp.host.as_deref(), port)?).await.map(drop)
        } else if let Some(action) = &probe.exec {
            exec(subject.sandbox, subject.running, action).await
        } else if probe.grpc.is_some() {
            Err(ProbeError::GrpcNotSupported)
        } else {
            Ok(())
        }
    };
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(ProbeError::TimedOut(limit)))
}

/// Runs a postStart or preStop hook.
pub(crate) async fn run_hook(
    entry: &Arc<PodEntry>,
    sandbox: &Arc<Sandbox>,
    running: &Arc<Running>,
    handler: &LifecycleHandler,
) -> Result<(), ProbeError> {
    if let Some(action) = &handler.exec {
        return exec(sandbox, running, action).await;
    }
    if let Some(get) = &handler.http_get {
        return http_get(entry, sandbox, None, get).await;
    }
    if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
    }
    Ok(())
}

async fn exec(sandbox: &Arc<Sandbox>, running: &Arc<Running>, action: &ExecAction) -> Result<(), ProbeError> {
    let exec = running.exec(action.command.clone().unwrap_or_default());
    let (sandbox, running) = (sandbox.clone(), running.clone());
    let started = tokio::task::spawn_blocking(move || {
        let null = || std::fs::File::options().read(true).write(true).open("/dev/null");
        let stdio =
            Stdio { stdin: null()?.into(), stdout: null()?.into(), stderr: null()?.into(), terminal: false };
        sandbox.exec(&running.child, &exec, stdio)
    });
    let child = started.await??;
    let ended = KillOnDrop(Some(child));
    let exit = match &ended.0 {
        Some(child) => child.ended().await?,
        None => Exit::Code(255),
    };
    drop(ended);
    if exit.success() { Ok(()) } else { Err(ProbeError::Exited(exit.code())) }
}

/// A probe's command does not outlive its time limit.
struct KillOnDrop(Option<meltemi_linux::process::Child>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(child) = self.0.take()
            && !matches!(child.try_wait(), Ok(Some(_)) | Err(_))
        {
            let _ = child.signal(nix::libc::SIGKILL);
            let _ = child.wait();
        }
    }
}

/// Where a probe or hook goes: to the Pod itself.
fn target(entry: &PodEntry, host: Option<&str>, port: u16) -> Result<SocketAddr, ProbeError> {
    let own = entry.state().address.ok_or(ProbeError::NoAddress)?;
    let ip = own_address(own, entry.host_network(), host)?;
    Ok(SocketAddr::new(ip, port))
}

/// The address that `host` stands for. Another address than the Pod's is refused: whoever may write a probe could otherwise
/// have the node dial anything in his place. A Pod on the node's network has the node's loopback, too.
fn own_address(own: IpAddr, host_network: bool, host: Option<&str>) -> Result<IpAddr, ProbeError> {
    let Some(host) = host.filter(|host| !host.is_empty()) else { return Ok(own) };
    let ip: IpAddr = host.parse().map_err(|_| ProbeError::InvalidHost(host.to_owned()))?;
    let ip = ip.to_canonical();
    if ip == own || (host_network && ip.is_loopback()) {
        return Ok(ip);
    }
    Err(ProbeError::ForeignHost { host: host.to_owned(), own })
}

fn port_of(port: &IntOrString, container: Option<&Container>) -> Result<u16, ProbeError> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).map_err(|_| ProbeError::InvalidPort(*number)),
        IntOrString::String(name) => {
            let named = container
                .into_iter()
                .flat_map(|c| c.ports.iter().flatten())
                .find(|p| p.name.as_deref() == Some(name))
                .and_then(|p| u16::try_from(p.container_port).ok());
            named.or_else(|| name.parse().ok()).ok_or_else(|| ProbeError::UnknownPort(name.clone()))
        }
    }
}

async fn dial(sandbox: &Arc<Sandbox>, address: SocketAddr) -> Result<TcpStream, ProbeError> {
    let sandbox = sandbox.clone();
    let connect = async {
        let socket = tokio::task::spawn_blocking(move || sandbox.netns().tcp_socket(address)).await??;
        TcpSocket::from_std_stream(socket).connect(address).await
    };
    connect.await.map_err(|error: std::io::Error| ProbeError::Dial { address, error })
}

async fn http_get(
    entry: &PodEntry,
    sandbox: &Arc<Sandbox>,
    container: Option<&Container>,
    get: &HTTPGetAction,
) -> Result<(), ProbeError> {
    let address = target(entry, get.host.as_deref(), port_of(&get.port, container)?)?;
    let stream = dial(sandbox, address).await?;
    let path = get.path.clone().filter(|p| !p.is_empty()).unwrap_or_else(|| "/".to_owned());
    let path = if path.starts_with('/') { path } else { format!("/{path}") };
    let mut request = http::Request::get(&path).header(http::header::USER_AGENT, "kube-probe/1.35");
    let mut host = address.to_string();
    for header in get.http_headers.iter().flatten() {
        if header.name.eq_ignore_ascii_case("host") {
            host.clone_from(&header.value);
        } else {
            request = request.header(&header.name, &header.value);
        }
    }
    let request = request.header(http::header::HOST, host).body(Empty::new())?;
    let tls = get.scheme.as_deref() == Some("HTTPS");
    let status = if tls {
        exchange(tls::connect(stream, address.ip()).await?, request).await
    } else {
        exchange(stream, request).await
    };
    let scheme = if tls { "https" } else { "http" };
    let status =
        status.map_err(|error| ProbeError::Get { url: format!("{scheme}://{address}{path}"), error })?;
    if (200..400).contains(&status.as_u16()) { Ok(()) } else { Err(ProbeError::Status(status.as_u16())) }
}

/// Sends a request; the status of its answer.
async fn exchange<S>(
    stream: S,
    request: http::Request<Empty<Bytes>>,
) -> Result<http::StatusCode, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handshake = hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream));
    let (mut sender, connection) = handshake.await?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let _ = Limited::new(response.into_body(), MAX_BODY).collect().await;
        Ok(status)
    };
    // The connection may end before the answer has been looked at; the exchange then still has it, or an error.
    let driving = async {
        let _ = connection.await;
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        status = answer => status,
        never = driving => match never {},
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_reaches_its_own_pod_only() {
        let own: IpAddr = "10.244.1.5".parse().unwrap();
        for (host_network, host, allowed) in [
            (false, None, true),
            (false, Some(""), true),
            (false, Some("10.244.1.5"), true),
            (false, Some("::ffff:10.244.1.5"), true),
            (false, Some("10.244.1.6"), false),
            (false, Some("10.96.0.1"), false),
            (false, Some("172.30.0.11"), false),
            (false, Some("127.0.0.1"), false),
            (false, Some("::1"), false),
            (false, Some("0.0.0.0"), false),
            (false, Some("localhost"), false),
            (true, Some("127.0.0.1"), true),
            (true, Some("10.244.1.6"), false),
        ] {
            let target = own_address(own, host_network, host);
            assert_eq!(target.is_ok(), allowed, "{host_network} {host:?}: {target:?}");
        }
    }
}
