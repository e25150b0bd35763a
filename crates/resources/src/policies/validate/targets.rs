// SPDX-License-Identifier: Apache-2.0
//! What a policy is attached to: a selector or targets, never both.

use super::super::{TargetRef, WorkloadSelector};
use super::Review;

/// Most targets, and most labels of a selector with the longest value.
const MOST_TARGETS: usize = 16;
const MOST_LABELS: usize = 4096;
const LONGEST_VALUE: usize = 63;

/// Checks selector, `targetRef` and `targetRefs` together.
pub(super) fn review(
    selected: Option<&WorkloadSelector>,
    one: Option<&TargetRef>,
    many: Option<&Vec<TargetRef>>,
    review: &mut Review,
) {
    let many = many.map(Vec::as_slice).unwrap_or_default();
    let set = [selected.is_some(), one.is_some(), !many.is_empty()];
    if set.into_iter().filter(|set| *set).count() > 1 {
        review.fault("only one of targetRefs or workloadSelector can be set");
    }
    if many.len() > MOST_TARGETS {
        review.fault(format!("targetRefs must have at most {MOST_TARGETS} items"));
    }
    selector(selected, review);
    one.into_iter().chain(many).for_each(|t| target(t, review));
}

fn target(target: &TargetRef, review: &mut Review) {
    if target.name.as_deref().unwrap_or_default().is_empty() {
        review.fault("targetRef name must be set");
    }
    if target.namespace.as_deref().is_some_and(|n| !n.is_empty()) {
        review.fault("targetRef namespace must not be set; cross namespace referencing is not supported");
    }
    let group = target.group.as_deref().unwrap_or_default();
    let kind = target.kind.as_deref().unwrap_or_default();
    let known = matches!(
        (group, kind),
        ("" | "core", "Service")
            | ("networking.istio.io", "ServiceEntry")
            | ("gateway.networking.k8s.io", "Gateway" | "GatewayClass")
    );
    if !known {
        review.fault(format!(
            "targetRef must be to one of [core/v1/Service networking.istio.io/v1/ServiceEntry \
             gateway.networking.k8s.io/v1/Gateway gateway.networking.k8s.io/v1/GatewayClass] but was {group}/{kind}"
        ));
    }
}

/// Checks a selector.
pub(super) fn selector(selector: Option<&WorkloadSelector>, review: &mut Review) {
    let Some(selector) = selector else { return };
    let nothing = std::collections::BTreeMap::new();
    let labels = selector.match_labels.as_ref().unwrap_or(&nothing);
    for (key, value) in labels {
        let pair = format!("{key}={value}");
        if key.is_empty() {
            review.fault(format!("empty key is not supported in selector: {pair:?}"));
        }
        if pair.contains('*') {
            review.fault(format!("wildcard is not supported in selector: {pair:?}"));
        }
        if value.len() > LONGEST_VALUE {
            review.fault(format!("value of more than {LONGEST_VALUE} characters in selector: {pair:?}"));
        }
    }
    if labels.len() > MOST_LABELS {
        review.fault(format!("selector must have at most {MOST_LABELS} labels"));
    }
    if labels.is_empty() {
        review.warn("workload selector specified without labels");
    }
}
