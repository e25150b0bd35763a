// SPDX-License-Identifier: Apache-2.0
//! Tests of the store.

use proptest::prelude::*;
use serde_json::json;

use super::history::{MAX_EVENTS, MAX_MEMORY};
use super::*;

fn object(name: &str, x: u32) -> Value {
    json!({"metadata": {"name": name}, "x": x})
}

#[test]
fn revisions_grow_and_survive() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db.sqlite");
    let store = Store::open(&path).unwrap();
    let a = store.create("pods", "ns", "a", object("a", 1)).unwrap();
    assert!(matches!(store.create("pods", "ns", "a", object("a", 1)), Err(StoreError::AlreadyExists)));
    let a2 = store.replace("pods", "ns", "a", a.revision, object("a", 2)).unwrap();
    assert!(matches!(
        store.replace("pods", "ns", "a", a.revision, object("a", 3)),
        Err(StoreError::Conflict)
    ));
    store.create("pods", "ns", "b", object("b", 1)).unwrap();
    let same = store.replace("pods", "ns", "a", a2.revision, object("a", 2)).unwrap();
    assert_eq!(same.revision, a2.revision, "an update that changes nothing has no revision");
    let events = store.since("pods", a.revision, usize::MAX).unwrap().events;
    assert_eq!(events.iter().map(|e| e.change).collect::<Vec<_>>(), [Change::Modified, Change::Added]);
    let revision = store.revision();
    drop(store);
    let store = Store::open(&path).unwrap();
    assert_eq!(store.revision(), revision);
    assert_eq!(store.get("pods", "ns", "a").unwrap().value["x"], 2);
    for resource in ["pods", "gone"] {
        assert!(store.since(resource, 0, 1).is_err(), "history does not survive a restart, and says so");
        assert!(store.since(resource, revision, 1).is_ok());
        assert!(store.since(resource, revision + 1, 1).is_err(), "the future is not covered either");
    }
    assert_eq!(store.list("pods", Some("ns"), Some(&("ns".into(), "a".into()))).0.len(), 1);
}

#[test]
fn what_is_stored_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("db.sqlite")).unwrap();
    store.create("secrets", "ns", "a", object("a", 1)).unwrap();
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", file.path());
    }
}

#[test]
fn a_deletion_is_an_event_with_a_revision_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("db.sqlite")).unwrap();
    let a = store.create("pods", "", "a", object("a", 1)).unwrap();
    let gone = store.remove("pods", "", "a", a.revision).unwrap();
    assert!(gone.revision > a.revision);
    assert_eq!(gone.value["metadata"]["resourceVersion"], gone.revision.to_string());
    assert!(store.get("pods", "", "a").is_none());
}

/// A step of the property test: what is done to which of six names.
#[derive(Clone, Copy, Debug)]
enum Step {
    Put(u8),
    Remove(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(
        prop_oneof![3 => (0..6_u8).prop_map(Step::Put), 1 => (0..6_u8).prop_map(Step::Remove)],
        1..40,
    )
}

fn name_of(n: u8) -> ObjectName {
    (format!("ns{}", n % 2), format!("o{n}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However it is cut into pages, a list of a revision is what was there at that revision; and the changes since make
    /// of it what is there now.
    #[test]
    fn every_revision_can_be_listed_and_followed(steps in steps(), memory in 1..2_000_usize) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db.sqlite")).unwrap();
        let mut model: BTreeMap<ObjectName, Value> = BTreeMap::new();
        let mut snapshots = vec![(store.revision(), model.clone())];
        for (count, step) in steps.into_iter().enumerate() {
            let (Step::Put(n) | Step::Remove(n)) = step;
            let key = name_of(n);
            let live = store.get("pods", &key.0, &key.1);
            match (step, live) {
                (Step::Put(_), None) => drop(store.create("pods", &key.0, &key.1, object(&key.1, count as u32)).unwrap()),
                (Step::Put(_), Some(live)) => {
                    store.replace("pods", &key.0, &key.1, live.revision, object(&key.1, count as u32)).unwrap();
                }
                (Step::Remove(_), Some(live)) => drop(store.remove("pods", &key.0, &key.1, live.revision).unwrap()),
                (Step::Remove(_), None) => continue,
            }
            match store.get("pods", &key.0, &key.1) {
                Some(stored) => model.insert(key, (*stored.value).clone()),
                None => model.remove(&key),
            };
            snapshots.push((store.revision(), model.clone()));
        }
        for (revision, snapshot) in &snapshots {
            for namespace in [None, Some("ns1")] {
                let (mut listed, mut after) = (Vec::new(), None);
                loop {
                    let slice = store.slice("pods", namespace, Some(*revision), after.as_ref(), memory).unwrap();
                    after = slice.items.last().map(|item| item.name.clone());
                    listed.extend(slice.items.into_iter().map(|item| (item.name, (*item.value).clone())));
                    if !slice.more {
                        break;
                    }
                }
                let expected: Vec<_> = snapshot.iter().filter(|(name, _)| namespace.is_none_or(|ns| name.0 == ns)).collect();
                prop_assert_eq!(listed.iter().map(|(name, value)| (name, value)).collect::<Vec<_>>(), expected);
            }
            let (mut followed, mut at) = (snapshot.clone(), *revision);
            while at < store.revision() {
                let changes = store.since("pods", at, memory).unwrap();
                prop_assert!(changes.reached > at);
                at = changes.reached;
                for event in changes.events {
                    match event.change {
                        Change::Deleted => followed.remove(&event.name),
                        Change::Added | Change::Modified => followed.insert(event.name.clone(), (*event.object).clone()),
                    };
                }
            }
            prop_assert_eq!(&followed, &model);
        }
    }
}

#[test]
fn the_history_is_bounded_in_number_and_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("db.sqlite")).unwrap();
    let text = "x".repeat(1_000_000);
    let mut live = store.create("configmaps", "", "a", object("a", 0)).unwrap();
    let first = live.revision;
    for n in 0..200 {
        let value = json!({"metadata": {"name": "a"}, "text": text, "n": n});
        live = store.replace("configmaps", "", "a", live.revision, value).unwrap();
    }
    let memory = |resource: &str| store.lock().shelves[resource].history.memory();
    assert!(memory("configmaps") <= MAX_MEMORY, "{}", memory("configmaps"));
    assert_eq!(store.since("configmaps", first, 1).unwrap_err(), OutOfHistory::Forgotten);
    assert!(
        !store.since("configmaps", live.revision - 1, 1).unwrap().events.is_empty(),
        "the last change is kept"
    );
    for resource in ["a", "b", "c", "d", "e", "f"] {
        let mut live = store.create(resource, "", "a", object("a", 0)).unwrap();
        for n in 0..20 {
            let value = json!({"metadata": {"name": "a"}, "text": text, "n": n});
            live = store.replace(resource, "", "a", live.revision, value).unwrap();
        }
    }
    let inner = store.lock();
    let all: usize = inner.shelves.values().map(|shelf| shelf.history.memory()).sum();
    assert!(all <= MAX_TOTAL_MEMORY && all == inner.history_memory, "{all}");
    drop(inner);
    let mut live = store.create("leases", "", "a", object("a", 0)).unwrap();
    for n in 1..=MAX_EVENTS as u32 {
        live = store.replace("leases", "", "a", live.revision, object("a", n)).unwrap();
    }
    assert!(store.since("leases", live.revision - MAX_EVENTS as u64, 1).is_ok());
    assert!(store.since("leases", live.revision - MAX_EVENTS as u64 - 1, 1).is_err());
}

#[test]
fn what_is_over_a_bound_is_not_stored() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("db.sqlite")).unwrap();
    let deep = (0..crate::bounds::MAX_DEPTH).fold(json!({}), |inner, _| json!([inner]));
    for (value, expected) in [
        (json!({"metadata": {}, "x": deep}), OverBound::Depth),
        (json!({"metadata": {}, "x": "x".repeat(MAX_OBJECT)}), OverBound::Bytes),
        (json!({"metadata": {}, "x": vec![0; crate::bounds::MAX_ELEMENTS]}), OverBound::Elements),
    ] {
        let refused = store.create("pods", "ns", "a", value).unwrap_err();
        assert!(matches!(refused, StoreError::OverBound(over) if over == expected), "{refused}");
    }
    assert_eq!(store.revision(), 0);
}

#[test]
fn a_row_that_cannot_be_read_keeps_its_name_until_it_is_discarded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db.sqlite");
    let rows: [(&str, &dyn rusqlite::ToSql); 4] = [
        ("deep", &("[".repeat(500) + &"]".repeat(500))),
        ("half", &r#"{"x":"#),
        ("bytes", &[0xff_u8, 0xfe].as_slice()),
        ("nothing", &0),
    ];
    let store = Store::open(&path).unwrap();
    for (name, _) in rows {
        store.create("pods", "ns", name, object(name, 1)).unwrap();
    }
    store.create("pods", "ns", "fine", object("fine", 1)).unwrap();
    drop(store);
    let connection = rusqlite::Connection::open(&path).unwrap();
    for (name, bytes) in rows {
        connection
            .execute("UPDATE objects SET json = ?1 WHERE name = ?2", rusqlite::params![bytes, name])
            .unwrap();
    }
    drop(connection);
    let store = Store::open(&path).unwrap();
    assert_eq!(store.unreadable().len(), rows.len());
    assert!(store.get("pods", "ns", "fine").is_some());
    for (name, _) in rows {
        assert!(store.get("pods", "ns", name).is_none());
        let refused = store.create("pods", "ns", name, object(name, 2)).unwrap_err();
        assert!(matches!(refused, StoreError::Unreadable(_)), "{name}: {refused}");
        assert!(store.discard_unreadable("pods", "ns", name).unwrap());
        assert!(!store.discard_unreadable("pods", "ns", name).unwrap());
        store.create("pods", "ns", name, object(name, 2)).unwrap();
    }
    drop(store);
    assert!(Store::open(&path).unwrap().unreadable().is_empty());
}
