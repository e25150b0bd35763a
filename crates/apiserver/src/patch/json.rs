// SPDX-License-Identifier: Apache-2.0
//! JSON Patch (RFC 6902), one operation at a time: each is measured before it is carried out, because a few bytes can
//! ask for a document of any size (`copy` of the root into itself) or depth (`move`).

use json_patch::PatchOperation;
use serde_json::Value;

use crate::bounds::{Extent, MAX_BODY, MAX_DEPTH, MAX_OPERATIONS, OverBound, Work};
use crate::status::Refusal;

/// Elements of a list that are moved in the time of one step of work.
const MOVED_PER_STEP: usize = 16;

/// Applies a JSON Patch. The object is undefined after an error.
///
/// # Errors
/// 400 when it is not one, 422 when an operation cannot be applied, 413 when it exceeds a bound.
pub fn json(object: &mut Value, patch: Value) -> Result<(), Refusal> {
    if patch.as_array().is_some_and(|operations| operations.len() > MAX_OPERATIONS) {
        return Err(OverBound::Operations.into());
    }
    let patch: json_patch::Patch =
        serde_json::from_value(patch).map_err(|e| Refusal::bad_request(format!("not a JSON patch: {e}")))?;
    let (mut work, mut copied) = (Work::default(), 0);
    for operation in &patch.0 {
        admit(object, operation, &mut work, &mut copied)?;
        json_patch::patch_unsafe(object, std::slice::from_ref(operation)).map_err(|e| {
            let mut refusal = Refusal::bad_request(format!(
                "the server rejected our request due to an error in our request: {e}"
            ));
            refusal.code = 422;
            refusal.reason = "Invalid";
            refusal
        })?;
    }
    Extent::of(object)?;
    Ok(())
}

/// Checks what an operation makes of a document, before it does.
fn admit(
    object: &Value,
    operation: &PatchOperation,
    work: &mut Work,
    copied: &mut usize,
) -> Result<(), OverBound> {
    let path = operation.path().as_str();
    let level = path.matches('/').count();
    // Inserting and removing moves the rest of a list.
    let parent = path.rsplit_once('/').and_then(|(parent, _)| object.pointer(parent));
    let moved = parent.and_then(Value::as_array).map_or(0, |list| list.len() / MOVED_PER_STEP);
    work.spend(1 + level + moved)?;
    let inserted = match operation {
        PatchOperation::Add(add) => Some(&add.value),
        PatchOperation::Replace(replace) => Some(&replace.value),
        PatchOperation::Test(test) => Some(&test.value),
        // Those that name nothing fail by themselves.
        PatchOperation::Move(from) => object.pointer(from.from.as_str()),
        PatchOperation::Copy(from) => object.pointer(from.from.as_str()),
        PatchOperation::Remove(_) => None,
    };
    let Some(inserted) = inserted else { return Ok(()) };
    let extent = Extent::of(inserted)?;
    work.spend(extent.elements)?;
    if level + extent.depth > MAX_DEPTH {
        return Err(OverBound::Depth);
    }
    if let PatchOperation::Copy(_) = operation {
        *copied += extent.memory;
        if *copied > MAX_BODY {
            return Err(OverBound::Bytes);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Each is small to send; without bounds each ends the process by its memory, its stack or its time.
    #[test]
    fn what_would_grow_without_bound_is_refused() {
        let operation = |op: &str, from: &str, path: &str| json!({"op": op, "from": from, "path": path});
        let doubling = (0..26).map(|n| operation("copy", "", &format!("/x{n}"))).collect();
        let nesting = (0..9_000)
            .flat_map(|_| {
                [
                    json!({"op": "add", "path": "/b", "value": {}}),
                    operation("move", "/a", "/b/a"),
                    operation("move", "/b", "/a"),
                ]
            })
            .take(MAX_OPERATIONS)
            .collect();
        let levels =
            json!({"op": "add", "path": "/a", "value": (0..90).fold(json!(1), |inner, _| json!([inner]))});
        let deeper = vec![
            levels.clone(),
            operation("move", "/a", "/b"),
            levels,
            operation("move", "/b", &format!("/a{}", "/0".repeat(80))),
        ];
        let many = vec![json!({"op": "test", "path": "", "value": {}}); MAX_OPERATIONS + 1];
        let shuffle = (0..MAX_OPERATIONS).map(|_| operation("move", "/list/0", "/list/0")).collect();
        let copies = (0..MAX_OPERATIONS).map(|_| operation("copy", "/list", "/other")).collect();
        for (name, patch) in [
            ("doubling", doubling),
            ("nesting", nesting),
            ("deeper", deeper),
            ("many", many),
            ("shuffle", shuffle),
            ("copies", copies),
        ] {
            let mut object = json!({"a": {}, "list": vec![0; 100_000]});
            let refusal = json(&mut object, Value::Array(patch)).unwrap_err();
            assert_eq!(refusal.code, 413, "{name}: {}", refusal.message);
        }
    }

    #[test]
    fn what_kubernetes_takes_is_taken() {
        let mut object = json!({"data": {"a": "1"}, "list": [1, 2]});
        let patch = json!([
            {"op": "test", "path": "/data/a", "value": "1"}, {"op": "replace", "path": "/data/a", "value": "2"},
            {"op": "add", "path": "/list/-", "value": {"x": []}}, {"op": "copy", "from": "/list", "path": "/data/b"},
            {"op": "move", "from": "/list/0", "path": "/list/1"}, {"op": "remove", "path": "/list/0"},
        ]);
        json(&mut object, patch).unwrap();
        assert_eq!(object, json!({"data": {"a": "2", "b": [1, 2, {"x": []}]}, "list": [1, {"x": []}]}));
        let many = json!(vec![json!({"op": "add", "path": "/data/a", "value": "3"}); MAX_OPERATIONS]);
        json(&mut object, many).unwrap();
        for (patch, code) in
            [(json!({}), 400), (json!([{"op": "x"}]), 400), (json!([{"op": "remove", "path": "/none"}]), 422)]
        {
            assert_eq!(json(&mut object.clone(), patch).unwrap_err().code, code);
        }
    }

    proptest! {
        /// Whatever the operations, what comes out is within the bounds, or they are refused.
        #[test]
        fn random_operations_stay_within_the_bounds(
            steps in prop::collection::vec((0..5_usize, "(/[ab0-]){0,6}", "(/[ab0-]){0,6}", 0..60_usize), 0..60),
        ) {
            let operations = steps.into_iter().map(|(op, from, path, depth)| {
                let value = (0..depth).fold(json!({}), |inner, n| if n % 2 == 0 { json!({"a": inner}) } else { json!([inner]) });
                json!({"op": (["add", "copy", "move", "replace", "remove"][op]), "from": from, "path": path, "value": value})
            });
            let mut object = json!({"a": {"b": []}, "b": [{"a": 1}]});
            // One at a time: those that cannot be applied are left out, so that the rest still builds something.
            for operation in operations {
                let mut next = object.clone();
                if json(&mut next, json!([operation])).is_ok() {
                    prop_assert!(Extent::of(&next).is_ok());
                    object = next;
                }
            }
        }
    }
}
