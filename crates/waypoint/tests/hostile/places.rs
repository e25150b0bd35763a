// SPDX-License-Identifier: Apache-2.0
//! Connections that only take places: those of one source leave room for the others.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use meltemi_waypoint::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::fixtures::FREE;
use crate::world::{PATIENCE, World, answer, status, write};

/// A connection from an address of loopback.
async fn connect(source: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((source, 0))).unwrap();
    socket.connect(to).await.unwrap()
}

/// The status of the answer to a request; `None` if the connection was closed unread.
async fn ask(stream: &mut TcpStream) -> Option<u16> {
    let _ = stream.write_all(b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n").await;
    answer(stream, &mut Vec::new()).await.map(|got| status(&got))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_one_source_leave_places_for_others() {
    let world = World::start(Limits { connections: 8, ..Limits::default() }).await;
    // What the world itself has opened may take a moment to go.
    let hostile = [127, 0, 0, 2];
    let mut held = Vec::new();
    let begun = Instant::now();
    while held.len() < 6 {
        let mut stream = connect(hostile, world.gateway).await;
        if ask(&mut stream).await == Some(200) {
            held.push(stream);
        }
        assert!(begun.elapsed() < PATIENCE, "{} are served", held.len());
    }
    assert_eq!(ask(&mut connect(hostile, world.gateway).await).await, None, "it has three quarters");
    assert_eq!(ask(&mut connect([127, 0, 0, 3], world.gateway).await).await, Some(200), "another source");
    for stream in &mut held {
        assert_eq!(ask(stream).await, Some(200), "those that are open");
    }
    held.pop();
    let begun = Instant::now();
    while ask(&mut connect(hostile, world.gateway).await).await != Some(200) {
        assert!(begun.elapsed() < PATIENCE, "its place is not given back");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_of_one_source_leave_places_for_others() {
    let world = World::start(Limits::default()).await;
    let (mut silent, begun) = (Vec::new(), Instant::now());
    for _ in 0..70 {
        silent.push(connect([127, 0, 0, 2], world.hbone).await);
    }
    let has_ended = |stream: &TcpStream| match stream.try_read(&mut [0]) {
        Ok(_) => true,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    };
    let ended = loop {
        let ended = silent.iter().filter(|stream| has_ended(stream)).count();
        if ended >= 6 {
            break ended;
        }
        assert!(begun.elapsed() < PATIENCE, "{ended} have ended");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    // A handshake may take ten seconds; then the others end as well.
    assert!(ended == 6 || begun.elapsed() > Duration::from_secs(8), "{ended} have ended");
    let mut io = world.to_http(FREE).await;
    write(&mut io, b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(answer(&mut io, &mut Vec::new()).await.map(|got| status(&got)), Some(200), "another source");
}

/// A client that sends a body without end after its request was answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_sends_on_after_its_answer_is_read_for_a_while_only() {
    let world = World::start(Limits::default()).await;
    let (mut read, mut send) = connect([127, 0, 0, 2], world.gateway).await.into_split();
    let head = b"POST /x HTTP/1.1\r\nhost: a, b\r\ntransfer-encoding: chunked\r\n\r\n";
    send.write_all(head).await.unwrap();
    let begun = Instant::now();
    let sending = async {
        while send.write_all(b"4\r\nmore\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        begun.elapsed()
    };
    let mut got = Vec::new();
    let (took, _) =
        tokio::time::timeout(PATIENCE, async { tokio::join!(sending, read.read_to_end(&mut got)) })
            .await
            .expect("the connection ends");
    assert!(got.starts_with(b"HTTP/1.1 400 "), "{}", String::from_utf8_lossy(&got));
    assert!(took >= Duration::from_secs(2), "the answer might be lost: {took:?}");
}
