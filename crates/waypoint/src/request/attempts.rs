// SPDX-License-Identifier: Apache-2.0
//! Attempts: a request is sent to an endpoint, and again where its rule says so, or where no application has got it.

use std::time::Duration;

use http::Request;
use meltemi_model::l7::Retry;
use tokio::time::Instant;

use super::Life;
use super::exchange::{Failure, First};
use crate::balance::{choose_endpoint, is_gateway_error};
use crate::body::{Body, Upload};
use crate::forward::{Exchanged, Unreached, attempt, host, patience};
use crate::metrics::ResponseFlag;
use crate::replay::Replay;
use crate::retry::{ATTEMPTS, pause};

/// What the rule of a request says of its attempts.
#[derive(Clone, Copy)]
pub(super) struct Plan<'a> {
    /// When it is sent again though an application may have got it.
    pub(super) retry: Option<&'a Retry>,
    /// How long one attempt may take, to the end of its answer.
    pub(super) limit: Option<Duration>,
}

/// An answer, and when it has to be over.
pub(super) struct Answered {
    pub(super) exchanged: Exchanged,
    pub(super) until: Option<Instant>,
}

/// How an attempt has ended.
enum Outcome {
    Answered(Answered),
    /// With the request, if no application has got it.
    Unreached(Unreached, Option<Request<Body>>),
    TimedOut,
}

impl Outcome {
    fn into_result(self) -> Result<Answered, Failure> {
        match self {
            Self::Answered(answered) => Ok(answered),
            Self::Unreached(unreached, _) => Err(Failure::Unreached(unreached)),
            Self::TimedOut => Err(Failure::TimedOut),
        }
    }

    /// Whether the rule asks for another attempt after this one.
    fn is_failure(&self, retry: &Retry) -> bool {
        match self {
            Self::Answered(answered) => retry.codes.contains(&answered.exchanged.response.status().as_u16()),
            // Too many requests are not less at another endpoint.
            Self::Unreached(unreached, _) => unreached.flag != ResponseFlag::UpstreamOverflow,
            Self::TimedOut => true,
        }
    }

    /// The request for another attempt, if there may be one.
    fn take_request(&mut self, plan: Plan<'_>, replay: Option<&Replay>) -> Option<Request<Body>> {
        if let Self::Unreached(_, whole) = self
            && let Some(whole) = whole.take()
        {
            return Some(whole);
        }
        plan.retry.filter(|retry| self.is_failure(retry)).and(replay).and_then(Replay::request)
    }
}

impl Life<'_> {
    /// Sends the request, and again as the plan says, or to another endpoint when the first has not got it.
    pub(super) async fn forward(
        &self,
        first: First<'_>,
        request: Request<Body>,
        upload: &Upload,
        plan: Plan<'_>,
    ) -> Result<Answered, Failure> {
        let First { backend, mut route, version, subject } = first;
        let (context, waiting) = (self.context, self.context.budgets.enter(backend));
        let (mut request, replay) = match plan.retry {
            Some(_) => {
                let (request, replay) = Replay::record(request);
                (request, Some(replay))
            }
            None => (request, None),
        };
        let limit = plan.retry.map_or(ATTEMPTS, |retry| retry.attempts.saturating_add(1));
        let (mut attempts, mut tried, mut _retry) = (1, Vec::new(), None);
        loop {
            let until = plan.limit.map(|limit| Instant::now() + limit);
            let patience = patience(&route, attempts == 1);
            let attempted = attempt(context, &route, request, version, patience);
            let mut outcome = match until {
                Some(at) => match tokio::time::timeout_at(at, attempted).await {
                    Ok(attempted) => outcome(attempted, until),
                    Err(_) => Outcome::TimedOut,
                },
                None => outcome(attempted.await, until),
            };
            let succeeded = match &outcome {
                Outcome::Answered(answered) => Some(!is_gateway_error(answered.exchanged.response.status())),
                // A client that breaks off its body makes no endpoint a bad one, and neither does a crowd.
                Outcome::Unreached(unreached, _) => (upload.fault().is_none()
                    && unreached.flag != ResponseFlag::UpstreamOverflow)
                    .then_some(false),
                // A client that sends its body slowly would eject endpoints by it.
                Outcome::TimedOut => None,
            };
            if let Some(succeeded) = succeeded {
                context.report_endpoint(host(&route), succeeded);
            }
            let next = if attempts < limit { outcome.take_request(plan, replay.as_ref()) } else { None };
            let Some(next) = next else { return outcome.into_result() };
            _retry = None;
            let Some(retry) = waiting.retry() else {
                if let Outcome::Unreached(unreached, _) = &mut outcome {
                    unreached.reason += "; not tried again, for too many requests to this service are";
                }
                return outcome.into_result();
            };
            (_retry, request) = (Some(retry), next);
            context.metrics.retried();
            let backoff =
                plan.retry.and_then(|retry| retry.backoff_ms).map_or(Duration::ZERO, Duration::from_millis);
            tokio::time::sleep(pause(attempts).max(backoff)).await;
            attempts += 1;
            tried.push(host(&route));
            route = match choose_endpoint(context, backend, Some(version), &tried) {
                Ok(route) => route,
                Err(_) => return outcome.into_result(),
            };
            self.authorize_forwarded(subject, &route, &mut request).map_err(Failure::Denied)?;
        }
    }
}

fn outcome(attempted: Result<Exchanged, crate::forward::Failed>, until: Option<Instant>) -> Outcome {
    match attempted {
        Ok(exchanged) => Outcome::Answered(Answered { exchanged, until }),
        Err(failed) => Outcome::Unreached(failed.unreached, failed.request),
    }
}
