// SPDX-License-Identifier: Apache-2.0
//! Which Pods of a StatefulSet are to be made and deleted next: pure.
//!
//! Pods have ordinals. With `OrderedReady` one is made when all before it are available, and deleted when all that stay
//! are; an update replaces them from the last one down to the partition, one after the other.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use crate::pods::{self, Availability};
use crate::revisions::HASH_LABEL;

/// Which template a new Pod is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Template {
    /// The one before the update that is under way: the partition holds the Pod back.
    Current,
    /// The one in the set's specification.
    Updated,
}

/// What is to be done.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Ordinals that need a Pod.
    pub(super) create: Vec<(i32, Template)>,
    pub(super) delete: Vec<Arc<Pod>>,
    pub(super) status: StatefulSetStatus,
    /// When a Pod may become available by the mere passing of time.
    pub(super) again: Option<Duration>,
}

/// The set's Pods by ordinal, and what it asks for.
struct View<'a> {
    pods: BTreeMap<i32, &'a Arc<Pod>>,
    wanted: Range<i32>,
    /// One after the other (`OrderedReady`), or all at once (`Parallel`).
    is_ordered: bool,
    updated: &'a str,
}

pub(super) fn plan(set: &StatefulSet, owned: &[Arc<Pod>], updated: &str, now: Timestamp) -> Plan {
    let spec = set.spec.clone().unwrap_or_default();
    let start = spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0).max(0);
    let view = View {
        pods: owned.iter().filter_map(|pod| Some((ordinal(&set.name_any(), pod)?, pod))).collect(),
        wanted: start..start.saturating_add(spec.replicas.unwrap_or(1).max(0)),
        is_ordered: spec.pod_management_policy.as_deref() != Some("Parallel"),
        updated,
    };
    let mut plan = Plan::default();
    let mut again = None;
    let available: BTreeMap<i32, bool> = view
        .pods
        .iter()
        .map(|(ordinal, pod)| {
            let availability = pods::availability(pod, spec.min_ready_seconds.unwrap_or(0), now);
            if let Availability::In(after) = availability {
                again = pods::sooner(again, Some(after));
            }
            (*ordinal, availability == Availability::Yes && pods::is_active(pod))
        })
        .collect();
    plan.again = again;
    plan.status = status(set, &view, &available);
    if set.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let partition = partition(&spec, start);
    let is_settled = fill_up(&view, &available, partition, &mut plan);
    if is_settled || !view.is_ordered {
        shrink(&view, &mut plan);
    }
    let is_busy = !plan.create.is_empty() || !plan.delete.is_empty();
    if let Some(partition) = partition.filter(|_| !view.is_ordered || (is_settled && !is_busy)) {
        update(&view, &available, partition, &mut plan);
    }
    plan
}

/// The first ordinal that an update reaches; `None`: Pods are replaced when somebody deletes them (`OnDelete`).
fn partition(spec: &StatefulSetSpec, start: i32) -> Option<i32> {
    let strategy = spec.update_strategy.as_ref();
    if strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete") {
        return None;
    }
    let partition = strategy.and_then(|s| s.rolling_update.as_ref()?.partition).unwrap_or(0);
    Some(start.saturating_add(partition.max(0)))
}

/// Makes what is missing; says whether all Pods are there and available.
fn fill_up(
    view: &View<'_>,
    available: &BTreeMap<i32, bool>,
    partition: Option<i32>,
    plan: &mut Plan,
) -> bool {
    let mut is_settled = true;
    for ordinal in view.wanted.clone() {
        match view.pods.get(&ordinal) {
            None => {
                let is_held_back = partition.is_some_and(|partition| ordinal < partition);
                plan.create.push((ordinal, if is_held_back { Template::Current } else { Template::Updated }));
            }
            // Its name is free for another one when it has gone.
            Some(pod) if pod.metadata.deletion_timestamp.is_some() => {}
            Some(pod) if pods::is_finished(pod) => plan.delete.push((*pod).clone()),
            Some(_) if available.get(&ordinal) == Some(&true) => continue,
            Some(_) => {}
        }
        is_settled = false;
        if view.is_ordered {
            break;
        }
    }
    is_settled
}

/// Deletes Pods beyond the number that is asked for, the last one first.
fn shrink(view: &View<'_>, plan: &mut Plan) {
    for pod in
        view.pods.iter().rev().filter(|(ordinal, _)| !view.wanted.contains(ordinal)).map(|(_, pod)| pod)
    {
        if pod.metadata.deletion_timestamp.is_none() {
            plan.delete.push((*pod).clone());
        }
        if view.is_ordered {
            return;
        }
    }
}

/// Deletes the last Pod that is out of date, once all behind it are available.
fn update(view: &View<'_>, available: &BTreeMap<i32, bool>, partition: i32, plan: &mut Plan) {
    for ordinal in view.wanted.clone().rev().take_while(|ordinal| *ordinal >= partition) {
        let Some(pod) = view.pods.get(&ordinal) else { return };
        let is_leaving = pod.metadata.deletion_timestamp.is_some();
        if !is_leaving && revision(pod) != Some(view.updated) {
            plan.delete.push((*pod).clone());
            return;
        }
        if available.get(&ordinal) != Some(&true) {
            return;
        }
    }
}

fn status(set: &StatefulSet, view: &View<'_>, available: &BTreeMap<i32, bool>) -> StatefulSetStatus {
    let old = set.status.clone().unwrap_or_default();
    let updated = revision_name(&set.name_any(), view.updated);
    let mut current = old.current_revision.filter(|name| !name.is_empty()).unwrap_or_else(|| updated.clone());
    let active = || view.pods.values().filter(|pod| pods::is_active(pod));
    let at = |name: &str| {
        let has =
            |pod: &&&Arc<Pod>| revision(pod).is_some_and(|hash| revision_name(&set.name_any(), hash) == name);
        count(active().filter(has).count())
    };
    let (replicas, ready) =
        (count(active().count()), count(active().filter(|pod| pods::is_ready(pod)).count()));
    let wanted = view.wanted.end - view.wanted.start;
    // The update is over: what it brought is what a partition holds back from now on.
    if at(&updated) == replicas && replicas == wanted && ready == wanted {
        current.clone_from(&updated);
    }
    StatefulSetStatus {
        observed_generation: set.metadata.generation,
        replicas,
        ready_replicas: Some(ready),
        available_replicas: Some(count(available.values().filter(|is| **is).count())),
        current_replicas: Some(at(&current)),
        updated_replicas: Some(at(&updated)),
        current_revision: Some(current),
        update_revision: Some(updated),
        collision_count: Some(0),
        conditions: None,
    }
}

/// Name of the ControllerRevision of a template.
pub(super) fn revision_name(set: &str, hash: &str) -> String {
    format!("{set}-{hash}")
}

fn revision(pod: &Pod) -> Option<&str> {
    pod.labels().get(HASH_LABEL).map(String::as_str)
}

/// The number in a Pod's name: `web-2` of the set `web` has 2.
fn ordinal(set: &str, pod: &Pod) -> Option<i32> {
    let number = pod.metadata.name.as_deref()?.strip_prefix(set)?.strip_prefix('-')?;
    let ordinal: i32 = number.parse().ok()?;
    // `web-02` and `web-+2` are nobody's.
    (ordinal.to_string() == number).then_some(ordinal)
}

fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::serde::Deserialize as _;
    use serde_json::{Value, json};

    use super::*;

    fn set(spec: Value) -> StatefulSet {
        let mut all = json!({"serviceName": "web", "selector": {}, "template": {}});
        all.as_object_mut().unwrap().extend(spec.as_object().cloned().unwrap());
        StatefulSet::deserialize(json!({"metadata": {"name": "web"}, "spec": all})).unwrap()
    }

    /// `ordinal hash state`: state is r(eady), p(ending), f(ailed), d(eleted).
    fn pod(text: &str) -> Arc<Pod> {
        let words: Vec<_> = text.split(' ').collect();
        let ready = if words[2] == "r" { "True" } else { "False" };
        let phase = if words[2] == "f" { "Failed" } else { "Running" };
        let deleted = (words[2] == "d").then_some("2026-01-01T00:00:00Z");
        Arc::new(
            Pod::deserialize(json!({
                "metadata": {"name": format!("web-{}", words[0]), "labels": {HASH_LABEL: words[1]}, "deletionTimestamp": deleted},
                "spec": {"containers": []},
                "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]}}))
            .unwrap(),
        )
    }

    fn run(spec: &Value, pods: &[&str]) -> (Vec<i32>, Vec<String>, StatefulSetStatus) {
        let owned: Vec<_> = pods.iter().map(|text| pod(text)).collect();
        let plan = plan(&set(spec.clone()), &owned, "new", Timestamp::UNIX_EPOCH);
        let created = plan.create.iter().map(|(ordinal, _)| *ordinal).collect();
        (created, plan.delete.iter().map(|pod| pod.name_any()).collect(), plan.status)
    }

    #[test]
    fn pods_come_and_go_in_order() {
        let three = json!({"replicas": 3});
        let parallel = json!({"replicas": 3, "podManagementPolicy": "Parallel"});
        let two = json!({"replicas": 2});
        let later = json!({"replicas": 2, "ordinals": {"start": 5}});
        let partition = json!({"replicas": 3, "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}});
        let by_hand = json!({"replicas": 3, "updateStrategy": {"type": "OnDelete"}});
        // specification, Pods, created, deleted
        type Case<'a> = (&'a Value, &'a [&'a str], &'a [i32], &'a [&'a str]);
        let cases: [Case<'_>; 24] = [
            (&three, &[], &[0], &[]),
            (&three, &["0 new p"], &[], &[]),
            (&three, &["0 new r"], &[1], &[]),
            (&three, &["0 new r", "2 new r"], &[1], &[]),
            (&three, &["0 new d", "1 new r"], &[], &[]),
            (&three, &["0 new f", "1 new r"], &[], &["web-0"]),
            (&three, &["0 new r", "1 new r", "2 new r"], &[], &[]),
            (&parallel, &["1 new p"], &[0, 2], &[]),
            // Fewer: the last one first, and only while all others serve.
            (&two, &["0 new r", "1 new r", "2 new r", "3 new r"], &[], &["web-3"]),
            (&two, &["0 new r", "1 new r", "2 new r", "3 new d"], &[], &[]),
            (&two, &["0 new r", "1 new p", "2 new r"], &[], &[]),
            (&json!({"replicas": 0}), &["0 new p"], &[], &["web-0"]),
            (
                &json!({"replicas": 1, "podManagementPolicy": "Parallel"}),
                &["0 new p", "1 new r", "2 new r"],
                &[],
                &["web-2", "web-1"],
            ),
            (&later, &["5 new r"], &[6], &[]),
            (&later, &["5 new r", "6 new r", "0 new r"], &[], &["web-0"]),
            // An update: from the last one on, each when the one behind it serves.
            (&three, &["0 old r", "1 old r", "2 old r"], &[], &["web-2"]),
            (&three, &["0 old r", "1 old r", "2 old d"], &[], &[]),
            (&three, &["0 old r", "1 old r"], &[2], &[]),
            (&three, &["0 old r", "1 old r", "2 new p"], &[], &[]),
            (&three, &["0 old r", "1 old r", "2 new r"], &[], &["web-1"]),
            (&partition, &["0 old r", "1 old r", "2 new r"], &[], &[]),
            (&by_hand, &["0 old r", "1 old r", "2 old r"], &[], &[]),
            // Names that are not of the set's form are nobody's.
            (&two, &["0 new r", "1 new r", "02 new r", "x new r"], &[], &[]),
            (&parallel, &["0 old r", "1 old r", "2 old r"], &[], &["web-2"]),
        ];
        for (spec, pods, create, delete) in cases {
            let (created, deleted, _) = run(spec, pods);
            assert_eq!(
                (created.as_slice(), deleted.as_slice()),
                (create, &*delete.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()),
                "{pods:?} {spec}"
            );
        }
    }

    #[test]
    fn a_partition_holds_new_pods_back_as_well() {
        let spec = json!({"replicas": 3, "updateStrategy": {"rollingUpdate": {"partition": 1}}, "podManagementPolicy": "Parallel"});
        let plan = plan(&set(spec), &[], "new", Timestamp::UNIX_EPOCH);
        assert_eq!(plan.create, [(0, Template::Current), (1, Template::Updated), (2, Template::Updated)]);
    }

    #[test]
    fn the_status_tells_both_revisions_until_the_update_is_over() {
        let mut changing = set(json!({"replicas": 2}));
        changing.status = Some(StatefulSetStatus {
            current_revision: Some("web-old".into()),
            ..StatefulSetStatus::default()
        });
        for (pods, current, counts) in [
            (["0 old r", "1 old r"], "web-old", (2, 2, 2, 0)),
            (["0 old r", "1 new p"], "web-old", (2, 1, 1, 1)),
            (["0 new p", "1 new r"], "web-old", (2, 1, 0, 2)),
            (["0 new r", "1 new r"], "web-new", (2, 2, 2, 2)),
        ] {
            let owned: Vec<_> = pods.iter().map(|text| pod(text)).collect();
            let status = plan(&changing, &owned, "new", Timestamp::UNIX_EPOCH).status;
            assert_eq!(status.current_revision.as_deref(), Some(current), "{pods:?}");
            assert_eq!(status.update_revision.as_deref(), Some("web-new"));
            let n = |value: Option<i32>| value.unwrap_or(-1);
            let seen = (
                status.replicas,
                n(status.ready_replicas),
                n(status.current_replicas),
                n(status.updated_replicas),
            );
            assert_eq!(seen, counts, "{pods:?}");
        }
    }
}
