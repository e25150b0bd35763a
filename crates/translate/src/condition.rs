// SPDX-License-Identifier: Apache-2.0
//! A status condition as a value, without the time at which it was written.

use serde_json::{Value, json};

/// A condition of a status; whoever writes it adds the transition time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Its type.
    pub kind: String,
    /// `True` or `False`.
    pub status: bool,
    /// One word, for machines.
    pub reason: String,
    /// A sentence, for people.
    pub message: String,
}

impl Condition {
    /// A condition that holds.
    pub fn yes(kind: &str, reason: &str, message: impl Into<String>) -> Self {
        Self { kind: kind.to_owned(), status: true, reason: reason.to_owned(), message: message.into() }
    }

    /// A condition that does not hold.
    pub fn no(kind: &str, reason: &str, message: impl Into<String>) -> Self {
        Self { status: false, ..Self::yes(kind, reason, message) }
    }

    /// `True` or `False`, as the API writes it.
    pub fn status_text(&self) -> &'static str {
        if self.status { "True" } else { "False" }
    }

    /// The condition as the API writes it. The transition time is kept from `previous` (the conditions of the
    /// object as read) when the status has not changed, else it is `now` (RFC 3339).
    pub fn to_json(&self, generation: Option<i64>, previous: Option<&Value>, now: &str) -> Value {
        let before = previous
            .and_then(Value::as_array)
            .and_then(|all| all.iter().find(|c| c["type"] == self.kind && c["status"] == self.status_text()))
            .and_then(|c| c["lastTransitionTime"].as_str());
        let mut out = json!({
            "type": self.kind,
            "status": self.status_text(),
            "reason": self.reason,
            "message": self.message,
            "lastTransitionTime": before.unwrap_or(now),
        });
        if let Some(generation) = generation {
            out["observedGeneration"] = json!(generation);
        }
        out
    }
}
