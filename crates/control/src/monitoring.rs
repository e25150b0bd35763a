// SPDX-License-Identifier: Apache-2.0
//! Metrics, readiness, version, and a debug page for callers of the control plane's own namespace.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use meltemi_kubeclient::Watches;
use meltemi_runtime::metrics::Metrics;
use meltemi_runtime::{Readiness, admin};
use meltemi_wire::xds::server::Publisher;
use serde_json::json;

use crate::auth::Authenticator;
use crate::xds::Proxies;

/// What the pages show.
#[derive(Clone, Debug)]
pub struct Pages {
    /// Who calls.
    pub authenticator: Arc<Authenticator>,
    /// Namespace whose ServiceAccounts may look.
    pub namespace: Arc<str>,
    /// Who is connected.
    pub proxies: Proxies,
    /// What is published.
    pub publisher: Publisher,
    /// How the watches of the API stand.
    pub watches: Watches,
}

/// Every route of the monitoring port.
pub fn routes(pages: Pages, metrics: Metrics, readiness: Readiness) -> Router {
    let debug = Router::new()
        .route("/debug/syncz", get(syncz))
        .route("/debug/configz", get(configz))
        .with_state(pages);
    Router::new()
        .route("/version", get(|| async { env!("CARGO_PKG_VERSION") }))
        .merge(debug)
        .merge(admin::ready_routes(readiness))
        .merge(admin::stats_routes(metrics))
}

async fn refused(pages: &Pages, headers: &HeaderMap) -> Option<Response> {
    let authorization = headers.get("authorization").and_then(|v| v.to_str().ok());
    match pages.authenticator.authenticate(authorization).await {
        Ok(caller) if *caller.namespace == *pages.namespace => None,
        Ok(_) => Some((StatusCode::FORBIDDEN, "not for this caller\n").into_response()),
        Err(error) => Some((StatusCode::UNAUTHORIZED, format!("{error}\n")).into_response()),
    }
}

async fn syncz(State(pages): State<Pages>, headers: HeaderMap) -> Response {
    match refused(&pages, &headers).await {
        Some(refusal) => refusal,
        None => Json(pages.proxies.to_json(pages.publisher.generation())).into_response(),
    }
}

async fn configz(State(pages): State<Pages>, headers: HeaderMap) -> Response {
    if let Some(refusal) = refused(&pages, &headers).await {
        return refusal;
    }
    use meltemi_wire::xds::types;
    let names = |t| pages.publisher.names(t);
    Json(json!({
        "generation": pages.publisher.generation(),
        "watches": pages.watches.count(),
        "behind": pages.watches.behind(tokio::time::Instant::now()),
        "addresses": names(types::ADDRESS),
        "policies": names(types::AUTHORIZATION),
        "httpPolicies": names(types::HTTP_POLICY),
        "routes": names(types::ROUTE),
        "listeners": names(types::LISTENER),
    }))
    .into_response()
}
