// SPDX-License-Identifier: Apache-2.0
//! What is known of a Pod's containers, and the status that Kubernetes shows of it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use meltemi_enrolment::{CAPTURED, Capture};

use crate::restart::RestartPolicy;

mod earlier;

/// Where a container is in its life.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Phase {
    Waiting { reason: String, message: Option<String> },
    Running { since: Timestamp },
    Terminated(Ended),
}

/// How an instance of a container ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ended {
    pub code: i32,
    pub signal: Option<i32>,
    pub reason: String,
    pub message: Option<String>,
    pub started: Timestamp,
    pub finished: Timestamp,
}

/// One container.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Container {
    pub phase: Phase,
    pub last: Option<Ended>,
    pub restarts: i32,
    /// Its readiness probe holds (or it has none).
    pub ready: bool,
    /// Its startup probe has held (or it has none).
    pub started: bool,
    pub image_id: String,
    pub id: String,
}

impl Container {
    pub(crate) fn waiting(reason: &str, restarts: i32, last: Option<Ended>) -> Self {
        Self {
            phase: Phase::Waiting { reason: reason.to_owned(), message: None },
            last,
            restarts,
            ready: false,
            started: false,
            image_id: String::new(),
            id: String::new(),
        }
    }

    pub(crate) fn succeeded(&self) -> bool {
        matches!(&self.phase, Phase::Terminated(e) if e.code == 0)
    }

    pub(crate) fn terminated(&self) -> bool {
        matches!(self.phase, Phase::Terminated(_))
    }
}

/// A Pod as the runner knows it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct State {
    pub address: Option<IpAddr>,
    pub host: IpAddr,
    pub started: Timestamp,
    pub initialized: bool,
    pub init: BTreeMap<String, Container>,
    pub main: BTreeMap<String, Container>,
    /// Added while the Pod runs; they count for nothing but themselves.
    pub ephemeral: BTreeMap<String, Container>,
    /// Set when the Pod failed as a whole: reason and message.
    pub failed: Option<(String, String)>,
    pub capture: Capture,
}

impl State {
    /// A Pod that has not begun in this life of the runner; what an earlier one has left of it is kept.
    pub(crate) fn of(pod: &Pod, host: IpAddr, now: Timestamp) -> Self {
        let status = pod.status.as_ref();
        let spec = pod.spec.as_ref();
        let old = |name: &str, init: bool| -> Option<&ContainerStatus> {
            let list = if init { &status?.init_container_statuses } else { &status?.container_statuses };
            list.iter().flatten().find(|c| c.name == name)
        };
        let fresh = |name: &str, init: bool| {
            let reason = if init { "PodInitializing" } else { "ContainerCreating" };
            earlier::take_over(old(name, init), earlier::policy_after_restart(pod, init), reason, now)
        };
        let init = spec.and_then(|s| s.init_containers.as_ref()).into_iter().flatten();
        let main = spec.map(|s| s.containers.as_slice()).unwrap_or_default();
        let has_init = spec.and_then(|s| s.init_containers.as_ref()).is_some_and(|l| !l.is_empty());
        let mut state = Self {
            address: None,
            host,
            started: status.and_then(|s| s.start_time.as_ref()).map_or(now, |t| t.0),
            initialized: false,
            init: init.map(|c| (c.name.clone(), fresh(&c.name, true))).collect(),
            main: main
                .iter()
                .map(|c| {
                    let mut container = fresh(&c.name, false);
                    if has_init && let Phase::Waiting { reason, .. } = &mut container.phase {
                        "PodInitializing".clone_into(reason);
                    }
                    (c.name.clone(), container)
                })
                .collect(),
            ephemeral: BTreeMap::new(),
            failed: None,
            capture: Capture::Outside,
        };
        state.add_ephemeral(pod, now);
        earlier::end_what_runs_once(&mut state, pod, now);
        state
    }

    pub(crate) fn container(&mut self, name: &str) -> Option<&mut Container> {
        let main = self.main.get_mut(name);
        main.or_else(|| self.init.get_mut(name)).or_else(|| self.ephemeral.get_mut(name))
    }

    /// Takes up the ephemeral containers that a Pod has got. One of an earlier life of the runner has ended with that.
    pub(crate) fn add_ephemeral(&mut self, pod: &Pod, now: Timestamp) {
        let before = pod.status.as_ref().and_then(|s| s.ephemeral_container_statuses.as_ref());
        for one in pod.spec.iter().flat_map(|s| s.ephemeral_containers.iter().flatten()) {
            let old = before.into_iter().flatten().find(|c| c.name == one.name);
            self.ephemeral
                .entry(one.name.clone())
                .or_insert_with(|| earlier::take_over(old, RestartPolicy::Never, "ContainerCreating", now));
        }
    }

    /// The phase that Kubernetes shows.
    pub(crate) fn phase(&self, policy: RestartPolicy) -> &'static str {
        if self.failed.is_some() {
            return "Failed";
        }
        if !self.initialized {
            let hopeless = policy == RestartPolicy::Never
                && self.init.values().any(|c| c.terminated() && !c.succeeded());
            return if hopeless { "Failed" } else { "Pending" };
        }
        let all_ended = !self.main.is_empty() && self.main.values().all(Container::terminated);
        if all_ended && policy != RestartPolicy::Always {
            if self.main.values().all(Container::succeeded) {
                return "Succeeded";
            }
            if policy == RestartPolicy::Never {
                return "Failed";
            }
        }
        let begun = |c: &Container| !matches!(c.phase, Phase::Waiting { .. }) || c.last.is_some();
        if self.main.values().all(begun) { "Running" } else { "Pending" }
    }

    /// Whether nothing of the Pod runs any more, or ever again.
    pub(crate) fn is_over(&self, policy: RestartPolicy) -> bool {
        matches!(self.phase(policy), "Succeeded" | "Failed")
    }

    /// Whether every container is ready.
    pub(crate) fn ready(&self) -> bool {
        self.initialized && self.main.values().all(|c| c.ready && matches!(c.phase, Phase::Running { .. }))
    }

    /// The whole status; conditions keep their times where nothing changed.
    pub(crate) fn status(&self, pod: &Pod, now: Timestamp) -> PodStatus {
        let spec = pod.spec.as_ref();
        let policy = RestartPolicy::of_pod(pod);
        let phase = self.phase(policy);
        let over = self.is_over(policy);
        let images: BTreeMap<&str, &str> = spec
            .into_iter()
            .flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()))
            .map(|c| (c.name.as_str(), c.image.as_deref().unwrap_or_default()))
            .collect();
        let ephemeral = spec.and_then(|s| s.ephemeral_containers.as_ref()).into_iter().flatten();
        let ephemeral: Vec<ContainerStatus> = ephemeral
            .filter_map(|one| {
                let image = one.image.as_deref().unwrap_or_default();
                // Its readiness is nobody's business.
                let known = self.ephemeral.get(&one.name)?;
                Some(ContainerStatus { ready: false, ..status_of(&one.name, image, known, false) })
            })
            .collect();
        let of = |list: &BTreeMap<String, Container>, init: bool| {
            let order = spec.map(|s| {
                let all: Vec<&str> = if init {
                    s.init_containers.iter().flatten().map(|c| c.name.as_str()).collect()
                } else {
                    s.containers.iter().map(|c| c.name.as_str()).collect()
                };
                all
            });
            order
                .into_iter()
                .flatten()
                .filter_map(|name| {
                    list.get(name)
                        .map(|c| status_of(name, images.get(name).copied().unwrap_or_default(), c, init))
                })
                .collect::<Vec<_>>()
        };
        let init = of(&self.init, true);
        let address = self.address.map(|ip| ip.to_string());
        PodStatus {
            phase: Some(phase.to_owned()),
            conditions: Some(self.conditions(pod, phase, now)),
            container_statuses: Some(of(&self.main, false)),
            init_container_statuses: (!init.is_empty()).then_some(init),
            ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
            host_ip: Some(self.host.to_string()),
            host_ips: Some(vec![HostIP { ip: self.host.to_string() }]),
            pod_ip: address.clone().filter(|_| !over || self.failed.is_none()),
            pod_ips: address.map(|ip| vec![PodIP { ip }]),
            start_time: Some(Time(self.started)),
            qos_class: Some(qos(pod).to_owned()),
            reason: self.failed.as_ref().map(|(reason, _)| reason.clone()),
            message: self.failed.as_ref().map(|(_, message)| message.clone()),
            ..PodStatus::default()
        }
    }

    fn conditions(&self, pod: &Pod, phase: &str, now: Timestamp) -> Vec<PodCondition> {
        let unready: Vec<&str> =
            self.main.iter().filter(|(_, c)| !c.ready).map(|(n, _)| n.as_str()).collect();
        let incomplete: Vec<&str> =
            self.init.iter().filter(|(_, c)| !c.succeeded()).map(|(n, _)| n.as_str()).collect();
        let not_ready = match phase {
            "Succeeded" => Some(("PodCompleted".to_owned(), None)),
            "Failed" => Some(("PodFailed".to_owned(), None)),
            _ if self.ready() => None,
            _ => {
                let names = format!("containers with unready status: [{}]", unready.join(" "));
                Some(("ContainersNotReady".to_owned(), Some(names)))
            }
        };
        let not_initialized = (!self.initialized).then(|| {
            let names = format!("containers with incomplete status: [{}]", incomplete.join(" "));
            ("ContainersNotInitialized".to_owned(), Some(names))
        });
        let begun = (self.address.is_none()).then(|| ("PodSandboxNotReady".to_owned(), None));
        let captured = match &self.capture {
            Capture::Outside => None,
            Capture::Captured => Some((CAPTURED, None)),
            Capture::Not { reason, message } => {
                Some((CAPTURED, Some(((*reason).to_owned(), Some(message.clone())))))
            }
        };
        let wanted = [
            ("PodReadyToStartContainers", begun),
            ("Initialized", not_initialized),
            ("Ready", not_ready.clone()),
            ("ContainersReady", not_ready),
            ("PodScheduled", None),
        ];
        let before = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
        let mut all: Vec<PodCondition> = wanted
            .into_iter()
            .chain(captured)
            .map(|(kind, why_not)| {
                let status = if why_not.is_none() { "True" } else { "False" };
                let old = before.into_iter().flatten().find(|c| c.type_ == kind && c.status == status);
                let since = old.and_then(|c| c.last_transition_time.clone()).unwrap_or(Time(now));
                let (reason, message) = why_not.map_or((None, None), |(r, m)| (Some(r), m));
                PodCondition {
                    type_: kind.to_owned(),
                    status: status.to_owned(),
                    reason,
                    message,
                    last_transition_time: Some(since),
                    ..PodCondition::default()
                }
            })
            .collect();
        // Conditions of others (readiness gates) are theirs.
        let ours: Vec<String> = all.iter().map(|c| c.type_.clone()).collect();
        let others = before.into_iter().flatten().filter(|c| !ours.contains(&c.type_) && c.type_ != CAPTURED);
        all.extend(others.cloned());
        all
    }
}

fn status_of(name: &str, image: &str, c: &Container, init: bool) -> ContainerStatus {
    let running = matches!(c.phase, Phase::Running { .. });
    ContainerStatus {
        name: name.to_owned(),
        image: image.to_owned(),
        image_id: c.image_id.clone(),
        container_id: (!c.id.is_empty()).then(|| format!("meltemi://{}", c.id)),
        ready: (init && c.succeeded()) || (c.ready && running),
        started: Some(c.started && running),
        restart_count: c.restarts,
        state: Some(state_of(&c.phase, &c.id)),
        last_state: Some(c.last.as_ref().map_or_else(ContainerState::default, |e| ended_state(e, &c.id))),
        ..ContainerStatus::default()
    }
}

fn state_of(phase: &Phase, id: &str) -> ContainerState {
    match phase {
        Phase::Waiting { reason, message } => ContainerState {
            waiting: Some(ContainerStateWaiting { reason: Some(reason.clone()), message: message.clone() }),
            ..ContainerState::default()
        },
        Phase::Running { since } => ContainerState {
            running: Some(ContainerStateRunning { started_at: Some(Time(*since)) }),
            ..ContainerState::default()
        },
        Phase::Terminated(ended) => ended_state(ended, id),
    }
}

fn ended_state(ended: &Ended, id: &str) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: ended.code,
            signal: ended.signal,
            reason: Some(ended.reason.clone()),
            message: ended.message.clone(),
            started_at: Some(Time(ended.started)),
            finished_at: Some(Time(ended.finished)),
            container_id: (!id.is_empty()).then(|| format!("meltemi://{id}")),
        }),
        ..ContainerState::default()
    }
}

fn qos(pod: &Pod) -> &'static str {
    let containers = pod.spec.as_ref().map(|s| s.containers.as_slice()).unwrap_or_default();
    let named = |c: &k8s_openapi::api::core::v1::Container| {
        let r = c.resources.clone().unwrap_or_default();
        (r.requests.unwrap_or_default(), r.limits.unwrap_or_default())
    };
    let all: Vec<_> = containers.iter().map(named).collect();
    if all.iter().all(|(r, l)| r.is_empty() && l.is_empty()) {
        return "BestEffort";
    }
    let guaranteed = all.iter().all(|(requests, limits)| {
        ["cpu", "memory"]
            .iter()
            .all(|k| limits.contains_key(*k) && requests.get(*k).is_none_or(|r| Some(r) == limits.get(*k)))
    });
    if guaranteed { "Guaranteed" } else { "Burstable" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(policy: &str, init: bool) -> Pod {
        let inits = if init { serde_json::json!([{"name": "i"}]) } else { serde_json::Value::Null };
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p"},
            "spec": {"restartPolicy": policy, "initContainers": inits, "containers": [{"name": "a", "image": "x"}, {"name": "b"}]}
        }))
        .unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn fresh(pod: &Pod) -> State {
        State::of(pod, "172.30.0.11".parse().unwrap(), at(1))
    }

    fn running(state: &mut State, name: &str) {
        let container = state.container(name).unwrap();
        container.phase = Phase::Running { since: at(2) };
        (container.ready, container.started) = (true, true);
    }

    fn ended(state: &mut State, name: &str, code: i32) {
        let ended =
            Ended { code, signal: None, reason: "x".into(), message: None, started: at(2), finished: at(3) };
        let container = state.container(name).unwrap();
        container.phase = Phase::Terminated(ended);
        container.ready = false;
    }

    fn condition(state: &State, pod: &Pod, kind: &str) -> (String, String) {
        let all = state.status(pod, at(9)).conditions.unwrap();
        let found = all.into_iter().find(|c| c.type_ == kind).unwrap();
        (found.status, found.reason.unwrap_or_default())
    }

    #[test]
    fn phases() {
        for (policy, codes, expected) in [
            ("Always", [None, None], "Running"),
            ("Always", [Some(0), Some(1)], "Running"),
            ("Never", [Some(0), None], "Running"),
            ("Never", [Some(0), Some(0)], "Succeeded"),
            ("Never", [Some(0), Some(1)], "Failed"),
            ("OnFailure", [Some(0), Some(0)], "Succeeded"),
            ("OnFailure", [Some(0), Some(1)], "Running"),
        ] {
            let mut state = fresh(&pod(policy, false));
            assert_eq!(state.phase(RestartPolicy::read(Some(policy))), "Pending");
            state.initialized = true;
            for (name, code) in ["a", "b"].iter().zip(codes) {
                match code {
                    Some(code) => ended(&mut state, name, code),
                    None => running(&mut state, name),
                }
            }
            assert_eq!(state.phase(RestartPolicy::read(Some(policy))), expected, "{policy} {codes:?}");
        }
        let mut state = fresh(&pod("Never", true));
        ended(&mut state, "i", 1);
        assert_eq!(state.phase(RestartPolicy::Never), "Failed");
        assert_eq!(state.phase(RestartPolicy::Always), "Pending");
    }

    #[test]
    fn conditions_name_what_is_missing_and_keep_their_times() {
        let mut object = pod("Always", true);
        let mut state = fresh(&object);
        assert_eq!(
            condition(&state, &object, "Initialized"),
            ("False".into(), "ContainersNotInitialized".into())
        );
        ended(&mut state, "i", 0);
        state.initialized = true;
        state.address = "10.244.1.2".parse().ok();
        running(&mut state, "a");
        let status = state.status(&object, at(5));
        let ready = status.conditions.as_ref().unwrap().iter().find(|c| c.type_ == "Ready").unwrap();
        assert_eq!(ready.message.as_deref(), Some("containers with unready status: [b]"));
        object.status = Some(status);
        assert_eq!(state.status(&object, at(8)).conditions, object.status.as_ref().unwrap().conditions);
        running(&mut state, "b");
        assert_eq!(condition(&state, &object, "Ready"), ("True".into(), String::new()));
        let status = state.status(&object, at(9));
        assert_eq!(status.pod_ip.as_deref(), Some("10.244.1.2"));
        assert_eq!(status.container_statuses.unwrap()[0].image, "x");
    }

    #[test]
    fn ephemeral_containers_count_for_nothing_and_run_once() {
        let mut object = pod("Always", false);
        let mut state = fresh(&object);
        state.initialized = true;
        running(&mut state, "a");
        running(&mut state, "b");
        let added = serde_json::json!([{"name": "e", "image": "y"}]);
        object.spec.as_mut().unwrap().ephemeral_containers = serde_json::from_value(added).unwrap();
        state.add_ephemeral(&object, at(5));
        let status = state.status(&object, at(5));
        let shown = &status.ephemeral_container_statuses.as_ref().unwrap()[0];
        let waits = shown.state.as_ref().unwrap().waiting.as_ref().unwrap();
        assert_eq!((shown.image.as_str(), waits.reason.as_deref()), ("y", Some("ContainerCreating")));
        assert!(state.ready());
        running(&mut state, "e");
        state.container("e").unwrap().id = "1".into();
        ended(&mut state, "e", 3);
        state.add_ephemeral(&object, at(6));
        assert!(state.ready() && state.ephemeral["e"].terminated());
        assert_eq!(condition(&state, &object, "Ready").0, "True");
        running(&mut state, "e");
        object.status = Some(state.status(&object, at(7)));
        let next = State::of(&object, "172.30.0.11".parse().unwrap(), at(8));
        assert!(next.ephemeral["e"].terminated() && !next.main["a"].terminated());
    }

    #[test]
    fn a_restarted_runner_goes_on_counting() {
        let mut object = pod("Always", false);
        let mut state = fresh(&object);
        state.initialized = true;
        running(&mut state, "a");
        state.container("a").unwrap().id = "1".into();
        object.status = Some(state.status(&object, at(4)));
        let next = State::of(&object, "172.30.0.11".parse().unwrap(), at(7));
        assert_eq!((next.main["a"].restarts, next.main["b"].restarts), (1, 0));
        assert_eq!(next.main["a"].last.as_ref().unwrap().reason, "ContainerStatusUnknown");
        assert_eq!(next.started, at(1));
    }
}
