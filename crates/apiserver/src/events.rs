// SPDX-License-Identifier: Apache-2.0
//! Events are one resource under two groups: kept in the core form, shown in either.

use serde_json::{Map, Value, json};

/// (core/v1, events.k8s.io/v1)
const NAMES: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("reportingInstance", "reportingInstance"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

fn renamed(event: &Value, name: impl Fn(&str) -> String) -> Map<String, Value> {
    event.as_object().into_iter().flatten().map(|(key, value)| (name(key), value.clone())).collect()
}

/// From `events.k8s.io/v1` to `v1`.
pub fn to_core(event: &Value) -> Value {
    let mut core = renamed(event, |key| {
        NAMES.iter().find(|(_, other)| *other == key).map_or(key, |(core, _)| *core).to_owned()
    });
    core.insert("apiVersion".into(), "v1".into());
    // Clients of the core form look at these.
    let time =
        core.get("eventTime").cloned().unwrap_or_else(|| event["metadata"]["creationTimestamp"].clone());
    for key in ["firstTimestamp", "lastTimestamp"] {
        if core.get(key).is_none_or(Value::is_null) && time.is_string() {
            let seconds = time.as_str().unwrap_or_default();
            let whole = seconds.split('.').next().unwrap_or_default().trim_end_matches('Z');
            core.insert(key.into(), format!("{whole}Z").into());
        }
    }
    if let Some(component) =
        core.get("reportingComponent").filter(|_| !event["deprecatedSource"].is_object()).cloned()
    {
        core.insert("source".into(), json!({"component": component}));
    }
    Value::Object(core)
}

/// From `v1` to `events.k8s.io/v1`.
pub fn to_events_api(event: &Value) -> Value {
    let mut other = renamed(event, |key| {
        NAMES.iter().find(|(core, _)| *core == key).map_or(key, |(_, other)| *other).to_owned()
    });
    other.insert("apiVersion".into(), "events.k8s.io/v1".into());
    Value::Object(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_tell_the_same() {
        let event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "regarding": {"kind": "Pod", "name": "a"},
                           "note": "hello", "reportingController": "c", "eventTime": "2026-01-01T00:00:00.123456Z"});
        let core = to_core(&event);
        assert_eq!(core["involvedObject"]["name"], "a");
        assert_eq!((&core["message"], &core["source"]["component"]), (&json!("hello"), &json!("c")));
        assert_eq!(core["lastTimestamp"], "2026-01-01T00:00:00Z");
        assert_eq!(to_events_api(&core)["note"], "hello");
    }
}
