// SPDX-License-Identifier: Apache-2.0
//! What the control plane counts. Labels are of closed sets: nothing that a caller sends becomes one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use meltemi_runtime::metrics::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::access::Scope;
use crate::source::Kind;

/// Generations whose time of publication is remembered; of an older one that is acknowledged the time is not known.
const REMEMBERED: usize = 1024;
/// Bounds of the time from publication to acknowledgement, in seconds.
const SECONDS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];
/// Kinds that are counted by name at admission.
const KINDS: [&str; 3] = ["AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication"];

/// The counters; cheap to clone.
#[derive(Clone, Debug)]
pub struct ControlMetrics {
    proxies: Family<Proxy, Gauge>,
    generation: Gauge,
    acknowledged: Family<Acknowledgement, Counter>,
    convergence: Histogram,
    certificates: Family<Outcome, Counter>,
    admissions: Family<Admission, Counter>,
    missing: Family<MissingKind, Gauge>,
    published: Arc<Mutex<VecDeque<(u64, Instant)>>>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Proxy {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Acknowledgement {
    r#type: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Admission {
    kind: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct MissingKind {
    kind: String,
}

impl Default for ControlMetrics {
    fn default() -> Self {
        Self {
            proxies: Family::default(),
            generation: Gauge::default(),
            acknowledged: Family::default(),
            convergence: Histogram::new(SECONDS),
            certificates: Family::default(),
            admissions: Family::default(),
            missing: Family::default(),
            published: Arc::default(),
        }
    }
}

impl ControlMetrics {
    /// Registers the counters.
    pub fn register(metrics: &Metrics) -> Self {
        let control = Self::default();
        metrics.register(|registry| {
            let registry = registry.sub_registry_with_prefix("meltemi_control");
            registry.register("proxies", "Proxies connected", control.proxies.clone());
            registry.register("generation", "Generation that is published", control.generation.clone());
            let help = "Answers of proxies to what they were sent";
            registry.register("acknowledgements", help, control.acknowledged.clone());
            let help = "From the publication of a change to the acknowledgement by a proxy, in seconds";
            registry.register("convergence_seconds", help, control.convergence.clone());
            let help = "Certificates asked for by workloads and proxies";
            registry.register("certificates", help, control.certificates.clone());
            registry.register(
                "admissions",
                "Objects judged before they are stored",
                control.admissions.clone(),
            );
            let help = "Kinds that the cluster does not serve, or that may not be listed: 1 for each";
            registry.register("missing_kinds", help, control.missing.clone());
        });
        control
    }

    /// A proxy came (1) or went (-1).
    pub(crate) fn connected(&self, scope: &Scope, change: i64) {
        self.proxies.get_or_create(&Proxy { kind: scope.kind() }).inc_by(change);
    }

    /// The objects of a kind cannot be had, or can be had again.
    pub(crate) fn missing(&self, kind: Kind, is_missing: bool) {
        let label = MissingKind { kind: format!("{kind:?}") };
        if is_missing {
            self.missing.get_or_create(&label).set(1);
        } else {
            self.missing.remove(&label);
        }
    }

    /// A generation is published.
    pub(crate) fn published(&self, generation: u64, now: Instant) {
        self.generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        if published.back().is_none_or(|(last, _)| *last < generation) {
            published.push_back((generation, now));
        }
        if published.len() > REMEMBERED {
            published.pop_front();
        }
    }

    /// A proxy uses everything of a type up to a generation, but for what it refuses.
    pub(crate) fn acknowledged(&self, r#type: &'static str, generation: u64, refused: bool, now: Instant) {
        let result = if refused { "refused" } else { "applied" };
        self.acknowledged.get_or_create(&Acknowledgement { r#type, result }).inc();
        let published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(at) = published.binary_search_by_key(&generation, |(known, _)| *known) {
            self.convergence.observe(now.saturating_duration_since(published[at].1).as_secs_f64());
        }
    }

    /// A certificate was signed or refused.
    pub(crate) fn certificate(&self, signed: bool) {
        let result = if signed { "signed" } else { "refused" };
        self.certificates.get_or_create(&Outcome { result }).inc();
    }

    /// An object was judged at admission.
    pub(crate) fn admission(&self, kind: &str, allowed: bool) {
        let kind = KINDS.into_iter().find(|known| *known == kind).unwrap_or("other");
        let result = if allowed { "allowed" } else { "refused" };
        self.admissions.get_or_create(&Admission { kind, result }).inc();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_happened_can_be_read() {
        let metrics = Metrics::new();
        let control = ControlMetrics::register(&metrics);
        let begun = Instant::now();
        control.connected(&Scope::NodeProxy, 1);
        control.published(7, begun);
        control.acknowledged("WADS", 7, false, begun + Duration::from_millis(4));
        // Too old to be known: counted, not timed.
        control.acknowledged("WADS", 3, true, begun);
        control.certificate(false);
        control.admission("AuthorizationPolicy", false);
        control.admission("an-invention-of-the-caller", true);
        let text = metrics.encode();
        for line in [
            r#"meltemi_control_proxies{kind="ztunnel"} 1"#,
            "meltemi_control_generation 7",
            r#"meltemi_control_acknowledgements_total{type="WADS",result="applied"} 1"#,
            r#"meltemi_control_acknowledgements_total{type="WADS",result="refused"} 1"#,
            r#"meltemi_control_convergence_seconds_bucket{le="0.0025"} 0"#,
            r#"meltemi_control_convergence_seconds_bucket{le="0.005"} 1"#,
            "meltemi_control_convergence_seconds_count 1",
            r#"meltemi_control_certificates_total{result="refused"} 1"#,
            r#"meltemi_control_admissions_total{kind="AuthorizationPolicy",result="refused"} 1"#,
            r#"meltemi_control_admissions_total{kind="other",result="allowed"} 1"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let control = ControlMetrics::default();
        for generation in 0..3000 {
            control.published(generation, Instant::now());
        }
        assert_eq!(control.published.lock().unwrap().len(), REMEMBERED);
    }
}
