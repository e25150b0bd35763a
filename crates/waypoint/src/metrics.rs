// SPDX-License-Identifier: Apache-2.0
//! Metrics of requests with Istio's names. Labels come from the mesh's own objects and from lists written here, never from
//! what a client sends: a hostile one cannot make series.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use meltemi_model::{NamespacedHostname, SpiffeId};
use meltemi_runtime::metrics::Metrics;
use meltemi_view::Mesh;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

/// Envoy's flags of a response that this proxy made, as the log and the metrics have them.
#[derive(Clone, Copy, Debug, Default, Hash, PartialEq, Eq)]
pub(crate) enum ResponseFlag {
    /// No flag.
    #[default]
    None,
    NoHealthyUpstream,
    UpstreamConnectionFailure,
    /// The connection ended before the response.
    UpstreamConnectionTermination,
    /// Too many requests to one endpoint, or open at all.
    UpstreamOverflow,
    /// The rule's time was over.
    UpstreamTimeout,
    NoRoute,
    /// The client broke the rules of HTTP.
    DownstreamProtocolError,
    /// An external authorizer denies the request, or cannot be asked.
    Unauthorized,
}

impl ResponseFlag {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::NoHealthyUpstream => "UH",
            Self::UpstreamConnectionFailure => "UF",
            Self::UpstreamConnectionTermination => "UC",
            Self::UpstreamOverflow => "UO",
            Self::UpstreamTimeout => "UT",
            Self::NoRoute => "NR",
            Self::DownstreamProtocolError => "DPE",
            Self::Unauthorized => "UAEX",
        }
    }
}

impl EncodeLabelValue for ResponseFlag {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        self.as_str().encode(encoder)
    }
}

/// Labels of a request.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Labels {
    /// `waypoint`, or `source` at a gateway.
    pub(crate) reporter: &'static str,
    /// Workload of the client, when the mesh knows it.
    pub(crate) source_workload: Arc<str>,
    /// Its namespace.
    pub(crate) source_workload_namespace: Arc<str>,
    /// Its proven identity.
    pub(crate) source_principal: Arc<str>,
    /// The Service that was addressed, or that the route chose.
    pub(crate) destination_service: Arc<str>,
    /// Its namespace.
    pub(crate) destination_service_namespace: Arc<str>,
    /// `http` or `grpc`.
    pub(crate) request_protocol: &'static str,
    /// Status of the answer.
    pub(crate) response_code: u16,
    /// Why the request was not answered by a backend.
    pub(crate) response_flags: ResponseFlag,
    /// `mutual_tls` or `none`.
    pub(crate) connection_security_policy: &'static str,
}

/// Labels of a duration: few, since each has its buckets.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct DurationLabels {
    reporter: &'static str,
    destination_service: Arc<str>,
    destination_service_namespace: Arc<str>,
}

/// What stands in labels for what is not known.
static UNKNOWN: LazyLock<Arc<str>> = LazyLock::new(|| "unknown".into());
/// The network of addresses of this cluster.
static OWN_NETWORK: LazyLock<Arc<str>> = LazyLock::new(Arc::default);

/// Upper ends of buckets, in milliseconds.
const BUCKETS: [f64; 14] =
    [0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10_000.0];

/// Counters of requests.
#[derive(Clone, Debug)]
pub(crate) struct HttpMetrics {
    requests: Family<Labels, Counter>,
    durations: Family<DurationLabels, Histogram, fn() -> Histogram>,
    /// Bytes that were no request: answered by the parser, or not at all.
    malformed: Counter,
    /// Connections closed unread: there were too many.
    crowded: Counter,
    /// Further attempts for requests that failed.
    retries: Counter,
    /// Endpoints that were left out for a while.
    ejections: Counter,
}

impl HttpMetrics {
    pub(crate) fn register(metrics: &Metrics) -> Self {
        let http = Self {
            requests: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            malformed: Counter::default(),
            crowded: Counter::default(),
            retries: Counter::default(),
            ejections: Counter::default(),
        };
        metrics.register(|registry| {
            registry.register("istio_requests", "Requests", http.requests.clone());
            let name = "istio_request_duration_milliseconds";
            registry.register(name, "Duration of requests in milliseconds", http.durations.clone());
            let help = "Connections ended because what came was no request";
            registry.register("meltemi_malformed_requests", help, http.malformed.clone());
            let help = "Connections closed unread because too many were open";
            registry.register("meltemi_crowded_out_connections", help, http.crowded.clone());
            let help = "Further attempts for requests that no application had got";
            registry.register("meltemi_upstream_retries", help, http.retries.clone());
            let help = "Endpoints left out for a while because they failed again and again";
            registry.register("meltemi_upstream_ejections", help, http.ejections.clone());
        });
        http
    }

    pub(crate) fn record(&self, labels: Labels, took: Duration) {
        let of = DurationLabels {
            reporter: labels.reporter,
            destination_service: labels.destination_service.clone(),
            destination_service_namespace: labels.destination_service_namespace.clone(),
        };
        self.durations.get_or_create(&of).observe(took.as_secs_f64() * 1000.0);
        self.requests.get_or_create(&labels).inc();
    }

    pub(crate) fn crowded_out(&self) {
        self.crowded.inc();
    }

    pub(crate) fn retried(&self) {
        self.retries.inc();
    }

    pub(crate) fn ejected(&self) {
        self.ejections.inc();
    }

    pub(crate) fn malformed(&self) {
        self.malformed.inc();
    }
}

impl Labels {
    /// Of a request whose client and destination are known.
    pub(crate) fn new(
        mesh: &Mesh,
        (identity, address): (Option<&SpiffeId>, IpAddr),
        service: Option<&NamespacedHostname>,
        edge: bool,
    ) -> Self {
        let source = mesh.snapshot.workload_at(&OWN_NETWORK, address.to_canonical());
        let of = |found: Option<&Arc<str>>| found.unwrap_or(&UNKNOWN).clone();
        Self {
            reporter: if edge { "source" } else { "waypoint" },
            source_workload: of(source.map(|w| &w.workload_name)),
            source_workload_namespace: of(source.map(|w| &w.namespace)),
            source_principal: identity.map_or_else(|| UNKNOWN.clone(), SpiffeId::text),
            destination_service: of(service.map(|s| &s.hostname)),
            destination_service_namespace: of(service.map(|s| &s.namespace)),
            request_protocol: "http",
            response_code: 0,
            response_flags: ResponseFlag::None,
            connection_security_policy: if identity.is_some() { "mutual_tls" } else { "none" },
        }
    }
}
