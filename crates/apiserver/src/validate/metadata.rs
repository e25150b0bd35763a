// SPDX-License-Identifier: Apache-2.0
//! Labels, annotations and finalizers: keys that can be selected and told apart.

use serde_json::Value;

use crate::status::Cause;

const NAME_PART: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end \
                         with an alphanumeric character";

/// Whether it could be a label's value or the name in its key; the empty text is a value.
pub(crate) fn is_label(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && edge(text.chars().next())
        && edge(text.chars().next_back())
}

/// Whether it is `name` or `prefix/name`, as the keys of labels and annotations and the names of finalizers are.
pub(crate) fn is_qualified_name(text: &str) -> bool {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    let is_prefix = |prefix: &str| prefix.split('.').all(|part| !part.is_empty() && is_label(part));
    !name.is_empty() && is_label(name) && prefix.is_none_or(is_prefix)
}

pub(super) fn faults(metadata: &Value, faults: &mut Vec<Cause>) {
    labels(&metadata["labels"], "metadata.labels", faults);
    for key in metadata["annotations"].as_object().into_iter().flat_map(|annotations| annotations.keys()) {
        if !is_qualified_name(key) {
            faults.push(Cause::invalid("metadata.annotations", &key.as_str().into(), NAME_PART));
        }
    }
    for (index, finalizer) in metadata["finalizers"].as_array().into_iter().flatten().enumerate() {
        if !finalizer.as_str().is_some_and(is_qualified_name) {
            faults.push(Cause::invalid(format!("metadata.finalizers[{index}]"), finalizer, NAME_PART));
        }
    }
}

pub(super) fn labels(labels: &Value, path: &str, faults: &mut Vec<Cause>) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        if !is_qualified_name(key) {
            faults.push(Cause::invalid(path, &key.as_str().into(), NAME_PART));
        }
        if !value.as_str().is_some_and(is_label) {
            let why = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', \
                       and must start and end with an alphanumeric character";
            faults.push(Cause::invalid(path, value, why));
        }
    }
}
