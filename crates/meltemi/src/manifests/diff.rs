// SPDX-License-Identifier: Apache-2.0
//! What an object would become: the fields that differ, each with its value before and after.

use serde_json::Value;

/// Fields that the API server keeps itself.
const KEPT: [&str; 5] = ["managedFields", "resourceVersion", "generation", "uid", "creationTimestamp"];
/// Longest value that is written out, in characters.
const MAX_VALUE: usize = 120;

/// The differences between an object as it is and as it would be, one a line.
pub fn differences(before: &Value, after: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    compare("", before, after, &mut lines);
    lines
}

fn compare(path: &str, before: &Value, after: &Value, lines: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(old), Value::Object(new)) => {
            let of_object = |key: &str| match path {
                "" => key != "status",
                ".metadata" => !KEPT.contains(&key),
                _ => true,
            };
            let added = new.keys().filter(|key| !old.contains_key(*key));
            for key in old.keys().chain(added).filter(|key| of_object(key)) {
                let child = format!("{path}.{key}");
                compare(&child, &before[key], &after[key], lines);
            }
        }
        (Value::Array(old), Value::Array(new)) => {
            for at in 0..old.len().max(new.len()) {
                let (old, new) = (old.get(at).unwrap_or(&Value::Null), new.get(at).unwrap_or(&Value::Null));
                compare(&format!("{path}[{at}]"), old, new, lines);
            }
        }
        _ if before == after => {}
        (Value::Null, _) => lines.push(format!("+ {}: {}", path.trim_start_matches('.'), shown(after))),
        (_, Value::Null) => lines.push(format!("- {}: {}", path.trim_start_matches('.'), shown(before))),
        _ => lines.push(format!("~ {}: {} -> {}", path.trim_start_matches('.'), shown(before), shown(after))),
    }
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(MAX_VALUE) {
        None => text,
        Some((end, _)) => format!("{}… ({} characters)", &text[..end], text.chars().count()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_added_changed_and_taken_away_is_told_and_nothing_else() {
        let before = json!({
            "metadata": {"name": "a", "resourceVersion": "1", "uid": "u", "managedFields": [1], "labels": {"x": "1", "y": "2"}},
            "spec": {"list": [{"name": "p", "port": 1}, {"name": "q"}], "status": "kept"},
            "status": {"ready": true},
        });
        let after = json!({
            "metadata": {"name": "a", "resourceVersion": "2", "uid": "v", "managedFields": [2], "labels": {"x": "1", "z": "3"}},
            "spec": {"list": [{"name": "p", "port": 2}], "status": "changed", "more": {"a": 1}},
            "status": {"ready": false},
        });
        let expected = [
            "- metadata.labels.y: \"2\"",
            "+ metadata.labels.z: \"3\"",
            "~ spec.list[0].port: 1 -> 2",
            "- spec.list[1]: {\"name\":\"q\"}",
            "~ spec.status: \"kept\" -> \"changed\"",
            "+ spec.more: {\"a\":1}",
        ];
        assert_eq!(differences(&before, &after), expected);
        assert!(differences(&before, &before).is_empty());
    }

    #[test]
    fn a_long_value_is_cut_between_characters() {
        let lines = differences(&json!({"a": ""}), &json!({"a": "é".repeat(500)}));
        assert!(lines[0].ends_with("… (502 characters)") && lines[0].len() < 400, "{lines:?}");
    }
}
