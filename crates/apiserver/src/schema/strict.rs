// SPDX-License-Identifier: Apache-2.0
//! Unknown and duplicate fields of one body, together, in the words and the order of Kubernetes' strict decoders.

use serde_json::Value;

use crate::document::Duplicate;

/// One text for each unknown and each duplicate field. `is_typed`: of a built-in kind, whose decoder meets both on one
/// walk and compares only the fields that it knows; a custom resource is read first and held against its schema then.
pub fn strict_faults(
    object: &Value,
    unknown: &[String],
    duplicates: &[Duplicate],
    is_typed: bool,
) -> Vec<String> {
    let unknown_text = |path: &String| format!("unknown field \"{path}\"");
    if !is_typed || unknown.is_empty() || duplicates.is_empty() {
        return duplicates.iter().map(Duplicate::to_string).chain(unknown.iter().map(unknown_text)).collect();
    }
    let known = duplicates.iter().filter(|duplicate| !unknown.contains(&duplicate.path));
    let again = |duplicate: &Duplicate| {
        let mut place = position(object, &duplicate.path);
        if let Some(last) = place.as_mut().and_then(|steps| steps.last_mut()) {
            *last = duplicate.place;
        }
        place
    };
    // A field that stands again after `place` others comes before the one that has that index.
    let mut all: Vec<(Option<Vec<usize>>, bool, String)> = known
        .map(|duplicate| (again(duplicate), false, duplicate.to_string()))
        .chain(unknown.iter().map(|path| (position(object, path), true, unknown_text(path))))
        .collect();
    all.sort();
    all.into_iter().map(|(_, _, text)| text).collect()
}

/// Where the value of a path stands in its document: at each level, the how many-th it is.
fn position(value: &Value, path: &str) -> Option<Vec<usize>> {
    let (mut value, mut rest, mut steps) = (value, path, Vec::new());
    while !rest.is_empty() {
        match value {
            Value::Object(map) => {
                // Keys may hold dots and brackets: the longest one that fits is meant.
                let ends = |key: &str| key.is_empty() || key.starts_with(['.', '[', ']']);
                let start = rest.strip_prefix(['.', '[']).unwrap_or(rest);
                let fits = |key: &str| start.strip_prefix(key).is_some_and(ends);
                let keys = map.iter().enumerate().filter(|(_, (key, _))| fits(key));
                let (index, (key, inner)) = keys.max_by_key(|(_, (key, _))| key.len())?;
                steps.push(index);
                value = inner;
                rest = start.strip_prefix(key.as_str())?;
                rest = rest.strip_prefix(']').unwrap_or(rest);
            }
            Value::Array(list) => {
                let (index, after) = rest.strip_prefix('[')?.split_once(']')?;
                let index = index.parse().ok()?;
                steps.push(index);
                value = list.get(index)?;
                rest = after;
            }
            _ => return None,
        }
    }
    Some(steps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document;

    fn faults(text: &str, unknown: &[&str], is_typed: bool) -> String {
        let read = document::read_json(text.as_bytes()).unwrap();
        let unknown: Vec<String> = unknown.iter().map(|&path| path.to_owned()).collect();
        strict_faults(&read.value, &unknown, &read.duplicates, is_typed).join(", ")
    }

    #[test]
    fn a_typed_object_names_them_in_the_order_of_the_document() {
        let text = r#"{"spec": {"bad": 1, "replicas": 1, "replicas": 2, "twice": 1, "twice": 2, "list": [
            {"a": 1}, {"image": "x", "odd.key": 1, "image": "y"}], "last": 0}}"#;
        let unknown = ["spec.bad", "spec.twice", "spec.list[1].odd.key", "spec.last"];
        assert_eq!(
            faults(text, &unknown, true),
            "unknown field \"spec.bad\", duplicate field \"spec.replicas\", unknown field \"spec.twice\", \
             unknown field \"spec.list[1].odd.key\", duplicate field \"spec.list[1].image\", \
             unknown field \"spec.last\""
        );
        assert_eq!(
            faults(text, &["spec.bad"], false),
            "duplicate field \"spec.replicas\", duplicate field \"spec.twice\", \
             duplicate field \"spec.list[1].image\", unknown field \"spec.bad\""
        );
        assert_eq!(
            faults(r#"{"a": {"b": 1, "b": 2}, "a": {}}"#, &[], true),
            "duplicate field \"a.b\", duplicate field \"a\""
        );
        assert_eq!(faults("{}", &["x"], true), "unknown field \"x\"");
    }
}
