// SPDX-License-Identifier: Apache-2.0
//! Bounds of every document that is read, built or stored: nesting, elements, bytes, and the work that one request may
//! cause. All readers (JSON, YAML, protobuf), patches, server-side apply and the store go through here.

use serde_json::Value;

use crate::status::Refusal;

/// Deepest nesting of a document. Below serde_json's own limit of 128, so that what was stored can always be read.
pub const MAX_DEPTH: usize = 100;
/// Most elements (values of any kind) of a document: a body of 3 MiB could hold 1.5 million, of 32 bytes each or more.
pub const MAX_ELEMENTS: usize = 200_000;
/// Largest body of a request in bytes, as in Kubernetes.
pub const MAX_BODY: usize = 3 * 1024 * 1024;
/// Largest object in bytes of JSON, `metadata.managedFields` included: etcd's limit.
pub const MAX_OBJECT: usize = 1024 * 1024 * 3 / 2;
/// Most operations of a JSON Patch, as in Kubernetes.
pub const MAX_OPERATIONS: usize = 10_000;
/// Steps of work (an element visited or compared, a step of a path followed) that one request may cause.
pub const MAX_WORK: u64 = 5_000_000;

/// A bound that a document exceeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OverBound {
    /// Nested too deeply.
    #[error("nested more than {MAX_DEPTH} levels deep")]
    Depth,
    /// Too many elements.
    #[error("more than {MAX_ELEMENTS} elements")]
    Elements,
    /// Too many bytes.
    #[error("larger than {MAX_OBJECT} bytes")]
    Bytes,
    /// Too many operations.
    #[error("more than {MAX_OPERATIONS} operations")]
    Operations,
    /// Too much work.
    #[error("more than {MAX_WORK} steps of work")]
    Work,
}

impl From<OverBound> for Refusal {
    /// 413 naming the bound.
    fn from(over: OverBound) -> Self {
        let what =
            if over == OverBound::Work { "the request causes" } else { "the object or patch has or is" };
        Self::too_large(format!("{what} {over}"))
    }
}

/// The elements of a document that is being read, counted as they come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Elements(usize);

impl Elements {
    /// Counts an element at a depth; the outermost value is at 0.
    ///
    /// # Errors
    /// The document is too deep or has too many elements.
    pub fn count(&mut self, depth: usize) -> Result<(), OverBound> {
        self.0 += 1;
        if depth > MAX_DEPTH {
            Err(OverBound::Depth)
        } else if self.0 > MAX_ELEMENTS {
            Err(OverBound::Elements)
        } else {
            Ok(())
        }
    }
}

/// The extent of a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Levels below the value; 0 for a scalar.
    pub depth: usize,
    /// Values, itself included.
    pub elements: usize,
    /// Bytes of memory, estimated from the lengths of texts and lists.
    pub memory: usize,
}

/// Memory of one value besides texts, and of one entry of a map besides its key and value.
const VALUE: usize = size_of::<Value>();
const ENTRY: usize = 3 * size_of::<usize>() + 2 * size_of::<u64>();

impl Extent {
    /// Measures a value without recursion; stops at the first bound that is exceeded.
    ///
    /// # Errors
    /// The value is too deep or has too many elements.
    pub fn of(value: &Value) -> Result<Self, OverBound> {
        let mut extent = Self::default();
        let mut rest = vec![(value, 0)];
        while let Some((value, depth)) = rest.pop() {
            extent.elements += 1;
            extent.memory += VALUE;
            extent.depth = extent.depth.max(depth);
            if depth > MAX_DEPTH {
                return Err(OverBound::Depth);
            }
            if extent.elements > MAX_ELEMENTS {
                return Err(OverBound::Elements);
            }
            match value {
                Value::String(text) => extent.memory += text.len(),
                Value::Array(list) => rest.extend(list.iter().map(|inner| (inner, depth + 1))),
                Value::Object(map) => {
                    extent.memory += map.keys().map(|key| ENTRY + key.len()).sum::<usize>();
                    rest.extend(map.values().map(|inner| (inner, depth + 1)));
                }
                Value::Null | Value::Bool(_) | Value::Number(_) => {}
            }
        }
        Ok(extent)
    }
}

/// The work that is left to one request.
#[derive(Debug)]
pub struct Work(u64);

impl Default for Work {
    fn default() -> Self {
        Self(MAX_WORK)
    }
}

impl Work {
    /// Takes steps from what is left.
    ///
    /// # Errors
    /// Fewer are left.
    pub fn spend(&mut self, steps: usize) -> Result<(), OverBound> {
        self.0 = self.0.checked_sub(steps as u64).ok_or(OverBound::Work)?;
        Ok(())
    }

    /// Takes the steps of comparing each of `these` with each of `those`.
    ///
    /// # Errors
    /// Fewer are left.
    pub fn spend_pairs(&mut self, these: usize, those: usize) -> Result<(), OverBound> {
        self.spend(these.saturating_mul(those))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn nested(depth: usize) -> Value {
        (0..depth)
            .fold(json!(1), |inner, level| if level % 2 == 0 { json!([inner]) } else { json!({"a": inner}) })
    }

    #[test]
    fn an_extent_is_measured_and_its_bounds_are_exact() {
        let extent = Extent::of(&json!({"a": [1, "xy", {}], "b": null})).unwrap();
        assert_eq!((extent.depth, extent.elements), (2, 6));
        assert!(extent.memory >= 6 * VALUE + 2 + 2);
        assert_eq!(Extent::of(&nested(MAX_DEPTH)).unwrap().depth, MAX_DEPTH);
        assert_eq!(Extent::of(&nested(MAX_DEPTH + 1)), Err(OverBound::Depth));
        let list = |n| Value::Array(vec![json!(0); n]);
        assert_eq!(Extent::of(&list(MAX_ELEMENTS - 1)).unwrap().elements, MAX_ELEMENTS);
        assert_eq!(Extent::of(&list(MAX_ELEMENTS)), Err(OverBound::Elements));
    }

    #[test]
    fn what_is_within_the_bounds_can_be_read_back() {
        let deepest = nested(MAX_DEPTH);
        assert_eq!(serde_json::from_str::<Value>(&deepest.to_string()).unwrap(), deepest);
    }

    #[test]
    fn work_ends() {
        let mut work = Work::default();
        assert!(work.spend_pairs(1000, 1000).is_ok());
        assert_eq!(work.spend_pairs(usize::MAX, 2), Err(OverBound::Work));
        assert!(work.spend(1).is_ok(), "what was refused was not taken");
    }
}
