// SPDX-License-Identifier: Apache-2.0
//! The HTTP endpoints every process has: readiness, metrics, and an admin page that components extend.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::Query;
use axum::http::StatusCode;
use axum::routing::{get, post};

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

/// Serves `routes` on `address` until a drain starts.
///
/// # Errors
/// The address cannot be bound, or the listener fails.
pub async fn serve(address: SocketAddr, routes: Router, mut drain: DrainWatch) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    axum::serve(listener, routes).with_graceful_shutdown(async move { drain.started().await }).await
}
