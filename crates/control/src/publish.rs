// SPDX-License-Identifier: Apache-2.0
//! From differences to what the proxies are sent.
//!
//! Node proxies see workloads, services and layer 4 policies. A gateway sees workloads and services, and of the
//! rest what names it: nothing of another Gateway ever reaches it.

use std::collections::BTreeSet;
use std::sync::Arc;

use meltemi_model::{NamespacedName, authz, l7};
use meltemi_translate::Delta;
use meltemi_translate::routes::Routed;
use meltemi_translate::routes::table::For;
use meltemi_wire::convert::{self, Address};
use meltemi_wire::xds::server::{Change, Published, Publisher};
use meltemi_wire::xds::types;
use serde::Serialize;

/// A policy for gateways, and the Gateways that enforce it.
pub type ForGateways<T> = For<T>;

/// What is different in one step.
#[derive(Debug, Default)]
pub struct Step {
    /// Workloads, services, layer 4 policies.
    pub delta: Delta,
    /// Routes and listeners.
    pub routed: Routed,
    /// The mesh's settings for layer 7 proxies, when they are others now.
    pub settings: Option<l7::Settings>,
    /// New or changed layer 7 policies.
    pub http_policies: Vec<For<l7::HttpPolicy>>,
    /// Layer 7 policies that are gone.
    pub removed_http_policies: Vec<NamespacedName>,
    /// New or changed token rules.
    pub tokens: Vec<For<l7::Jwt>>,
    /// Token rules that are gone.
    pub removed_tokens: Vec<NamespacedName>,
}

/// Publishes a step; returns the generation that it became.
pub fn publish(publisher: &Publisher, step: &Step) -> u64 {
    let mut changes = Vec::new();
    let Step { delta, routed, settings, http_policies, removed_http_policies, tokens, removed_tokens } = step;
    // Before what is judged by them.
    changes.extend(settings.as_ref().and_then(everybodys));
    for policy in &delta.policies {
        changes.extend(authorization(policy));
    }
    for workload in &delta.workloads {
        let aliases = workload.addresses.iter().map(|ip| format!("{}/{ip}", workload.network)).collect();
        changes.push(address(Address::Workload((**workload).clone()), aliases));
    }
    for service in &delta.services {
        let aliases = service.addresses.iter().map(ToString::to_string).collect();
        changes.push(address(Address::Service((**service).clone()), aliases));
    }
    for (name, route) in &routed.routes {
        changes.extend(document(types::ROUTE, name.to_string(), route));
    }
    for (name, listener) in &routed.listeners {
        changes.extend(document(types::LISTENER, name.clone(), listener));
    }
    for (name, certificate) in &routed.certificates {
        changes.extend(document(types::TLS_SECRET, name.to_string(), certificate));
    }
    for policy in http_policies {
        changes.extend(document(types::HTTP_POLICY, policy.what.policy.name.to_string(), policy));
    }
    for token in tokens {
        changes.extend(document(types::JWT, token.what.name.to_string(), token));
    }
    let mut gone = |type_url, names: Vec<String>| {
        changes.extend(names.into_iter().map(|name| Change { type_url, name, resource: None }));
    };
    gone(types::AUTHORIZATION, texts(&delta.removed_policies));
    gone(types::ADDRESS, texts(&delta.removed_workloads));
    gone(types::ADDRESS, texts(&delta.removed_services));
    gone(types::ROUTE, texts(&routed.removed_routes));
    gone(types::LISTENER, routed.removed_listeners.clone());
    gone(types::TLS_SECRET, texts(&routed.removed_certificates));
    gone(types::HTTP_POLICY, texts(removed_http_policies));
    gone(types::JWT, texts(removed_tokens));
    publisher.publish(changes)
}

fn texts(names: &[impl ToString]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn authorization(policy: &authz::Policy) -> Option<Change> {
    match convert::authorization(policy) {
        Ok(bytes) => {
            let resource = Published { bytes: bytes.into(), aliases: Vec::new(), audience: Vec::new() };
            Some(Change {
                type_url: types::AUTHORIZATION,
                name: policy.name.to_string(),
                resource: Some(resource),
            })
        }
        Err(error) => {
            // Translation projects policies to layer 4 first: what cannot be sent is a fault of ours. The workloads
            // that name it deny until it is there, and its status never says that it is enforced.
            tracing::error!(policy = %policy.name, %error, "policy cannot be sent to node proxies");
            None
        }
    }
}

fn address(address: Address, aliases: Vec<String>) -> Change {
    let resource = Published { bytes: address.encode().into(), aliases, audience: Vec::new() };
    Change { type_url: types::ADDRESS, name: address.name(), resource: Some(resource) }
}

fn document<T: Serialize>(type_url: &'static str, name: String, what: &For<T>) -> Option<Change> {
    if what.gateways.is_empty() {
        // Without an audience it would be everybody's.
        return Some(Change { type_url, name, resource: None });
    }
    match convert::encode_l7(&what.what) {
        Ok(bytes) => {
            let audience = audiences(&what.gateways);
            let resource = Published { bytes: bytes.into(), aliases: Vec::new(), audience };
            Some(Change { type_url, name, resource: Some(resource) })
        }
        Err(error) => {
            tracing::error!(%name, %error, "cannot be sent to gateways");
            None
        }
    }
}

/// Name of the one resource of settings.
const SETTINGS: &str = "mesh";

fn everybodys(settings: &l7::Settings) -> Option<Change> {
    match convert::encode_l7(settings) {
        Ok(bytes) => {
            let resource = Published { bytes: bytes.into(), aliases: Vec::new(), audience: Vec::new() };
            Some(Change { type_url: types::SETTINGS, name: SETTINGS.to_owned(), resource: Some(resource) })
        }
        Err(error) => {
            tracing::error!(%error, "settings cannot be sent to gateways");
            None
        }
    }
}

fn audiences(gateways: &BTreeSet<NamespacedName>) -> Vec<Arc<str>> {
    gateways.iter().map(audience).collect()
}

/// The audience that a Gateway's proxies are.
pub fn audience(gateway: &NamespacedName) -> Arc<str> {
    gateway.to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_nobody_is_sent_to_nobody() {
        let publisher = Publisher::new();
        let listener = l7::Listener {
            gateway: NamespacedName::new("a", "b"),
            name: "http".into(),
            port: 80,
            protocol: l7::Protocol::Http,
            hostname: None,
            secrets: Vec::new(),
        };
        let of = |gateways: &[NamespacedName]| For {
            what: listener.clone(),
            gateways: gateways.iter().cloned().collect(),
        };
        let mut step = Step::default();
        step.routed.listeners.push(("a/b/http".to_owned(), of(&[])));
        publish(&publisher, &step);
        assert!(publisher.get(types::LISTENER, "a/b/http").is_none());
        step.routed.listeners[0].1 = of(&[NamespacedName::new("a", "b")]);
        publish(&publisher, &step);
        let published = publisher.get(types::LISTENER, "a/b/http").unwrap();
        assert_eq!(published.audience, [Arc::<str>::from("a/b")]);
    }
}
