// SPDX-License-Identifier: Apache-2.0
//! Documents that clients and webhooks send: JSON and YAML through one reader, with the bounds of [`crate::bounds`].
//! YAML has no anchors and aliases here: clients of Kubernetes send none, and a small document can mean a huge one.

mod reader;

use serde::de::DeserializeSeed as _;
use serde_json::Value;

use self::reader::Reader;
use crate::bounds::{MAX_BODY, MAX_DEPTH, MAX_ELEMENTS, OverBound};
use crate::status::Refusal;

/// Why a document cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// A field stands twice.
    #[error("strict decoding error: duplicate field \"{0}\"")]
    Duplicate(String),
    /// A bound is exceeded.
    #[error("the document has {0}")]
    OverBound(OverBound),
    /// It is not in the format.
    #[error("error decoding {format}: {reason}")]
    Malformed {
        /// `JSON` or `YAML`
        format: &'static str,
        /// The parser's words.
        reason: String,
    },
}

impl From<DocumentError> for Refusal {
    fn from(error: DocumentError) -> Self {
        match error {
            DocumentError::OverBound(over) => over.into(),
            DocumentError::Duplicate(_) | DocumentError::Malformed { .. } => {
                Self::bad_request(error.to_string())
            }
        }
    }
}

/// Reads JSON.
///
/// # Errors
/// See [`DocumentError`].
pub fn json(bytes: &[u8]) -> Result<Value, DocumentError> {
    let reader = Reader::default();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = reader.element().deserialize(&mut deserializer).and_then(|v| deserializer.end().map(|()| v));
    finish(&reader, "JSON", value.map_err(|e| e.to_string()))
}

/// Reads YAML, of which JSON is a part.
///
/// # Errors
/// See [`DocumentError`].
pub fn yaml(bytes: &[u8]) -> Result<Value, DocumentError> {
    // What clients send as YAML is JSON nearly always, and is read by the same parser then.
    if bytes.trim_ascii_start().starts_with(b"{") {
        match json(bytes) {
            Err(DocumentError::Malformed { .. }) => {}
            read => return read,
        }
    }
    let reader = Reader::default();
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_anchors: 0,
            max_aliases: 0,
            max_merge_keys: 0,
            max_documents: 1,
            max_depth: MAX_DEPTH,
            max_nodes: MAX_ELEMENTS * 2,
            max_events: MAX_ELEMENTS * 4,
            max_total_scalar_bytes: MAX_BODY,
        },
        // The reader names the field.
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
        strict_booleans: true,
        with_snippet: false,
    };
    let value = serde_saphyr::with_deserializer_from_slice_with_options(bytes, options, |deserializer| {
        reader.element().deserialize(deserializer)
    });
    finish(&reader, "YAML", value.map_err(|e| e.to_string()))
}

fn finish(
    reader: &Reader,
    format: &'static str,
    value: Result<Value, String>,
) -> Result<Value, DocumentError> {
    match (reader.over(), reader.duplicate(), value) {
        (Some(over), _, _) => Err(DocumentError::OverBound(over)),
        (None, Some(field), _) => Err(DocumentError::Duplicate(field)),
        (None, None, Ok(value)) => Ok(value),
        // serde_json has a bound of its own on nesting, above ours.
        (None, None, Err(reason)) if reason.contains("recursion limit") => {
            Err(DocumentError::OverBound(OverBound::Depth))
        }
        (None, None, Err(reason)) => Err(DocumentError::Malformed { format, reason }),
    }
}

#[cfg(test)]
mod tests;
