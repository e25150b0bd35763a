// SPDX-License-Identifier: Apache-2.0
//! `exec` and `attach`: a program's streams over an upgraded connection, and its end as a status.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use meltemi_linux::process::{Child, Exit, pipe};
use meltemi_linux::pty;
use nix::libc;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe as tokio_pipe;
use tokio::sync::{broadcast, mpsc};

use super::channels::{self, ERROR, HALF_CLOSE, PROTOCOL, RESIZE, STDERR, STDIN, STDOUT};
use super::query::Query;
use super::{Body, Refusal, has_container, switching};
use crate::container::running::Running;
use crate::context::{Context, PodEntry};
use crate::logs::Stream;
use crate::sandbox::Stdio;

/// Frames on their way to the client.
type Outgoing = mpsc::Sender<(u8, Bytes)>;

/// Where the client's keystrokes go.
enum Input {
    Pipe(tokio_pipe::Sender),
    Terminal(Arc<pty::Master>),
    None,
}

pub(super) async fn open(
    ctx: &Arc<Context>,
    entry: &Arc<PodEntry>,
    container: &str,
    query: &Query,
    exec: bool,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    if !has_container(entry, container) {
        let message = format!("container {container} is not valid for pod {}", entry.name);
        return Err(Refusal::new(StatusCode::BAD_REQUEST, &message));
    }
    let running = entry.running().get(container).cloned();
    let Some(running) = running else {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            &format!("container not found ({container:?}): it is not running"),
        ));
    };
    let response = switching(&request, PROTOCOL)?;
    let program = if exec { Some(start(entry, &running, query).await?) } else { None };
    let wants = Wants { stdin: query.is("stdin"), stdout: query.is("stdout"), stderr: query.is("stderr") };
    ctx.job(if exec { "exec" } else { "attach" }, async move {
        let upgraded = hyper::upgrade::on(request).await.map_err(io::Error::other)?;
        let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
        let (tx, mut rx) = mpsc::channel::<(u8, Bytes)>(16);
        let sending = async {
            while let Some((channel, payload)) = rx.recv().await {
                channels::write(&mut write, channel, &payload).await?;
            }
            write.shutdown().await
        };
        let talking = async move {
            match program {
                Some(program) => program.run(tx, &mut read, &wants).await,
                None => attach(&running, tx, &mut read, &wants).await,
            }
        };
        let (sent, talked) = tokio::join!(sending, talking);
        sent.and(talked)
    });
    Ok(response)
}

#[derive(Clone, Copy)]
struct Wants {
    stdin: bool,
    stdout: bool,
    stderr: bool,
}

/// A program started by exec.
struct Program {
    child: Kill,
    input: Input,
    outputs: Vec<(u8, tokio_pipe::Receiver)>,
    terminal: Option<Arc<pty::Master>>,
}

/// When the client goes away, so does its program.
struct Kill(Child);

impl Drop for Kill {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.0.signal(libc::SIGKILL);
            let _ = self.0.wait();
        }
    }
}

async fn start(entry: &Arc<PodEntry>, running: &Arc<Running>, query: &Query) -> Result<Program, Refusal> {
    let command = query.all("command");
    if command.is_empty() {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "you must specify at least one command for the container",
        ));
    }
    let failed = |e: io::Error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, &e.to_string());
    let sandbox =
        entry.sandbox().ok_or_else(|| Refusal::new(StatusCode::BAD_REQUEST, "the pod is not running"))?;
    let mut exec = running.exec(command.clone());
    let tty = query.is("tty");
    if tty && !exec.env.iter().any(|(k, _)| k == "TERM") {
        exec.env.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    let (mut program_ends, stdio) = ends(running, tty, query.is("stdin")).map_err(failed)?;
    let of = running.clone();
    let started = tokio::task::spawn_blocking(move || sandbox.exec(&of.child, &exec, stdio)).await;
    let child = started.map_err(|e| failed(io::Error::other(e)))?.map_err(|e| {
        let message = if e.kind() == io::ErrorKind::NotFound {
            format!("exec: {:?}: executable file not found in $PATH: unknown", command[0])
        } else {
            format!("exec: {:?}: {e}", command[0])
        };
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, &message)
    })?;
    let child = Kill(child);
    let terminal =
        program_ends.master.take().map(pty::Master::new).transpose().map_err(failed)?.map(Arc::new);
    let mut outputs = Vec::new();
    for (channel, fd) in program_ends.outputs {
        outputs.push((channel, tokio_pipe::Receiver::from_owned_fd(fd).map_err(failed)?));
    }
    let input = match (&terminal, program_ends.stdin) {
        (Some(master), _) => Input::Terminal(master.clone()),
        (None, Some(fd)) => Input::Pipe(tokio_pipe::Sender::from_owned_fd(fd).map_err(failed)?),
        (None, None) => Input::None,
    };
    Ok(Program { child, input, outputs, terminal })
}

struct Ends {
    master: Option<OwnedFd>,
    stdin: Option<OwnedFd>,
    outputs: Vec<(u8, OwnedFd)>,
}

fn ends(running: &Running, tty: bool, wants_stdin: bool) -> io::Result<(Ends, Stdio)> {
    if tty {
        let pty = pty::open_in(running.child.as_fd())?;
        let stdio = Stdio {
            stdin: pty.slave.try_clone()?,
            stdout: pty.slave.try_clone()?,
            stderr: pty.slave,
            terminal: true,
        };
        return Ok((Ends { master: Some(pty.master), stdin: None, outputs: Vec::new() }, stdio));
    }
    let (stdout, out_end) = pipe()?;
    let (stderr, err_end) = pipe()?;
    let (stdin, in_end) = if wants_stdin {
        let (read, write) = pipe()?;
        (Some(write), read)
    } else {
        (None, std::fs::File::open("/dev/null")?.into())
    };
    let outputs = vec![(STDOUT, stdout), (STDERR, stderr)];
    Ok((
        Ends { master: None, stdin, outputs },
        Stdio { stdin: in_end, stdout: out_end, stderr: err_end, terminal: false },
    ))
}

impl Program {
    /// Carries the streams until the program has ended, then tells how.
    async fn run<R>(self, tx: Outgoing, read: &mut R, wants: &Wants) -> io::Result<()>
    where
        R: tokio::io::AsyncRead + Unpin,
    {
        let Self { child, input, outputs, terminal } = self;
        let mut pumps = Vec::new();
        for (channel, pipe) in outputs {
            let shown = if channel == STDOUT { wants.stdout } else { wants.stderr };
            let pump: futures::future::BoxFuture<'_, io::Result<()>> =
                Box::pin(pump(pipe, channel, shown, tx.clone()));
            pumps.push(pump);
        }
        if let Some(master) = terminal.clone() {
            pumps.push(Box::pin(pump_terminal(master, tx.clone())));
        }
        let output = futures::future::join_all(pumps);
        let feeding = feed(input, terminal, read);
        let running = async {
            let exit = child.0.ended().await?;
            Ok::<Exit, io::Error>(exit)
        };
        let whole = async {
            let (exit, _) = tokio::join!(running, output);
            exit
        };
        let exit = tokio::select! {
            exit = whole => exit?,
            // The client is gone: the program goes with it.
            gone = feeding => return gone,
        };
        let _ = tx.send((ERROR, status(exit).into())).await;
        Ok(())
    }
}

async fn pump(mut pipe: tokio_pipe::Receiver, channel: u8, shown: bool, tx: Outgoing) -> io::Result<()> {
    let mut buffer = vec![0; 32 << 10];
    loop {
        let got = pipe.read(&mut buffer).await?;
        if got == 0 {
            return Ok(());
        }
        if shown && tx.send((channel, Bytes::copy_from_slice(&buffer[..got]))).await.is_err() {
            return Ok(());
        }
    }
}

async fn pump_terminal(master: Arc<pty::Master>, tx: Outgoing) -> io::Result<()> {
    let mut buffer = vec![0; 8 << 10];
    loop {
        let got = master.read(&mut buffer).await?;
        if got == 0 || tx.send((STDOUT, Bytes::copy_from_slice(&buffer[..got]))).await.is_err() {
            return Ok(());
        }
    }
}

/// Brings what the client sends to the program; ends when the client is gone.
async fn feed<R>(mut input: Input, terminal: Option<Arc<pty::Master>>, read: &mut R) -> io::Result<()>
where
    R: tokio::io::AsyncRead + Unpin,
{
    while let Some((channel, payload)) = channels::read(read).await? {
        match channel {
            STDIN => {
                let written = match &mut input {
                    Input::Pipe(pipe) => pipe.write_all(&payload).await,
                    Input::Terminal(master) => master.write_all(&payload).await,
                    Input::None => Ok(()),
                };
                // A program that has closed its input still has output.
                if written.is_err() {
                    input = Input::None;
                }
            }
            HALF_CLOSE if payload.first() == Some(&STDIN) => {
                if let Input::Terminal(master) = &input {
                    let _ = master.write_all(&[4]).await;
                } else {
                    input = Input::None;
                }
            }
            RESIZE => {
                let size: Option<serde_json::Value> = serde_json::from_slice(&payload).ok();
                let number = |name: &str| {
                    let value = size.as_ref().and_then(|s| s.get(name)).and_then(serde_json::Value::as_u64);
                    value.and_then(|v| u16::try_from(v).ok())
                };
                if let (Some(master), Some(columns), Some(rows)) =
                    (&terminal, number("Width"), number("Height"))
                {
                    let _ = pty::resize(master.as_ref(), columns, rows);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The streams of a container's own program.
async fn attach<R>(running: &Arc<Running>, tx: Outgoing, read: &mut R, wants: &Wants) -> io::Result<()>
where
    R: tokio::io::AsyncRead + Unpin,
{
    let mut output = running.output.subscribe();
    let input = match (&running.terminal, wants.stdin) {
        (_, false) => Input::None,
        (Some(master), true) => Input::Terminal(master.clone()),
        (None, true) => running.stdin.attach()?.map_or(Input::None, Input::Pipe),
    };
    let showing = async {
        loop {
            match output.recv().await {
                Ok((stream, bytes)) => {
                    let (channel, shown) = match stream {
                        Stream::Stdout => (STDOUT, wants.stdout),
                        Stream::Stderr => (STDERR, wants.stderr),
                    };
                    if shown && tx.send((channel, bytes)).await.is_err() {
                        return;
                    }
                }
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    };
    tokio::select! {
        _ = running.ended() => {}
        () = showing => return Ok(()),
        gone = feed(input, running.terminal.clone(), read) => return gone,
    }
    // How it ended is in the Pod's status: for who is attached, any end is a good one. kubectl shows the whole log once more
    // after an error.
    let _ = tx.send((ERROR, status(Exit::Code(0)).into())).await;
    Ok(())
}

/// The end of a program as Kubernetes tells it.
fn status(exit: Exit) -> Vec<u8> {
    let code = exit.code();
    let value = if code == 0 {
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})
    } else {
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        })
    };
    value.to_string().into_bytes()
}
