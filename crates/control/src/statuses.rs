// SPDX-License-Identifier: Apache-2.0
//! Builds the status of Services (`WaypointBound`) and of routes (`parents`).

use meltemi_model::NamespacedName;
use meltemi_translate::condition::Condition;
use meltemi_translate::gateways::classes::Class;
use meltemi_translate::routes::{Attached, RouteName};
use serde_json::{Value, json};

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
pub(crate) fn class(queue: &StatusQueue, name: &NamespacedName, class: Class, generation: Option<i64>) {
    let key = Key {
        api_version: "gateway.networking.k8s.io/v1",
        kind: "GatewayClass",
        plural: "gatewayclasses",
        name: NamespacedName::new("", name.name.clone()),
        manager: "istio.io/gateway-controller",
    };
    let accepted = Condition::yes("Accepted", "Accepted", "Handled by the mesh's control plane");
    let features: Vec<Value> = class.features().iter().map(|name| json!({ "name": name })).collect();
    let conditions = untimed(&[accepted], generation);
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
