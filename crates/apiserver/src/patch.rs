// SPDX-License-Identifier: Apache-2.0
//! The patches that change one object at a time: JSON Patch (RFC 6902), JSON Merge Patch (RFC 7386) and Kubernetes'
//! strategic merge patch. Pure.

mod json;
mod strategic;

use serde_json::Value;

use crate::status::Refusal;

pub use self::json::json;
pub use self::strategic::strategic;

/// Kinds of patches, by content type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    /// `application/json-patch+json`
    Json,
    /// `application/merge-patch+json`
    Merge,
    /// `application/strategic-merge-patch+json`
    Strategic,
    /// `application/apply-patch+yaml`
    Apply,
}

impl PatchKind {
    /// From a Content-Type.
    ///
    /// # Errors
    /// 415 for any other.
    pub fn of(content_type: &str) -> Result<Self, Refusal> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Ok(Self::Json),
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/strategic-merge-patch+json" => Ok(Self::Strategic),
            "application/apply-patch+yaml" | "application/apply-patch+json" => Ok(Self::Apply),
            other => Err(Refusal::unsupported_media_type(format!(
                "the body of the request was in an unknown format ({other:?}) - accepted media types include: \
                 application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml, \
                 application/strategic-merge-patch+json"
            ))),
        }
    }
}

/// Applies a JSON Merge Patch. Its work is that of reading both documents.
pub fn merge(object: &mut Value, patch: &Value) {
    json_patch::merge(object, patch);
}
