// SPDX-License-Identifier: Apache-2.0
//! Definitions of `security.istio.io`: AuthorizationPolicy, PeerAuthentication, RequestAuthentication.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use schemars::JsonSchema;
use serde_json::{Value, json};

use super::{Kind, Version, column, definition, structural};
use crate::policies::{AuthorizationPolicySpec, PeerAuthenticationSpec, RequestAuthenticationSpec};

/// All definitions of the group.
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![
        one(
            "AuthorizationPolicy",
            "authorizationpolicies",
            &["ap"],
            &described::<AuthorizationPolicySpec>(authorization()),
            &action_columns(),
        ),
        one(
            "PeerAuthentication",
            "peerauthentications",
            &["pa"],
            &described::<PeerAuthenticationSpec>(peer()),
            &mode_columns(),
        ),
        one(
            "RequestAuthentication",
            "requestauthentications",
            &["ra"],
            &described::<RequestAuthenticationSpec>(request()),
            &json!([age()]),
        ),
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

/// A schema with the words of its type, for `kubectl explain`.
fn described<T: JsonSchema>(mut schema: Value) -> Value {
    describe(&mut schema, &structural::of::<T>());
    schema
}

fn describe(schema: &mut Value, of: &Value) {
    if let Some(text) = of.get("description").filter(|_| schema.get("description").is_none()) {
        schema["description"] = text.clone();
    }
    for key in ["items", "additionalProperties"] {
        if let (Some(inner), Some(of)) = (schema.get_mut(key).filter(|i| i.is_object()), of.get(key)) {
            describe(inner, of);
        }
    }
    for (name, inner) in schema.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        if let Some(of) = of["properties"].get(name) {
            describe(inner, of);
        }
    }
}

fn age() -> Value {
    column("Age", ".metadata.creationTimestamp", "date")
}

fn action_columns() -> Value {
    let enforced = |part: &str| format!(r#".status.conditions[?(@.type=="meltemi.dev/Enforced")].{part}"#);
    let mut proxies = column("Proxies", &enforced("message"), "string");
    proxies["priority"] = json!(1);
    json!([
        column("Action", ".spec.action", "string"),
        column("Enforced", &enforced("status"), "string"),
        proxies,
        age()
    ])
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

fn cel(schema: &mut Value, rules: &[(&str, &str)]) {
    schema["x-kubernetes-validations"] =
        rules.iter().map(|(rule, message)| json!({"rule": rule, "message": message})).collect();
}

fn selector() -> Value {
    let mut value = json!({"type": "string", "maxLength": 63});
    cel(&mut value, &[(r#"!self.contains("*")"#, "wildcard not allowed in label value match")]);
    let mut labels = json!({"type": "object", "maxProperties": 4096, "additionalProperties": value});
    cel(
        &mut labels,
        &[
            (r#"self.all(key, !key.contains("*"))"#, "wildcard not allowed in label key match"),
            ("self.all(key, key.size() != 0)", "key must not be empty"),
        ],
    );
    object(json!({"matchLabels": labels}))
}

fn target() -> Value {
    let mut namespace = text();
    cel(&mut namespace, &[("self.size() == 0", "cross namespace referencing is not currently supported")]);
    let label = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
    let mut target = object(json!({
        "group": {"type": "string", "maxLength": 253, "pattern": format!(r"^$|^{label}(\.{label})*$")},
        "kind": {"type": "string", "minLength": 1, "maxLength": 63, "pattern": "^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$"},
        "name": {"type": "string", "minLength": 1, "maxLength": 253},
        "namespace": namespace,
    }));
    target["required"] = json!(["kind", "name"]);
    target
}

fn one_target(schema: &mut Value) {
    let count =
        "(has(self.selector) ? 1 : 0) + (has(self.targetRef) ? 1 : 0) + (has(self.targetRefs) ? 1 : 0) <= 1";
    cel(schema, &[(count, "only one of targetRefs or selector can be set")]);
}

fn authorization() -> Value {
    let mut source = fields(&[
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
    let accounts = json!({"type": "array", "maxItems": 16, "items": {"type": "string", "maxLength": 320}});
    for field in ["serviceAccounts", "notServiceAccounts"] {
        source["properties"][field] = accounts.clone();
    }
    let apart = "(has(self.serviceAccounts) || has(self.notServiceAccounts)) ? (!has(self.principals) && \
                 !has(self.notPrincipals) && !has(self.namespaces) && !has(self.notNamespaces)) : true";
    cel(&mut source, &[(apart, "Cannot set serviceAccounts with namespaces or principals")]);
    let operation =
        fields(&["hosts", "notHosts", "ports", "notPorts", "methods", "notMethods", "paths", "notPaths"]);
    let mut condition = object(json!({"key": text(), "values": texts(), "notValues": texts()}));
    condition["required"] = json!(["key"]);
    let any = |item: Value| json!({"type": "array", "items": item});
    let rule = object(json!({
        "from": list(object(json!({"source": source})), 512),
        "to": any(object(json!({"operation": operation}))),
        "when": any(condition),
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
    let mut ports = json!({"type": "object", "minProperties": 1, "additionalProperties": mode});
    cel(&mut ports, &[("self.all(key, 0 < int(key) && int(key) <= 65535)", "port must be between 1-65535")]);
    let mut spec = object(json!({"selector": selector(), "mtls": mode, "portLevelMtls": ports}));
    let selects = "has(self.portLevelMtls) ? (((has(self.selector) && has(self.selector.matchLabels)) ? \
                   self.selector.matchLabels : {}).size() > 0) : true";
    cel(&mut spec, &[(selects, "portLevelMtls requires selector")]);
    spec
}

fn request() -> Value {
    let some = || json!({"type": "string", "minLength": 1});
    let somes = || json!({"type": "array", "items": some()});
    let mut header = object(json!({"name": some(), "prefix": text()}));
    header["required"] = json!(["name"]);
    let mut claim = object(json!({
        "header": {"type": "string", "minLength": 1, "pattern": "^[-_A-Za-z0-9]+$"}, "claim": some(),
    }));
    claim["required"] = json!(["header", "claim"]);
    let mut uri = json!({"type": "string", "minLength": 1, "maxLength": 2048});
    cel(
        &mut uri,
        &[(r#"url(self).getScheme() in ["http", "https"]"#, "url must have scheme http:// or https://")],
    );
    let mut timeout = text();
    cel(&mut timeout, &[("duration(self) >= duration('1ms')", "must be a valid duration greater than 1ms")]);
    let mut claims = somes();
    claims["maxItems"] = json!(64);
    let mut rule = object(json!({
        "issuer": some(), "audiences": somes(), "jwksUri": uri, "jwks_uri": uri, "jwks": text(),
        "fromHeaders": {"type": "array", "items": header}, "fromParams": somes(), "fromCookies": somes(),
        "outputPayloadToHeader": text(), "forwardOriginalToken": {"type": "boolean"},
        "outputClaimToHeaders": {"type": "array", "items": claim},
        "timeout": timeout, "spaceDelimitedClaims": claims,
    }));
    rule["properties"]["jwks_uri"]["description"] = "Older name of `jwksUri`.".into();
    let one = "(has(self.jwksUri) ? 1 : 0) + (has(self.jwks_uri) ? 1 : 0) + (has(self.jwks) ? 1 : 0) <= 1";
    cel(&mut rule, &[(one, "only one of jwks or jwksUri can be set")]);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Rules of the API server's own: what the schema says beside CEL is its own to check.
    fn faults(kind: &str, spec: Value) -> Vec<String> {
        let all = all();
        let definition = all.iter().find(|d| d.spec.names.kind == kind).unwrap();
        let version = definition.spec.versions[0].schema.as_ref().unwrap();
        let schema = serde_json::to_value(version).unwrap()["openAPIV3Schema"].clone();
        let compiled = kube_cel::compile_schema(&schema);
        assert!(!compiled.has_errors(), "{kind}: {:?}", compiled.compilation_errors());
        let object = json!({ "spec": spec });
        let Err(found) = kube_cel::Validator::new().validate_compiled(&compiled, &object, None) else {
            return Vec::new();
        };
        found.into_vec().into_iter().map(|e| e.message).collect()
    }

    #[test]
    fn every_field_is_described() {
        fn undescribed(schema: &Value, path: &str, found: &mut Vec<String>) {
            if schema.get("description").is_none() {
                found.push(path.to_owned());
            }
            if let Some(items) = schema.get("items").filter(|i| i.get("properties").is_some()) {
                undescribed(items, &format!("{path}[]"), found);
            }
            for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
                undescribed(inner, &format!("{path}.{name}"), found);
            }
        }
        for definition in all() {
            let schema = serde_json::to_value(&definition.spec.versions[0].schema).unwrap();
            let mut found = Vec::new();
            undescribed(&schema["openAPIV3Schema"]["properties"]["spec"], "spec", &mut found);
            assert!(found.is_empty(), "{}: {found:?}", definition.spec.names.kind);
        }
    }

    #[test]
    fn rules_of_the_definitions_refuse_what_istio_s_refuse() {
        let service = json!({"kind": "Service", "group": "", "name": "x"});
        let source = |source: Value| json!({"rules": [{"from": [{"source": source}]}]});
        let labels = json!({"matchLabels": {"a": "b"}});
        let jwt = |rule: Value| json!({"jwtRules": [rule]});
        let one = "only one of targetRefs or selector can be set";
        let cases = [
            ("AuthorizationPolicy", json!({}), vec![]),
            ("AuthorizationPolicy", source(json!({"principals": ["a"], "namespaces": ["b"]})), vec![]),
            ("AuthorizationPolicy", json!({"selector": labels, "targetRefs": [service]}), vec![one]),
            ("AuthorizationPolicy", json!({"targetRef": service, "targetRefs": [service]}), vec![one]),
            (
                "AuthorizationPolicy",
                source(json!({"serviceAccounts": ["a"], "principals": ["b"]})),
                vec!["Cannot set serviceAccounts with namespaces or principals"],
            ),
            (
                "AuthorizationPolicy",
                json!({"targetRefs": [{"kind": "Service", "name": "x", "namespace": "y"}]}),
                vec!["cross namespace referencing is not currently supported"],
            ),
            (
                "AuthorizationPolicy",
                json!({"selector": {"matchLabels": {"a": "b*"}}}),
                vec!["wildcard not allowed in label value match"],
            ),
            (
                "PeerAuthentication",
                json!({"selector": {"matchLabels": {"a*": "b"}}}),
                vec!["wildcard not allowed in label key match"],
            ),
            (
                "PeerAuthentication",
                json!({"portLevelMtls": {"80": {"mode": "STRICT"}}}),
                vec!["portLevelMtls requires selector"],
            ),
            (
                "PeerAuthentication",
                json!({"selector": labels, "portLevelMtls": {"0": {"mode": "STRICT"}}}),
                vec!["port must be between 1-65535"],
            ),
            ("PeerAuthentication", json!({"selector": labels, "portLevelMtls": {"80": {}}}), vec![]),
            (
                "RequestAuthentication",
                jwt(json!({"issuer": "a", "jwksUri": "https://b/c", "timeout": "5s"})),
                vec![],
            ),
            (
                "RequestAuthentication",
                jwt(json!({"jwksUri": "ftp://b/c"})),
                vec!["url must have scheme http:// or https://"],
            ),
            (
                "RequestAuthentication",
                jwt(json!({"jwksUri": "https://b/c", "jwks": "{}"})),
                vec!["only one of jwks or jwksUri can be set"],
            ),
            (
                "RequestAuthentication",
                jwt(json!({"issuer": "a", "timeout": "10us"})),
                vec!["must be a valid duration greater than 1ms"],
            ),
        ];
        for (kind, spec, expected) in cases {
            assert_eq!(faults(kind, spec.clone()), expected, "{kind} {spec}");
        }
    }

    /// What the type knows, the schema knows, and the other way round: nothing is pruned, nothing is accepted unread.
    #[test]
    fn fields_of_types_and_schemas_are_the_same() {
        fn fields(schema: &Value, at: &str, out: &mut std::collections::BTreeSet<String>) {
            for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
                let path = format!("{at}.{name}");
                fields(inner, &path, out);
                out.insert(path);
            }
            for key in ["items", "additionalProperties"] {
                if schema[key].is_object() {
                    fields(&schema[key], at, out);
                }
            }
        }
        use crate::policies::{AuthorizationPolicySpec, PeerAuthenticationSpec, RequestAuthenticationSpec};
        let structural = super::super::structural::of::<AuthorizationPolicySpec>;
        let types = [
            (authorization(), structural()),
            (peer(), super::super::structural::of::<PeerAuthenticationSpec>()),
            (request(), super::super::structural::of::<RequestAuthenticationSpec>()),
        ];
        for (written, read) in types {
            let (mut schema, mut kind) = Default::default();
            fields(&written, "", &mut schema);
            fields(&read, "", &mut kind);
            // Another spelling of jwksUri.
            schema.remove(".jwtRules.jwks_uri");
            assert_eq!(schema, kind);
        }
    }
}
