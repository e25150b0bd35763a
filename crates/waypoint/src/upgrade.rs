// SPDX-License-Identifier: Apache-2.0
//! Upgrade: a WebSocket is bytes both ways, after the backend has agreed to it, and as long as it is permitted.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use meltemi_policy::Permit;
use meltemi_runtime::places::Place;
use meltemi_view::registry::Guard;
use tokio::io::AsyncWriteExt;

use crate::body::{Body, full};
use crate::context::Context;
use crate::headers::strip;

/// How long the two ends may take to let go of HTTP.
const CHANGE: Duration = Duration::from_secs(10);

/// Marks a request or answer as one that changes to WebSocket; [`strip`] has removed what the other side said.
pub(crate) fn mark(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

/// Whether an answer is the agreement that was asked for.
pub(crate) fn agreed(response: &Response<Incoming>) -> bool {
    let upgrade = response.headers().get(UPGRADE);
    response.status() == StatusCode::SWITCHING_PROTOCOLS
        && upgrade.is_some_and(|u| u.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Ends in good order a connection whose client wanted something else and got an answer: the answer must not be lost.
pub(crate) fn end(context: &Arc<Context>, client: OnUpgrade) {
    context.tasks.spawn_job("farewell", async move {
        let client = client.await.map_err(|e| e.to_string())?;
        tokio::time::timeout(CHANGE, TokioIo::new(client).shutdown())
            .await
            .map_err(|_| "the client takes no end".to_owned())?
            .map_err(|e| e.to_string())
    });
}

/// Passes the agreement on and the bytes after it; nothing of the client has gone to the backend before.
pub(crate) fn change(
    context: &Arc<Context>,
    client: OnUpgrade,
    mut response: Response<Incoming>,
    permit: Permit,
    kept: (Guard, Option<Arc<Place>>),
) -> Response<Body> {
    let backend = hyper::upgrade::on(&mut response);
    let mut drain = context.tasks.drain();
    context.tasks.spawn_job("websocket", async move {
        let _kept = kept;
        let both = async { tokio::try_join!(client, backend) };
        let copied = async {
            let (client, backend) = tokio::time::timeout(CHANGE, both)
                .await
                .map_err(|_| "the ends do not change to WebSocket".to_owned())?
                .map_err(|e| e.to_string())?;
            let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
            let copied = tokio::io::copy_bidirectional(&mut client, &mut backend).await;
            copied.map(|_| ()).map_err(|e| e.to_string())
        };
        // Whatever ends it drops both ends.
        let ended = tokio::select! {
            ended = copied => ended,
            reason = permit.revoked() => Err(reason.to_string()),
            () = drain.forced() => Err("the proxy ends".to_owned()),
        };
        if let Err(reason) = ended {
            tracing::debug!(%reason, "websocket");
        }
        Ok::<(), Infallible>(())
    });
    let (mut parts, _) = response.into_parts();
    strip(&mut parts.headers);
    mark(&mut parts.headers);
    Response::from_parts(parts, full(""))
}
