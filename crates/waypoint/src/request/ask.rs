// SPDX-License-Identifier: Apache-2.0
//! The verdict on a request: its token, the external authorizers that policies name, and the policies. What an authorizer
//! changes is judged again, so that what is judged is what is forwarded.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use http::header::EXPECT;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use meltemi_model::l7::{CheckedBody, Provider};
use meltemi_policy::Permit;
use meltemi_view::Denial;
use meltemi_view::registry::Guard;

use super::Life;
use crate::answers::{self, plain};
use crate::authorize::{Subject, authorize};
use crate::body::{Body, Prefix};
use crate::check::Checked;
use crate::facts::RequestFacts;
use crate::log;
use crate::metrics::ResponseFlag;
use crate::providers::{Allowed, Check, Verdict, ask_provider};
use crate::tokens;

/// A request that is permitted.
pub(super) struct Permitted {
    pub(super) subject: Arc<Subject>,
    pub(super) permit: Permit,
    pub(super) guard: Guard,
}

impl Life<'_> {
    /// Judges a request. `Err` is the answer to one that is not permitted.
    pub(super) async fn judge(
        &mut self,
        request: &mut Request<Incoming>,
        checked: &Checked,
        mut facts: RequestFacts,
    ) -> Result<Permitted, Response<Body>> {
        let mut allowed = BTreeSet::new();
        loop {
            let mesh = self.context.view.mesh();
            if let Some(hidden) = tokens::hide_tokens(&mesh, &facts, &self.line.path) {
                self.line.path = hidden;
            }
            // Authorizers see tokens, also those that are not forwarded.
            let whole = mesh
                .has_providers()
                .then(|| (request.headers().clone(), request.uri().clone(), facts.changes.clone()));
            let (mut map, mut target) = (std::mem::take(request.headers_mut()), request.uri().clone());
            match tokens::admit(&mesh, &mut facts, &mut map, &mut target) {
                Ok(withheld) => self.tokens = withheld,
                Err(denied) => return Err(self.refused(&denied)),
            }
            (*request.headers_mut(), *request.uri_mut()) = (map, target);
            let subject = Subject::allowed_by(facts, allowed.clone());
            let reported = subject.reported(&mesh);
            let denied = match authorize(self.context, &subject) {
                Ok((permit, guard)) => {
                    self.line.failure = reported.unwrap_or_default();
                    return Ok(Permitted { subject, permit, guard });
                }
                Err(denied) => denied,
            };
            let (Denial::NotAllowed { provider, .. }, Some((map, target, changes))) = (&denied, whole) else {
                return Err(match subject.unserved(&self.context.view.mesh()) {
                    Some(moved) => self.moved(&moved),
                    None => self.refused(&denied),
                });
            };
            (*request.headers_mut(), *request.uri_mut()) = (map, target);
            let Some(settings) = mesh.provider(provider).filter(|_| !allowed.contains(provider)) else {
                self.line.flags = ResponseFlag::Unauthorized;
                let refused = self.refused(&denied);
                self.line.failure.push_str(&format!("; provider {provider} is not configured"));
                return Err(refused);
            };
            let said = self.ask(settings, request, checked, &denied).await?;
            said.apply(request.headers_mut());
            self.for_client.extend(said.for_client);
            allowed.insert(provider.clone());
            facts = self.facts(request, checked, changes);
        }
    }

    /// Asks a provider; `Err` is the answer to a request that it does not allow.
    async fn ask(
        &mut self,
        provider: &Provider,
        request: &mut Request<Incoming>,
        checked: &Checked,
        denied: &Denial,
    ) -> Result<Allowed, Response<Body>> {
        let body = match provider.body {
            Some(wanted) => Some(self.read_body(request, wanted).await?),
            None => None,
        };
        let check = Check {
            method: request.method().as_str(),
            path: &checked.paths[0],
            query: &self.query,
            host: &checked.forwarded_host,
            scheme: self.served.scheme(),
            version: request.version(),
            headers: request.headers(),
            source: self.served.peer.identity.as_ref(),
            from: self.served.peer.address,
            to: self.served.to,
            body,
        };
        let (status, details, text, answer) = match ask_provider(self.context, provider, &check).await {
            Verdict::Allowed(allowed) => return Ok(allowed),
            Verdict::Failed { reason, never_open: false } if provider.fail_open => {
                tracing::warn!(provider = %provider.name, %reason, "an authorizer fails; the request passes, as it is set to");
                return Ok(Allowed::default());
            }
            Verdict::Failed { reason, .. } => {
                let status = StatusCode::from_u16(provider.status_on_error).unwrap_or(StatusCode::FORBIDDEN);
                (status, "ext_authz_error", format!("cannot be asked: {reason}"), None)
            }
            Verdict::Denied(answer) => (
                answer.status(),
                "ext_authz_denied",
                format!("denies it ({})", answer.status()),
                Some(answer),
            ),
        };
        self.line.flags = ResponseFlag::Unauthorized;
        self.line.details = details.into();
        self.line.failure = format!("{}; provider {} {text}", log::reason(denied), provider.name);
        Err(match answer {
            _ if self.grpc => answers::denial(true),
            Some(answer) => answer,
            None => plain(status, ""),
        })
    }

    /// Reads the beginning of a body, which is sent on with the rest of it later. Returns it, and whether there is more.
    async fn read_body(
        &mut self,
        request: &mut Request<Incoming>,
        wanted: CheckedBody,
    ) -> Result<(Bytes, bool), Response<Body>> {
        if self.begun_body.is_none() {
            self.begun_body = Some(Prefix::default());
            // The body is here, whoever asks for it now.
            request.headers_mut().remove(EXPECT);
        }
        let (limit, heads) = (self.context.limits.body, self.context.heads.clone());
        let Some(prefix) = &mut self.begun_body else { return Ok((Bytes::new(), false)) };
        while !prefix.ended && prefix.data.len() <= wanted.max_bytes {
            match tokio::time::timeout(limit, request.body_mut().frame()).await {
                Ok(Some(Ok(frame))) => {
                    prefix.push(frame);
                    // It is paid for as it comes: slow clients hold what they have sent, and not what they might send.
                    if !prefix.hold_room(&heads) {
                        self.last = true;
                        self.line.flags = ResponseFlag::UpstreamOverflow;
                        self.line.details = "overload".into();
                        return Err(plain(StatusCode::SERVICE_UNAVAILABLE, "too many open requests"));
                    }
                }
                Ok(None) => prefix.ended = true,
                Ok(Some(Err(_))) | Err(_) => {
                    self.last = true;
                    self.line.flags = ResponseFlag::DownstreamProtocolError;
                    self.line.details = "malformed or slow body".into();
                    return Err(plain(StatusCode::REQUEST_TIMEOUT, "body is too slow or malformed"));
                }
            }
        }
        let is_longer = prefix.data.len() > wanted.max_bytes;
        if is_longer && !wanted.allow_partial {
            self.last = true;
            self.line.details = "request_payload_too_large".into();
            return Err(plain(StatusCode::PAYLOAD_TOO_LARGE, "Payload Too Large"));
        }
        let shown = prefix.data.get(..prefix.data.len().min(wanted.max_bytes)).unwrap_or_default();
        Ok((Bytes::copy_from_slice(shown), is_longer))
    }
}
