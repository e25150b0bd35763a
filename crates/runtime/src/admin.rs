// SPDX-License-Identifier: Apache-2.0
//! The HTTP endpoints every process has: readiness, metrics, and an admin page that components extend.

mod listener;

use std::net::SocketAddr;

use axum::Router;
use axum::extract::Query;
use axum::http::StatusCode;
use axum::routing::{get, post};

use self::listener::Bounded;
use crate::drain::DrainWatch;
use crate::metrics::Metrics;
use crate::readiness::Readiness;
use crate::telemetry;

/// `/healthz/ready`: 200 when ready, 503 with the names of what is pending otherwise.
pub fn ready_routes(readiness: Readiness) -> Router {
    Router::new().route(
        "/healthz/ready",
        get(move || {
            let pending = readiness.pending();
            async move {
                if pending.is_empty() {
                    (StatusCode::OK, "ready\n".to_owned())
                } else {
                    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", pending.join(", ")))
                }
            }
        }),
    )
}

/// `/metrics` and `/stats/prometheus`.
pub fn stats_routes(metrics: Metrics) -> Router {
    let encode = move || {
        let text = metrics.encode();
        async move { ([("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")], text) }
    };
    Router::new().route("/metrics", get(encode.clone())).route("/stats/prometheus", get(encode))
}

#[derive(serde::Deserialize)]
struct Logging {
    level: Option<String>,
}

/// `/logging`: POST `?level=debug` changes the level; without it the current one is printed.
pub fn logging_routes() -> Router {
    Router::new().route(
        "/logging",
        post(|Query(query): Query<Logging>| async move {
            if let Some(level) = query.level
                && let Err(reason) = telemetry::set_level(&level)
            {
                return (StatusCode::BAD_REQUEST, format!("{reason}\n"));
            }
            (StatusCode::OK, format!("current log level is {}\n", telemetry::level()))
        }),
    )
}

/// Serves `routes` on `address` until a drain starts: at most 32 connections of one address and 512 of all, each silent for
/// at most a minute.
///
/// # Errors
/// The address cannot be bound, or the listener fails.
pub async fn serve(address: SocketAddr, routes: Router, mut drain: DrainWatch) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    axum::serve(Bounded::new(listener), routes)
        .with_graceful_shutdown(async move { drain.started().await })
        .await
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;
    use std::time::Duration;

    use super::*;
    use crate::drain;

    #[tokio::test(flavor = "multi_thread")]
    async fn one_client_leaves_room_for_the_others() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = free.local_addr().expect("bound");
        drop(free);
        let (_trigger, watch) = drain::channel();
        #[expect(clippy::disallowed_methods, reason = "a test has no owner for tasks but itself")]
        let _serving = tokio::spawn(serve(address, ready_routes(Readiness::new()), watch));
        let ask = |from: &str| -> std::io::Result<String> {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.bind(&format!("{from}:0").parse::<SocketAddr>().expect("an address").into())?;
            socket.connect(&address.into())?;
            let mut stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET /healthz/ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        while ask("127.0.0.1").is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let silent: Vec<_> = (0..40).map(|_| TcpStream::connect(address)).collect();
        tokio::time::sleep(Duration::from_millis(200)).await;
        let answered = |text: std::io::Result<String>| text.is_ok_and(|t| t.starts_with("HTTP/1.1 200"));
        assert!(!answered(ask("127.0.0.1")), "its part is taken");
        assert!(answered(ask("127.0.0.2")));
        drop(silent);
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(answered(ask("127.0.0.1")));
    }
}
