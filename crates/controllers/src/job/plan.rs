// SPDX-License-Identifier: Apache-2.0
//! What is to be done for a Job: pure.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::pods;

/// Pause after the first failed Pod; doubled with each further one, up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(360);
/// How often a Job is tried again when it does not say.
const BACKOFF_LIMIT: i32 = 6;

/// What is to be done.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub(super) create: usize,
    pub(super) delete: Vec<String>,
    pub(super) status: JobStatus,
    /// Its time after the end has passed: it goes.
    pub(super) remove: bool,
    /// When something is to be done by the mere passing of time.
    pub(super) again: Option<Duration>,
}

/// How a Job has ended.
enum End {
    Complete,
    Failed(&'static str, String),
}

pub(super) fn plan(job: &Job, owned: &[Arc<Pod>], now: Timestamp) -> Plan {
    let spec = job.spec.clone().unwrap_or_default();
    let old = job.status.clone().unwrap_or_default();
    let mut plan = Plan { status: old.clone(), ..Plan::default() };
    if job.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    if let Some(ended) = ended_at(&old) {
        if let Some(ttl) = spec.ttl_seconds_after_finished {
            match rest(ended, i64::from(ttl), now) {
                Some(rest) => plan.again = Some(rest),
                None => plan.remove = true,
            }
        }
        plan.delete = names(owned.iter().filter(|p| pods::is_active(p)));
        return plan;
    }
    let active: Vec<&Arc<Pod>> = owned.iter().filter(|p| pods::is_active(p)).collect();
    let succeeded = count(owned.iter().filter(|p| pods::phase(p) == "Succeeded"));
    let failed = count(owned.iter().filter(|p| pods::phase(p) == "Failed"));
    let suspended = spec.suspend == Some(true);
    plan.status.start_time = if suspended { None } else { old.start_time.or(Some(Time(now))) };
    plan.status.succeeded = Some(succeeded).filter(|n| *n > 0);
    plan.status.failed = Some(failed).filter(|n| *n > 0);
    let mut running = 0;
    match end(&spec, &plan.status, &active, now) {
        Some(end) => {
            plan.delete = names(active.iter().copied());
            close(&mut plan.status, end, now);
        }
        None if suspended => plan.delete = names(active.iter().copied()),
        None => {
            running = active.len();
            let wanted = wanted(&spec, succeeded, running);
            if running > wanted {
                let mut surplus = active.clone();
                surplus.sort_by_key(|pod| pods::deletion_rank(pod));
                plan.delete = names(surplus.into_iter().take(running - wanted));
                running = wanted;
            } else if running < wanted {
                match pause(owned, failed, now) {
                    Some(rest) => plan.again = Some(rest),
                    None => {
                        plan.create = wanted - running;
                        running = wanted;
                    }
                }
            }
            let started = plan.status.start_time.as_ref().map_or(now, |t| t.0);
            let deadline = spec.active_deadline_seconds.and_then(|limit| rest(started, limit, now));
            plan.again = pods::sooner(plan.again, deadline);
        }
    }
    plan.status.active = i32::try_from(running).ok().filter(|n| *n > 0);
    plan.status.ready = Some(count(active.iter().copied().filter(|p| running > 0 && pods::is_ready(p))));
    suspend(&mut plan.status, suspended, now);
    plan
}

/// How many Pods are to run now. Without `completions` any success is the end of new Pods.
fn wanted(spec: &JobSpec, succeeded: i32, active: usize) -> usize {
    let parallel = usize::try_from(spec.parallelism.unwrap_or(1)).unwrap_or(0);
    match spec.completions {
        Some(completions) => parallel.min(usize::try_from(completions - succeeded).unwrap_or(0)),
        None if succeeded > 0 => active.min(parallel),
        None => parallel,
    }
}

fn end(spec: &JobSpec, status: &JobStatus, active: &[&Arc<Pod>], now: Timestamp) -> Option<End> {
    let succeeded = status.succeeded.unwrap_or(0);
    let done = match spec.completions {
        Some(completions) => succeeded >= completions,
        None => succeeded > 0 && active.is_empty(),
    };
    if done {
        return Some(End::Complete);
    }
    if spec.completion_mode.as_deref() == Some("Indexed") {
        let why = "completionMode Indexed is not supported here: no Pod was started".to_owned();
        return Some(End::Failed("NotSupported", why));
    }
    let restarts =
        active.iter().flat_map(|p| p.status.iter().flat_map(|s| s.container_statuses.iter().flatten()));
    let restarts: i32 = restarts.map(|c| c.restart_count).sum();
    let limit = spec.backoff_limit.unwrap_or(BACKOFF_LIMIT);
    if status.failed.unwrap_or(0) > limit || restarts > limit {
        return Some(End::Failed(
            "BackoffLimitExceeded",
            "Job has reached the specified backoff limit".into(),
        ));
    }
    let started = status.start_time.as_ref()?.0;
    let limit = spec.active_deadline_seconds?;
    let passed = rest(started, limit, now).is_none();
    passed.then(|| End::Failed("DeadlineExceeded", "Job was active longer than specified deadline".into()))
}

fn close(status: &mut JobStatus, end: End, now: Timestamp) {
    match end {
        End::Complete => {
            let message = "Reached expected number of succeeded pods";
            set(status, "SuccessCriteriaMet", "CompletionsReached", message, now);
            set(status, "Complete", "CompletionsReached", message, now);
            status.completion_time = Some(Time(now));
        }
        End::Failed(reason, message) => {
            set(status, "FailureTarget", reason, &message, now);
            set(status, "Failed", reason, &message, now);
        }
    }
}

fn set(status: &mut JobStatus, kind: &str, reason: &str, message: &str, now: Timestamp) {
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|c| c.type_ != kind);
    conditions.push(JobCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    });
}

/// The condition `Suspended`, written when it changes.
fn suspend(status: &mut JobStatus, suspended: bool, now: Timestamp) {
    let is = |c: &JobCondition| c.type_ == "Suspended";
    let was = status.conditions.iter().flatten().find(|c| is(c)).map(|c| c.status == "True");
    match (was, suspended) {
        (Some(true), true) | (Some(false) | None, false) => {}
        (_, true) => set(status, "Suspended", "JobSuspended", "Job suspended", now),
        (Some(true), false) => {
            set(status, "Suspended", "JobResumed", "Job resumed", now);
            status
                .conditions
                .iter_mut()
                .flatten()
                .filter(|c| is(c))
                .for_each(|c| c.status = "False".to_owned());
        }
    }
}

fn ended_at(status: &JobStatus) -> Option<Timestamp> {
    let ended = |c: &&JobCondition| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True";
    let condition = status.conditions.iter().flatten().find(ended)?;
    Some(condition.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0))
}

/// What is left of the pause after failures.
fn pause(owned: &[Arc<Pod>], failed: i32, now: Timestamp) -> Option<Duration> {
    let last = owned.iter().filter(|p| pods::phase(p) == "Failed").filter_map(|p| pods::ended_at(p)).max()?;
    let doublings = u32::try_from(failed - 1).unwrap_or(0).min(6);
    let pause = PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE);
    rest(last, i64::try_from(pause.as_secs()).unwrap_or(i64::MAX), now)
}

/// What is left of `seconds` since `from`; none when they have passed.
fn rest(from: Timestamp, seconds: i64, now: Timestamp) -> Option<Duration> {
    let left = from.as_second().saturating_add(seconds) - now.as_second();
    u64::try_from(left).ok().filter(|left| *left > 0).map(Duration::from_secs)
}

fn names<'a>(pods: impl Iterator<Item = &'a Arc<Pod>>) -> Vec<String> {
    pods.filter_map(|p| p.metadata.name.clone()).collect()
}

fn count<T>(all: impl Iterator<Item = T>) -> i32 {
    i32::try_from(all.count()).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::serde::Deserialize as _;
    use serde_json::{Value, json};

    use super::*;

    const START: &str = "2026-01-01T00:00:00Z";

    fn job(spec: Value) -> Job {
        let mut all = json!({"parallelism": 1, "completions": 1, "template": {"spec": {"containers": []}}});
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        Job::deserialize(json!({"metadata": {"name": "j", "namespace": "a", "uid": "u"}, "spec": all,
            "status": {"startTime": START}}))
        .unwrap()
    }

    fn pod(name: &str, phase: &str) -> Arc<Pod> {
        let terminated = json!({"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": 1, "finishedAt": START}}});
        Arc::new(
            Pod::deserialize(json!({"metadata": {"name": name}, "spec": {"containers": []},
                "status": {"phase": phase, "containerStatuses": [terminated]}}))
            .unwrap(),
        )
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn condition(plan: &Plan) -> String {
        let last = plan.status.conditions.iter().flatten().last();
        last.map(|c| format!("{} {}", c.type_, c.reason.clone().unwrap_or_default())).unwrap_or_default()
    }

    #[test]
    fn pods_are_made_until_enough_have_succeeded() {
        // (spec, phases of the Pods, seconds since the start, create, delete, last condition)
        type Case = (Value, &'static [&'static str], u32, usize, usize, &'static str);
        let cases: [Case; 14] = [
            (json!({}), &[], 0, 1, 0, ""),
            (json!({}), &["Running"], 0, 0, 0, ""),
            (json!({}), &["Succeeded"], 0, 0, 0, "Complete CompletionsReached"),
            (json!({"completions": 3, "parallelism": 2}), &["Succeeded"], 0, 2, 0, ""),
            (json!({"completions": 3, "parallelism": 2}), &["Succeeded", "Succeeded"], 0, 1, 0, ""),
            (json!({"completions": 3, "parallelism": 1}), &["Running", "Running"], 0, 0, 1, ""),
            (json!({"completions": null, "parallelism": 2}), &["Succeeded", "Running"], 0, 0, 0, ""),
            (
                json!({"completions": null, "parallelism": 2}),
                &["Succeeded"],
                0,
                0,
                0,
                "Complete CompletionsReached",
            ),
            (json!({}), &["Failed"], 5, 0, 0, ""),
            (json!({}), &["Failed"], 11, 1, 0, ""),
            (json!({"backoffLimit": 0}), &["Failed"], 11, 0, 0, "Failed BackoffLimitExceeded"),
            (json!({"activeDeadlineSeconds": 5}), &["Running"], 6, 0, 1, "Failed DeadlineExceeded"),
            (json!({"suspend": true}), &["Running"], 0, 0, 1, "Suspended JobSuspended"),
            (json!({"completionMode": "Indexed"}), &[], 0, 0, 0, "Failed NotSupported"),
        ];
        for (spec, phases, seconds, create, delete, last) in cases {
            let owned: Vec<_> = phases.iter().enumerate().map(|(i, p)| pod(&format!("p{i}"), p)).collect();
            let now = at(&format!("2026-01-01T00:00:{seconds:02}Z"));
            let plan = plan(&job(spec.clone()), &owned, now);
            let found = (plan.create, plan.delete.len(), condition(&plan));
            assert_eq!(found, (create, delete, last.to_owned()), "{spec} {phases:?}");
        }
    }

    #[test]
    fn a_finished_job_starts_nothing_and_goes_after_its_time() {
        let mut finished = job(json!({"ttlSecondsAfterFinished": 30}));
        finished.status = Some(plan(&finished, &[pod("a", "Succeeded")], at(START)).status);
        let later = plan(&finished, &[], at("2026-01-01T00:00:10Z"));
        assert_eq!((later.create, later.remove, later.again), (0, false, Some(Duration::from_secs(20))));
        assert!(plan(&finished, &[], at("2026-01-01T00:00:30Z")).remove);
    }

    #[test]
    fn a_status_that_is_true_is_not_written_again() {
        let mut running = job(json!({}));
        running.status = Some(plan(&running, &[pod("a", "Running")], at(START)).status);
        let later = plan(&running, &[pod("a", "Running")], at("2026-01-01T00:00:10Z"));
        assert_eq!(Some(later.status), running.status);
    }
}
