// SPDX-License-Identifier: Apache-2.0
//! Definitions of `gateway.networking.k8s.io`: GatewayClass, Gateway, HTTPRoute, GRPCRoute, TLSRoute, ReferenceGrant.
//!
//! The types are those of the `gateway-api` crate; of HTTPRoutes those of the experimental channel, which have `retry`. What
//! no proxy of the mesh does is taken out of the schema, so that the API refuses it by name, or named by a condition.

use gateway_api::gatewayclasses::{GatewayClassSpec, GatewayClassStatus};
use gateway_api::gateways::{GatewaySpec, GatewayStatus};
use gateway_api::referencegrants::ReferenceGrantSpec;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};

use super::rules::{self, Rule, apply, cels, default, list, list_map, name, port};
use super::{Kind, Version, column, definition, structural};

mod routes;
mod streams;

/// The group.
pub const GROUP: &str = "gateway.networking.k8s.io";

const CHANNEL: &[(&str, &str)] = &[
    ("gateway.networking.k8s.io/bundle-version", "v1.6.1"),
    ("gateway.networking.k8s.io/channel", "experimental"),
    ("api-approved.kubernetes.io", "https://github.com/kubernetes-sigs/gateway-api/pull/3328"),
];

/// All definitions of the group.
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![
        gateway_class(),
        gateway(),
        routes::http_route(),
        routes::grpc_route(),
        streams::tls_route(),
        reference_grant(),
    ]
}

fn kind(
    kind: &'static str,
    plural: &'static str,
    short_names: &'static [&'static str],
    namespaced: bool,
) -> Kind {
    Kind {
        group: GROUP,
        kind,
        plural,
        short_names,
        categories: &["gateway-api"],
        namespaced,
        labels: &[],
        annotations: CHANNEL,
    }
}

fn age() -> Value {
    column("Age", ".metadata.creationTimestamp", "date")
}

fn v1(spec: Value, status: Option<Value>, columns: Value) -> Vec<Version> {
    vec![Version { name: "v1", storage: true, spec, status, columns, spec_required: true }]
}

fn gateway_class() -> CustomResourceDefinition {
    let mut spec = structural::of::<GatewayClassSpec>();
    apply(
        &mut spec,
        vec![
            (
                "controllerName",
                json!({
                    "minLength": 1,
                    "maxLength": 253,
                    "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\/[A-Za-z0-9\/\-._~%!$&'()*+,;=:]+$",
                    "x-kubernetes-validations": [{ "rule": "self == oldSelf", "message": "Value is immutable" }],
                }),
            ),
            ("description", json!({ "maxLength": 64 })),
        ],
    );
    let mut status = structural::of::<GatewayClassStatus>();
    conditions(&mut status, "conditions");
    let columns = json!([
        column("Controller", ".spec.controllerName", "string"),
        column("Accepted", ".status.conditions[?(@.type==\"Accepted\")].status", "string"),
        age(),
    ]);
    definition(&kind("GatewayClass", "gatewayclasses", &["gc"], false), v1(spec, Some(status), columns))
}

fn gateway() -> CustomResourceDefinition {
    let mut spec = structural::of::<GatewaySpec>();
    // Not supported: ListenerSets, client certificates of the frontend and the backend.
    for field in ["allowedListeners", "tls"] {
        rules::remove(&mut spec, field);
    }
    apply(&mut spec, gateway_rules());
    let mut status = structural::of::<GatewayStatus>();
    conditions(&mut status, "conditions");
    conditions(&mut status, "listeners[].conditions");
    apply(&mut status, vec![("listeners", list_map(&["name"], 0, 64)), ("addresses", list(0, 16))]);
    let columns = json!([
        column("Class", ".spec.gatewayClassName", "string"),
        column("Address", ".status.addresses[*].value", "string"),
        column("Programmed", ".status.conditions[?(@.type==\"Programmed\")].status", "string"),
        age(),
    ]);
    definition(&kind("Gateway", "gateways", &["gtw"], true), v1(spec, Some(status), columns))
}

fn gateway_rules() -> Vec<Rule> {
    vec![
        ("gatewayClassName", name()),
        ("addresses", list(0, 16)),
        ("addresses[].type", default(json!("IPAddress"))),
        ("listeners", list_map(&["name"], 1, 64)),
        (
            "listeners",
            cels(&[
                (
                    "self.all(l, l.protocol in ['HTTP', 'TCP', 'UDP'] ? !has(l.tls) : true)",
                    "tls must not be specified for protocols ['HTTP', 'TCP', 'UDP']",
                ),
                (
                    "self.all(l, (l.protocol == 'HTTPS' && has(l.tls)) ? (l.tls.mode == '' || l.tls.mode == 'Terminate') : true)",
                    "tls mode must be Terminate for protocol HTTPS",
                ),
                (
                    "self.all(l, l.protocol == 'TLS' ? has(l.tls) && has(l.tls.mode) && l.tls.mode != '' : true)",
                    "tls mode must be set for protocol TLS",
                ),
                (
                    "self.all(l, l.protocol in ['TCP', 'UDP'] ? (!has(l.hostname) || l.hostname == '') : true)",
                    "hostname must not be specified for protocols ['TCP', 'UDP']",
                ),
                (
                    "self.all(l1, self.exists_one(l2, l1.port == l2.port && l1.protocol == l2.protocol && \
                     (has(l1.hostname) && has(l2.hostname) ? l1.hostname == l2.hostname : !has(l1.hostname) && \
                     !has(l2.hostname))))",
                    "Combination of port, protocol and hostname must be unique for each listener",
                ),
            ]),
        ),
        ("listeners[].name", json!({ "minLength": 1, "maxLength": 253, "pattern": DNS_SUBDOMAIN })),
        ("listeners[].hostname", json!({ "minLength": 1, "maxLength": 253, "pattern": HOSTNAME })),
        ("listeners[].port", port()),
        ("listeners[].protocol", json!({ "minLength": 1, "maxLength": 255, "pattern": PROTOCOL })),
        ("listeners[].allowedRoutes", default(json!({ "namespaces": { "from": "Same" } }))),
        ("listeners[].allowedRoutes.kinds", list(0, 8)),
        ("listeners[].allowedRoutes.kinds[].group", default(json!(GROUP))),
        ("listeners[].allowedRoutes.namespaces", default(json!({ "from": "Same" }))),
        ("listeners[].allowedRoutes.namespaces.from", default(json!("Same"))),
        ("listeners[].tls.mode", default(json!("Terminate"))),
        ("listeners[].tls.certificateRefs", list(0, 64)),
        ("listeners[].tls.certificateRefs[].group", default(json!(""))),
        ("listeners[].tls.certificateRefs[].kind", default(json!("Secret"))),
        ("listeners[].tls.certificateRefs[].name", name()),
    ]
}

const DNS_SUBDOMAIN: &str = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
const HOSTNAME: &str = r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
const PROTOCOL: &str = r"^[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?$|[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\/[A-Za-z0-9]+$";

fn reference_grant() -> CustomResourceDefinition {
    let mut spec = structural::of::<ReferenceGrantSpec>();
    apply(&mut spec, vec![("from", list(1, 16)), ("to", list(1, 16)), ("from[].namespace", name())]);
    let beta = Version {
        name: "v1beta1",
        storage: false,
        spec: spec.clone(),
        status: None,
        columns: json!([age()]),
        spec_required: false,
    };
    let mut versions = v1(spec, None, json!([age()]));
    versions.push(beta);
    definition(&kind("ReferenceGrant", "referencegrants", &["refgrant"], true), versions)
}

fn conditions(status: &mut Value, path: &'static str) {
    apply(status, vec![(path, list_map(&["type"], 0, 8))]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_definition_is_structural() {
        for crd in all() {
            let name = crd.metadata.name.clone().unwrap_or_default();
            for version in &crd.spec.versions {
                let schema = serde_json::to_value(version.schema.as_ref().unwrap()).unwrap();
                check(&schema["openAPIV3Schema"], &format!("{name}/{}", version.name));
            }
        }
    }

    fn check(schema: &Value, at: &str) {
        let map = schema.as_object().unwrap_or_else(|| panic!("{at}: {schema}"));
        let typed = map.get("type").is_some_and(Value::is_string)
            || map.contains_key("x-kubernetes-int-or-string")
            || map.contains_key("x-kubernetes-preserve-unknown-fields");
        assert!(typed, "{at}: no type: {schema}");
        for union in ["oneOf", "anyOf", "allOf", "$ref", "nullable"] {
            assert!(!map.contains_key(union), "{at}: {union} left: {schema}");
        }
        for (name, inner) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
            check(inner, &format!("{at}.{name}"));
        }
        if let Some(items) = map.get("items") {
            check(items, &format!("{at}[]"));
        }
    }

    #[test]
    fn gateway_has_the_columns_and_names_that_users_type() {
        let crd = gateway();
        let columns = crd.spec.versions[0].additional_printer_columns.as_ref().unwrap();
        let names: Vec<_> = columns.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["Class", "Address", "Programmed", "Age"]);
        assert_eq!(crd.spec.names.short_names.as_deref().unwrap(), ["gtw"]);
    }

    #[test]
    fn unsupported_fields_are_not_in_the_schema() {
        let crd = gateway();
        let schema = serde_json::to_value(crd.spec.versions[0].schema.as_ref().unwrap()).unwrap();
        let spec = &schema["openAPIV3Schema"]["properties"]["spec"]["properties"];
        assert!(spec["listeners"].is_object());
        assert!(spec["tls"].is_null() && spec["allowedListeners"].is_null());
    }
}
