// SPDX-License-Identifier: Apache-2.0
//! What an earlier life of the runner has left of a Pod. Its containers ended with it; which of them run again is for the
//! Pod's restart policy to say, as after any other end: what runs once does not run twice because of us.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as Spec, ContainerStatus, Pod};

use super::{Container, Ended, Phase, State};
use crate::restart::RestartPolicy;

/// Exit code of what was killed, and of what nobody saw end.
const KILLED: i32 = 137;
const UNKNOWN: &str = "ContainerStatusUnknown";

/// The policy of a container of a Pod that starts anew, with a sandbox of its own. Init containers have to prepare it again.
pub(super) fn policy_after_restart(pod: &Pod, init: bool) -> RestartPolicy {
    match RestartPolicy::of_pod(pod) {
        RestartPolicy::OnFailure if init => RestartPolicy::Always,
        policy => policy,
    }
}

/// A container as it is taken over: it waits for its start, or it has ended for good.
pub(super) fn take_over(
    before: Option<&ContainerStatus>,
    policy: RestartPolicy,
    reason: &str,
    now: Timestamp,
) -> Container {
    let begun = |c: &&ContainerStatus| c.container_id.as_deref().is_some_and(|id| !id.is_empty());
    let Some(before) = before.filter(begun) else { return Container::waiting(reason, 0, None) };
    match (policy, end_of(before, now)) {
        (RestartPolicy::Never, Some(ended)) => over(before, ended),
        (RestartPolicy::OnFailure, Some(ended)) if ended.code == 0 => over(before, ended),
        (_, ended) => Container::waiting(reason, before.restart_count + 1, ended),
    }
}

fn over(before: &ContainerStatus, ended: Ended) -> Container {
    let id = before.container_id.as_deref().unwrap_or_default();
    Container {
        phase: Phase::Terminated(ended),
        image_id: before.image_id.clone(),
        id: id.strip_prefix("meltemi://").unwrap_or(id).to_owned(),
        ..Container::waiting("", before.restart_count, None)
    }
}

/// Of a Pod that runs once: when one of its containers had begun, those that had not will not.
pub(super) fn end_what_runs_once(state: &mut State, pod: &Pod, now: Timestamp) {
    let runs_once = RestartPolicy::of_pod(pod) == RestartPolicy::Never;
    if !runs_once || !state.init.values().chain(state.main.values()).any(Container::terminated) {
        return;
    }
    let unknown = Ended {
        code: KILLED,
        signal: None,
        reason: UNKNOWN.to_owned(),
        message: Some("the runner of the node was restarted before the container began".to_owned()),
        started: now,
        finished: now,
    };
    for container in state.init.values_mut().chain(state.main.values_mut()) {
        if !container.terminated() {
            container.phase = Phase::Terminated(unknown.clone());
        }
    }
    // Companions run until the others have ended: their end says nothing.
    let inits = pod.spec.as_ref().and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten();
    let is_companion = |spec: &&Spec| spec.restart_policy.as_deref() == Some("Always");
    let mut inits = inits.filter(|spec| !is_companion(spec));
    state.initialized = inits.all(|spec| state.init.get(&spec.name).is_some_and(Container::succeeded));
}

/// How an instance ended that an earlier life of the runner has begun.
fn end_of(before: &ContainerStatus, now: Timestamp) -> Option<Ended> {
    let state = before.state.as_ref()?;
    if let Some(t) = &state.terminated {
        return Some(Ended {
            code: t.exit_code,
            signal: t.signal,
            reason: t.reason.clone().unwrap_or_default(),
            message: t.message.clone(),
            started: t.started_at.as_ref().map_or(now, |t| t.0),
            finished: t.finished_at.as_ref().map_or(now, |t| t.0),
        });
    }
    let started = state.running.as_ref()?.started_at.as_ref().map_or(now, |t| t.0);
    Some(Ended {
        code: KILLED,
        signal: None,
        reason: UNKNOWN.to_owned(),
        message: Some("the runner of the node was restarted, and the container ended with it".to_owned()),
        started,
        finished: now,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// State and id of a container in the API.
    fn status(name: &str, state: &str) -> Value {
        let at = "1970-01-01T00:00:02Z";
        let ended = |code: i32| json!({"terminated": {"exitCode": code, "startedAt": at, "finishedAt": at}});
        let (state, id) = match state {
            "waiting" => (json!({"waiting": {"reason": "ContainerCreating"}}), Value::Null),
            "running" => (json!({"running": {"startedAt": at}}), "meltemi://1".into()),
            code => (ended(code.parse().unwrap()), "meltemi://1".into()),
        };
        let (image, ready) = ("x", false);
        json!({"name": name, "image": image, "imageID": image, "ready": ready, "restartCount": 3, "state": state,
               "containerID": id})
    }

    /// What becomes of containers `a` and `b` and of the Pod, by policy.
    #[test]
    fn what_runs_again_is_what_the_policy_says() {
        let cases = [
            ("Always", ["0", "running"], ["again", "again"], "Pending"),
            ("Always", ["waiting", "running"], ["first", "again"], "Pending"),
            ("OnFailure", ["0", "running"], ["0", "again"], "Pending"),
            ("OnFailure", ["1", "0"], ["again", "0"], "Pending"),
            ("Never", ["waiting", "waiting"], ["first", "first"], "Pending"),
            ("Never", ["0", "running"], ["0", "137"], "Failed"),
            ("Never", ["7", "waiting"], ["7", "137"], "Failed"),
            ("Never", ["running", "running"], ["137", "137"], "Failed"),
            ("Never", ["0", "0"], ["0", "0"], "Succeeded"),
        ];
        for (policy, states, expected, phase) in cases {
            let pod = json!({
                "metadata": {"name": "p"},
                "spec": {"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]},
                "status": {"containerStatuses": [status("a", states[0]), status("b", states[1])]}
            });
            let pod: Pod = serde_json::from_value(pod).unwrap();
            let state = State::of(&pod, "172.30.0.11".parse().unwrap(), Timestamp::from_second(9).unwrap());
            let became = ["a", "b"].map(|name| match &state.main[name] {
                Container { phase: Phase::Terminated(ended), restarts, .. } => {
                    assert!(*restarts == 3 || *restarts == 0, "{policy} {states:?}: {restarts}");
                    ended.code.to_string()
                }
                Container { restarts: 0, .. } => "first".to_owned(),
                Container { restarts: 4, .. } => "again".to_owned(),
                other => format!("{other:?}"),
            });
            assert_eq!(became, expected, "{policy} {states:?}");
            assert_eq!(state.phase(RestartPolicy::read(Some(policy))), phase, "{policy} {states:?}");
        }
    }

    #[test]
    fn init_containers_prepare_again_what_runs_again() {
        for (policy, init, companion, main, expected) in [
            ("Always", "0", "running", "running", "Pending"),
            ("OnFailure", "0", "running", "running", "Pending"),
            ("Never", "0", "running", "0", "Succeeded"),
            ("Never", "0", "running", "waiting", "Failed"),
            ("Never", "running", "waiting", "waiting", "Failed"),
            ("Never", "waiting", "waiting", "waiting", "Pending"),
        ] {
            let pod = json!({
                "metadata": {"name": "p"},
                "spec": {
                    "restartPolicy": policy,
                    "initContainers": [{"name": "i"}, {"name": "c", "restartPolicy": "Always"}],
                    "containers": [{"name": "a"}]
                },
                "status": {
                    "initContainerStatuses": [status("i", init), status("c", companion)],
                    "containerStatuses": [status("a", main)]
                }
            });
            let pod: Pod = serde_json::from_value(pod).unwrap();
            let state = State::of(&pod, "172.30.0.11".parse().unwrap(), Timestamp::from_second(9).unwrap());
            assert_eq!(
                state.phase(RestartPolicy::read(Some(policy))),
                expected,
                "{policy} {init} {companion} {main}"
            );
            let waits = |name: &str| matches!(state.init[name].phase, Phase::Waiting { .. });
            assert_eq!(waits("i"), expected == "Pending", "{policy} {init} {companion} {main}");
        }
    }
}
