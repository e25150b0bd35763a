// SPDX-License-Identifier: Apache-2.0
//! The life of a request, phase by phase.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto;
use meltemi_model::l7::{Filter, HeaderChanges};
use meltemi_model::{NamespacedHostname, SpiffeId};
use meltemi_view::judge::Denied;

use crate::authorize::{RequestFacts, authorize};
use crate::check::{Checked, check, strip};
use crate::context::{Context, jiff_text};
use crate::forward::forward;
use crate::log::{self, Line};
use crate::route::{Asked, Chosen, NoRoute, choose};

/// What a client sees of a denial; 19 bytes, as clients compare it.
const DENIED: &str = "RBAC: access denied";
/// Longest time for the head of a request.
const HEAD: Duration = Duration::from_secs(15);
/// Headers at most.
const MAX_HEADERS: usize = 100;
/// Header bytes at most, decoded.
const MAX_HEADER_BYTES: usize = 60 * 1024;

/// Who is on the other side.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Who it has proven to be.
    pub(crate) identity: Option<SpiffeId>,
    /// Its address.
    pub(crate) address: SocketAddr,
}

/// What a connection is for.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    /// The addressed Service, at a waypoint.
    pub(crate) service: Option<NamespacedHostname>,
    /// The addressed address and port.
    pub(crate) to: SocketAddr,
    /// The listener's port, at a gateway.
    pub(crate) listener: Option<u16>,
    /// The client.
    pub(crate) peer: Peer,
}

type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// Serves HTTP/1.1 or HTTP/2 on a connection.
pub(crate) async fn connection<IO>(context: Arc<Context>, io: IO, served: Served)
where
    IO: Read + Write + Unpin + Send + 'static,
{
    let served = Arc::new(served);
    let drain = context.tasks.drain();
    let service = service_fn(move |request| {
        let (context, served) = (context.clone(), served.clone());
        async move { Ok::<_, std::convert::Infallible>(handle(context, &served, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).max_headers(MAX_HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(MAX_HEADER_BYTES).unwrap_or(u32::MAX))
        .max_concurrent_streams(100)
        .max_pending_accept_reset_streams(64);
    let connection = builder.serve_connection(io, service);
    tokio::pin!(connection);
    let mut drain = drain;
    tokio::select! {
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(error = %error, "connection");
            }
        }
        () = drain.started() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => drop(ended),
                () = drain.forced() => {}
            }
        }
    }
}

async fn handle(context: Arc<Context>, served: &Served, request: Request<Incoming>) -> Response<Body> {
    let begun = Instant::now();
    let mut line = line(&request, served);
    let response = phases(&context, served, request, &mut line).await;
    line.code = response.status().as_u16();
    line.duration_ms = begun.elapsed().as_millis();
    context.log.line(line.text());
    response
}

fn line(request: &Request<Incoming>, served: &Served) -> Line {
    let header =
        |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    Line {
        time: jiff_text(SystemTime::now()),
        method: request.method().to_string(),
        path: request.uri().path_and_query().map_or_else(String::new, ToString::to_string),
        version: log::version(request.version()),
        user_agent: header(USER_AGENT.as_str()),
        request_id: header("x-request-id"),
        authority: request.uri().authority().map_or_else(|| header("host"), ToString::to_string),
        source: served
            .peer
            .identity
            .as_ref()
            .map_or_else(|| served.peer.address.to_string(), ToString::to_string),
        ..Line::default()
    }
}

async fn phases(
    context: &Arc<Context>,
    served: &Served,
    mut request: Request<Incoming>,
    line: &mut Line,
) -> Response<Body> {
    let checked = match check(&request, context.view.mesh().path_normalization()) {
        Ok(checked) => checked,
        Err(status) => {
            line.details = "request_is_ambiguous".into();
            return plain(status, "");
        }
    };
    let grpc =
        request.headers().get(CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"));
    let facts = facts(context, served, &request, &checked);
    let (permit, guard) = match authorize(context, facts) {
        Ok(permitted) => permitted,
        Err(denied) => return refused(&denied, grpc, line),
    };
    let chosen = match route(context, served, &request, &checked) {
        Ok(chosen) => chosen,
        Err(status) => {
            line.flags = "NR";
            line.details = "route_not_found".into();
            return plain(status, "");
        }
    };
    if let Err(status) = prepare(&mut request, &checked, &chosen) {
        return plain(status, "");
    }
    let timeout =
        chosen.rule.as_ref().and_then(|r| r.timeout_ms).filter(|ms| *ms > 0).map(Duration::from_millis);
    let forwarded = async {
        match timeout {
            Some(limit) => tokio::time::timeout(limit, forward(context, &chosen, request)).await.ok(),
            None => Some(forward(context, &chosen, request).await),
        }
    };
    let outcome = tokio::select! {
        outcome = forwarded => outcome,
        reason = permit.revoked() => {
            line.details = reason.to_string();
            return plain(StatusCode::FORBIDDEN, DENIED);
        }
    };
    match outcome {
        None => {
            line.flags = "UT";
            plain(StatusCode::GATEWAY_TIMEOUT, "upstream request timeout")
        }
        Some(Err(unreached)) => {
            line.flags = unreached.flag;
            line.failure = unreached.reason;
            plain(StatusCode::SERVICE_UNAVAILABLE, "no healthy upstream")
        }
        Some(Ok((response, upstream))) => {
            line.upstream = upstream;
            line.details = "via_upstream".into();
            answer(response, &chosen, permit, guard)
        }
    }
}

fn facts(context: &Context, served: &Served, request: &Request<Incoming>, checked: &Checked) -> RequestFacts {
    RequestFacts {
        source: served.peer.identity.clone(),
        source_ip: served.peer.address.ip().to_canonical(),
        to: served.to,
        method: request.method().to_string(),
        host: checked.host.clone(),
        paths: checked.paths.clone(),
        headers: request.headers().clone(),
        service: served.service.clone(),
        gateway: context.config.gateway.clone(),
    }
}

fn route(
    context: &Context,
    served: &Served,
    request: &Request<Incoming>,
    checked: &Checked,
) -> Result<Chosen, StatusCode> {
    let mesh = context.view.mesh();
    let asked = Asked {
        method: request.method(),
        host: &checked.host,
        path: &checked.paths[0],
        query: request.uri().query().unwrap_or_default(),
        headers: request.headers(),
        service: served.service.as_ref().map(|s| (s, served.to.port())),
        listener: served.listener,
    };
    choose(context, &mesh, &asked).map_err(|why| match why {
        NoRoute::NotFound => StatusCode::NOT_FOUND,
        NoRoute::NoBackend => StatusCode::INTERNAL_SERVER_ERROR,
    })
}

/// What is forwarded is what was judged: the normalised path, one host, nothing of another hop.
fn prepare(request: &mut Request<Incoming>, checked: &Checked, chosen: &Chosen) -> Result<(), StatusCode> {
    strip(request.headers_mut());
    let path = &checked.paths[0];
    let target = request.uri().query().map_or_else(|| path.clone(), |query| format!("{path}?{query}"));
    let uri = if request.version() == http::Version::HTTP_2 {
        Uri::builder().scheme("http").authority(checked.host.as_str()).path_and_query(target).build()
    } else {
        let host = HeaderValue::from_str(&checked.host).map_err(|_| StatusCode::BAD_REQUEST)?;
        request.headers_mut().insert(http::header::HOST, host);
        *request.version_mut() = http::Version::HTTP_11;
        Uri::builder().path_and_query(target).build()
    };
    *request.uri_mut() = uri.map_err(|_| StatusCode::BAD_REQUEST)?;
    for filter in chosen.rule.iter().flat_map(|r| &r.filters) {
        match filter {
            Filter::RequestHeaders { changes } => apply(request.headers_mut(), changes),
            Filter::ResponseHeaders { .. } => {}
            // What a rule asks for and this proxy does not do is an error, not nothing.
            Filter::Rewrite { .. } | Filter::Redirect { .. } => return Err(StatusCode::NOT_IMPLEMENTED),
        }
    }
    Ok(())
}

fn apply(headers: &mut HeaderMap, changes: &HeaderChanges) {
    let pair = |(name, value): &(String, String)| {
        Some((name.parse::<http::HeaderName>().ok()?, HeaderValue::from_str(value).ok()?))
    };
    for (name, value) in changes.set.iter().filter_map(pair) {
        headers.insert(name, value);
    }
    for (name, value) in changes.add.iter().filter_map(pair) {
        headers.append(name, value);
    }
    for name in &changes.remove {
        headers.remove(name.as_str());
    }
}

fn refused(denied: &Denied, grpc: bool, line: &mut Line) -> Response<Body> {
    line.details = log::denial(denied);
    line.failure.clone_from(&denied.text);
    if !grpc {
        return plain(StatusCode::FORBIDDEN, DENIED);
    }
    // gRPC tells failures in its own status: 7 is PERMISSION_DENIED.
    let mut response = plain(StatusCode::OK, "");
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from_static("7"));
    headers.insert("grpc-message", HeaderValue::from_static(DENIED));
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let body = Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    if !text.is_empty() {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    response
}

/// The backend's answer; its body ends when the permit is taken back.
fn answer(
    response: Response<Incoming>,
    chosen: &Chosen,
    permit: meltemi_policy::Permit,
    guard: meltemi_view::registry::Guard,
) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    strip(&mut parts.headers);
    for filter in chosen.rule.iter().flat_map(|r| &r.filters) {
        if let Filter::ResponseHeaders { changes } = filter {
            apply(&mut parts.headers, changes);
        }
    }
    let revoked = Box::pin(async move {
        let reason = permit.revoked().await;
        drop(guard);
        reason
    });
    let state = (body, revoked);
    let stream = futures::stream::unfold(Some(state), |state| async move {
        let (mut body, mut revoked) = state?;
        tokio::select! {
            frame = body.frame() => match frame {
                None => None,
                Some(Ok(frame)) => Some((Ok(frame), Some((body, revoked)))),
                Some(Err(error)) => Some((Err(error.into()), None)),
            },
            reason = &mut revoked => {
                let error: Box<dyn std::error::Error + Send + Sync> = reason.to_string().into();
                Some((Err(error), None))
            }
        }
    });
    let body = BodyExt::boxed_unsync(http_body_util::StreamBody::new(stream));
    Response::from_parts(parts, body)
}
