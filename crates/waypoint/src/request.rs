// SPDX-License-Identifier: Apache-2.0
//! The life of a request, phase by phase.

mod ask;
mod attempts;
mod exchange;
mod mirrors;
mod target;

use std::sync::Arc;
use std::time::Instant;

use http::header::{CONNECTION, CONTENT_TYPE, TRANSFER_ENCODING, UPGRADE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use meltemi_model::NamespacedHostname;
use meltemi_model::l7::Target;
use meltemi_policy::Permit;
use meltemi_state::Route;
use meltemi_view::registry::Guard;
use meltemi_view::{Denial, Mesh};
use tokio::sync::OwnedSemaphorePermit;

use crate::answers::{self, plain};
use crate::authorize::{Forwarded, Subject};
use crate::balance::choose_endpoint;
use crate::body::{Body, Prefix, Upload};
use crate::check::{Checked, check};
use crate::context::Context;
use crate::facts::{RequestFacts, aliases};
use crate::forward::{backend_version, endpoint};
use crate::headers::{self, Changes};
use crate::log::{self, Line};
use crate::metrics::{Labels, ResponseFlag};
use crate::pulse::Pulse;
use crate::route::Chosen;
use crate::served::{BackendRef, Served};
use crate::{cors, tokens, upgrade};
use ask::Permitted;
use exchange::First;

/// A request under way: where it came in, and what is told of it at its end.
struct Life<'a> {
    context: &'a Arc<Context>,
    served: &'a Served,
    pulse: Arc<Pulse>,
    line: Line,
    grpc: bool,
    /// The client's end, when it wanted something else than HTTP on it.
    client: Option<OnUpgrade>,
    /// It asks to change to WebSocket.
    websocket: bool,
    /// Its connection ends with the answer: it was not understood, or came to a proxy that no longer serves its Service.
    last: bool,
    /// Among the heads of open requests.
    room: Option<Arc<OwnedSemaphorePermit>>,
    /// The service that a route chose.
    service: Option<NamespacedHostname>,
    /// What a browser is told of other origins, whatever the answer is.
    cors: Option<HeaderMap>,
    /// Headers that external authorizers have for the client.
    for_client: HeaderMap,
    /// What an external authorizer has got of the body.
    begun_body: Option<Prefix>,
    /// Headers with tokens that are not forwarded.
    tokens: HeaderMap,
    /// The query as it was sent.
    query: String,
    begun: tokio::time::Instant,
}

pub(crate) async fn handle(
    context: Arc<Context>,
    served: &Served,
    pulse: Arc<Pulse>,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let (begun, ticket) = (Instant::now(), pulse.ticket());
    let version = request.version();
    let upgrading = request.headers().contains_key(UPGRADE) || request.method() == Method::CONNECT;
    let client = upgrading.then(|| hyper::upgrade::on(&mut request));
    let line = line(&request, served);
    let grpc =
        request.headers().get(CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"));
    let mut life = Life {
        context: &context,
        served,
        pulse,
        line,
        grpc,
        client,
        websocket: false,
        last: false,
        room: None,
        service: None,
        cors: None,
        for_client: HeaderMap::new(),
        begun_body: None,
        tokens: HeaderMap::new(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        begun: tokio::time::Instant::now(),
    };
    let mut response = life.phases(request).await;
    if let Some(said) = life.cors.take() {
        cors::apply(response.headers_mut(), said);
    }
    for (name, value) in &life.for_client {
        response.headers_mut().append(name.clone(), value.clone());
    }
    let refused = life.client.take();
    // What follows a request that was not understood, that wanted to be something else, or that is of a time before
    // persistent connections, might not be what it looks like. A proxy that ends says so before it closes anything.
    let last = life.last || refused.is_some() || version == Version::HTTP_10 || context.is_draining();
    if last && version != Version::HTTP_2 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if let Some(client) = refused {
        upgrade::end(&context, client);
    }
    let Life { mut line, service, .. } = life;
    line.code = response.status().as_u16();
    line.duration_ms = begun.elapsed().as_millis();
    let peer = (served.peer.identity.as_ref(), served.peer.address.ip());
    let service = served.service.as_ref().or(service.as_ref());
    let mut labels = Labels::new(&context.view.mesh(), peer, service, served.listener.is_some());
    labels.response_code = line.code;
    labels.request_protocol = if grpc { "grpc" } else { "http" };
    labels.response_flags = line.flags;
    context.metrics.record(labels, begun.elapsed());
    context.log.line(line.written(context.log.format()));
    ticket.answered();
    response
}

fn line(request: &Request<Incoming>, served: &Served) -> Line {
    let header = |name: &str| {
        let value = request.headers().get(name);
        value.map_or_else(String::new, |v| String::from_utf8_lossy(v.as_bytes()).into_owned())
    };
    Line {
        time: log::now(),
        method: request.method().to_string(),
        path: request.uri().path_and_query().map_or_else(String::new, ToString::to_string),
        version: log::version(request.version()),
        user_agent: header(USER_AGENT.as_str()),
        request_id: header("x-request-id"),
        authority: request.uri().authority().map_or_else(|| header("host"), ToString::to_string),
        source: served.peer.text(),
        ..Line::default()
    }
}

impl Life<'_> {
    async fn phases(&mut self, mut request: Request<Incoming>) -> Response<Body> {
        let checked = match check(&request, self.context.view.mesh().path_normalization()) {
            Ok(checked) => checked,
            Err(refused) => {
                self.last = true;
                self.line.details = "request_is_ambiguous".into();
                self.line.failure = refused.reason.into();
                return plain(refused.status, refused.reason);
            }
        };
        self.websocket = checked.websocket;
        // From here on: what is judged is what was sent and what is forwarded.
        let edge = self.served.listener.map(|_| self.served.scheme());
        let version = request.version();
        let changes = headers::own(request.headers_mut(), version, self.served.peer.address.ip(), edge);
        let facts = self.facts(&request, &checked, changes);
        let kib = facts.size(request.uri()) / 1024 + 1;
        match self.context.heads.clone().try_acquire_many_owned(u32::try_from(kib).unwrap_or(u32::MAX)) {
            Ok(room) => self.room = Some(Arc::new(room)),
            Err(_) => {
                self.line.flags = ResponseFlag::UpstreamOverflow;
                self.line.details = "overload".into();
                return plain(StatusCode::SERVICE_UNAVAILABLE, "too many open requests");
            }
        }
        let Permitted { subject, permit, guard } = match self.judge(&mut request, &checked, facts).await {
            Ok(permitted) => permitted,
            Err(answer) => return answer,
        };
        let chosen = match self.route(&request, &checked) {
            Ok(chosen) => chosen,
            Err(instead) => return instead.answer(),
        };
        match self.prepare(request, &checked, &chosen) {
            Ok(request) => self.send(request, &chosen, &subject, (permit, guard)).await,
            Err(instead) => instead.answer(),
        }
    }

    /// Chooses an endpoint, judges what it gets, and sends it.
    async fn send(
        &mut self,
        mut request: Request<Incoming>,
        chosen: &Chosen,
        subject: &Subject,
        permitted: (Permit, Guard),
    ) -> Response<Body> {
        let Some(backend) = &chosen.backend else {
            return plain(StatusCode::INTERNAL_SERVER_ERROR, "");
        };
        if let BackendRef::Service(service, _) = backend {
            self.service = Some(service.clone());
        }
        let version =
            backend_version(self.context, backend, self.preferred(request.version()), self.websocket);
        let route = match choose_endpoint(self.context, backend, Some(version), &[]) {
            Ok(route) => route,
            Err(unreached) => return self.unreached(unreached, &Upload::default()),
        };
        if let Err(denied) = self.authorize_forwarded(subject, &route, &mut request) {
            return self.refused(&denied);
        }
        let first = First { backend, route, version, subject };
        self.exchange(request, chosen, first, permitted).await
    }

    /// The version for a backend whose port declares none. A client of the mesh has chosen it for the application that it
    /// knows; one of a gateway has chosen it for the gateway, and most applications speak HTTP/1.1. gRPC is HTTP/2.
    fn preferred(&self, client: Version) -> Version {
        if self.served.listener.is_some() && !self.grpc { Version::HTTP_11 } else { client }
    }

    /// Judges the request as it is forwarded by the policies of the closed Services that the chosen Pod belongs to.
    fn authorize_forwarded<B>(
        &self,
        subject: &Subject,
        route: &Route,
        request: &mut Request<B>,
    ) -> Result<(), Denial> {
        let Some((workload, port)) = endpoint(route) else { return Ok(()) };
        let mesh = self.context.view.mesh();
        let mut facts = if mesh.has_closed() { Some(self.forwarded_facts(request, &mesh)?) } else { None };
        if let Some(facts) = &mut facts {
            for key in workload.services.keys().filter(|key| mesh.is_closed(key)) {
                // Claims of a token that nobody has verified for this Service do not reach its Pods either.
                facts.target = Some(Target::Backend(key.clone()));
                let mut target = request.uri().clone();
                tokens::admit(&mesh, facts, request.headers_mut(), &mut target)?;
                *request.uri_mut() = target;
            }
        }
        subject.forward(self.context, Forwarded { workload, port, facts })
    }

    /// Facts of a request after the rule's changes.
    fn forwarded_facts<B>(&self, request: &Request<B>, mesh: &Mesh) -> Result<RequestFacts, Denial> {
        let checked = check(request, mesh.path_normalization())
            .map_err(|refused| Denial::Ambiguous { reason: refused.reason })?;
        // A token is judged by what was sent, also where the Service that is addressed does not hand it on.
        Ok(self.facts(request, &checked, Changes { withheld: self.tokens.clone(), added: Vec::new() }))
    }

    fn facts<B>(&self, request: &Request<B>, checked: &Checked, changes: Changes) -> RequestFacts {
        let mut headers = request.headers().clone();
        if checked.websocket {
            upgrade::mark(&mut headers);
        }
        if checked.chunked {
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        RequestFacts {
            source: self.served.peer.identity.clone(),
            source_ip: self.served.peer.address.ip().to_canonical(),
            to: self.served.to,
            sni: self.served.secured.as_ref().and_then(|secured| secured.sni.clone()),
            http: true,
            detected: false,
            query: self.query.clone(),
            method: request.method().to_string(),
            host: checked.host.clone(),
            paths: checked.paths.clone(),
            aliases: aliases(&headers, &changes),
            headers,
            changes,
            target: self.served.service.clone().map(Target::Service),
            workload: self.served.workload.clone(),
            gateway: self.context.config.gateway.clone(),
            room: self.room.clone(),
        }
    }

    fn denied(&mut self, denial: &Denial) {
        self.line.details = log::denial(denial);
        self.line.failure = log::reason(denial);
    }

    /// The Service has another waypoint now: the client's next connection finds it.
    fn moved(&mut self, denial: &Denial) -> Response<Body> {
        self.last = true;
        self.line.flags = ResponseFlag::NoRoute;
        self.line.details = "waypoint_has_changed".into();
        self.line.failure = log::reason(denial);
        plain(StatusCode::SERVICE_UNAVAILABLE, "this proxy is no longer the waypoint of the service")
    }

    fn refused(&mut self, denial: &Denial) -> Response<Body> {
        self.denied(denial);
        if let Denial::InvalidToken { reason, .. } = denial {
            let challenge =
                tokens::bearer_challenge(self.served.scheme(), &self.line.authority, &self.line.path);
            return answers::invalid_token(*reason, self.grpc, challenge);
        }
        answers::denial(self.grpc)
    }
}
