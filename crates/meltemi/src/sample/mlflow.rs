// SPDX-License-Identifier: Apache-2.0
//! A stand-in for an experiment tracker: answers every request with the method and path that it saw.

use axum::http::{HeaderMap, Method, Uri};
use axum::routing::any;
use axum::{Json, Router};
use serde_json::{Value, json};

pub(super) fn routes() -> Router {
    Router::new().route("/", any(echo)).route("/{*path}", any(echo))
}

async fn echo(method: Method, uri: Uri, headers: HeaderMap) -> Json<Value> {
    let headers: serde_json::Map<String, Value> = headers
        .iter()
        .map(|(name, value)| {
            (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned().into())
        })
        .collect();
    Json(json!({"service": "mlflow", "method": method.as_str(), "path": uri.path(), "headers": headers}))
}
