// SPDX-License-Identifier: Apache-2.0
//! Columns of custom resources: `additionalPrinterColumns` with their JSONPaths.

use serde_json::{Value, json};

use super::value::age;
use super::{Column, column};

pub(super) fn columns(declared: &[Value]) -> Vec<Column> {
    let mut all = vec![column("Name", "string")];
    for one in declared {
        let kind = match one["type"].as_str() {
            Some("integer") => "integer",
            Some("number") => "number",
            Some("boolean") => "boolean",
            _ => "string",
        };
        let name = one["name"].as_str().unwrap_or_default().to_owned();
        all.push(Column { name, kind, wide: one["priority"].as_i64().unwrap_or(0) > 0 });
    }
    if declared.is_empty() {
        all.push(column("Age", "string"));
    }
    all
}

pub(super) fn cells(declared: &[Value], item: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let mut all = vec![item["metadata"]["name"].clone()];
    for one in declared {
        let found = evaluate(one["jsonPath"].as_str().unwrap_or_default(), item);
        all.push(match (one["type"].as_str(), found) {
            (Some("date"), Some(value)) => json!(age(&value, now)),
            (Some("string"), Some(value)) if !value.is_string() => json!(value.to_string()),
            (_, Some(value)) => value,
            (_, None) => Value::Null,
        });
    }
    if declared.is_empty() {
        all.push(json!(age(&item["metadata"]["creationTimestamp"], now)));
    }
    all
}

/// The part of JSONPath that columns use: `.a.b`, `[0]`, `[*]` and `[?(@.key=="value")]`; the first value found.
fn evaluate(path: &str, item: &Value) -> Option<Value> {
    let mut found = vec![item.clone()];
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let (step, tail) = inner.split_once(']')?;
            rest = tail;
            found = found.iter().flat_map(|value| select(value, step)).collect();
        } else {
            let field = rest.strip_prefix('.').unwrap_or(rest);
            // `\.` is a dot inside a name.
            let mut end = 0;
            let bytes = field.as_bytes();
            while end < bytes.len()
                && (!matches!(bytes[end], b'.' | b'[') || end > 0 && bytes[end - 1] == b'\\')
            {
                end += 1;
            }
            let name = field[..end].replace("\\.", ".");
            rest = &field[end..];
            if !name.is_empty() {
                found = found.iter().filter_map(|value| value.get(&name).cloned()).collect();
            }
        }
    }
    found.into_iter().next()
}

fn select(value: &Value, step: &str) -> Vec<Value> {
    let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
    if step == "*" {
        return list.to_vec();
    }
    if let Ok(index) = step.parse::<usize>() {
        return list.get(index).cloned().into_iter().collect();
    }
    let filter = step.strip_prefix("?(@.").and_then(|s| s.strip_suffix(')')).and_then(|s| s.split_once("=="));
    let Some((key, wanted)) = filter else { return Vec::new() };
    let wanted = wanted.trim().trim_matches(['"', '\'']);
    list.iter().filter(|item| item[key.trim()] == wanted).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_printer_columns() {
        let item = json!({"spec": {"cls": "c"}, "status": {"addresses": [{"value": "1.2.3.4"}],
            "conditions": [{"type": "A", "status": "False"}, {"type": "Programmed", "status": "True"}]},
            "metadata": {"labels": {"a.b/c": "x"}}});
        let cases = [
            (".spec.cls", Some("c")),
            (".status.addresses[*].value", Some("1.2.3.4")),
            (".status.addresses[0].value", Some("1.2.3.4")),
            (".status.conditions[?(@.type==\"Programmed\")].status", Some("True")),
            (".metadata.labels.a\\.b/c", Some("x")),
            (".spec.none", None),
        ];
        for (path, expected) in cases {
            assert_eq!(evaluate(path, &item), expected.map(|e| json!(e)), "{path}");
        }
    }
}
