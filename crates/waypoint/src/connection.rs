// SPDX-License-Identifier: Apache-2.0
//! Connection: HTTP/1.1 or HTTP/2 with a client, within the limits.

use std::convert::Infallible;
use std::error::Error as _;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1::{self, UpgradeableConnection};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::context::Context;
use crate::guard::{Speaks, guard};
use crate::limits::{
    CONNECTION_WINDOW, MAX_BUFFER, MAX_HEAD_BYTES, MAX_HEADERS, MAX_RESETS, MAX_SEND_BUFFER, MAX_STREAMS,
    PING_EVERY, PING_LIMIT, STREAM_WINDOW,
};
use crate::log::{self, Line};
use crate::metrics::ResponseFlag;
use crate::pulse::{Ending, Pulse};
use crate::request;
use crate::served::Served;

/// How long a client that is told to go may take.
const FAREWELL: Duration = Duration::from_secs(5);

/// Serves a connection to its end, of which `begun` was read already.
pub(crate) async fn serve<IO>(context: Arc<Context>, io: IO, begun: Vec<u8>, served: Served)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (served, pulse) = (Arc::new(served), Pulse::new());
    // Applications open connections before they need them; at the edge that is what a flood does as well.
    let edge = served.listener.is_some();
    let first = if edge { context.limits.head } else { context.limits.idle };
    let guarded = tokio::select! {
        guarded = guard(io, begun, first, context.limits, pulse.clone()) => guarded,
        () = context.drained() => return,
    };
    let Some((speaks, io)) = guarded else { return };
    let (of, to, beats) = (context.clone(), served.clone(), pulse.clone());
    let service = service_fn(move |request| {
        let (of, to, beats) = (of.clone(), to.clone(), beats.clone());
        async move { Ok::<_, Infallible>(request::handle(of, &to, beats, request).await) }
    });
    let io = TokioIo::new(io);
    let ended = match speaks {
        Speaks::Http1 => {
            let mut builder = http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                // The guard times heads: it knows an idle connection from a slow head.
                .header_read_timeout(None)
                .max_headers(MAX_HEADERS)
                .max_header_size(MAX_HEAD_BYTES)
                .max_buf_size(MAX_BUFFER);
            let connection = builder.serve_connection(io, service).with_upgrades();
            run(&context, connection, UpgradeableConnection::graceful_shutdown, &pulse, (speaks, &served))
                .await
        }
        Speaks::Http2 => {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX))
                .max_concurrent_streams(MAX_STREAMS)
                .max_pending_accept_reset_streams(MAX_RESETS)
                .max_local_error_reset_streams(MAX_RESETS)
                .max_send_buf_size(MAX_SEND_BUFFER)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .keep_alive_interval(PING_EVERY)
                .keep_alive_timeout(PING_LIMIT);
            let connection = builder.serve_connection(io, service);
            run(&context, connection, http2::Connection::graceful_shutdown, &pulse, (speaks, &served)).await
        }
    };
    if let Err(error) = ended {
        malformed(&context, &served, speaks, &error);
    }
}

/// Drives a connection until it ends, or has to.
async fn run<C>(
    context: &Context,
    connection: C,
    farewell: fn(Pin<&mut C>),
    pulse: &Pulse,
    (speaks, served): (Speaks, &Served),
) -> Result<(), hyper::Error>
where
    C: Future<Output = Result<(), hyper::Error>>,
{
    tokio::pin!(connection);
    let mut drain = context.tasks.drain();
    // A client whose Service has moved to another waypoint finds that one with its next connection.
    let moved = context.stops_serving(served);
    let last = tokio::select! {
        ended = connection.as_mut() => return ended,
        ending = pulse.ending(&context.limits, || context.is_crowded()) => {
            tracing::debug!(?ending, "a client's connection is closed");
            if ending != Ending::Idle {
                return Ok(());
            }
            Some(FAREWELL)
        }
        () = moved => Some(FAREWELL),
        // GOAWAY loses no request. HTTP/1.1 has no such word: each answer says that it is the last, and only those who ask
        // nothing any more are closed.
        () = drain.started(), if speaks == Speaks::Http2 => None,
        () = context.drained(), if speaks == Speaks::Http1 => None,
    };
    farewell(connection.as_mut());
    let late = async {
        match last {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        ended = connection.as_mut() => ended,
        () = late => Ok(()),
        () = drain.forced() => Ok(()),
    }
}

/// What came was no request: nobody saw it but this proxy, so this is where it is told.
fn malformed(context: &Context, served: &Served, speaks: Speaks, error: &hyper::Error) {
    let h2 = error.source().and_then(|e| e.downcast_ref::<h2::Error>());
    if !error.is_parse() && h2.is_none_or(|e| e.is_io() || e.reason() == Some(h2::Reason::NO_ERROR)) {
        tracing::debug!(%error, "connection");
        return;
    }
    context.metrics.malformed();
    let why = error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"));
    let line = Line {
        time: log::now(),
        version: if speaks == Speaks::Http1 { "HTTP/1.1" } else { "HTTP/2" },
        code: if error.is_parse_too_large() { 431 } else { 400 },
        flags: ResponseFlag::DownstreamProtocolError,
        details: "malformed_request".into(),
        authority: match (&served.service, &served.workload) {
            (Some(service), _) => format!("{}:{}", service.hostname, served.to.port()),
            (None, Some(_)) => served.to.to_string(),
            (None, None) => String::new(),
        },
        failure: why,
        source: served.peer.text(),
        ..Line::default()
    };
    context.log.line(line.written(context.log.format()));
}
