// SPDX-License-Identifier: Apache-2.0
//! The admin endpoint: what the proxy knows, in the form that Istio's tools read.
use std::sync::Arc;

use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::context::Context;

/// `/config_dump`.
pub(crate) fn routes(context: Arc<Context>) -> Router {
    Router::new().route("/config_dump", get(move || async move { Json(dump(&context)) }))
}

fn dump(_context: &Context) -> Value {
    json!({})
}
