// SPDX-License-Identifier: Apache-2.0
//! The exchange with a backend: within the rule's time and as long as the permit holds, to the end of the answer.

use std::time::Duration;

use http::{Request, Response, StatusCode, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use meltemi_model::l7::{Filter, RouteRule};
use meltemi_policy::Permit;
use meltemi_state::Route;
use meltemi_view::Denial;
use meltemi_view::registry::Guard;

use super::Life;
use super::attempts::{Answered, Plan};
use crate::answers::{denial, plain};
use crate::authorize::Subject;
use crate::body::{Answer, Body, Bounds, Deadline, Received, Upload};
use crate::expect::{EndOnDrop, Expectation, Wait, expects_continue};
use crate::forward::Unreached;
use crate::log::Line;
use crate::metrics::ResponseFlag;
use crate::pool::HttpVersion;
use crate::route::Chosen;
use crate::served::BackendRef;
use crate::{filters, headers, mirror, upgrade};

/// How long something may take by the rule.
fn timeout(chosen: &Chosen, of: impl FnOnce(&RouteRule) -> Option<u64>) -> Option<Duration> {
    chosen.rule.as_deref().and_then(of).filter(|millis| *millis > 0).map(Duration::from_millis)
}

/// Where a request goes at first.
pub(super) struct First<'a> {
    /// What the route chose, or the client.
    pub(super) backend: &'a BackendRef,
    pub(super) route: Route,
    pub(super) version: HttpVersion,
    /// Judges what another endpoint would get.
    pub(super) subject: &'a Subject,
}

/// Why no endpoint has answered.
pub(super) enum Failure {
    Unreached(Unreached),
    /// A policy denies what another endpoint would get.
    Denied(Denial),
    /// The last attempt took longer than the rule permits for one.
    TimedOut,
}

impl Life<'_> {
    /// Sends the request to the endpoint and makes an answer of what comes of it.
    pub(super) async fn exchange(
        &mut self,
        request: Request<Incoming>,
        chosen: &Chosen,
        first: First<'_>,
        (permit, guard): (Permit, Guard),
    ) -> Response<Body> {
        let upload = Upload::default();
        let limit = (!self.grpc).then_some(self.context.limits.body);
        let expectation = expects_continue(request.headers()).then(Expectation::default);
        let wait = expectation.clone().filter(|_| request.version() == Version::HTTP_11).map(Wait::new);
        let (parts, body) = request.into_parts();
        let mut body = Received::new(body, upload.clone(), limit, wait);
        if let Some(prefix) = self.begun_body.take() {
            body = body.after(prefix);
        }
        let copies = self.copy_to_mirrors(chosen, first.subject, &parts, &body);
        let mut request = Request::from_parts(parts, mirror::feed(body, copies));
        if let Some(expectation) = expectation.clone() {
            hyper::ext::on_informational(&mut request, move |response| expectation.hear(response.status()));
        }
        let expectation = expectation.map(EndOnDrop);
        let until = timeout(chosen, |rule| rule.timeout_ms).map(|limit| self.begun + limit);
        let plan = Plan {
            retry: chosen.rule.as_deref().and_then(|rule| rule.retry.as_ref()),
            limit: timeout(chosen, |rule| rule.backend_timeout_ms),
        };
        let forwarded = async {
            let forwarded = self.forward(first, request, &upload, plan);
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
            None | Some(Err(Failure::TimedOut)) => {
                self.line.flags = ResponseFlag::UpstreamTimeout;
                plain(StatusCode::GATEWAY_TIMEOUT, "upstream request timeout")
            }
            Some(Err(Failure::Unreached(unreached))) => self.unreached(unreached, &upload),
            Some(Err(Failure::Denied(denied))) => self.refused(&denied),
            Some(Ok(Answered { exchanged, until: of_attempt })) => {
                let until = until.into_iter().chain(of_attempt).min();
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
            line.flags = ResponseFlag::UpstreamTimeout;
            line.details = "response_timeout".into();
            context.log.line(line.written(context.log.format()));
        });
        Deadline { sleep: Box::pin(tokio::time::sleep_until(until)), log: Some(log) }
    }

    /// No endpoint has answered.
    pub(super) fn unreached(&mut self, unreached: Unreached, upload: &Upload) -> Response<Body> {
        self.line.failure = unreached.reason;
        if let Some((status, reason)) = upload.fault() {
            self.last = true;
            self.line.flags = ResponseFlag::DownstreamProtocolError;
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
        for filter in chosen.filters() {
            if let Filter::ResponseHeaders { changes } = filter {
                filters::apply(response.headers_mut(), changes);
            }
        }
        response.map(|body| Answer::new(body, bounds, self.pulse.clone()).boxed_unsync())
    }
}
