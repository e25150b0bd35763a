// SPDX-License-Identifier: Apache-2.0
//! What a Deployment's status says: counts, and the conditions Available and Progressing.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::plan;

/// The status now, and when it may change by the mere passing of time.
pub(super) fn compute(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    current: Option<&Arc<ReplicaSet>>,
    now: Timestamp,
) -> (DeploymentStatus, Option<Duration>) {
    let spec = deployment.spec.clone().unwrap_or_default();
    let old = deployment.status.clone().unwrap_or_default();
    let sum = |f: &dyn Fn(&ReplicaSet) -> Option<i32>| sets.iter().filter_map(|s| f(s)).sum::<i32>();
    let of_status = |s: &ReplicaSet| s.status.clone().unwrap_or_default();
    let desired = spec.replicas.unwrap_or(1);
    let replicas = sum(&|s| Some(of_status(s).replicas));
    let available = sum(&|s| of_status(s).available_replicas);
    let updated = current.map_or(0, |c| of_status(c).replicas);
    let wanted_total = sum(&|s| s.spec.as_ref().and_then(|s| s.replicas));
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(replicas),
        updated_replicas: some(updated),
        ready_replicas: some(sum(&|s| of_status(s).ready_replicas)),
        available_replicas: some(available),
        unavailable_replicas: some((wanted_total - available).max(0)),
        terminating_replicas: None,
        collision_count: old.collision_count,
        conditions: None,
    };
    let mut conditions = old.conditions.clone().unwrap_or_default();
    let minimum = desired - minimum_gap(&spec, desired);
    let (flag, reason, message) = if available >= minimum {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    set_condition(&mut conditions, "Available", (flag, reason, message.to_owned()), false, now);
    let complete = updated == desired && replicas == desired && available == desired && current.is_some();
    let again = progressing(deployment, &old, &status, current, complete, &mut conditions, now);
    status.conditions = Some(conditions);
    (status, again)
}

fn minimum_gap(spec: &k8s_openapi::api::apps::v1::DeploymentSpec, desired: i32) -> i32 {
    if plan::is_recreate(spec) {
        return 0;
    }
    let rolling = spec.strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
    crate::rolling::resolve(rolling.and_then(|r| r.max_unavailable.as_ref()), "25%", desired, false)
}

#[expect(clippy::too_many_arguments, reason = "the two statuses and what lies between them")]
fn progressing(
    deployment: &Deployment,
    old: &DeploymentStatus,
    new: &DeploymentStatus,
    current: Option<&Arc<ReplicaSet>>,
    complete: bool,
    conditions: &mut Vec<DeploymentCondition>,
    now: Timestamp,
) -> Option<Duration> {
    let spec = deployment.spec.as_ref()?;
    let deadline = i64::from(spec.progress_deadline_seconds.unwrap_or(600));
    let name = current.and_then(|c| c.metadata.name.clone()).unwrap_or_default();
    let before = conditions.iter().find(|c| c.type_ == "Progressing").cloned();
    if spec.paused == Some(true) {
        if before.as_ref().is_none_or(|c| c.reason.as_deref() != Some("DeploymentPaused")) {
            let said = ("Unknown", "DeploymentPaused", "Deployment is paused".to_owned());
            set_condition(conditions, "Progressing", said, true, now);
        }
        return None;
    }
    if complete {
        let message = format!("ReplicaSet {name:?} has successfully progressed.");
        set_condition(conditions, "Progressing", ("True", "NewReplicaSetAvailable", message), false, now);
        return None;
    }
    let numbers =
        |s: &DeploymentStatus| (s.updated_replicas, s.ready_replicas, s.available_replicas, s.replicas);
    let moved = numbers(old) != numbers(new) || old.observed_generation != new.observed_generation;
    let resumed = before.as_ref().is_none_or(|c| c.reason.as_deref() == Some("DeploymentPaused"));
    if moved || resumed || before.as_ref().and_then(|c| c.reason.as_deref()) == Some("NewReplicaSetAvailable")
    {
        let message = format!("ReplicaSet {name:?} is progressing.");
        set_condition(conditions, "Progressing", ("True", "ReplicaSetUpdated", message), true, now);
        return Some(Duration::from_secs(u64::try_from(deadline).unwrap_or(600)));
    }
    let since = before?.last_update_time.map_or(now, |t| t.0);
    let left = deadline - (now.as_second() - since.as_second());
    if left > 0 {
        return Some(Duration::from_secs(u64::try_from(left).unwrap_or(1)));
    }
    let message = format!("ReplicaSet {name:?} has timed out progressing.");
    set_condition(conditions, "Progressing", ("False", "ProgressDeadlineExceeded", message), false, now);
    None
}

/// Sets a condition; one that says the same stays as it is, unless it is to be `renewed`.
fn set_condition(
    conditions: &mut Vec<DeploymentCondition>,
    type_: &str,
    (status, reason, message): (&str, &str, String),
    renew: bool,
    now: Timestamp,
) {
    let before = conditions.iter().position(|c| c.type_ == type_);
    if let Some(at) = before
        && conditions[at].status == status
        && conditions[at].reason.as_deref() == Some(reason)
        && conditions[at].message.as_deref() == Some(message.as_str())
        && !renew
    {
        return;
    }
    let same_status = before.map(|at| &conditions[at]).filter(|c| c.status == status);
    let transition = same_status.and_then(|c| c.last_transition_time.clone()).unwrap_or(Time(now));
    let condition = DeploymentCondition {
        type_: type_.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(transition),
    };
    match before {
        Some(at) => conditions[at] = condition,
        None => conditions.push(condition),
    }
}

fn some(n: i32) -> Option<i32> {
    (n != 0).then_some(n)
}

/// Whether the status is another one than the object's.
pub(super) fn differs(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let old = deployment.status.clone().unwrap_or_default();
    // Times are written with whole seconds; only what they stand for counts.
    let bare = |s: &DeploymentStatus| {
        let mut s = s.clone();
        s.terminating_replicas = None;
        for n in [
            &mut s.replicas,
            &mut s.updated_replicas,
            &mut s.ready_replicas,
            &mut s.available_replicas,
            &mut s.unavailable_replicas,
        ] {
            *n = n.filter(|n| *n != 0);
        }
        for c in s.conditions.iter_mut().flatten() {
            c.last_transition_time = None;
            c.last_update_time = None;
        }
        s
    };
    bare(&old) != bare(status)
}

/// As a merge patch: a count of zero takes the field away.
pub(super) fn patch(status: &DeploymentStatus) -> Value {
    let mut patch = json!(status);
    for field in ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas", "unavailableReplicas"]
    {
        if patch.get(field).is_none() {
            patch[field] = Value::Null;
        }
    }
    patch
}
