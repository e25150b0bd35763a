// SPDX-License-Identifier: Apache-2.0
//! Pauses before a container that ended is started again.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

/// Label of the proxies that the control plane runs for Gateways.
const MANAGED: &str = "gateway.istio.io/managed";

/// How long the pauses are. The first restart is immediate, the next comes after `first`, each later one after twice the
/// pause before, up to `longest`. A run of at least `stable` is forgiven everything before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    first: Duration,
    longest: Duration,
    stable: Duration,
}

/// As the kubelet's.
const ORDINARY: Pace = Pace {
    first: Duration::from_secs(10),
    longest: Duration::from_secs(300),
    stable: Duration::from_secs(600),
};

/// Of parts that others depend on: without its node proxy, every enrolled Pod of a node is refused. The pace is bounded, so
/// that a part that cannot start does not take a core, but minutes of darkness for a few crashes help nobody.
const CRITICAL: Pace =
    Pace { first: Duration::from_secs(1), longest: Duration::from_secs(5), stable: Duration::from_secs(60) };

impl Pace {
    /// Critical is what says so by its priority class, as in Kubernetes, and the proxies of Gateways.
    pub(super) fn of(pod: &Pod) -> Self {
        let class = pod.spec.as_ref().and_then(|s| s.priority_class_name.as_deref());
        let system = matches!(class, Some("system-node-critical" | "system-cluster-critical"));
        let proxy = pod.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(MANAGED));
        if system || proxy { CRITICAL } else { ORDINARY }
    }

    /// The pause before a container is started again that ran for `ran`.
    pub(super) fn before_restart(self, pause: Duration, ran: Duration) -> Duration {
        if ran > self.stable { Duration::ZERO } else { pause }
    }

    /// The pause that follows this one.
    pub(super) fn after_restart(self, pause: Duration) -> Duration {
        if pause.is_zero() { self.first } else { (pause * 2).min(self.longest) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_of_restarts() {
        let pod = |class: Option<&str>, label: Option<&str>| {
            let labels = label.map(|l| serde_json::json!({l: "x"}));
            serde_json::from_value::<Pod>(serde_json::json!({
                "metadata": {"name": "p", "labels": labels}, "spec": {"containers": [], "priorityClassName": class}
            }))
            .unwrap()
        };
        let cases = [
            (None, None, [0, 10, 20, 40, 80, 160, 300, 300]),
            (Some("my-class"), Some("app"), [0, 10, 20, 40, 80, 160, 300, 300]),
            (Some("system-node-critical"), None, [0, 1, 2, 4, 5, 5, 5, 5]),
            (Some("system-cluster-critical"), None, [0, 1, 2, 4, 5, 5, 5, 5]),
            (None, Some(MANAGED), [0, 1, 2, 4, 5, 5, 5, 5]),
        ];
        for (class, label, expected) in cases {
            let pace = Pace::of(&pod(class, label));
            let mut pause = Duration::ZERO;
            let short = Duration::from_secs(3);
            for seconds in expected {
                pause = pace.before_restart(pause, short);
                assert_eq!(pause.as_secs(), seconds, "{class:?} {label:?}");
                pause = pace.after_restart(pause);
            }
            assert_eq!(pace.before_restart(pause, pace.stable * 2), Duration::ZERO);
        }
    }
}
