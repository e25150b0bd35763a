// SPDX-License-Identifier: Apache-2.0
//! External authorizers, which policies of action CUSTOM ask: over HTTP by a request like the client's, or over gRPC by
//! Envoy's protocol. What is asked about is what is judged; an answer that is not whole is none.

mod grpc;
mod http1;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::BodyExt;
use meltemi_model::SpiffeId;
use meltemi_model::l7::{Provider, ProviderProtocol, check_header_name};
use meltemi_tunnel::Patience;

use crate::balance::choose_endpoint;
use crate::body::{Body, full};
use crate::context::Context;
use crate::forward::{attempt, backend_version, host};
use crate::headers;
use crate::pool::HttpVersion;
use crate::served::BackendRef;

/// Bytes of an authorizer's answer at most.
const MAX_ANSWER: usize = 64 * 1024;
/// Endpoints that are tried.
const ENDPOINTS: usize = 2;

/// What is asked about.
pub(crate) struct Check<'a> {
    pub(crate) method: &'a str,
    /// As it is judged and forwarded.
    pub(crate) path: &'a str,
    /// As it was sent, without `?`.
    pub(crate) query: &'a str,
    pub(crate) host: &'a str,
    pub(crate) scheme: &'static str,
    pub(crate) version: Version,
    /// As they are forwarded, with tokens.
    pub(crate) headers: &'a HeaderMap,
    pub(crate) source: Option<&'a SpiffeId>,
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    /// The first bytes of the body, if the provider gets them, and whether there are more.
    pub(crate) body: Option<(Bytes, bool)>,
}

impl Check<'_> {
    fn path_and_query(&self) -> String {
        match self.query {
            "" => self.path.to_owned(),
            query => format!("{}?{query}", self.path),
        }
    }
}

/// Why an answer is no verdict.
#[derive(Debug, thiserror::Error)]
enum NoVerdict {
    #[error("{0}")]
    Unreached(String),
    #[error("its answer breaks off: {0}")]
    BrokenOff(#[from] hyper::Error),
    #[error("its answer has more than {MAX_ANSWER} bytes")]
    TooLong,
    #[error("it answers {0}")]
    Status(StatusCode),
    #[error("it answers gRPC status {0}")]
    GrpcStatus(String),
    #[error("its answer is not one whole CheckResponse with a status")]
    NotWhole,
    #[error("its answer allows and denies")]
    Contradiction,
    #[error("it changes the query, which is not done here")]
    Query,
    #[error("it changes a header that it may not change")]
    Header,
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

/// What an authorizer has said.
pub(crate) enum Verdict {
    Allowed(Allowed),
    /// With the answer for the client.
    Denied(Response<Body>),
    /// It has said nothing that can be understood. `never_open`: whatever the provider's settings say, since the client could
    /// bring it about.
    Failed {
        reason: String,
        never_open: bool,
    },
}

impl Verdict {
    fn failed(reason: impl ToString) -> Self {
        Self::Failed { reason: reason.to_string(), never_open: false }
    }
}

/// A header that an authorizer writes.
#[derive(Debug)]
pub(crate) struct Written {
    name: HeaderName,
    value: HeaderValue,
    /// Added to those of the same name, and not in their place.
    is_added: bool,
}

/// Changes that an authorizer asks for.
#[derive(Debug, Default)]
pub(crate) struct Allowed {
    /// Headers of the request.
    written: Vec<Written>,
    /// Headers of the request that are removed.
    removed: Vec<HeaderName>,
    /// Headers for the client.
    pub(crate) for_client: HeaderMap,
}

impl Allowed {
    /// Changes the headers of a request.
    pub(crate) fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.removed {
            headers.remove(name);
        }
        for replaced in self.written.iter().filter(|written| !written.is_added) {
            headers.remove(&replaced.name);
        }
        for Written { name, value, .. } in &self.written {
            headers.append(name.clone(), value.clone());
        }
    }
}

/// Whether an authorizer may change a header: not those by which a message is framed or belongs to a connection.
fn may_change(name: &HeaderName) -> bool {
    check_header_name(name.as_str()).is_ok()
}

/// Asks a provider.
pub(crate) async fn ask_provider(context: &Arc<Context>, provider: &Provider, check: &Check<'_>) -> Verdict {
    let limit = Duration::from_millis(provider.timeout_ms);
    let asked = async {
        match &provider.protocol {
            ProviderProtocol::Http(settings) => http1::ask_by_http(context, provider, settings, check).await,
            ProviderProtocol::Grpc => grpc::ask_by_grpc(context, provider, check).await,
        }
    };
    match tokio::time::timeout(limit, asked).await {
        Ok(verdict) => verdict,
        Err(_) => Verdict::failed(NoVerdict::Timeout(limit)),
    }
}

/// An answer, read to its end.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    trailers: HeaderMap,
}

/// Sends a request to an endpoint of the provider, and to another one where the first has not got it.
async fn exchange(
    context: &Arc<Context>,
    provider: &Provider,
    mut request: Request<Body>,
    version: Option<HttpVersion>,
) -> Result<Answer, NoVerdict> {
    let backend = BackendRef::Service(provider.service.clone(), provider.port);
    let version = version.unwrap_or_else(|| backend_version(context, &backend, Version::HTTP_11, false));
    let mut tried = Vec::new();
    loop {
        let route = choose_endpoint(context, &backend, Some(version), &tried)
            .map_err(|none| NoVerdict::Unreached(none.reason))?;
        tried.push(host(&route));
        let outcome = attempt(context, &route, request, version, Patience::Full).await;
        context.report_endpoint(host(&route), outcome.is_ok());
        match outcome {
            Ok(exchanged) => {
                let (head, mut body) = exchanged.response.into_parts();
                let (mut read, mut trailers) = (BytesMut::new(), HeaderMap::new());
                while let Some(frame) = body.frame().await {
                    match frame?.into_data() {
                        Ok(data) if read.len() + data.len() > MAX_ANSWER => {
                            return Err(NoVerdict::TooLong);
                        }
                        Ok(data) => read.extend_from_slice(&data),
                        Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
                    }
                }
                exchanged.lease.keep();
                return Ok(Answer {
                    status: head.status,
                    headers: head.headers,
                    body: read.freeze(),
                    trailers,
                });
            }
            Err(failed) => match failed.request.filter(|_| tried.len() < ENDPOINTS) {
                Some(again) => request = again,
                None => return Err(NoVerdict::Unreached(failed.unreached.reason)),
            },
        }
    }
}

/// The answer that a denied client gets.
fn denied(status: StatusCode, mut said: HeaderMap, body: Bytes) -> Response<Body> {
    headers::strip(&mut said);
    said.remove(http::header::CONTENT_LENGTH);
    let mut response = Response::new(full(body));
    *response.status_mut() = status;
    *response.headers_mut() = said;
    response
}
