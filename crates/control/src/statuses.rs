// SPDX-License-Identifier: Apache-2.0
//! Builds the status of Services (`WaypointBound`) and of routes (`parents`).

use meltemi_model::NamespacedName;
use meltemi_translate::condition::Condition;
use meltemi_translate::gateways::classes::Class;
use meltemi_translate::routes::{Attached, RouteName};
use serde_json::{Value, json};

use crate::source::ClassFacts;
use crate::status::{Key, StatusQueue, Wish, untimed};

/// Conditions of a Service.
pub(crate) fn service(
    queue: &StatusQueue,
    name: &NamespacedName,
    generation: Option<i64>,
    conditions: Vec<Condition>,
) {
    let key = Key {
        api_version: "v1",
        kind: "Service",
        plural: "services",
        name: name.clone(),
        manager: "istio-ambient-service",
    };
    queue.set(key, Wish::Conditions { generation, conditions });
}

/// That a GatewayClass is one of ours, and what its Gateways can do.
pub(crate) fn class(queue: &StatusQueue, name: &NamespacedName, class: Class, facts: &ClassFacts) {
    let key = Key {
        api_version: "gateway.networking.k8s.io/v1",
        kind: "GatewayClass",
        plural: "gatewayclasses",
        name: NamespacedName::new("", name.name.clone()),
        manager: "istio.io/gateway-controller",
    };
    let ours = "Handled by the mesh's control plane";
    let accepted = match facts.has_parameters {
        false => Condition::yes("Accepted", "Accepted", ours),
        true => {
            let message =
                format!("{ours}; spec.parametersRef has no effect: Gateways are deployed without it");
            Condition::yes("Accepted", "Accepted", message)
        }
    };
    let features: Vec<Value> = class.features().iter().map(|name| json!({ "name": name })).collect();
    let conditions = untimed(&[accepted], facts.generation);
    queue.set(key, Wish::Whole(json!({ "conditions": conditions, "supportedFeatures": features })));
}

/// Parents of a route of a generation.
pub(crate) fn route(queue: &StatusQueue, route: &RouteName, generation: Option<i64>, attached: &[Attached]) {
    let parents: Vec<Value> = attached
        .iter()
        .map(|one| {
            json!({
                "parentRef": one.reference,
                "controllerName": one.controller,
                "conditions": untimed(&one.conditions, generation),
            })
        })
        .collect();
    let key = Key {
        api_version: "gateway.networking.k8s.io/v1",
        kind: route.kind.name(),
        plural: route.kind.plural(),
        name: route.name.clone(),
        manager: "istio.io/gateway-controller",
    };
    queue.set(key, Wish::Whole(json!({ "parents": parents })));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_a_class_are_named_while_nothing_acts_on_them() {
        for (has_parameters, named) in [(false, false), (true, true)] {
            let queue = StatusQueue::default();
            let facts = ClassFacts { controller: String::new(), has_parameters, generation: Some(3) };
            class(&queue, &NamespacedName::new("", "mine"), Class::Ingress, &facts);
            let wishes: Vec<Wish> = queue.take().into_values().collect();
            let [Wish::Whole(status)] = wishes.as_slice() else { panic!("{wishes:?}") };
            let accepted = &status["conditions"][0];
            assert_eq!(accepted["observedGeneration"], 3);
            let message = accepted["message"].as_str().unwrap();
            assert_eq!(message.contains("parametersRef has no effect"), named, "{message}");
        }
    }
}
