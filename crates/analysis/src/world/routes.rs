// SPDX-License-Identifier: Apache-2.0
//! Routes in one order: what means the same whatever the order is written in is compared as equal.

use std::collections::BTreeSet;

use serde_json::Value;

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
