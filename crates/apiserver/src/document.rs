// SPDX-License-Identifier: Apache-2.0
//! Documents that clients and webhooks send: JSON and YAML through one reader, with the bounds of [`crate::bounds`].
//! YAML has no anchors and aliases here: clients of Kubernetes send none, and a small document can mean a huge one.

mod reader;

use std::fmt;

use serde::de::DeserializeSeed as _;
use serde_json::Value;

use self::reader::Reader;
use crate::bounds::{MAX_BODY, MAX_DEPTH, MAX_ELEMENTS, OverBound};
use crate::status::Refusal;

/// Why a document cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Fields stand twice; each is named.
    #[error("strict decoding error: {}", listed(.0))]
    Duplicates(Vec<Duplicate>),
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
            DocumentError::Duplicates(_) | DocumentError::Malformed { .. } => {
                Self::bad_request(error.to_string())
            }
        }
    }
}

/// A field that stands twice. It is shown in the words of Kubernetes' readers of JSON and YAML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duplicate {
    /// E.g. `spec.rules[1].from`; long keys are cut.
    pub path: String,
    /// Its last key.
    pub key: String,
    /// How many other fields its map has before it stands again.
    pub place: usize,
    /// The line where it stands again, from 1; YAML only.
    pub line: Option<u64>,
}

impl fmt::Display for Duplicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: key \"{}\" already set in map", self.key),
            None => write!(f, "duplicate field \"{}\"", self.path),
        }
    }
}

fn listed(duplicates: &[Duplicate]) -> String {
    duplicates.iter().map(Duplicate::to_string).collect::<Vec<_>>().join(", ")
}

/// A document, and what a strict reader refuses about it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Document {
    /// What it says; of a field that stands twice, the last value.
    pub value: Value,
    /// The fields that stand twice, in their order; a long list is cut.
    pub duplicates: Vec<Duplicate>,
}

impl Document {
    /// The value, if no field stands twice.
    ///
    /// # Errors
    /// [`DocumentError::Duplicates`].
    pub fn strict(self) -> Result<Value, DocumentError> {
        if self.duplicates.is_empty() {
            Ok(self.value)
        } else {
            Err(DocumentError::Duplicates(self.duplicates))
        }
    }
}

/// Reads JSON in which no field stands twice.
///
/// # Errors
/// See [`DocumentError`].
pub fn json(bytes: &[u8]) -> Result<Value, DocumentError> {
    read_json(bytes)?.strict()
}

/// Reads JSON.
///
/// # Errors
/// See [`DocumentError`].
pub fn read_json(bytes: &[u8]) -> Result<Document, DocumentError> {
    let reader = Reader::json();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = reader.element().deserialize(&mut deserializer).and_then(|v| deserializer.end().map(|()| v));
    finish(reader, "JSON", value.map_err(|e| e.to_string()))
}

/// Reads YAML, of which JSON is a part, in which no field stands twice.
///
/// # Errors
/// See [`DocumentError`].
pub fn yaml(bytes: &[u8]) -> Result<Value, DocumentError> {
    read_yaml(bytes)?.strict()
}

/// Reads YAML, of which JSON is a part.
///
/// # Errors
/// See [`DocumentError`].
pub fn read_yaml(bytes: &[u8]) -> Result<Document, DocumentError> {
    // What clients send as YAML is JSON nearly always, and is read by the same parser then.
    if bytes.trim_ascii_start().starts_with(b"{") {
        match read_json(bytes) {
            Err(DocumentError::Malformed { .. }) => {}
            read => return read,
        }
    }
    let reader = Reader::yaml();
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
        // The reader names the fields.
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
        strict_booleans: true,
        with_snippet: false,
    };
    let value = serde_saphyr::with_deserializer_from_slice_with_options(bytes, options, |deserializer| {
        reader.element().deserialize(deserializer)
    });
    finish(reader, "YAML", value.map_err(|e| e.to_string()))
}

fn finish(
    reader: Reader,
    format: &'static str,
    value: Result<Value, String>,
) -> Result<Document, DocumentError> {
    match (reader.over(), value) {
        (Some(over), _) => Err(DocumentError::OverBound(over)),
        (None, Ok(value)) => Ok(Document { value, duplicates: reader.duplicates() }),
        // serde_json has a bound of its own on nesting, above ours.
        (None, Err(reason)) if reason.contains("recursion limit") => {
            Err(DocumentError::OverBound(OverBound::Depth))
        }
        (None, Err(reason)) => Err(DocumentError::Malformed { format, reason }),
    }
}

#[cfg(test)]
mod tests;
