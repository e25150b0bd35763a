// SPDX-License-Identifier: Apache-2.0
//! GRPCRoutes as HTTPRoutes: a call is a request for the path `/<service>/<method>` (gRPC over HTTP/2, "Requests"), and
//! everything but the match is written alike in both.

use gateway_api::experimental::httproutes::HttpRoute;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value, json};

/// Fields of a rule that mean the same in both kinds.
const ALIKE: [&str; 4] = ["name", "filters", "backendRefs", "sessionPersistence"];

/// Why a GRPCRoute cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum InvalidGrpcRoute {
    /// A type of match that the API does not have.
    #[error("method.type {0:?} is neither Exact nor RegularExpression")]
    MethodType(String),
    /// A field of another type than the API's.
    #[error("spec: {0}")]
    Spec(#[from] serde_json::Error),
}

/// The HTTPRoute that does what a GRPCRoute says.
///
/// # Errors
/// Names what cannot be read.
pub fn as_http(metadata: &ObjectMeta, spec: &Value) -> Result<HttpRoute, InvalidGrpcRoute> {
    let mut converted = Map::new();
    for field in ["parentRefs", "hostnames", "useDefaultGateways"] {
        if let Some(value) = spec.get(field) {
            converted.insert(field.to_owned(), value.clone());
        }
    }
    let rules = spec["rules"].as_array().into_iter().flatten().map(rule).collect::<Result<Vec<_>, _>>()?;
    converted.insert("rules".to_owned(), rules.into());
    let spec = serde_json::from_value(converted.into())?;
    Ok(HttpRoute { metadata: metadata.clone(), spec, status: None })
}

fn rule(written: &Value) -> Result<Value, InvalidGrpcRoute> {
    let mut rule = Map::new();
    for field in ALIKE {
        if let Some(value) = written.get(field) {
            rule.insert(field.to_owned(), value.clone());
        }
    }
    let matches = written["matches"].as_array().into_iter().flatten().map(one_match);
    let matches = matches.collect::<Result<Vec<_>, _>>()?;
    if !matches.is_empty() {
        rule.insert("matches".to_owned(), matches.into());
    }
    Ok(rule.into())
}

fn one_match(written: &Value) -> Result<Value, InvalidGrpcRoute> {
    let mut converted = Map::new();
    if let Some(headers) = written.get("headers") {
        converted.insert("headers".to_owned(), headers.clone());
    }
    if let Some(path) = path(&written["method"])? {
        converted.insert("path".to_owned(), path);
    }
    Ok(converted.into())
}

/// The path of the calls that a match is for; none for all.
fn path(method: &Value) -> Result<Option<Value>, InvalidGrpcRoute> {
    let text = |field: &str| method[field].as_str().filter(|text| !text.is_empty());
    let (service, name) = (text("service"), text("method"));
    let kind = method["type"].as_str().unwrap_or("Exact");
    let path = match (kind, service, name) {
        (_, None, None) => return Ok(None),
        ("Exact", Some(service), Some(name)) => {
            json!({ "type": "Exact", "value": format!("/{service}/{name}") })
        }
        ("Exact", Some(service), None) => json!({ "type": "PathPrefix", "value": format!("/{service}") }),
        ("Exact", None, Some(name)) => {
            json!({ "type": "RegularExpression", "value": format!("/[^/]+/{}", literal(name)) })
        }
        ("RegularExpression", ..) => {
            let part = |text: Option<&str>| text.map_or("[^/]+".to_owned(), |text| format!("(?:{text})"));
            let value = format!("/{}/{}", part(service), part(name));
            json!({ "type": "RegularExpression", "value": value })
        }
        (other, ..) => return Err(InvalidGrpcRoute::MethodType(other.to_owned())),
    };
    Ok(Some(path))
}

/// A text as the regular expression that only it matches.
fn literal(text: &str) -> String {
    let escaped = |c: char| if c.is_ascii_alphanumeric() || c == '_' { vec![c] } else { vec!['\\', c] };
    text.chars().flat_map(escaped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_a_path() {
        for (method, expected) in [
            (json!({"service": "a.B", "method": "C"}), Some(("Exact", "/a.B/C"))),
            (json!({"type": "Exact", "service": "a.B"}), Some(("PathPrefix", "/a.B"))),
            (json!({"method": "C"}), Some(("RegularExpression", "/[^/]+/C"))),
            (
                json!({"type": "RegularExpression", "service": "a.*|b", "method": "C|D"}),
                Some(("RegularExpression", "/(?:a.*|b)/(?:C|D)")),
            ),
            (
                json!({"type": "RegularExpression", "method": "C"}),
                Some(("RegularExpression", "/[^/]+/(?:C)")),
            ),
            (json!({}), None),
            (Value::Null, None),
        ] {
            let expected = expected.map(|(kind, value)| json!({"type": kind, "value": value}));
            assert_eq!(path(&method).unwrap(), expected, "{method}");
        }
        assert!(path(&json!({"type": "Prefix", "method": "C"})).is_err());
        assert_eq!(literal("a.B_1"), "a\\.B_1");
    }

    #[test]
    fn what_both_kinds_have_is_kept() {
        let spec = json!({
            "parentRefs": [{"name": "g"}],
            "hostnames": ["a.example"],
            "rules": [{
                "name": "r",
                "matches": [{"method": {"service": "s", "method": "m"}, "headers": [{"name": "x", "value": "1"}]}],
                "filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": ["y"]}}],
                "backendRefs": [{"name": "b", "port": 1, "weight": 3}],
            }],
        });
        let route = as_http(&ObjectMeta::default(), &spec).unwrap();
        assert_eq!(route.spec.hostnames, Some(vec!["a.example".to_owned()]));
        let rule = &route.spec.rules.unwrap()[0];
        assert_eq!(rule.name.as_deref(), Some("r"));
        let one = &rule.matches.as_ref().unwrap()[0];
        assert_eq!(one.path.as_ref().unwrap().value.as_deref(), Some("/s/m"));
        assert_eq!(one.headers.as_ref().unwrap().len(), 1);
        assert_eq!(rule.backend_refs.as_ref().unwrap()[0].weight, Some(3));
        assert_eq!(rule.filters.as_ref().unwrap().len(), 1);
    }
}
