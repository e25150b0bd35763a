// SPDX-License-Identifier: Apache-2.0
//! Definitions of `gateway.networking.k8s.io`: GatewayClass, Gateway, HTTPRoute, GRPCRoute, ReferenceGrant.
//!
//! The types are those of the `gateway-api` crate (standard channel). Features that no proxy of the mesh has
//! are taken out of the schema: the API then refuses them by name instead of ignoring them.

use gateway_api::gatewayclasses::{GatewayClassSpec, GatewayClassStatus};
use gateway_api::gateways::{GatewaySpec, GatewayStatus};
use gateway_api::grpcroutes::{GrpcRouteSpec, GrpcRouteStatus};
use gateway_api::httproutes::{HttpRouteSpec, HttpRouteStatus};
use gateway_api::referencegrants::ReferenceGrantSpec;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};

use super::rules::{self, Rule, apply, cel, cels, default, list, list_map, name, port};
use super::{Kind, Version, column, definition, structural};

/// The group.
pub const GROUP: &str = "gateway.networking.k8s.io";

const CHANNEL: &[(&str, &str)] = &[
    ("gateway.networking.k8s.io/bundle-version", "v1.5.0"),
    ("gateway.networking.k8s.io/channel", "standard"),
    ("api-approved.kubernetes.io", "https://github.com/kubernetes-sigs/gateway-api/pull/3328"),
];

/// All definitions of the group.
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![gateway_class(), gateway(), http_route(), grpc_route(), reference_grant()]
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
const HEADER_NAME: &str = r"^[A-Za-z0-9!#$%&'*+\-.^_\x60|~]+$";
const DURATION: &str = r"^([0-9]{1,5}(h|m|s|ms)){1,4}$";

fn parent_rules() -> Vec<Rule> {
    vec![
        ("parentRefs", list(0, 32)),
        ("parentRefs[].group", default(json!(GROUP))),
        ("parentRefs[].kind", default(json!("Gateway"))),
        ("parentRefs[].name", name()),
        ("parentRefs[].port", port()),
        ("hostnames", list(0, 16)),
        ("hostnames[]", json!({ "minLength": 1, "maxLength": 253, "pattern": HOSTNAME })),
        ("rules", list(1, 16)),
        ("rules[].matches", list(0, 64)),
        ("rules[].filters", list(0, 16)),
        ("rules[].backendRefs", list(0, 16)),
        ("rules[].backendRefs[].group", default(json!(""))),
        ("rules[].backendRefs[].kind", default(json!("Service"))),
        ("rules[].backendRefs[].name", name()),
        ("rules[].backendRefs[].port", port()),
        ("rules[].backendRefs[].weight", json!({ "default": 1, "minimum": 0, "maximum": 1_000_000 })),
        (
            "rules[].backendRefs[]",
            cel(
                "(size(self.group) == 0 && self.kind == 'Service') ? has(self.port) : true",
                "Must have port for Service reference",
            ),
        ),
        ("rules[].matches[].headers", list_map(&["name"], 0, 16)),
        ("rules[].matches[].headers[].type", default(json!("Exact"))),
        (
            "rules[].matches[].headers[].name",
            json!({ "minLength": 1, "maxLength": 256, "pattern": HEADER_NAME }),
        ),
        ("rules[].matches[].headers[].value", json!({ "minLength": 1, "maxLength": 4096 })),
    ]
}

fn http_route() -> CustomResourceDefinition {
    let mut spec = structural::of::<HttpRouteSpec>();
    apply(&mut spec, parent_rules());
    apply(&mut spec, http_rules());
    let mut status = structural::of::<HttpRouteStatus>();
    route_status(&mut status);
    let columns = json!([column("Hostnames", ".spec.hostnames", "string"), age()]);
    definition(&kind("HTTPRoute", "httproutes", &[], true), v1(spec, Some(status), columns))
}

fn http_rules() -> Vec<Rule> {
    let any_path = json!({ "path": { "type": "PathPrefix", "value": "/" } });
    let mut out = vec![
        ("rules", default(json!([{ "matches": [any_path] }]))),
        ("rules[].matches", default(json!([any_path]))),
        ("rules[].matches[].path", default(json!({ "type": "PathPrefix", "value": "/" }))),
        ("rules[].matches[].path.type", default(json!("PathPrefix"))),
        ("rules[].matches[].path.value", json!({ "default": "/", "maxLength": 1024 })),
        (
            "rules[].matches[].path",
            cel(
                "(self.type in ['Exact', 'PathPrefix']) ? self.value.startsWith('/') : true",
                "value must be an absolute path and start with '/' when type one of ['Exact', 'PathPrefix']",
            ),
        ),
        ("rules[].matches[].queryParams", list_map(&["name"], 0, 16)),
        ("rules[].matches[].queryParams[].type", default(json!("Exact"))),
        ("rules[].timeouts.request", json!({ "pattern": DURATION })),
        ("rules[].timeouts.backendRequest", json!({ "pattern": DURATION })),
        (
            "rules[].timeouts",
            cel(
                "!(has(self.request) && has(self.backendRequest) && duration(self.request) != duration('0s') && \
                 duration(self.backendRequest) > duration(self.request))",
                "backendRequest timeout cannot be longer than request timeout",
            ),
        ),
    ];
    out.extend(filter_rules());
    out
}

/// For the filters of a rule and for those of a backend.
fn filter_rules() -> Vec<Rule> {
    let header = || json!({ "minLength": 1, "maxLength": 256, "pattern": HEADER_NAME });
    let value = || json!({ "minLength": 1, "maxLength": 4096 });
    let host = || json!({ "minLength": 1, "maxLength": 253, "pattern": DNS_SUBDOMAIN });
    let path = || json!({ "maxLength": 1024 });
    vec![
        ("rules[].filters[].requestHeaderModifier.set", list_map(&["name"], 0, 16)),
        ("rules[].filters[].requestHeaderModifier.set[].name", header()),
        ("rules[].filters[].requestHeaderModifier.set[].value", value()),
        ("rules[].filters[].requestHeaderModifier.add", list_map(&["name"], 0, 16)),
        ("rules[].filters[].requestHeaderModifier.add[].name", header()),
        ("rules[].filters[].requestHeaderModifier.add[].value", value()),
        ("rules[].filters[].requestHeaderModifier.remove", list(0, 16)),
        ("rules[].filters[].responseHeaderModifier.set", list_map(&["name"], 0, 16)),
        ("rules[].filters[].responseHeaderModifier.set[].name", header()),
        ("rules[].filters[].responseHeaderModifier.set[].value", value()),
        ("rules[].filters[].responseHeaderModifier.add", list_map(&["name"], 0, 16)),
        ("rules[].filters[].responseHeaderModifier.add[].name", header()),
        ("rules[].filters[].responseHeaderModifier.add[].value", value()),
        ("rules[].filters[].responseHeaderModifier.remove", list(0, 16)),
        ("rules[].filters[].urlRewrite.hostname", host()),
        ("rules[].filters[].urlRewrite.path.replaceFullPath", path()),
        ("rules[].filters[].urlRewrite.path.replacePrefixMatch", path()),
        ("rules[].filters[].requestRedirect.hostname", host()),
        ("rules[].filters[].requestRedirect.path.replaceFullPath", path()),
        ("rules[].filters[].requestRedirect.path.replacePrefixMatch", path()),
        (
            "rules[].filters[].requestRedirect.statusCode",
            json!({ "default": 302, "enum": [301, 302, 303, 307, 308] }),
        ),
        ("rules[].filters[].requestRedirect.port", port()),
        ("rules[].filters[].requestMirror.backendRef.group", default(json!(""))),
        ("rules[].filters[].requestMirror.backendRef.kind", default(json!("Service"))),
        ("rules[].filters[].requestMirror.percent", json!({ "minimum": 0, "maximum": 100 })),
        (
            "rules[].filters[]",
            cels(&[
                (
                    "self.type != 'RequestHeaderModifier' || has(self.requestHeaderModifier)",
                    "filter.requestHeaderModifier must be specified for RequestHeaderModifier filter.type",
                ),
                (
                    "self.type != 'ResponseHeaderModifier' || has(self.responseHeaderModifier)",
                    "filter.responseHeaderModifier must be specified for ResponseHeaderModifier filter.type",
                ),
                (
                    "self.type != 'RequestMirror' || has(self.requestMirror)",
                    "filter.requestMirror must be specified for RequestMirror filter.type",
                ),
                (
                    "self.type != 'RequestRedirect' || has(self.requestRedirect)",
                    "filter.requestRedirect must be specified for RequestRedirect filter.type",
                ),
                (
                    "self.type != 'URLRewrite' || has(self.urlRewrite)",
                    "filter.urlRewrite must be specified for URLRewrite filter.type",
                ),
            ]),
        ),
    ]
}

fn grpc_route() -> CustomResourceDefinition {
    let mut spec = structural::of::<GrpcRouteSpec>();
    apply(&mut spec, parent_rules());
    apply(&mut spec, vec![("rules[].matches[].method.type", default(json!("Exact")))]);
    let mut status = structural::of::<GrpcRouteStatus>();
    route_status(&mut status);
    let columns = json!([column("Hostnames", ".spec.hostnames", "string"), age()]);
    definition(&kind("GRPCRoute", "grpcroutes", &[], true), v1(spec, Some(status), columns))
}

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

fn route_status(status: &mut Value) {
    conditions(status, "parents[].conditions");
    apply(status, vec![("parents", json!({ "maxItems": 32, "x-kubernetes-list-type": "atomic" }))]);
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
