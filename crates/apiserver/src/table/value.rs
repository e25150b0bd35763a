// SPDX-License-Identifier: Apache-2.0
//! Values of objects as the texts of cells.

use serde_json::{Value, json};

/// A duration as kubectl writes it: `42s`, `5m12s`, `3h`, `2d4h`.
pub(super) fn age(since: &Value, now: jiff::Timestamp) -> String {
    let Some(then) = since.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok()) else {
        return "<unknown>".into();
    };
    human(now.as_second() - then.as_second())
}

pub(super) fn human(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let pair = |big: i64, unit: char, small: i64, small_unit: char| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{small_unit}") }
    };
    match seconds {
        ..0 => "0s".into(),
        0..=119 => format!("{seconds}s"),
        120..=599 => pair(minutes, 'm', seconds % 60, 's'),
        600..=10_799 => format!("{minutes}m"),
        10_800..=28_799 => pair(hours, 'h', minutes % 60, 'm'),
        28_800..=172_799 => format!("{hours}h"),
        172_800..=691_199 => pair(days, 'd', hours % 24, 'h'),
        691_200..=63_071_999 => format!("{days}d"),
        _ => pair(days / 365, 'y', days % 365, 'd'),
    }
}

pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

pub(super) fn or(value: &Value, otherwise: &str) -> Value {
    let text = text(value);
    if text.is_empty() { json!(otherwise) } else { json!(text) }
}

pub(super) fn number(value: &Value) -> Value {
    json!(value.as_i64().unwrap_or(0))
}

pub(super) fn count(value: &Value) -> usize {
    value.as_array().map_or_else(|| value.as_object().map_or(0, serde_json::Map::len), Vec::len)
}

pub(super) fn labels(value: &Value) -> Value {
    let list: Vec<String> =
        value.as_object().into_iter().flatten().map(|(k, v)| format!("{k}={}", text(v))).collect();
    json!(if list.is_empty() { "<none>".to_owned() } else { list.join(",") })
}

pub(super) fn each(list: &Value, key: &str) -> Value {
    let list: Vec<String> = list.as_array().into_iter().flatten().map(|item| text(&item[key])).collect();
    json!(list.join(","))
}
