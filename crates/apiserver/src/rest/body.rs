// SPDX-License-Identifier: Apache-2.0
//! Bodies of requests: JSON, YAML or protobuf, bounded.

use std::time::Duration;

use axum::body::Body;
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;

use crate::bounds::MAX_BODY;
use crate::document::Document;
use crate::patch::PatchKind;
use crate::status::Refusal;
use crate::{document, protobuf};

/// Longest time for a body to arrive.
const BODY_LIMIT: Duration = Duration::from_secs(30);

fn content_type(headers: &HeaderMap) -> &str {
    headers.get(header::CONTENT_TYPE).and_then(|c| c.to_str().ok()).unwrap_or("application/json")
}

async fn bytes(request: Request<Body>) -> Result<bytes::Bytes, Refusal> {
    let mut body = request.into_body();
    let read = async {
        match Limited::new(&mut body, MAX_BODY).collect().await {
            Err(error) if error.is::<LengthLimitError>() => {
                discard(&mut body).await;
                Err(Refusal::too_large(format!("the request body is larger than {MAX_BODY} bytes")))
            }
            Err(error) => Err(Refusal::bad_request(format!("reading the body: {error}"))),
            Ok(collected) => Ok(collected.to_bytes()),
        }
    };
    let late = |_| Err(Refusal::bad_request(format!("the body did not arrive within {BODY_LIMIT:?}")));
    tokio::time::timeout(BODY_LIMIT, read).await.unwrap_or_else(late)
}

/// Reads what is left of a body that is too large, as much again as it may have: a client that is still writing when its
/// connection closes reports the broken connection and not the answer.
async fn discard(body: &mut Body) {
    let mut left = MAX_BODY;
    while let Some(Ok(frame)) = body.frame().await {
        match left.checked_sub(frame.data_ref().map_or(0, bytes::Bytes::len)) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

fn decode(content_type: &str, bytes: &[u8]) -> Result<Document, Refusal> {
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    if kind.ends_with("protobuf") {
        let value = protobuf::decode(bytes).map_err(|error| match error {
            protobuf::ProtobufError::OverBound(over) => over.into(),
            error => Refusal::bad_request(format!("error decoding protobuf: {error}")),
        })?;
        return Ok(Document { value, ..Document::default() });
    }
    Ok(if kind.ends_with("yaml") { document::read_yaml(bytes)? } else { document::read_json(bytes)? })
}

/// The object in the body; no field of it may stand twice.
pub(super) async fn read(request: Request<Body>) -> Result<Value, Refusal> {
    Ok(read_document(request).await?.strict()?)
}

/// The object in the body, and what stands twice in it.
pub(super) async fn read_document(request: Request<Body>) -> Result<Document, Refusal> {
    let kind = content_type(request.headers()).to_owned();
    let document = decode(&kind, &bytes(request).await?)?;
    if document.value.is_object() {
        Ok(document)
    } else {
        Err(Refusal::bad_request("the body is not an object"))
    }
}

/// The object in the body, when there is one.
pub(super) async fn read_optional(request: Request<Body>) -> Result<Option<Value>, Refusal> {
    let kind = content_type(request.headers()).to_owned();
    let bytes = bytes(request).await?;
    if bytes.is_empty() { Ok(None) } else { Ok(Some(decode(&kind, &bytes)?.strict()?)) }
}

/// The patch in the body, and what stands twice in it.
pub(super) async fn patch(request: Request<Body>) -> Result<(PatchKind, Document), Refusal> {
    let kind = content_type(request.headers()).to_owned();
    let patch = PatchKind::of(&kind)?;
    Ok((patch, decode(&kind, &bytes(request).await?)?))
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use tokio::time::Instant;

    use super::*;

    fn request(body: Body) -> Request<Body> {
        Request::builder().header(header::CONTENT_TYPE, "application/json").body(body).unwrap()
    }

    #[tokio::test]
    async fn a_body_at_the_bound_is_read_and_a_larger_one_is_refused() {
        let padded = |length: usize| format!("{{}}{}", " ".repeat(length - 2));
        assert!(read(request(Body::from(padded(MAX_BODY)))).await.is_ok());
        assert_eq!(read(request(Body::from(padded(MAX_BODY + 1)))).await.unwrap_err().code, 413);
        // One without a length or an end: it is given up, not read on.
        let parts = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 64 * 1024]));
        assert_eq!(read(request(Body::from_stream(parts))).await.unwrap_err().code, 413);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_waited_for_with_a_limit() {
        let begun = Instant::now();
        let silent = futures::stream::pending::<Result<Vec<u8>, std::io::Error>>();
        let drops = futures::stream::repeat(()).then(|()| async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            Ok::<_, std::io::Error>(b" ".to_vec())
        });
        for body in [Body::from_stream(silent), Body::from_stream(drops)] {
            assert_eq!(read(request(body)).await.unwrap_err().code, 400);
        }
        assert_eq!(begun.elapsed().as_secs(), 2 * BODY_LIMIT.as_secs());
    }
}
