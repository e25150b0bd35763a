// SPDX-License-Identifier: Apache-2.0
//! HTTP/2 as no client library would write it, at a tunnel of one's own: others do not notice, and memory is bounded.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "a test has no owner for tasks but itself")]

#[path = "support/world.rs"]
mod world;

use std::sync::Arc;
use std::time::{Duration, Instant};

use meltemi_identity::tls;
use meltemi_testkit::h2::kind::{CONTINUATION, DATA, HEADERS, PING, PRIORITY, SETTINGS, WINDOW_UPDATE};
use meltemi_testkit::h2::{END_HEADERS, END_STREAM, frame, literal, preface};
use meltemi_tunnel::TunnelIo;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use world::World;

/// A type that no frame has.
const UNKNOWN: u8 = 77;

fn connect(port: u16, stream: u32) -> Vec<u8> {
    let fields = [literal(":method", "CONNECT"), literal(":authority", &format!("10.0.0.1:{port}"))];
    frame(HEADERS, END_HEADERS, stream, &fields.concat())
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    [id.to_be_bytes().as_slice(), &value.to_be_bytes()].concat()
}

struct Flood {
    name: &'static str,
    first: Vec<u8>,
    then: Box<dyn Fn(u32) -> Vec<u8> + Send + Sync>,
    /// The client takes what it is answered.
    reads: bool,
}

fn flood(
    name: &'static str,
    first: Vec<u8>,
    then: impl Fn(u32) -> Vec<u8> + Send + Sync + 'static,
) -> [Flood; 2] {
    let then = Arc::new(then);
    [true, false].map(|reads| {
        let (first, then) = (first.clone(), then.clone());
        Flood { name, first, then: Box::new(move |n| then(n)), reads }
    })
}

fn floods() -> Vec<Flood> {
    let many = |port: u16| (0..200).flat_map(|n| connect(port, n * 2 + 1)).collect::<Vec<u8>>();
    let bomb = {
        let value = vec![b'v'; 4000];
        [[0x40, 1, b'x', 0x7f, 0xa1, 0x1e].as_slice(), &value].concat()
    };
    let rows = [
        flood("settings", many(3), |n| frame(SETTINGS, 0, 0, &setting(4, 65_535 + n % 2))),
        flood("settings of 100 windows", many(3), |n| {
            frame(SETTINGS, 0, 0, &(0..100).flat_map(|i| setting(4, 1 + n % 2 + i)).collect::<Vec<u8>>())
        }),
        flood("table sizes", many(3), |n| frame(SETTINGS, 0, 0, &setting(1, n % 2 * 1_000_000))),
        flood("pings", connect(3, 1), |n| frame(PING, 0, 0, &[n.to_be_bytes(), n.to_be_bytes()].concat())),
        flood("empty data", connect(3, 1), |_| frame(DATA, 0, 1, &[])),
        flood("padded nothing", connect(3, 1), |_| frame(DATA, 8, 1, &[0])),
        flood("continuation", frame(HEADERS, 0, 1, &literal(":method", "CONNECT")), |_| {
            frame(CONTINUATION, 0, 1, &literal("cookie", "a=b").repeat(100))
        }),
        flood("window update of a stream", connect(3, 1), |_| {
            frame(WINDOW_UPDATE, 0, 1, &1u32.to_be_bytes())
        }),
        flood("window update", connect(3, 1), |_| frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes())),
        flood("window update over its end", connect(3, 1), |_| {
            frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffffu32.to_be_bytes())
        }),
        flood("priority", connect(3, 1), |n| frame(PRIORITY, 0, n * 2 + 1, &[0, 0, 0, 0, 1])),
        flood("priority of new streams", connect(3, 1), |n| frame(PRIORITY, 0, n * 2 + 5, &[0, 0, 0, 3, 1])),
        flood("HPACK bomb", vec![], move |n| {
            let fields = [literal(":method", "CONNECT"), literal(":authority", "10.0.0.1:3")].concat();
            let table = if n == 0 { bomb.clone() } else { Vec::new() };
            frame(HEADERS, END_HEADERS, n * 2 + 1, &[fields, table, vec![0xbe; 15]].concat())
        }),
        flood("half closed for ever", vec![], |n| {
            let one = connect(if n % 2 == 0 { 3 } else { 9 }, n * 2 + 1);
            [one, frame(DATA, END_STREAM, n * 2 + 1, &[])].concat()
        }),
        flood("answers without a window", [frame(SETTINGS, 0, 0, &setting(4, 0)), many(1)].concat(), |_| {
            frame(UNKNOWN, 0, 0, &[])
        }),
        flood(
            "answers with a large window",
            [
                frame(SETTINGS, 0, 0, &setting(4, 0x7fff_ffff)),
                frame(WINDOW_UPDATE, 0, 0, &0x7fff_0000u32.to_be_bytes()),
                many(1),
            ]
            .concat(),
            |_| frame(UNKNOWN, 0, 0, &[]),
        ),
        flood("a byte, and much that is skipped", connect(3, 1), |_| {
            [frame(DATA, 0, 1, b"x"), frame(UNKNOWN, 0, 0, &vec![0; 60_000])].concat()
        }),
        flood("a frame beyond the limit", connect(3, 1), |_| {
            [frame(DATA, 0, 1, b"x"), frame(UNKNOWN, 0, 0, &vec![0; 1_000_000])].concat()
        }),
        flood("bytes", connect(3, 1), |_| frame(DATA, 0, 1, b"x")),
        flood("crumbs on all streams", many(3), |n| frame(DATA, 0, n % 200 * 2 + 1, b"xxx")),
    ];
    rows.into_iter().flatten().collect()
}

/// KiB of memory that this process has.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn raw(world: &World) -> TlsStream<TcpStream> {
    let config = Arc::new(tls::client(&world.client, vec![world.server.clone()]).unwrap());
    let tcp = TcpStream::connect(world.address).await.unwrap();
    let name = rustls::pki_types::ServerName::IpAddress(world.address.ip().into());
    TlsConnector::from(config).connect(name, tcp).await.unwrap()
}

async fn echo(io: &mut TunnelIo) -> Duration {
    let begun = Instant::now();
    io.write_all(b"echo").await.unwrap();
    io.read_exact(&mut [0; 4]).await.unwrap();
    begun.elapsed()
}

/// Rows that must end the tunnel that they come from; the others cost their sender as much as the proxy, or wait for it.
const ENDS: [&str; 5] = [
    "empty data",
    "padded nothing",
    "continuation",
    "window update over its end",
    "a frame beyond the limit",
];

/// Sends until the time is over, or nothing more is taken. Whether the tunnel goes on. One that has to end is given time
/// to, for a machine that is busy.
async fn send(flood: &Flood, mut to: impl AsyncWrite + Unpin) -> bool {
    let first = [preface(), flood.first.clone()].concat();
    let limit = Duration::from_millis(if ENDS.contains(&flood.name) { 20_000 } else { 200 });
    let (begun, mut n) = (Instant::now(), 0);
    let mut open = to.write_all(&first).await.is_ok();
    while open && begun.elapsed() < limit {
        let mut part = Vec::new();
        while part.len() < 16_000 {
            part.extend((flood.then)(n));
            n += 1;
        }
        match tokio::time::timeout(limit, to.write_all(&part)).await {
            Ok(sent) => open = sent.is_ok(),
            // Nothing is taken while the client takes nothing.
            Err(_) => return true,
        }
    }
    open
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_are_bounded_and_others_go_on() {
    let world = World::start().await;
    let mut other = world.to(9).await;
    echo(&mut other).await;
    for flood in floods() {
        let name = flood.name;
        let before = resident();
        let (mut read, to) = tokio::io::split(raw(&world).await);
        let attack = tokio::spawn(async move {
            let reading = async {
                let mut more = vec![0; 1 << 16];
                while flood.reads
                    && let Ok(1..) = read.read(&mut more).await
                {}
                std::future::pending::<()>().await;
            };
            tokio::select! {
                open = send(&flood, to) => open,
                () = reading => unreachable!("it never ends"),
            }
        });
        let mut worst = Duration::ZERO;
        while !attack.is_finished() {
            worst = worst.max(echo(&mut other).await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let goes_on = attack.await.unwrap();
        let grown = resident().saturating_sub(before) / 1024;
        assert!(!(goes_on && ENDS.contains(&name)), "{name}: the tunnel goes on");
        assert!(worst < Duration::from_secs(20), "{name}: another waited {worst:?}");
        assert!(grown < 150, "{name}: memory has grown by {grown} MiB");
    }
}
