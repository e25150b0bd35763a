// SPDX-License-Identifier: Apache-2.0
//! What a Pod requests of a node, and what is left there.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Node, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use meltemi_resources::quantity;

/// Amounts by resource, in thousandths.
type Amounts = BTreeMap<String, i128>;

/// Why the node has no room for the Pod beside the others, worded as in the scheduler's message.
pub(super) fn obstacle(pod: &Pod, node: &Node, others: &[&Pod]) -> Option<String> {
    // A node that has not said yet what it has is not ready either.
    let allocatable = node.status.as_ref()?.allocatable.as_ref()?;
    let limit = |name: &str| allocatable.get(name).and_then(thousandths);
    if limit("pods").is_some_and(|most| (others.len() as i128 + 1) * 1000 > most) {
        return Some("Too many pods".to_owned());
    }
    let wanted = requests(pod);
    if wanted.is_empty() {
        return None;
    }
    let mut taken = Amounts::new();
    for other in others {
        add(&mut taken, &requests(other));
    }
    let short = wanted.iter().find(|(name, amount)| {
        let taken = taken.get(*name).copied().unwrap_or_default();
        **amount > 0 && taken + **amount > limit(name).unwrap_or_default()
    });
    short.map(|(name, _)| format!("Insufficient {name}"))
}

/// What a Pod requests: its containers and sidecars together, or the largest of the init containers, which run one after
/// the other beside the sidecars that were started before them.
fn requests(pod: &Pod) -> Amounts {
    let Some(spec) = &pod.spec else { return Amounts::new() };
    let (mut sidecars, mut largest) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.iter().flatten() {
        let mut own = of_container(container);
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut sidecars, &own);
            own = sidecars.clone();
        } else {
            add(&mut own, &sidecars);
        }
        for (name, amount) in own {
            let most = largest.entry(name).or_default();
            *most = amount.max(*most);
        }
    }
    let mut all = sidecars;
    for container in &spec.containers {
        add(&mut all, &of_container(container));
    }
    for (name, amount) in largest {
        let sum = all.entry(name).or_default();
        *sum = amount.max(*sum);
    }
    add(&mut all, &spec.overhead.as_ref().map(amounts).unwrap_or_default());
    all
}

/// A container's requests; where it has only a limit, that is its request.
fn of_container(container: &Container) -> Amounts {
    let Some(resources) = &container.resources else { return Amounts::new() };
    let mut all = resources.limits.as_ref().map(amounts).unwrap_or_default();
    all.extend(resources.requests.as_ref().map(amounts).unwrap_or_default());
    all
}

fn amounts(list: &BTreeMap<String, Quantity>) -> Amounts {
    list.iter().filter_map(|(name, quantity)| Some((name.clone(), thousandths(quantity)?))).collect()
}

/// Rounded up: what is requested is there. Beyond what a number holds it is as much as none has.
fn thousandths(quantity: &Quantity) -> Option<i128> {
    let number = quantity::parse(&quantity.0)? * 1000.0;
    // A float is not exact: 1.1 is 1,100 thousandths and not 1,101.
    #[expect(clippy::cast_possible_truncation, reason = "saturates")]
    Some((number - 1e-6).ceil() as i128)
}

fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let total = sum.entry(name.clone()).or_default();
        *total = total.saturating_add(*amount);
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::serde::Deserialize as _;
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        Pod::deserialize(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn container(requests: Value, limits: Value) -> Value {
        json!({"name": "c", "resources": {"requests": requests, "limits": limits}})
    }

    #[test]
    fn a_pod_goes_where_what_it_requests_is_left() {
        let node = |pods: &str| {
            let allocatable = json!({"cpu": "2", "memory": "1Gi", "pods": pods});
            Node::deserialize(json!({"metadata": {"name": "n"}, "status": {"allocatable": allocatable}}))
                .unwrap()
        };
        let none = json!({});
        let one = |requests: Value| pod(json!({"containers": [container(requests, json!({}))]}));
        let there = one(json!({"cpu": "1500m", "memory": "512Mi"}));
        for (wanted, expected) in [
            (one(none.clone()), None),
            (one(json!({"cpu": "500m"})), None),
            (one(json!({"cpu": "501m"})), Some("Insufficient cpu")),
            (one(json!({"cpu": "0.5", "memory": "512Mi"})), None),
            (one(json!({"memory": "513Mi"})), Some("Insufficient memory")),
            (one(json!({"cpu": "100", "memory": "1Ti"})), Some("Insufficient cpu")),
            (one(json!({"memory": "9e30"})), Some("Insufficient memory")),
            (one(json!({"nvidia.com/gpu": "1"})), Some("Insufficient nvidia.com/gpu")),
            (one(json!({"nvidia.com/gpu": "0"})), None),
            (
                pod(json!({"containers": [container(none.clone(), json!({"cpu": "1"}))]})),
                Some("Insufficient cpu"),
            ),
            (pod(json!({"containers": [container(json!({"cpu": "100m"}), json!({"cpu": "1"}))]})), None),
            (
                pod(json!({"containers": [container(none.clone(), none.clone())],
                    "initContainers": [container(json!({"cpu": "400m"}), none.clone()), container(json!({"cpu": "501m"}), none.clone())]})),
                Some("Insufficient cpu"),
            ),
            (
                pod(json!({"containers": [container(json!({"cpu": "500m"}), none.clone())],
                    "initContainers": [container(json!({"cpu": "500m"}), none.clone())]})),
                None,
            ),
            (pod(json!({"containers": [], "overhead": {"cpu": "501m"}})), Some("Insufficient cpu")),
        ] {
            assert_eq!(obstacle(&wanted, &node("110"), &[&there]).as_deref(), expected, "{:?}", wanted.spec);
        }
        let small = one(json!({}));
        assert_eq!(obstacle(&small, &node("2"), &[&there]), None);
        assert_eq!(obstacle(&small, &node("1"), &[&there]).as_deref(), Some("Too many pods"));
        let sidecar = pod(json!({"containers": [container(json!({"cpu": "300m"}), json!({}))],
            "initContainers": [{"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "300m"}}}]}));
        assert_eq!(obstacle(&sidecar, &node("110"), &[&there]).as_deref(), Some("Insufficient cpu"));
    }
}
