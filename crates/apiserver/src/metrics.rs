// SPDX-License-Identifier: Apache-2.0
//! What the API server counts, under Kubernetes' names, and `/metrics`. Labels are verbs, codes and resources that are
//! served: nothing else that a client sends becomes one.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request};
use meltemi_runtime::metrics::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::api::Api;
use crate::path;
use crate::registry::{Registry, ResourceInfo};

/// Bounds of the time until an answer begins, in seconds.
const SECONDS: [f64; 9] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];

/// What a request is counted as.
#[derive(Clone, Debug)]
pub(crate) struct Counted {
    verb: &'static str,
    resource: Option<Arc<ResourceInfo>>,
}

impl Counted {
    /// Before the request is served: most of it is gone afterwards.
    pub(crate) fn of<B>(request: &Request<B>, registry: &Registry) -> Self {
        let target = path::target(request.uri().path());
        let resource = target.as_ref().and_then(|t| registry.find(&t.group, &t.version, &t.resource));
        let is_watch = request.uri().query().is_some_and(|query| query.split('&').any(is_watch_parameter));
        let verb = target
            .filter(|_| resource.is_some())
            .map(|target| path::verb(request.method(), &target, is_watch));
        let verb = match (verb, request.method()) {
            (Some(Ok(verb)), _) => verb.as_str(),
            (None, &Method::GET | &Method::HEAD) => "get",
            _ => "other",
        };
        Self { verb, resource }
    }
}

fn is_watch_parameter(pair: &str) -> bool {
    matches!(pair, "watch" | "watch=1" | "watch=true" | "watch=True" | "watch=")
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Answered {
    verb: &'static str,
    group: String,
    version: String,
    resource: String,
    code: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Verb {
    verb: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kind {
    request_kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Resource {
    resource: String,
}

/// The counters; clones share them.
#[derive(Clone, Debug)]
pub struct ApiMetrics {
    all: Metrics,
    requests: Family<Answered, Counter>,
    duration: Family<Verb, Histogram>,
    in_flight: Family<Kind, Gauge>,
    objects: Family<Resource, Gauge>,
    revision: Gauge,
}

impl Default for ApiMetrics {
    fn default() -> Self {
        let new = Self {
            all: Metrics::new(),
            requests: Family::default(),
            duration: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            in_flight: Family::default(),
            objects: Family::default(),
            revision: Gauge::default(),
        };
        new.all.register(|registry| {
            let registry = registry.sub_registry_with_prefix("apiserver");
            registry.register("request", "Requests that the API server has answered", new.requests.clone());
            let help = "Time until the API server begins to answer, in seconds; of watches and sessions nothing is observed";
            registry.register("request_duration_seconds", help, new.duration.clone());
            let help = "Requests in flight; `privileged` are those of administrators, nodes and components";
            registry.register("current_inflight_requests", help, new.in_flight.clone());
            registry.register("storage_objects", "Objects that the API server stores", new.objects.clone());
            registry.register("storage_revision", "Changes since the cluster was made", new.revision.clone());
        });
        new
    }
}

impl ApiMetrics {
    /// Counts an answer.
    pub(crate) fn answered(&self, counted: &Counted, code: u16, after: Duration) {
        let (group, version, resource) = match &counted.resource {
            Some(info) => (info.group.clone(), info.version.clone(), info.plural.clone()),
            None => Default::default(),
        };
        let verb = counted.verb;
        self.requests.get_or_create(&Answered { verb, group, version, resource, code }).inc();
        if verb != "watch" {
            self.duration.get_or_create(&Verb { verb }).observe(after.as_secs_f64());
        }
    }

    /// The text of `/metrics`.
    pub(crate) fn encode(&self, api: &Api) -> String {
        for (request_kind, count) in api.in_flight.counts() {
            self.in_flight.get_or_create(&Kind { request_kind }).set(number(count));
        }
        self.objects.clear();
        for (key, count) in api.store.counts() {
            let (group, plural) = key.split_once('/').unwrap_or(("", &key));
            let resource = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
            self.objects.get_or_create(&Resource { resource }).set(number(count));
        }
        self.revision.set(i64::try_from(api.store.revision()).unwrap_or(i64::MAX));
        self.all.encode()
    }
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_client_makes_up_becomes_a_label() {
        let (metrics, registry) = (ApiMetrics::default(), Registry::new());
        let count = |method: &str, path: &str| {
            let request = Request::builder().method(method).uri(path).body(()).unwrap();
            metrics.answered(&Counted::of(&request, &registry), 200, Duration::from_millis(2));
        };
        count("GET", "/api/v1/namespaces/a/pods/b");
        count("GET", "/api/v1/pods?watch=true&timeoutSeconds=1");
        count("PATCH", "/apis/apps/v1/namespaces/a/deployments/b");
        for n in 0..100 {
            count("GET", &format!("/api/v1/namespaces/a/made-up-{n}"));
            count("GET", &format!("/made-up-{n}"));
            count(&format!("M{n}"), &format!("/api/v1{n}/pods"));
            count("GET", &format!("/api/v1/namespaces/n{n}/pods/p{n}"));
        }
        let text = metrics.all.encode();
        for line in [
            "apiserver_request_total{verb=\"get\",group=\"\",version=\"v1\",resource=\"pods\",code=\"200\"} 101",
            "apiserver_request_total{verb=\"watch\",group=\"\",version=\"v1\",resource=\"pods\",code=\"200\"} 1",
            "apiserver_request_total{verb=\"patch\",group=\"apps\",version=\"v1\",resource=\"deployments\",code=\"200\"} 1",
            "apiserver_request_total{verb=\"get\",group=\"\",version=\"\",resource=\"\",code=\"200\"} 200",
            "apiserver_request_total{verb=\"other\",group=\"\",version=\"\",resource=\"\",code=\"200\"} 100",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert_eq!(text.matches("apiserver_request_total{").count(), 5, "{text}");
        assert!(!text.contains("made-up") && !text.contains("verb=\"watch\"}"), "{text}");
    }
}
