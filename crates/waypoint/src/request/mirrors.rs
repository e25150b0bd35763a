// SPDX-License-Identifier: Apache-2.0
//! Copies of a request for other services. Each is judged as the request is, and by the policies of what gets it, as long
//! as it is under way.

use std::sync::Arc;

use http::header::EXPECT;
use http::request::Parts;
use http::{Request, Version};
use http_body_util::BodyExt;
use meltemi_model::NamespacedHostname;
use meltemi_model::l7::Filter;
use meltemi_policy::Permit;
use meltemi_state::Route;
use meltemi_view::registry::Guard;

use super::Life;
use crate::authorize::{Subject, authorize};
use crate::balance::choose_endpoint;
use crate::body::{Body, Received};
use crate::context::Context;
use crate::forward::{attempt, backend_version, patience};
use crate::mirror::{self, Feed};
use crate::pool::HttpVersion;
use crate::route::Chosen;
use crate::served::BackendRef;

/// Why a copy was not made, or has brought no answer.
#[derive(Debug, thiserror::Error)]
enum NotCopied {
    #[error("too many copies are under way")]
    Crowded,
    #[error("{0}")]
    Unreached(String),
    #[error("denied: {0}")]
    Denied(String),
    #[error("it takes too long")]
    TooLong,
    #[error("the answer breaks off: {0}")]
    BrokenOff(#[from] hyper::Error),
}

/// A copy on its way.
struct Copy {
    route: Route,
    version: HttpVersion,
    request: Request<Body>,
    permit: Permit,
    guard: Guard,
}

impl Life<'_> {
    /// Sends the copies that the rule asks for; what is fed by the original's body comes back. What is no message, but
    /// becomes a connection, has no copy.
    pub(super) fn copy_to_mirrors(
        &self,
        chosen: &Chosen,
        subject: &Subject,
        parts: &Parts,
        body: &Received,
    ) -> Vec<Feed> {
        if self.client.is_some() {
            return Vec::new();
        }
        let mut feeds = Vec::new();
        for filter in chosen.filters() {
            let Filter::Mirror { service, port, denominator, numerator } = filter else { continue };
            if rand::random::<u32>() % (*denominator).max(1) >= *numerator {
                continue;
            }
            match self.copy(service, *port, subject, parts, body) {
                Ok(feed) => feeds.push(feed),
                Err(reason) => tracing::debug!(%service, %reason, "request not copied"),
            }
        }
        feeds
    }

    fn copy(
        &self,
        service: &NamespacedHostname,
        port: u16,
        subject: &Subject,
        parts: &Parts,
        body: &Received,
    ) -> Result<Feed, NotCopied> {
        let place = self.context.copies.clone().try_acquire_owned();
        let place = place.map_err(|_| NotCopied::Crowded)?;
        let backend = BackendRef::Service(service.clone(), port);
        let version = backend_version(self.context, &backend, self.preferred(parts.version), false);
        let route = choose_endpoint(self.context, &backend, Some(version), &[])
            .map_err(|unreached| NotCopied::Unreached(unreached.reason))?;
        let (body, feed) = mirror::copy(body);
        let mut request = Request::new(body);
        (*request.method_mut(), *request.uri_mut()) = (parts.method.clone(), parts.uri.clone());
        *request.version_mut() =
            if parts.version == Version::HTTP_2 { Version::HTTP_2 } else { Version::HTTP_11 };
        *request.headers_mut() = parts.headers.clone();
        // Nobody would hear whether the copy's body is wanted: it comes with the original's.
        request.headers_mut().remove(EXPECT);
        let subject = subject.same();
        let (permit, guard) =
            authorize(self.context, &subject).map_err(|denied| NotCopied::Denied(denied.to_string()))?;
        self.authorize_forwarded(&subject, &route, &mut request)
            .map_err(|denied| NotCopied::Denied(denied.to_string()))?;
        let (context, copy) = (self.context.clone(), Copy { route, version, request, permit, guard });
        self.context.tasks.spawn_job("mirror", async move {
            let _place = place;
            copy.send(&context).await
        });
        Ok(feed)
    }
}

impl Copy {
    /// Sends the copy and reads its answer to the end, for which nobody waits.
    async fn send(self, context: &Arc<Context>) -> Result<(), NotCopied> {
        let Self { route, version, request, permit, guard } = self;
        let _guard = guard;
        let exchange = async {
            let exchanged = attempt(context, &route, request, version, patience(&route, false)).await;
            let mut exchanged = exchanged.map_err(|failed| NotCopied::Unreached(failed.unreached.reason))?;
            let body = exchanged.response.body_mut();
            while let Some(frame) = body.frame().await {
                frame?;
            }
            Ok(())
        };
        tokio::select! {
            done = tokio::time::timeout(context.limits.copy, exchange) => {
                done.unwrap_or(Err(NotCopied::TooLong))
            }
            reason = permit.revoked() => Err(NotCopied::Denied(reason.to_string())),
        }
    }
}
