// SPDX-License-Identifier: Apache-2.0
//! The target of a request: the rule that it follows, and what the rule changes before it is sent.

use http::header::HOST;
use http::{HeaderValue, Request, StatusCode, Uri, Version};
use hyper::body::Incoming;
use meltemi_model::l7::Filter;

use super::Life;
use crate::answers::Instead;
use crate::check::Checked;
use crate::filters::{self, Going, Impossible, Rewritten};
use crate::metrics::ResponseFlag;
use crate::route::{Asked, Chosen, NoRoute, choose};
use crate::served::BackendRef;
use crate::{cors, upgrade};

impl Life<'_> {
    /// Chooses a rule, and answers itself where that is what the rule says.
    pub(super) fn route(
        &mut self,
        request: &Request<Incoming>,
        checked: &Checked,
    ) -> Result<Chosen, Instead> {
        let mesh = self.context.view.mesh();
        let asked = Asked {
            method: request.method(),
            host: &checked.host,
            path: &checked.paths[0],
            query: request.uri().query().unwrap_or_default(),
            headers: request.headers(),
            service: self.served.service.as_ref().map(|s| (s, self.served.to.port())),
            listener: self.served.listener,
            secured: self.served.secured.as_ref(),
        };
        // Routes are for Services and listeners, not for Pods that a client dials.
        if let Some(uid) = &self.served.workload {
            return Ok(Chosen::without_rule(BackendRef::Workload(uid.clone(), self.served.to)));
        }
        let chosen = choose(self.context, &mesh, &asked).map_err(|none| {
            self.line.flags = ResponseFlag::NoRoute;
            match none {
                NoRoute::NoMatch => {
                    self.line.details = "route_not_found".into();
                    Instead::Status(StatusCode::NOT_FOUND, "no route")
                }
                NoRoute::OtherListener => {
                    self.line.details = "misdirected_request".into();
                    Instead::Status(StatusCode::MISDIRECTED_REQUEST, "misdirected request")
                }
            }
        })?;
        // None is passed over.
        if let Err(why) = chosen.filters().try_for_each(Filter::check) {
            return Err(self.impossible(why.to_string()));
        }
        if let Some(cors) = cors::of(chosen.filters()) {
            if cors::is_preflight(request) {
                self.line.details = "cors_preflight".into();
                return Err(Instead::Preflight(cors::preflight(cors, request.headers())));
            }
            self.cors = cors::headers(cors, request.headers());
        }
        let going = self.going(&chosen, checked, request);
        match filters::redirect(chosen.filters(), going) {
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
            scheme: self.served.scheme(),
            host: &checked.host,
            port: self.served.listener.unwrap_or(self.served.to.port()),
            path: &checked.paths[0],
            query: request.uri().query(),
            prefix: chosen.prefix.as_deref(),
        }
    }

    /// What is forwarded is what was judged: the normalised path, one host, nothing of another hop; then what the rule
    /// changes.
    pub(super) fn prepare(
        &mut self,
        mut request: Request<Incoming>,
        checked: &Checked,
        chosen: &Chosen,
    ) -> Result<Request<Incoming>, Instead> {
        let rewritten = filters::rewrite(chosen.filters(), self.going(chosen, checked, &request));
        let Rewritten { host, path } = match rewritten {
            Ok(rewritten) => rewritten,
            Err(Impossible(why)) => return Err(self.impossible(why)),
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
        for filter in chosen.filters() {
            if let Filter::RequestHeaders { changes } = filter {
                filters::apply(request.headers_mut(), changes);
            }
        }
        if checked.websocket {
            upgrade::mark(request.headers_mut());
        }
        Ok(request)
    }
}
