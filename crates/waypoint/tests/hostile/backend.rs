// SPDX-License-Identifier: Apache-2.0
//! The backend: writes down every request as it came over the wire, byte for byte, and answers by its path.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::world::{Seen, message_end};

/// Bytes of answers to `/endless/counted`.
pub(crate) static SENT: AtomicUsize = AtomicUsize::new(0);

/// One character for each byte, so that what was cut inside of a character keeps its length.
fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char::from(byte)).collect()
}

/// Starts it; `opened` counts its connections.
pub(crate) async fn start(seen: Seen, opened: Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            opened.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(connection(stream, seen.clone()));
        }
    });
    address
}

async fn connection(mut stream: TcpStream, seen: Seen) {
    let mut first = [0; 3];
    match stream.peek(&mut first).await {
        Ok(3) if first == *b"PRI" => http2(stream, seen).await,
        Ok(_) => http1(&mut stream, seen).await,
        Err(_) => {}
    }
}

async fn http1(stream: &mut TcpStream, seen: Seen) {
    let mut bytes = Vec::new();
    let mut answered_before = false;
    loop {
        let (mut more, mut heard) = ([0; 4096], false);
        let end = loop {
            if bytes.starts_with(b"RAW") {
                // No HTTP: an echo.
                let _ = stream.write_all(&std::mem::take(&mut bytes)).await;
            }
            let whole = bytes.windows(4).any(|w| w == b"\r\n\r\n");
            if !std::mem::replace(&mut heard, whole) && whole {
                match text(&bytes).split(' ').nth(1).unwrap_or_default() {
                    // Answers by the head alone, and takes nothing more.
                    "/refuse" => return refuse(stream, &seen, &bytes).await,
                    "/continue" => {
                        seen.lock().unwrap().push(text(&bytes));
                        let _ = stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await;
                    }
                    _ => {}
                }
            }
            if let Some(end) = message_end(&bytes) {
                break end;
            }
            match stream.read(&mut more).await {
                Ok(n @ 1..) => bytes.extend_from_slice(&more[..n]),
                _ => {
                    // Broken off: what came is written down all the same.
                    seen.lock().unwrap().push(text(&bytes));
                    return;
                }
            }
        };
        let request = text(&bytes[..end]);
        bytes.drain(..end);
        seen.lock().unwrap().push(request.clone());
        let path = request.split(' ').nth(1).unwrap_or_default();
        let upgrade = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: ";
        let answered = match path {
            // It ends a connection that was kept instead of answering on it.
            "/only-first" if answered_before => return,
            "/hang" => return std::future::pending().await,
            "/ws" => return echo(stream, &format!("{upgrade}websocket\r\n\r\n"), bytes).await,
            "/other" => return echo(stream, &format!("{upgrade}h2c\r\n\r\n"), bytes).await,
            "/endless" => return endless(stream).await,
            "/trickle" => return trickle(stream).await,
            // Fails so many times for each name.
            path if path.starts_with("/fails/") && is_early(path, &seen) => {
                "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno"
            }
            path if path.starts_with("/hangs/") && is_early(path, &seen) => {
                return std::future::pending().await;
            }
            path if path.starts_with("/breaks/") && is_early(path, &seen) => return,
            "/old" => "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
            _ => {
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: x-hop\r\nx-hop: 1\r\nx-envoy-own: 1\r\n\r\nok"
            }
        };
        // It ends the connection after its answer, and does not announce it.
        if stream.write_all(answered.as_bytes()).await.is_err() || path == "/last" {
            return;
        }
        answered_before = true;
    }
}

/// Whether a path `/<what>/<times>/<name>` was asked for no more often than it says.
fn is_early(path: &str, seen: &Seen) -> bool {
    let times: usize = path.split('/').nth(2).and_then(|times| times.parse().ok()).unwrap_or_default();
    seen.lock().unwrap().iter().filter(|request| request.contains(path)).count() <= times
}

async fn refuse(stream: &mut TcpStream, seen: &Seen, head: &[u8]) {
    seen.lock().unwrap().push(text(head));
    let _ = stream.write_all(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\nno").await;
    let _ = stream.shutdown().await;
}

async fn echo(stream: &mut TcpStream, answer: &str, early: Vec<u8>) {
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.write_all(&early).await;
    let mut more = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut more).await {
        let _ = stream.write_all(&more[..n]).await;
    }
}

async fn endless(stream: &mut TcpStream) {
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
    let chunk = [b"4000\r\n".as_slice(), &[b'x'; 0x4000], b"\r\n"].concat();
    while stream.write_all(&chunk).await.is_ok() {}
}

/// Events of a stream: one at once, and others as long as somebody listens.
async fn trickle(stream: &mut TcpStream) {
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
    while stream.write_all(b"6\r\nevent\n\r\n").await.is_ok() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

async fn http2(stream: TcpStream, seen: Seen) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut response))) = connection.accept().await {
        let path = request.uri().path_and_query().map_or("", |p| p.as_str()).to_owned();
        let mut lines = format!("{} {path} HTTP/2\r\n", request.method());
        let authority = request.uri().authority().map_or("", |a| a.as_str());
        lines.push_str(&format!(":authority: {authority}\r\n"));
        for (name, value) in request.headers() {
            lines.push_str(&format!("{name}: {}\r\n", text(value.as_bytes())));
        }
        seen.lock().unwrap().push(lines);
        if path == "/hang" {
            tokio::spawn(async move {
                // What is sent is not read.
                let _request = request;
                std::future::poll_fn(|cx| response.poll_reset(cx)).await
            });
            continue;
        }
        let Ok(mut send) = response.send_response(http::Response::new(()), false) else { continue };
        if path.starts_with("/endless") {
            let counted = path.ends_with("/counted");
            tokio::spawn(async move {
                loop {
                    send.reserve_capacity(0x4000);
                    match std::future::poll_fn(|cx| send.poll_capacity(cx)).await {
                        Some(Ok(n)) if send.send_data(vec![b'x'; n].into(), false).is_ok() => {
                            SENT.fetch_add(if counted { n } else { 0 }, Ordering::SeqCst);
                        }
                        _ => return,
                    }
                }
            });
            continue;
        }
        let _ = send.send_data(Bytes::from_static(b"ok"), true);
    }
}
