// SPDX-License-Identifier: Apache-2.0
//! The life of a request, phase by phase.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::header::{CONNECTION, CONTENT_TYPE, HOST, TRANSFER_ENCODING, UPGRADE, USER_AGENT};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use meltemi_model::NamespacedHostname;
use meltemi_model::l7::{Filter, Target};
use meltemi_policy::Permit;
use meltemi_state::Route;
use meltemi_view::registry::Guard;
use meltemi_view::{Denied, Mesh};
use tokio::sync::OwnedSemaphorePermit;

use crate::answers::{Instead, denial, plain};
use crate::authorize::{Forwarded, Subject, authorize};
use crate::body::{Answer, Body, Bounds, Deadline, Received, Upload};
use crate::check::{Checked, check};
use crate::context::{Context, jiff_text};
use crate::expect::{EndOnDrop, Expectation, Wait, expects_continue};
use crate::facts::{RequestFacts, aliases};
use crate::filters::{self, Going, Impossible};
use crate::forward::{Unreached, backend_version, endpoint, forward, resolve};
use crate::headers::{self, Changes};
use crate::log::{self, Line};
use crate::metrics::Labels;
use crate::pulse::Pulse;
use crate::route::{Asked, Chosen, NoRoute, choose};
use crate::served::Served;
use crate::{tokens, upgrade};

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
        begun: tokio::time::Instant::now(),
    };
    let mut response = life.phases(request).await;
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
    if !line.flags.is_empty() {
        labels.response_flags = line.flags;
    }
    context.metrics.record(labels, begun.elapsed());
    context.log.line(line.written(context.log.format()));
    ticket.answered();
    response
}

/// How long a request may take by its rule, to the end of its answer.
fn timeout(chosen: &Chosen) -> Option<Duration> {
    let millis = chosen.rule.as_ref().and_then(|rule| rule.timeout_ms).filter(|millis| *millis > 0);
    millis.map(Duration::from_millis)
}

fn line(request: &Request<Incoming>, served: &Served) -> Line {
    let header = |name: &str| {
        let value = request.headers().get(name);
        value.map_or_else(String::new, |v| String::from_utf8_lossy(v.as_bytes()).into_owned())
    };
    Line {
        time: jiff_text(SystemTime::now()),
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
        let edge = self.served.listener.is_some();
        let version = request.version();
        let changes = headers::own(request.headers_mut(), version, self.served.peer.address.ip(), edge);
        let mut facts = self.facts(&request, &checked, changes);
        let kib = facts.size(request.uri()) / 1024 + 1;
        match self.context.heads.clone().try_acquire_many_owned(u32::try_from(kib).unwrap_or(u32::MAX)) {
            Ok(room) => self.room = Some(Arc::new(room)),
            Err(_) => {
                self.line.flags = "UO";
                self.line.details = "overload".into();
                return plain(StatusCode::SERVICE_UNAVAILABLE, "too many open requests");
            }
        }
        let mesh = self.context.view.mesh();
        tokens::sanitize(&mesh, &mut facts, request.headers_mut());
        if let Some(denied) = tokens::unverified(&mesh, &facts) {
            self.denied(&denied);
            return plain(StatusCode::UNAUTHORIZED, "token verification is not available");
        }
        let subject = Subject::new(facts);
        let reported = subject.reported(&mesh);
        let (permit, guard) = match authorize(self.context, &subject) {
            Ok(permitted) => permitted,
            Err(denied) => {
                return match subject.unserved(&self.context.view.mesh()) {
                    Some(moved) => self.moved(&moved),
                    None => self.refused(&denied),
                };
            }
        };
        self.line.failure = reported.unwrap_or_default();
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
        let Some((service, port)) = &chosen.backend else {
            return plain(StatusCode::INTERNAL_SERVER_ERROR, "");
        };
        self.service = Some(service.clone());
        let route = match resolve(self.context, service, *port) {
            Ok(route) => route,
            Err(unreached) => return self.unreached(unreached, &Upload::default()),
        };
        if let Err(denied) = self.authorize_forwarded(subject, &route, &mut request) {
            return self.refused(&denied);
        }
        self.exchange(request, chosen, route, permitted).await
    }

    /// Judges the request as it is forwarded by the policies of the closed Services that the chosen Pod belongs to.
    fn authorize_forwarded(
        &self,
        subject: &Subject,
        route: &Route,
        request: &mut Request<Incoming>,
    ) -> Result<(), Denied> {
        let Some((workload, port)) = endpoint(route) else { return Ok(()) };
        let mesh = self.context.view.mesh();
        let facts = if mesh.closed.is_empty() { None } else { Some(self.forwarded_facts(request, &mesh)?) };
        if let Some(facts) = &facts {
            for key in workload.services.keys().filter(|key| mesh.closed.contains(*key)) {
                // Claims of a token that nobody has verified for this Service do not reach its Pods either.
                let mut facts = facts.clone();
                facts.target = Some(Target::Backend(key.clone()));
                tokens::sanitize(&mesh, &mut facts, request.headers_mut());
            }
        }
        subject.forward(self.context, Forwarded { workload, port, facts })
    }

    /// Facts of a request after the rule's changes.
    fn forwarded_facts(&self, request: &Request<Incoming>, mesh: &Mesh) -> Result<RequestFacts, Denied> {
        let checked = check(request, mesh.path_normalization()).map_err(|refused| {
            let text = format!("the request as it is forwarded: {}", refused.reason);
            Denied { text, policy: None, rule: None, clause: None, missing: false }
        })?;
        Ok(self.facts(request, &checked, Changes::default()))
    }

    fn facts(&self, request: &Request<Incoming>, checked: &Checked, changes: Changes) -> RequestFacts {
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
            http: true,
            detected: false,
            query: request.uri().query().unwrap_or_default().to_owned(),
            method: request.method().to_string(),
            host: checked.host.clone(),
            paths: checked.paths.clone(),
            aliases: aliases(&headers, &changes),
            headers,
            changes,
            target: self.served.service.clone().map(Target::Service),
            gateway: self.context.config.gateway.clone(),
            room: self.room.clone(),
        }
    }

    fn route(&mut self, request: &Request<Incoming>, checked: &Checked) -> Result<Chosen, Instead> {
        let mesh = self.context.view.mesh();
        let asked = Asked {
            method: request.method(),
            host: &checked.host,
            path: &checked.paths[0],
            query: request.uri().query().unwrap_or_default(),
            headers: request.headers(),
            service: self.served.service.as_ref().map(|s| (s, self.served.to.port())),
            listener: self.served.listener,
        };
        let chosen = choose(self.context, &mesh, &asked).map_err(|NoRoute| {
            self.line.flags = "NR";
            self.line.details = "route_not_found".into();
            Instead::Status(StatusCode::NOT_FOUND, "no route")
        })?;
        if let Some(Err(why)) = chosen.rule.as_ref().map(filters::check) {
            return Err(self.impossible(why));
        }
        let going = self.going(&chosen, checked, request);
        match chosen.rule.as_ref().and_then(|rule| filters::redirect(rule, going)) {
            Some(Ok((status, location))) => {
                self.line.details = "redirect".into();
                Err(Instead::Redirect(status, location))
            }
            Some(Err(Impossible(why))) => Err(self.impossible(why)),
            None if chosen.backend.is_none() => Err(self.impossible("no backend that can be used")),
            None => Ok(chosen),
        }
    }

    fn impossible(&mut self, why: impl Into<String>) -> Instead {
        self.line.details = "route_cannot_be_followed".into();
        self.line.failure = why.into();
        Instead::Status(StatusCode::INTERNAL_SERVER_ERROR, "the route cannot be followed")
    }

    fn going<'a>(
        &self,
        chosen: &'a Chosen,
        checked: &'a Checked,
        request: &'a Request<Incoming>,
    ) -> Going<'a> {
        Going {
            host: &checked.host,
            port: self.served.listener.unwrap_or(self.served.to.port()),
            path: &checked.paths[0],
            query: request.uri().query(),
            prefix: chosen.prefix.as_deref(),
        }
    }

    /// What is forwarded is what was judged: the normalised path, one host, nothing of another hop; then what the rule
    /// changes.
    fn prepare(
        &mut self,
        mut request: Request<Incoming>,
        checked: &Checked,
        chosen: &Chosen,
    ) -> Result<Request<Incoming>, Instead> {
        let rewritten = chosen.rule.as_ref().map(|rule| {
            let going = self.going(chosen, checked, &request);
            filters::rewrite(rule, going)
        });
        let (host, path) = match rewritten {
            Some(Ok(rewritten)) => rewritten,
            Some(Err(Impossible(why))) => return Err(self.impossible(why)),
            None => (None, None),
        };
        let host = host.unwrap_or_else(|| checked.forwarded_host.clone());
        let path = path.unwrap_or_else(|| checked.paths[0].clone());
        let target = request.uri().query().map_or_else(|| path.clone(), |query| format!("{path}?{query}"));
        let malformed = |_| Instead::Status(StatusCode::BAD_REQUEST, "malformed target");
        let uri = if request.version() == Version::HTTP_2 {
            request.headers_mut().remove(HOST);
            Uri::builder().scheme("http").authority(host.as_str()).path_and_query(target).build()
        } else {
            let value = HeaderValue::from_str(&host);
            let value = value.map_err(|_| Instead::Status(StatusCode::BAD_REQUEST, "malformed host"))?;
            request.headers_mut().insert(HOST, value);
            *request.version_mut() = Version::HTTP_11;
            Uri::builder().path_and_query(target).build()
        };
        *request.uri_mut() = uri.map_err(malformed)?;
        for filter in chosen.rule.iter().flat_map(|r| &r.filters) {
            if let Filter::RequestHeaders { changes } = filter {
                filters::apply(request.headers_mut(), changes);
            }
        }
        if checked.websocket {
            upgrade::mark(request.headers_mut());
        }
        Ok(request)
    }

    async fn exchange(
        &mut self,
        request: Request<Incoming>,
        chosen: &Chosen,
        route: Route,
        (permit, guard): (Permit, Guard),
    ) -> Response<Body> {
        let version =
            backend_version(self.context, chosen.backend.as_ref(), request.version(), self.websocket);
        let upload = Upload::default();
        let limit = (!self.grpc).then_some(self.context.limits.body);
        let expectation = expects_continue(request.headers()).then(Expectation::default);
        let wait = expectation.clone().filter(|_| request.version() == Version::HTTP_11).map(Wait::new);
        let mut request = request.map(|body| Received::new(body, upload.clone(), limit, wait).boxed_unsync());
        if let Some(expectation) = expectation.clone() {
            hyper::ext::on_informational(&mut request, move |response| expectation.hear(response.status()));
        }
        let expectation = expectation.map(EndOnDrop);
        let until = timeout(chosen).map(|limit| self.begun + limit);
        let forwarded = async {
            let forwarded = forward(self.context, route, request, version);
            match until {
                Some(until) => tokio::time::timeout_at(until, forwarded).await.ok(),
                None => Some(forwarded.await),
            }
        };
        let outcome = tokio::select! {
            outcome = forwarded => outcome,
            reason = permit.revoked() => {
                self.line.details = reason.to_string();
                return denial(self.grpc);
            }
        };
        match outcome {
            None => {
                self.line.flags = "UT";
                plain(StatusCode::GATEWAY_TIMEOUT, "upstream request timeout")
            }
            Some(Err(unreached)) => self.unreached(unreached, &upload),
            Some(Ok(exchanged)) => {
                upload.answered();
                self.line.upstream = exchanged.upstream.to_string();
                self.line.details = "via_upstream".into();
                // Whether the client will send a body that nobody waits for is not known.
                self.last |= expectation.as_ref().is_some_and(|EndOnDrop(e)| e.is_waiting());
                let deadline = until.map(|until| self.deadline(until, exchanged.response.status()));
                let connection = (exchanged.lease, upload);
                let bounds = Bounds { permit, guard, deadline, expectation, connection };
                self.answer(exchanged.response, chosen, bounds)
            }
        }
    }

    /// Ends an answer that is not over in time: it holds for the whole request, not only for the answer's head.
    fn deadline(&self, until: tokio::time::Instant, status: StatusCode) -> Deadline {
        let (context, begun) = (self.context.clone(), self.begun);
        let mut line = Line { code: status.as_u16(), ..self.line.clone() };
        let log = Box::new(move || {
            line.duration_ms = begun.elapsed().as_millis();
            line.flags = "UT";
            line.details = "response_timeout".into();
            context.log.line(line.written(context.log.format()));
        });
        Deadline { sleep: Box::pin(tokio::time::sleep_until(until)), log: Some(log) }
    }

    fn unreached(&mut self, unreached: Unreached, upload: &Upload) -> Response<Body> {
        self.line.failure = unreached.reason;
        if let Some((status, reason)) = upload.fault() {
            self.last = true;
            self.line.flags = "DPE";
            self.line.details = reason.into();
            return plain(status, reason);
        }
        self.line.flags = unreached.flag;
        plain(StatusCode::SERVICE_UNAVAILABLE, "no healthy upstream")
    }

    /// The backend's answer; its body ends when the permit is taken back.
    fn answer(
        &mut self,
        mut response: Response<Incoming>,
        chosen: &Chosen,
        bounds: Bounds,
    ) -> Response<Body> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let asked = self.websocket && upgrade::agreed(&response);
            return match self.client.take_if(|_| asked) {
                Some(client) => {
                    let kept = (bounds.guard, self.served.place.clone());
                    upgrade::change(self.context, client, response, bounds.permit, kept)
                }
                None => {
                    self.line.failure = "the backend changes to a protocol that was not asked for".into();
                    plain(StatusCode::BAD_GATEWAY, "unexpected change of protocol")
                }
            };
        }
        headers::strip(response.headers_mut());
        // The version is one of this hop: a backend of HTTP/1.0 does not make the client's connection one.
        *response.version_mut() = Version::HTTP_11;
        for filter in chosen.rule.iter().flat_map(|r| &r.filters) {
            if let Filter::ResponseHeaders { changes } = filter {
                filters::apply(response.headers_mut(), changes);
            }
        }
        response.map(|body| Answer::new(body, bounds, self.pulse.clone()).boxed_unsync())
    }

    fn denied(&mut self, denied: &Denied) {
        self.line.details = log::denial(denied);
        self.line.failure = log::reason(denied);
    }

    /// The Service has another waypoint now: the client's next connection finds it.
    fn moved(&mut self, denied: &Denied) -> Response<Body> {
        self.last = true;
        self.line.flags = "NR";
        self.line.details = "waypoint_has_changed".into();
        self.line.failure = log::reason(denied);
        plain(StatusCode::SERVICE_UNAVAILABLE, "this proxy is no longer the waypoint of the service")
    }

    fn refused(&mut self, denied: &Denied) -> Response<Body> {
        self.denied(denied);
        denial(self.grpc)
    }
}
