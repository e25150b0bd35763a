// SPDX-License-Identifier: Apache-2.0
//! Server-side apply: who owns which field (`metadata.managedFields`), conflicts, and removal of what an applier no
//! longer names. Pure.

mod fields;

use serde_json::{Value, json};

pub use self::fields::{FieldSet, Step};
use crate::bounds::{OverBound, Work};
use crate::schema::Typed;
use crate::status::Refusal;

/// Who changes an object, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manager<'a> {
    /// `fieldManager` of the request.
    pub name: &'a str,
    /// `Apply` or `Update`.
    pub operation: &'static str,
    /// `apiVersion` of the request.
    pub api_version: &'a str,
    /// Subresource, empty for the main one.
    pub subresource: &'a str,
    /// Now, RFC 3339.
    pub time: &'a str,
}

/// Applies a configuration to an object (or to nothing, creating it).
///
/// # Errors
/// 409 when a field with another value belongs to another manager and `force` is not set; 413 when it takes more work
/// than one request may cause.
pub fn apply(
    live: Option<&Value>,
    config: &Value,
    typed: Typed<'_>,
    manager: &Manager<'_>,
    force: bool,
) -> Result<Value, Refusal> {
    let mut work = Work::default();
    let mut wanted = config.clone();
    if let Some(metadata) = wanted.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
        metadata.remove("resourceVersion");
    }
    let mine = FieldSet::of(&wanted, typed);
    let mut object = live.cloned().unwrap_or_else(|| json!({}));
    let mut managers = managed(&object);
    if !force {
        conflicts(&object, &wanted, &mine, &managers, manager, &mut work)?;
    }
    let held = Held::take(&mut managers, manager);
    let mut others = Owners::of(&managers);
    // What was applied before and is not any more goes, unless somebody else owns it too.
    held.fields.visit(&mut |path| {
        // An element of a list that nobody names goes as a whole, with what defaults have added to it.
        let elements =
            (1..path.len()).filter(|end| !matches!(path[end - 1], Step::Field(_))).map(|end| &path[..end]);
        for gone in elements.chain([path]) {
            if !mine.has(gone, &mut work)? && !others.have(gone, &mut work)? {
                if fields::value(&object, gone, &mut work)?.is_some() {
                    fields::remove(&mut object, gone);
                }
                break;
            }
        }
        Ok(())
    })?;
    fields::merge(&mut object, &wanted, typed, &mut work)?;
    // What is forced belongs to the applier alone.
    others.retain(|path| {
        let forced = mine.has(path, &mut work)?
            && match live {
                Some(live) => {
                    fields::value(live, path, &mut work)? != fields::value(&wanted, path, &mut work)?
                }
                None => false,
            };
        Ok(!forced)
    })?;
    others.put_back(&mut managers);
    let changed = mine.filter(|path| differs(live, &object, path, &mut work))?;
    held.put_back(&mut managers, manager, &mine, changed.is_empty());
    set_managed(&mut object, managers);
    Ok(object)
}

/// Whether an object has another value at a path than the one before, or there was none before.
fn differs(
    before: Option<&Value>,
    object: &Value,
    path: &[Step],
    work: &mut Work,
) -> Result<bool, OverBound> {
    let Some(before) = before else { return Ok(true) };
    Ok(fields::value(before, path, work)? != fields::value(object, path, work)?)
}

/// Notes an update (PUT, POST or another patch): fields that changed belong to the updater now.
///
/// # Errors
/// It takes more work than one request may cause.
pub fn note_update(
    before: Option<&Value>,
    object: &mut Value,
    typed: Typed<'_>,
    manager: &Manager<'_>,
) -> Result<(), OverBound> {
    let mut work = Work::default();
    let mut plain = object.clone();
    if let Some(metadata) = plain.get_mut("metadata").and_then(Value::as_object_mut) {
        for key in ["managedFields", "resourceVersion", "uid", "creationTimestamp", "generation", "selfLink"]
        {
            metadata.remove(key);
        }
    }
    let all = FieldSet::of(&plain, typed);
    let changed = all.filter(|path| differs(before, &plain, path, &mut work))?;
    let mut managers = before.map(managed).unwrap_or_default();
    let held = Held::take(&mut managers, manager);
    let mut others = Owners::of(&managers);
    others.retain(|path| Ok(!changed.has(path, &mut work)? && all.has(path, &mut work)?))?;
    others.put_back(&mut managers);
    let mine = held.fields.filter(|path| all.has(path, &mut work))?.union(&changed)?;
    if !mine.is_empty() {
        held.put_back(&mut managers, manager, &mine, changed.is_empty());
    }
    set_managed(object, managers);
    Ok(())
}

/// The fields of each manager, in the order of their entries.
struct Owners(Vec<FieldSet>);

impl Owners {
    fn of(managers: &[Value]) -> Self {
        Self(managers.iter().map(|entry| FieldSet::from_v1(&entry["fieldsV1"])).collect())
    }

    /// Whether one of them has a leaf, or what is above it.
    fn have(&self, path: &[Step], work: &mut Work) -> Result<bool, OverBound> {
        for fields in &self.0 {
            if fields.has(path, work)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Keeps the leaves for which `keep` holds.
    fn retain(&mut self, mut keep: impl FnMut(&[Step]) -> Result<bool, OverBound>) -> Result<(), OverBound> {
        for fields in &mut self.0 {
            *fields = fields.filter(&mut keep)?;
        }
        Ok(())
    }

    /// Writes the fields into their entries; entries without fields go.
    fn put_back(self, managers: &mut Vec<Value>) {
        for (entry, fields) in managers.iter_mut().zip(&self.0) {
            entry["fieldsV1"] = fields.to_v1();
        }
        managers.retain(|entry| entry["fieldsV1"].as_object().is_some_and(|fields| !fields.is_empty()));
    }
}

/// What a manager held before a request.
struct Held {
    entry: Option<Value>,
    fields: FieldSet,
}

impl Held {
    fn take(managers: &mut Vec<Value>, manager: &Manager<'_>) -> Self {
        let at = managers.iter().position(|entry| same(entry, manager));
        let entry = at.map(|at| managers.remove(at));
        let fields = entry.as_ref().map(|entry| FieldSet::from_v1(&entry["fieldsV1"])).unwrap_or_default();
        Self { entry, fields }
    }

    /// Who changes nothing keeps the time of the last change: the object is the same, and gets no new revision.
    fn put_back(self, managers: &mut Vec<Value>, manager: &Manager<'_>, mine: &FieldSet, unchanged: bool) {
        let mut new = entry(manager, mine);
        if let Some(old) = self.entry.filter(|old| unchanged && old["fieldsV1"] == new["fieldsV1"]) {
            new["time"] = old["time"].clone();
        }
        managers.push(new);
        // As in Kubernetes, so that the order does not depend on who wrote last.
        managers.sort_by_cached_key(|entry| {
            ["operation", "time", "manager"].map(|key| entry[key].as_str().unwrap_or_default().to_owned())
        });
    }
}

fn conflicts(
    object: &Value,
    wanted: &Value,
    mine: &FieldSet,
    managers: &[Value],
    manager: &Manager<'_>,
    work: &mut Work,
) -> Result<(), Refusal> {
    let mut causes = Vec::new();
    let mut texts = Vec::new();
    for other in managers.iter().filter(|entry| !same(entry, manager)) {
        let theirs = FieldSet::from_v1(&other["fieldsV1"]);
        mine.visit(&mut |path| {
            if theirs.has_leaf(path, work)?
                && fields::value(object, path, work)? != fields::value(wanted, path, work)?
            {
                let name = other["manager"].as_str().unwrap_or_default();
                let field = fields::display(path);
                work.spend(field.len())?;
                texts.push(format!("conflict with \"{name}\": {field}"));
                causes.push(json!({"reason": "FieldManagerConflict", "message": format!("conflict with \"{name}\""), "field": field}));
            }
            Ok(())
        })?;
    }
    if causes.is_empty() {
        return Ok(());
    }
    let plural = if causes.len() == 1 { "conflict" } else { "conflicts" };
    let message = format!("Apply failed with {} {plural}: {}", causes.len(), texts.join("\n"));
    Err(Refusal::apply_conflict(message, causes))
}

fn managed(object: &Value) -> Vec<Value> {
    object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default()
}

fn set_managed(object: &mut Value, managers: Vec<Value>) {
    if managers.is_empty() {
        object["metadata"].as_object_mut().map(|metadata| metadata.remove("managedFields"));
    } else {
        object["metadata"]["managedFields"] = Value::Array(managers);
    }
}

fn same(entry: &Value, manager: &Manager<'_>) -> bool {
    entry["manager"] == manager.name
        && entry["operation"] == manager.operation
        && entry["subresource"].as_str().unwrap_or_default() == manager.subresource
}

fn entry(manager: &Manager<'_>, fields: &FieldSet) -> Value {
    let mut entry = json!({
        "manager": manager.name, "operation": manager.operation, "apiVersion": manager.api_version,
        "time": manager.time, "fieldsType": "FieldsV1", "fieldsV1": fields.to_v1(),
    });
    if !manager.subresource.is_empty() {
        entry["subresource"] = manager.subresource.into();
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(name: &str) -> Manager<'_> {
        Manager { name, operation: "Apply", api_version: "v1", subresource: "", time: "2026-01-01T00:00:00Z" }
    }

    fn typed() -> Typed<'static> {
        static SCHEMA: std::sync::LazyLock<Value> = std::sync::LazyLock::new(|| {
            json!({"properties": {"status": {"properties": {"conditions": {"type": "array",
                "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}}}}})
        });
        Typed::new(&SCHEMA)
    }

    fn config(data: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data})
    }

    #[test]
    fn what_is_no_longer_applied_goes() {
        let one = apply(None, &config(json!({"a": "1", "b": "2"})), typed(), &manager("x"), false).unwrap();
        let two = apply(Some(&one), &config(json!({"a": "1"})), typed(), &manager("x"), false).unwrap();
        assert_eq!(two["data"], json!({"a": "1"}));
    }

    #[test]
    fn who_changes_nothing_leaves_the_object_as_it_was() {
        let later = |name| Manager { time: "2026-01-02T00:00:00Z", ..manager(name) };
        let updater = |name| Manager { operation: "Update", ..later(name) };
        let one = apply(None, &config(json!({"a": "1"})), typed(), &manager("x"), false).unwrap();
        let one = apply(Some(&one), &config(json!({"b": "1"})), typed(), &manager("y"), false).unwrap();
        let again = apply(Some(&one), &config(json!({"a": "1"})), typed(), &later("x"), false).unwrap();
        assert_eq!(again, one);
        let mut edited = one.clone();
        edited["data"]["c"] = "1".into();
        note_update(Some(&one), &mut edited, typed(), &updater("edit")).unwrap();
        let mut twice = edited.clone();
        note_update(
            Some(&edited),
            &mut twice,
            typed(),
            &Manager { time: "2026-01-03T00:00:00Z", ..updater("edit") },
        )
        .unwrap();
        assert_eq!(twice, edited);
        // A value that changes is a change, though the fields are the same.
        let other = apply(Some(&one), &config(json!({"a": "2"})), typed(), &later("x"), false).unwrap();
        assert!(other["metadata"]["managedFields"].to_string().contains("2026-01-02"), "{other}");
    }

    #[test]
    fn another_managers_field_is_a_conflict_unless_forced() {
        let one = apply(None, &config(json!({"a": "1"})), typed(), &manager("x"), false).unwrap();
        let refusal =
            apply(Some(&one), &config(json!({"a": "2"})), typed(), &manager("y"), false).unwrap_err();
        assert_eq!(refusal.message, "Apply failed with 1 conflict: conflict with \"x\": .data.a");
        let forced = apply(Some(&one), &config(json!({"a": "2"})), typed(), &manager("y"), true).unwrap();
        assert_eq!(forced["data"]["a"], "2");
        // x owns nothing of it any more, and may drop it without effect.
        let again = apply(Some(&forced), &config(json!({})), typed(), &manager("x"), false).unwrap();
        assert_eq!(again["data"]["a"], "2");
        // Same value is no conflict; both own it, and it stays when one drops it.
        let shared = apply(Some(&one), &config(json!({"a": "1"})), typed(), &manager("y"), false).unwrap();
        let kept = apply(Some(&shared), &config(json!({})), typed(), &manager("x"), false).unwrap();
        assert_eq!(kept["data"]["a"], "1");
    }

    #[test]
    fn an_element_goes_with_what_defaults_have_added_to_it_unless_somebody_owns_a_part() {
        let of = |list: Value| json!({"kind": "Gateway", "metadata": {"name": "g"}, "status": {"conditions": list}});
        let both = of(json!([{"type": "A", "status": "True"}, {"type": "B", "status": "True"}]));
        let mut one = apply(None, &both, typed(), &manager("x"), false).unwrap();
        for element in one["status"]["conditions"].as_array_mut().unwrap() {
            element["defaulted"] = "yes".into();
        }
        let only_a = of(json!([{"type": "A", "status": "True"}]));
        let two = apply(Some(&one), &only_a, typed(), &manager("x"), false).unwrap();
        let left = json!([{"type": "A", "status": "True", "defaulted": "yes"}]);
        assert_eq!(two["status"]["conditions"], left);
        let theirs = of(json!([{"type": "B", "note": "mine"}]));
        let shared = apply(Some(&one), &theirs, typed(), &manager("y"), false).unwrap();
        let kept = apply(Some(&shared), &only_a, typed(), &manager("x"), false).unwrap();
        let elements = kept["status"]["conditions"].as_array().unwrap();
        assert!(
            elements.iter().any(|e| e["type"] == "B" && e["note"] == "mine" && e["status"].is_null()),
            "{kept}"
        );
    }

    #[test]
    fn keyed_lists_are_owned_element_by_element() {
        let of = |list: Value| json!({"kind": "Gateway", "metadata": {"name": "g"}, "status": {"conditions": list}});
        let one = apply(None, &of(json!([{"type": "A", "status": "True"}])), typed(), &manager("x"), false)
            .unwrap();
        let two =
            apply(Some(&one), &of(json!([{"type": "B", "status": "True"}])), typed(), &manager("y"), false)
                .unwrap();
        assert_eq!(two["status"]["conditions"].as_array().unwrap().len(), 2);
        let three = apply(Some(&two), &of(json!([])), typed(), &manager("x"), false).unwrap();
        assert_eq!(three["status"]["conditions"], json!([{"type": "B", "status": "True"}]));
    }

    #[test]
    fn an_update_takes_over_what_it_changes() {
        let one = apply(None, &config(json!({"a": "1", "b": "1"})), typed(), &manager("x"), false).unwrap();
        let mut two = one.clone();
        two["data"]["a"] = "2".into();
        let updater = Manager { name: "edit", operation: "Update", ..manager("edit") };
        note_update(Some(&one), &mut two, typed(), &updater).unwrap();
        let refusal = apply(Some(&two), &config(json!({"a": "1", "b": "1"})), typed(), &manager("x"), false)
            .unwrap_err();
        assert!(refusal.message.contains("conflict with \"edit\": .data.a"), "{}", refusal.message);
    }

    #[test]
    fn what_takes_too_long_to_compare_is_refused() {
        let conditions = |at: usize| {
            let list: Vec<Value> =
                (at..at + 9_000).map(|n| json!({"type": n.to_string(), "status": "True"})).collect();
            json!({"kind": "Gateway", "metadata": {"name": "g"}, "status": {"conditions": list}})
        };
        let one = apply(None, &conditions(0), typed(), &manager("x"), false);
        let refused = match one {
            Ok(one) => apply(Some(&one), &conditions(9_000), typed(), &manager("y"), false),
            refused => refused,
        };
        assert_eq!(refused.unwrap_err().code, 413);
        let mut object = conditions(0);
        let before = conditions(9_000);
        let updater = Manager { operation: "Update", ..manager("x") };
        assert_eq!(note_update(Some(&before), &mut object, typed(), &updater), Err(OverBound::Work));
    }
}
