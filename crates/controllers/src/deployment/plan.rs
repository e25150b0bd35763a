// SPDX-License-Identifier: Apache-2.0
//! How many replicas each ReplicaSet of a Deployment should have now: pure.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;

use super::{HASH_LABEL, REVISION};
use crate::rolling;

/// The ReplicaSet with the Deployment's template; the oldest, should there be several.
pub(super) fn find_current(deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> Option<Arc<ReplicaSet>> {
    let wanted = bare(&deployment.spec.as_ref()?.template);
    let same = |set: &&Arc<ReplicaSet>| {
        set.spec.as_ref().and_then(|s| s.template.as_ref()).is_some_and(|t| bare(t) == wanted)
    };
    let created = |set: &&Arc<ReplicaSet>| set.metadata.creation_timestamp.as_ref().map(|t| t.0);
    sets.iter().filter(same).min_by_key(created).cloned()
}

/// A template without the label that tells ReplicaSets apart.
fn bare(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    let meta = template.metadata.get_or_insert_default();
    if let Some(labels) = &mut meta.labels {
        labels.remove(HASH_LABEL);
    }
    meta.labels = meta.labels.take().filter(|l| !l.is_empty());
    meta.creation_timestamp = None;
    template
}

pub(super) fn is_recreate(spec: &DeploymentSpec) -> bool {
    spec.strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("Recreate")
}

pub(super) fn revision(set: &ReplicaSet) -> i64 {
    let text = set.metadata.annotations.as_ref().and_then(|a| a.get(REVISION));
    text.and_then(|t| t.parse().ok()).unwrap_or(0)
}

pub(super) fn next_revision(sets: &[Arc<ReplicaSet>]) -> i64 {
    sets.iter().map(|s| revision(s)).max().unwrap_or(0) + 1
}

fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0)
}

fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

fn bounds(spec: &DeploymentSpec) -> (i32, i32) {
    let desired = spec.replicas.unwrap_or(1);
    let rolling = spec.strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
    let surge = rolling::resolve(rolling.and_then(|r| r.max_surge.as_ref()), "25%", desired, true);
    let unavailable =
        rolling::resolve(rolling.and_then(|r| r.max_unavailable.as_ref()), "25%", desired, false);
    rolling::bounds(surge, unavailable, desired)
}

/// How many Pods the Deployment wants, and how many it may have for a while.
pub(super) fn sizes(deployment: &Deployment) -> (i32, i32) {
    let Some(spec) = &deployment.spec else { return (0, 0) };
    let desired = spec.replicas.unwrap_or(1);
    let surge = if is_recreate(spec) { 0 } else { bounds(spec).0 };
    (desired, desired + surge)
}

/// With how many replicas a new ReplicaSet starts beside the others.
pub(super) fn first_replicas(deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> i32 {
    let (desired, max) = sizes(deployment);
    let total: i32 = sets.iter().map(|s| size(s)).sum();
    (max - total).clamp(0, desired)
}

/// The ReplicaSets whose size should change, and to what.
pub(super) fn replicas(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    current: Option<&Arc<ReplicaSet>>,
    wait_for_old: bool,
) -> Vec<(Arc<ReplicaSet>, i32)> {
    let Some(spec) = &deployment.spec else { return Vec::new() };
    let (desired, max) = sizes(deployment);
    let is_current = |s: &Arc<ReplicaSet>| current.is_some_and(|c| c.metadata.uid == s.metadata.uid);
    let mut old: Vec<&Arc<ReplicaSet>> = sets.iter().filter(|s| !is_current(s)).collect();
    old.sort_by_key(|s| revision(s));
    if spec.paused == Some(true) {
        // Paused: no way forward, but the size still follows, on the one that is active.
        let mut active = sets.iter().filter(|s| size(s) > 0);
        return match (active.next(), active.next()) {
            (Some(only), None) => vec![(only.clone(), desired)],
            (None, _) => current.into_iter().map(|c| (c.clone(), desired)).collect(),
            _ => Vec::new(),
        };
    }
    let mut wanted = Vec::new();
    if is_recreate(spec) {
        wanted.extend(old.iter().map(|s| ((*s).clone(), 0)));
        if !wait_for_old {
            wanted.extend(current.map(|c| (c.clone(), desired)));
        }
        return wanted;
    }
    let Some(current) = current else { return wanted };
    let total: i32 = sets.iter().map(|s| size(s)).sum();
    let room = (max - total).max(0);
    let new_size =
        if size(current) > desired { desired } else { size(current) + room.min(desired - size(current)) };
    wanted.push((current.clone(), new_size));
    // The present set's Pods that do not serve yet are as good as missing.
    let minimum = desired - bounds(spec).1;
    let not_serving = (size(current).min(desired) - available(current)).max(0);
    let mut surplus = total - size(current) + size(current).min(desired) - minimum - not_serving;
    // First what does not serve anyway, then the oldest.
    let mut left: Vec<(Arc<ReplicaSet>, i32)> = old.iter().map(|s| ((*s).clone(), size(s))).collect();
    for (set, n) in &mut left {
        let cut = (*n - available(set)).clamp(0, surplus.max(0));
        *n -= cut;
        surplus -= cut;
    }
    let serving: i32 = sets.iter().map(|s| available(s)).sum();
    let mut spare = serving - minimum;
    for (set, n) in &mut left {
        let cut = (*n).min(spare.max(0)).min(available(set));
        *n -= cut;
        spare -= cut;
    }
    wanted.extend(left);
    wanted
}

/// Old ReplicaSets beyond the history that is kept.
pub(super) fn expired(
    spec: &DeploymentSpec,
    sets: &[Arc<ReplicaSet>],
    current: Option<&Arc<ReplicaSet>>,
) -> Vec<Arc<ReplicaSet>> {
    let limit = usize::try_from(spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
    let empty = |s: &&Arc<ReplicaSet>| {
        size(s) == 0
            && s.status.as_ref().is_none_or(|st| st.replicas == 0)
            && s.metadata.deletion_timestamp.is_none()
            && current.is_some_and(|c| c.metadata.uid != s.metadata.uid)
    };
    let mut old: Vec<Arc<ReplicaSet>> = sets.iter().filter(empty).cloned().collect();
    old.sort_by_key(|s| revision(s));
    old.truncate(old.len().saturating_sub(limit));
    old
}

#[cfg(test)]
mod tests {
    use k8s_openapi::serde::Deserialize as _;
    use serde_json::{Value, json};

    use super::*;

    fn deployment(replicas: i32, strategy: Value, paused: bool) -> Deployment {
        Deployment::deserialize(
            json!({"metadata": {"name": "web"}, "spec": {"replicas": replicas, "selector": {},
            "strategy": strategy, "paused": paused,
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}}}}),
        )
        .unwrap()
    }

    fn set(name: &str, revision: i32, size: i32, available: i32) -> Arc<ReplicaSet> {
        Arc::new(
            ReplicaSet::deserialize(json!({"metadata": {"name": name, "uid": name, "annotations": {REVISION: revision.to_string()}},
                "spec": {"replicas": size, "selector": {}},
                "status": {"replicas": size, "availableReplicas": available}}))
            .unwrap(),
        )
    }

    #[test]
    fn a_rolling_update_keeps_its_bounds() {
        let one = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
        let default = json!({"type": "RollingUpdate"});
        // strategy, desired, [(old size, available)], (new size, available) -> old sizes, new size
        type Case<'a> = (&'a Value, i32, &'a [(i32, i32)], (i32, i32), &'a [i32], i32);
        let cases: [Case<'_>; 10] = [
            (&one, 1, &[(1, 1)], (1, 0), &[1], 1),
            (&one, 1, &[(1, 1)], (1, 1), &[0], 1),
            (&one, 3, &[(3, 3)], (0, 0), &[3], 1),
            (&one, 3, &[(3, 3)], (1, 1), &[2], 1),
            (&one, 3, &[(2, 2)], (1, 1), &[2], 2),
            (&default, 4, &[(4, 4)], (1, 0), &[3], 1),
            // Old Pods that do not serve go first, even before new ones serve.
            (&one, 2, &[(2, 0)], (1, 0), &[2], 1),
            (&default, 4, &[(2, 0), (2, 2)], (1, 1), &[0, 2], 1),
            // Scaling while nothing rolls.
            (&default, 5, &[], (2, 2), &[], 5),
            (&default, 1, &[], (4, 4), &[], 1),
        ];
        for (strategy, desired, old, (new, serving), expected_old, expected_new) in cases {
            let deployment = deployment(desired, strategy.clone(), false);
            let current = set("new", 9, new, serving);
            let mut sets: Vec<_> = old
                .iter()
                .enumerate()
                .map(|(i, (n, a))| set(&format!("old-{i}"), i as i32 + 1, *n, *a))
                .collect();
            sets.push(current.clone());
            let wanted = replicas(&deployment, &sets, Some(&current), false);
            let of =
                |name: &str| wanted.iter().find(|(s, _)| s.metadata.name.as_deref() == Some(name)).unwrap().1;
            let got_old: Vec<i32> = (0..old.len()).map(|i| of(&format!("old-{i}"))).collect();
            assert_eq!(
                (got_old.as_slice(), of("new")),
                (expected_old, expected_new),
                "{desired} {old:?} {new}"
            );
        }
    }

    #[test]
    fn recreate_and_pause() {
        let recreate = deployment(2, json!({"type": "Recreate"}), false);
        let (old, new) = (set("old", 1, 2, 2), set("new", 2, 0, 0));
        let sets = [old.clone(), new.clone()];
        assert_eq!(replicas(&recreate, &sets, Some(&new), true), [(old.clone(), 0)]);
        assert_eq!(replicas(&recreate, &sets, Some(&new), false), [(old.clone(), 0), (new.clone(), 2)]);
        let paused = deployment(5, json!({}), true);
        assert_eq!(replicas(&paused, &sets, Some(&new), false), [(old, 5)]);
    }

    #[test]
    fn history_beyond_the_limit_expires() {
        let mut spec = deployment(1, json!({}), false).spec.unwrap();
        spec.revision_history_limit = Some(1);
        let sets = [set("a", 1, 0, 0), set("b", 2, 0, 0), set("c", 3, 1, 0), set("d", 4, 1, 1)];
        let names: Vec<_> = expired(&spec, &sets, Some(&sets[3])).iter().map(|s| revision(s)).collect();
        assert_eq!(names, [1]);
    }
}
