// SPDX-License-Identifier: Apache-2.0
//! Sizes that Kubernetes limits: annotations, ConfigMaps and Secrets.

use serde_json::Value;

use crate::registry::ResourceInfo;
use crate::status::Cause;

/// Bytes of all annotations of an object, keys and values.
const MAX_ANNOTATIONS: usize = 256 * 1024;
/// Bytes of the data of a ConfigMap or Secret, decoded.
const MAX_DATA: usize = 1024 * 1024;

pub(super) fn faults(info: &ResourceInfo, object: &Value, faults: &mut Vec<Cause>) {
    let text = |value: &Value| value.as_str().map_or(0, str::len);
    let decoded = |value: &Value| {
        let padding = value.as_str().map_or(0, |text| text.bytes().rev().take_while(|b| *b == b'=').count());
        (text(value) / 4 * 3).saturating_sub(padding)
    };
    let annotations = total(&object["metadata"]["annotations"], |key, value| key.len() + text(value));
    if annotations > MAX_ANNOTATIONS {
        faults.push(too_long("metadata.annotations", MAX_ANNOTATIONS));
    }
    let data = match (info.group.as_str(), info.kind.as_str()) {
        ("", "ConfigMap") => {
            total(&object["data"], |_, value| text(value))
                + total(&object["binaryData"], |_, value| decoded(value))
        }
        ("", "Secret") => total(&object["data"], |_, value| decoded(value)),
        _ => 0,
    };
    if data > MAX_DATA {
        faults.push(too_long("data", MAX_DATA));
    }
}

fn total(map: &Value, size: impl Fn(&str, &Value) -> usize) -> usize {
    map.as_object().into_iter().flatten().map(|(key, value)| size(key, value)).sum()
}

fn too_long(field: &str, max: usize) -> Cause {
    let message = format!("Too long: may not be more than {max} bytes");
    Cause { field: field.into(), reason: "FieldValueTooLong", message }
}
