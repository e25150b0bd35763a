// SPDX-License-Identifier: Apache-2.0
//! Bodies of requests: JSON, YAML or protobuf, bounded.

mod json;

use axum::body::Body;
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt, Limited};
use serde_json::Value;

use crate::patch::PatchKind;
use crate::status::Refusal;

/// Largest body, as in Kubernetes.
const LIMIT: usize = 3 * 1024 * 1024;

fn content_type(headers: &HeaderMap) -> &str {
    headers.get(header::CONTENT_TYPE).and_then(|c| c.to_str().ok()).unwrap_or("application/json")
}

async fn bytes(request: Request<Body>) -> Result<bytes::Bytes, Refusal> {
    let collected = Limited::new(request.into_body(), LIMIT).collect().await.map_err(|e| {
        if e.is::<http_body_util::LengthLimitError>() {
            Refusal::too_large(LIMIT)
        } else {
            Refusal::bad_request(format!("reading the body: {e}"))
        }
    })?;
    Ok(collected.to_bytes())
}

fn decode(content_type: &str, bytes: &[u8]) -> Result<Value, Refusal> {
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    if kind.ends_with("protobuf") {
        return crate::protobuf::decode(bytes)
            .map_err(|e| Refusal::bad_request(format!("error decoding protobuf: {e}")));
    }
    if kind.ends_with("yaml") {
        return serde_yaml_ng::from_slice(bytes)
            .map_err(|e| Refusal::bad_request(format!("error decoding YAML: {e}")));
    }
    json::decode(bytes)
}

/// The object in the body.
pub(super) async fn read(request: Request<Body>) -> Result<Value, Refusal> {
    let kind = content_type(request.headers()).to_owned();
    let value = decode(&kind, &bytes(request).await?)?;
    if value.is_object() { Ok(value) } else { Err(Refusal::bad_request("the body is not an object")) }
}

/// The object in the body, when there is one.
pub(super) async fn read_optional(request: Request<Body>) -> Result<Option<Value>, Refusal> {
    let kind = content_type(request.headers()).to_owned();
    let bytes = bytes(request).await?;
    if bytes.is_empty() { Ok(None) } else { decode(&kind, &bytes).map(Some) }
}

/// The patch in the body.
pub(super) async fn patch(request: Request<Body>) -> Result<(PatchKind, Value), Refusal> {
    let kind = content_type(request.headers()).to_owned();
    let patch = PatchKind::of(&kind)?;
    Ok((patch, decode(&kind, &bytes(request).await?)?))
}
