// SPDX-License-Identifier: Apache-2.0
//! Load on a node proxy: two enrolled Pods in network namespaces of their own, and what the proxy's threads cost.
//!
//! `cargo run --release -p meltemi-node --example load -- [SECONDS [PART]] > /dev/null` prints one line for each part:
//! `bulk1`, `bulk8` (Gbit/s, ms of CPU per GB), `requests` (requests/s over 32 connections, µs of CPU each), `latency`
//! (round trips/s of one connection), `new` (connections/s, µs of CPU each) and `idle` (KiB of memory for each connection
//! that says nothing). Only the proxy's threads are counted, but for memory: both proxies and the load are one process.
//! Compare two builds by alternating them: absolute figures depend on the machine.

#![expect(clippy::unwrap_used, reason = "a measurement fails by panicking")]

#[expect(dead_code, unused_imports, reason = "shared with the tests")]
#[path = "../tests/node/mesh.rs"]
mod mesh;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use meltemi_linux::netns::NetNs;
use meltemi_linux::supervise::{self, Side, World};

use crate::mesh::Mesh;

// As the program has it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const REQUEST: [u8; 100] = [b'q'; 100];
const ANSWER: [u8; 1000] = [b'a'; 1000];

fn main() {
    let world = World { user_namespace: true, ids: None, die_with_outside: true };
    match supervise::enter(world).unwrap() {
        Side::Outside(child) => std::process::exit(i32::from(!child.wait().unwrap().success())),
        Side::Inside => {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
            runtime.unwrap().block_on(measure());
            std::process::exit(0);
        }
    }
}

struct Load {
    mesh: Mesh,
    seconds: Duration,
    received: Arc<AtomicU64>,
}

/// A part of the measurement, by its name.
type Part = (&'static str, fn(&Load));

async fn measure() {
    let mut arguments = std::env::args().skip(1);
    let seconds = Duration::from_secs(arguments.next().map_or(2, |s| s.parse().unwrap()));
    let wanted = arguments.next();
    let mesh = Mesh::start().await;
    for netns in [&mesh.a, &mesh.b] {
        // Ports of closed connections are used again at once: otherwise they run out.
        netns.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_max_tw_buckets", "100")).unwrap();
    }
    let received = Arc::new(AtomicU64::new(0));
    sink(listen(&mesh.b, 7001), received.clone());
    serve(listen(&mesh.b, 7002), false);
    serve(listen(&mesh.b, 7003), true);
    let load = Load { mesh, seconds, received };
    memory("at first");
    let parts: [Part; 6] = [
        ("idle", |load| load.idle()),
        ("bulk1", |load| load.bulk("bulk1", 1)),
        ("bulk8", |load| load.bulk("bulk8", 8)),
        ("requests", |load| load.requests("requests", 32)),
        ("latency", |load| load.requests("latency", 1)),
        ("new", |load| load.connections()),
    ];
    for (name, part) in parts {
        if wanted.as_ref().is_none_or(|wanted| wanted == name) {
            part(&load);
        }
    }
    memory("at the end");
    if wanted.is_none() {
        std::thread::sleep(Duration::from_secs(15));
        memory("15 s later");
    }
}

/// KiB that are no file's.
fn anonymous() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn memory(when: &str) {
    eprintln!("memory {:.1} MB {when}", anonymous() / 1024.0);
}

impl Load {
    fn idle(&self) {
        // As many as a Pod may have in the tests' mesh; each is one of both Pods.
        const CONNECTIONS: usize = 250;
        let before = anonymous();
        let streams: Vec<_> = (0..CONNECTIONS).map(|_| mesh::dial(&self.mesh.a, "10.244.1.3:7002")).collect();
        for mut stream in &streams {
            stream.write_all(&REQUEST).unwrap();
            stream.read_exact(&mut [0; ANSWER.len()]).unwrap();
        }
        eprintln!("idle {:.1} KiB", (anonymous() - before) / CONNECTIONS as f64);
    }

    fn bulk(&self, name: &str, streams: usize) {
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..streams)
            .map(|_| {
                let (mut stream, stop) = (mesh::dial(&self.mesh.a, "10.244.1.3:7001"), stop.clone());
                std::thread::spawn(move || {
                    let data = vec![b'x'; 256 * 1024];
                    while !stop.load(Ordering::Relaxed) {
                        stream.write_all(&data).unwrap();
                    }
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(300));
        let (begun, cpu, before) = (Instant::now(), cpu(), self.received.load(Ordering::Relaxed));
        std::thread::sleep(self.seconds);
        let bytes = (self.received.load(Ordering::Relaxed) - before) as f64;
        let (took, cpu) = (begun.elapsed().as_secs_f64(), self::cpu() - cpu);
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().for_each(|w| w.join().unwrap());
        eprintln!("{name} {:.2} Gbit/s {:.0} ms/GB", bytes * 8.0 / took / 1e9, cpu * 1e3 / (bytes / 1e9));
    }

    fn requests(&self, name: &str, connections: usize) {
        let streams: Vec<_> = (0..connections).map(|_| mesh::dial(&self.mesh.a, "10.244.1.3:7002")).collect();
        let seconds = self.seconds;
        let client = std::thread::spawn(move || {
            runtime().block_on(async {
                let done = Arc::new(AtomicU64::new(0));
                let (begun, cpu) = (Instant::now(), cpu());
                let mut all = tokio::task::JoinSet::new();
                for stream in streams {
                    let done = done.clone();
                    all.spawn(async move {
                        let mut stream = asynchronous(stream);
                        while begun.elapsed() < seconds {
                            exchange(&mut stream).await;
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
                all.join_all().await;
                let count = done.load(Ordering::Relaxed) as f64;
                (count / begun.elapsed().as_secs_f64(), (self::cpu() - cpu) * 1e6 / count)
            })
        });
        let (rate, cost) = client.join().unwrap();
        eprintln!("{name} {rate:.0} /s {cost:.2} us");
    }

    fn connections(&self) {
        let (netns, seconds) = (self.mesh.a.try_clone().unwrap(), self.seconds);
        let client = std::thread::spawn(move || {
            let to: SocketAddr = "10.244.1.3:7003".parse().unwrap();
            runtime().block_on(async {
                let done = Arc::new(AtomicU64::new(0));
                let (begun, cpu) = (Instant::now(), cpu());
                let mut all = tokio::task::JoinSet::new();
                for _ in 0..16 {
                    let (done, netns) = (done.clone(), netns.try_clone().unwrap());
                    all.spawn(async move {
                        while begun.elapsed() < seconds {
                            let socket = netns.tcp_socket_here(to).unwrap();
                            let socket = tokio::net::TcpSocket::from_std_stream(socket);
                            exchange(&mut socket.connect(to).await.unwrap()).await;
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
                all.join_all().await;
                let count = done.load(Ordering::Relaxed) as f64;
                (count / begun.elapsed().as_secs_f64(), (self::cpu() - cpu) * 1e6 / count)
            })
        });
        let (rate, cost) = client.join().unwrap();
        eprintln!("new {rate:.0} /s {cost:.1} us");
    }
}

async fn exchange(stream: &mut tokio::net::TcpStream) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    stream.write_all(&REQUEST).await.unwrap();
    stream.read_exact(&mut [0; ANSWER.len()]).await.unwrap();
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn asynchronous(stream: TcpStream) -> tokio::net::TcpStream {
    stream.set_nonblocking(true).unwrap();
    stream.set_nodelay(true).unwrap();
    tokio::net::TcpStream::from_std(stream).unwrap()
}

fn listen(netns: &NetNs, port: u16) -> TcpListener {
    netns.listen_tcp(SocketAddr::new(mesh::B.parse().unwrap(), port), |_| Ok(())).unwrap()
}

/// Takes what comes.
fn sink(listener: TcpListener, received: Arc<AtomicU64>) {
    listener.set_nonblocking(false).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, received) = (stream.unwrap(), received.clone());
            std::thread::spawn(move || {
                let mut buffer = vec![0; 256 * 1024];
                while let Ok(n @ 1..) = stream.read(&mut buffer) {
                    received.fetch_add(n as u64, Ordering::Relaxed);
                }
            });
        }
    });
}

/// Answers requests; closes after the first if `once`.
fn serve(listener: TcpListener, once: bool) {
    std::thread::spawn(move || {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        runtime().block_on(async {
            listener.set_nonblocking(true).unwrap();
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let mut all = tokio::task::JoinSet::new();
            loop {
                let mut stream = listener.accept().await.unwrap().0;
                stream.set_nodelay(true).unwrap();
                all.spawn(async move {
                    let mut request = [0; REQUEST.len()];
                    while stream.read_exact(&mut request).await.is_ok() {
                        if stream.write_all(&ANSWER).await.is_err() || once {
                            return;
                        }
                    }
                });
                while all.try_join_next().is_some() {}
            }
        });
    });
}

/// Seconds of CPU that the proxy's threads have used.
fn cpu() -> f64 {
    let of = |task: std::io::Result<std::fs::DirEntry>| {
        let path = task.ok()?.path();
        let name = std::fs::read_to_string(path.join("comm")).ok()?;
        let ran = std::fs::read_to_string(path.join("schedstat")).ok()?;
        let ran: f64 = ran.split(' ').next()?.parse().ok()?;
        ["worker-", "access-log"].iter().any(|proxy| name.starts_with(proxy)).then_some(ran / 1e9)
    };
    std::fs::read_dir("/proc/self/task").unwrap().filter_map(of).sum()
}
