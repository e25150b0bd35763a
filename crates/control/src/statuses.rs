// SPDX-License-Identifier: Apache-2.0
//! Builds the status of Services (`WaypointBound`) and of routes (`parents`).

use meltemi_model::NamespacedName;
use meltemi_translate::condition::Condition;
use meltemi_translate::routes::Attached;
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

/// Parents of a route of a kind (and its plural), by its name and generation.
pub(crate) fn route(
    queue: &StatusQueue,
    (kind, plural): (&'static str, &'static str),
    (name, generation): (&NamespacedName, Option<i64>),
    attached: &[Attached],
) {
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
        kind,
        plural,
        name: name.clone(),
        manager: "istio.io/gateway-controller",
    };
    queue.set(key, Wish::Whole(json!({ "parents": parents })));
}
