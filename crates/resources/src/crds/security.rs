// SPDX-License-Identifier: Apache-2.0
//! Definitions of `security.istio.io`: AuthorizationPolicy, PeerAuthentication, RequestAuthentication.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};

use super::{Kind, Version, column, definition};

/// All definitions of the group.
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![
        one("AuthorizationPolicy", "authorizationpolicies", &["ap"], &authorization(), &action_columns()),
        one("PeerAuthentication", "peerauthentications", &["pa"], &peer(), &mode_columns()),
        one("RequestAuthentication", "requestauthentications", &["ra"], &request(), &json!([age()])),
    ]
}

fn one(
    kind: &'static str,
    plural: &'static str,
    short_names: &'static [&'static str],
    spec: &Value,
    columns: &Value,
) -> CustomResourceDefinition {
    let kind = Kind {
        group: "security.istio.io",
        kind,
        plural,
        short_names,
        categories: &["istio-io", "security-istio-io"],
        namespaced: true,
        labels: &[("app", "istio-pilot"), ("istio", "security")],
        annotations: &[],
    };
    let version = |name, storage| Version {
        name,
        storage,
        spec: spec.clone(),
        status: Some(status()),
        columns: columns.clone(),
        spec_required: false,
    };
    definition(&kind, vec![version("v1", true), version("v1beta1", false)])
}

fn age() -> Value {
    column("Age", ".metadata.creationTimestamp", "date")
}

fn action_columns() -> Value {
    json!([column("Action", ".spec.action", "string"), age()])
}

fn mode_columns() -> Value {
    json!([column("Mode", ".spec.mtls.mode", "string"), age()])
}

fn text() -> Value {
    json!({"type": "string"})
}

fn texts() -> Value {
    json!({"type": "array", "items": {"type": "string"}})
}

fn object(properties: Value) -> Value {
    json!({"type": "object", "properties": properties})
}

fn list(item: Value, most: u32) -> Value {
    json!({"type": "array", "maxItems": most, "items": item})
}

fn fields(names: &[&str]) -> Value {
    let properties: serde_json::Map<String, Value> =
        names.iter().map(|name| ((*name).to_owned(), texts())).collect();
    object(Value::Object(properties))
}

fn selector() -> Value {
    object(json!({"matchLabels": {"type": "object", "maxProperties": 4096,
        "additionalProperties": {"type": "string", "maxLength": 63}}}))
}

fn target() -> Value {
    let mut target = object(json!({
        "group": {"type": "string", "maxLength": 253},
        "kind": {"type": "string", "minLength": 1, "maxLength": 63},
        "name": {"type": "string", "minLength": 1, "maxLength": 253},
        "namespace": {"type": "string"},
    }));
    target["required"] = json!(["kind", "name"]);
    target
}

fn one_target(schema: &mut Value) {
    schema["x-kubernetes-validations"] = json!([{
        "rule": "(has(self.selector) ? 1 : 0) + (has(self.targetRef) ? 1 : 0) + (has(self.targetRefs) ? 1 : 0) <= 1",
        "message": "only one of targetRefs or selector can be set",
    }]);
}

fn authorization() -> Value {
    let source = fields(&[
        "principals",
        "notPrincipals",
        "requestPrincipals",
        "notRequestPrincipals",
        "namespaces",
        "notNamespaces",
        "ipBlocks",
        "notIpBlocks",
        "remoteIpBlocks",
        "notRemoteIpBlocks",
        "serviceAccounts",
        "notServiceAccounts",
        "trustDomains",
        "notTrustDomains",
    ]);
    let operation =
        fields(&["hosts", "notHosts", "ports", "notPorts", "methods", "notMethods", "paths", "notPaths"]);
    let mut condition = object(json!({"key": text(), "values": texts(), "notValues": texts()}));
    condition["required"] = json!(["key"]);
    let rule = object(json!({
        "from": list(object(json!({"source": source})), 512),
        "to": list(object(json!({"operation": operation})), 512),
        "when": list(condition, 512),
    }));
    let mut spec = object(json!({
        "selector": selector(),
        "targetRef": target(),
        "targetRefs": list(target(), 16),
        "action": {"type": "string", "enum": ["ALLOW", "DENY", "AUDIT", "CUSTOM"]},
        "provider": object(json!({"name": text()})),
        "rules": list(rule, 512),
    }));
    one_target(&mut spec);
    spec
}

fn peer() -> Value {
    let mode =
        object(json!({"mode": {"type": "string", "enum": ["UNSET", "DISABLE", "PERMISSIVE", "STRICT"]}}));
    let mut spec = object(json!({
        "selector": selector(),
        "mtls": mode,
        "portLevelMtls": {"type": "object", "minProperties": 1, "additionalProperties": mode},
    }));
    spec["x-kubernetes-validations"] = json!([{
        "rule": "!has(self.portLevelMtls) || (has(self.selector) && has(self.selector.matchLabels))",
        "message": "portLevelMtls requires selector",
    }]);
    spec
}

fn request() -> Value {
    let header = object(json!({"name": text(), "prefix": text()}));
    let rule = object(json!({
        "issuer": text(), "audiences": texts(), "jwksUri": {"type": "string", "maxLength": 2048}, "jwks": text(),
        "fromHeaders": list(header, 64), "fromParams": texts(), "fromCookies": texts(), "outputPayloadToHeader": text(),
        "forwardOriginalToken": {"type": "boolean"},
        "outputClaimToHeaders": list(object(json!({"header": text(), "claim": text()})), 64),
        "timeout": text(), "spaceDelimitedClaims": texts(),
    }));
    let mut spec = object(json!({
        "selector": selector(), "targetRef": target(), "targetRefs": list(target(), 16), "jwtRules": list(rule, 4096),
    }));
    one_target(&mut spec);
    spec
}

fn status() -> Value {
    let mut condition = object(json!({
        "type": text(), "status": text(), "reason": text(), "message": text(),
        "lastTransitionTime": {"type": "string", "format": "date-time"},
        "lastProbeTime": {"type": "string", "format": "date-time"},
        "observedGeneration": {"type": "integer", "format": "int64"},
    }));
    condition["required"] = json!(["type"]);
    object(json!({
        "conditions": {"type": "array", "items": condition, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        "observedGeneration": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
    }))
}
