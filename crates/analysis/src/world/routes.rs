// SPDX-License-Identifier: Apache-2.0
//! Routes as far as they decide which requests reach what, and as what: what means the same is compared as equal, in
//! whatever order it is written.

use std::collections::BTreeSet;

use meltemi_model::{NamespacedName, l7};
use meltemi_translate::MeshConfig;
use meltemi_translate::routes::{RouteKind, offline};
use serde_json::{Value, json};

use super::World;

/// What is answered with 500, in the place of a backend.
const NOWHERE: &str = "nowhere";

/// A route's spec with its lists in one order, where their order says nothing.
pub(super) fn in_order(mut spec: Value) -> Value {
    for field in ["parentRefs", "hostnames", "from", "to"] {
        sort(&mut spec[field]);
    }
    let Some(rules) = spec["rules"].as_array_mut() else { return without_nulls(spec) };
    for rule in rules.iter_mut() {
        for one in rule["matches"].as_array_mut().into_iter().flatten() {
            sort(&mut one["headers"]);
            sort(&mut one["queryParams"]);
        }
        sort(&mut rule["matches"]);
        sort(&mut rule["backendRefs"]);
    }
    if are_apart(rules) {
        rules.sort_by_cached_key(Value::to_string);
    }
    without_nulls(spec)
}

/// The rules of a route as proxies are told them, without what no access depends on: how long requests may take, what
/// is done to answers, and the shares of backends that have one. `None` when it cannot be read.
pub(super) fn rules(kind: RouteKind, namespace: &str, object: &Value, mesh: &MeshConfig) -> Option<Value> {
    let told = offline::rules(kind, namespace, object, mesh)?;
    let mut rules: Vec<Value> = told.iter().map(rule).collect();
    if object["spec"]["rules"].as_array().is_some_and(|written| are_apart(written)) {
        rules.sort_by_cached_key(|rule| rule["matches"].to_string());
    }
    Some(rules.into())
}

fn rule(told: &l7::RouteRule) -> Value {
    let everything = l7::PathMatch::Prefix("/".to_owned());
    let matches = told.matches.iter().cloned().map(|mut one| {
        one.path = one.path.filter(|path| *path != everything);
        if let Some(l7::PathMatch::Prefix(prefix)) = &mut one.path {
            prefix.truncate(prefix.trim_end_matches('/').len());
        }
        let mut one = json!(one);
        sort(&mut one["headers"]);
        sort(&mut one["query"]);
        one.to_string()
    });
    let mut matches: BTreeSet<String> = matches.collect();
    if matches.is_empty() {
        matches.insert(json!(l7::RouteMatch::default()).to_string());
    }
    let filters = told.filters.iter().filter(|f| is_request_change(f));
    let shares = told.backends.iter().filter(|backend| backend.weight > 0);
    let mut backends: BTreeSet<String> = shares
        .map(|backend| match &backend.service {
            Some(service) => {
                let changed: Vec<&l7::Filter> =
                    backend.filters.iter().filter(|f| is_request_change(f)).collect();
                let changed =
                    if changed.is_empty() { String::new() } else { format!(" by {}", json!(changed)) };
                format!("Service {service} port {}{changed}", backend.port)
            }
            None => NOWHERE.to_owned(),
        })
        .collect();
    if backends.is_empty() {
        backends.insert(NOWHERE.to_owned());
    }
    json!({ "matches": matches, "filters": filters.collect::<Vec<_>>(), "backends": backends })
}

/// Whether a filter decides what reaches which backend; others are about answers only.
fn is_request_change(filter: &l7::Filter) -> bool {
    !matches!(filter, l7::Filter::ResponseHeaders { .. } | l7::Filter::Cors { .. })
}

/// What two forms of an HTTPRoute with the same rules, beside what they do, differ in; `None` when they lead requests to
/// nothing new.
pub(crate) fn difference(was: &Value, is: &Value) -> Option<String> {
    if was == is {
        return None;
    }
    let whole = Some(String::new());
    let without = |spec: &Value| {
        let mut spec = spec.clone();
        spec["rules"] = Value::Null;
        spec
    };
    let (Some(old), Some(new)) = (was["rules"].as_array(), is["rules"].as_array()) else { return whole };
    if without(was) != without(is) || old.len() != new.len() {
        return whole;
    }
    let mut found = Vec::new();
    for (at, (old, new)) in old.iter().zip(new).enumerate() {
        if old["matches"] != new["matches"] {
            found.push(format!("rule[{at}] takes other requests"));
        }
        if old["filters"] != new["filters"] {
            found.push(format!("rule[{at}] changes requests in another way"));
        }
        let of = |rule: &Value| -> BTreeSet<String> {
            let list = rule["backends"].as_array().into_iter().flatten();
            list.filter_map(|one| one.as_str().map(ToOwned::to_owned)).collect()
        };
        let added: Vec<String> = of(new).difference(&of(old)).cloned().collect();
        if !added.is_empty() {
            found.push(format!("rule[{at}] leads to {}", added.join(" and ")));
        }
    }
    (!found.is_empty()).then(|| format!(" ({})", found.join("; ")))
}

impl World {
    /// Whether a route of its namespace is for a port of a Service, or for any of it: a waypoint takes requests there
    /// only.
    pub(crate) fn is_routed(&self, service: &NamespacedName, port: Option<u16>) -> bool {
        let near = self.unmodelled.iter().filter(|((kind, name), _)| {
            matches!(kind.as_str(), "HTTPRoute" | "GRPCRoute") && name.namespace == service.namespace
        });
        let mut parents = near.flat_map(|(_, spec)| spec["parentRefs"].as_array().into_iter().flatten());
        parents.any(|parent| {
            parent["kind"] == "Service"
                && matches!(parent["group"].as_str(), Some("" | "core"))
                && parent["name"].as_str() == Some(&service.name)
                && parent["namespace"].as_str().is_none_or(|n| *n == *service.namespace)
                && parent["sectionName"].is_null()
                && (parent["port"].is_null() || port.is_none_or(|port| parent["port"] == port))
        })
    }
}

fn sort(list: &mut Value) {
    if let Some(list) = list.as_array_mut() {
        list.sort_by_cached_key(Value::to_string);
    }
}

/// Looking at a field that is not there makes it null.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Array(list) => list.into_iter().map(without_nulls).collect(),
        Value::Object(map) => {
            let kept = map.into_iter().filter(|(_, value)| !value.is_null());
            kept.map(|(key, value)| (key, without_nulls(value))).collect()
        }
        other => other,
    }
}

/// Whether no request is left to the order of the rules. Of two rules with different paths, the one with the exact path or
/// the longer prefix comes first whatever their order, or a request matches one of them only. Regular expressions may
/// overlap in any way, and so may matches with the same path.
fn are_apart(rules: &[Value]) -> bool {
    let mut seen = BTreeSet::new();
    rules.iter().all(|rule| {
        let all = [Value::Null];
        let matches = rule["matches"].as_array().map_or(&all[..], Vec::as_slice);
        let own: Option<BTreeSet<(bool, String)>> = matches.iter().map(path).collect();
        own.is_some_and(|own| own.into_iter().all(|path| seen.insert(path)))
    })
}

/// The path of a match, and whether it is a prefix; defaults are left out of it. `None` for a regular expression.
fn path(one: &Value) -> Option<(bool, String)> {
    let value = one["path"]["value"].as_str().unwrap_or("/");
    match one["path"]["type"].as_str() {
        Some("Exact") => Some((false, value.to_owned())),
        None | Some("PathPrefix") => Some((true, value.trim_end_matches('/').to_owned())),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn order_that_says_nothing_is_not_compared() {
        let rule = |path: Value, backend: &str| json!({"matches": [{"path": path}], "backendRefs": [{"name": backend}]});
        let exact = rule(json!({"type": "Exact", "value": "/a"}), "x");
        let prefix = rule(json!({"value": "/a"}), "y");
        let slash = rule(json!({"value": "/a/"}), "z");
        let regex = rule(json!({"type": "RegularExpression", "value": "/a.*"}), "x");
        let rest = json!({"backendRefs": [{"name": "w"}]});
        let cases = [
            (vec![exact.clone(), prefix.clone()], true),
            (vec![prefix.clone(), rest.clone()], true),
            (vec![exact, prefix.clone(), rest.clone()], true),
            (vec![prefix.clone(), slash], false),
            (vec![regex, prefix], false),
            (
                vec![rest.clone(), json!({"matches": [{"method": "GET"}], "backendRefs": [{"name": "v"}]})],
                false,
            ),
        ];
        for (rules, same) in cases {
            let turned: Vec<Value> = rules.iter().rev().cloned().collect();
            let both = [rules, turned].map(|rules| in_order(json!({"rules": rules})));
            assert_eq!(both[0] == both[1], same, "{}", both[0]);
        }
        let headers =
            |list: Value| in_order(json!({"hostnames": ["a"], "rules": [{"matches": [{"headers": list}]}]}));
        let (a, b) = (json!({"name": "a", "value": "1"}), json!({"name": "b", "value": "2"}));
        assert_eq!(headers(json!([a, b])), headers(json!([b, a])));
        let filters = |list: Value| in_order(json!({"rules": [{"filters": list}]}));
        assert_ne!(filters(json!([a, b])), filters(json!([b, a])));
        assert_eq!(filters(json!([a])), json!({"rules": [{"filters": [a]}]}));
    }
}
