// SPDX-License-Identifier: Apache-2.0
//! Tests of the readers.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::bounds::Extent;

#[test]
fn everything_is_read_and_nothing_twice() {
    let value = json!({"a": [1, -1, 1.5, "x", null, true, {"b": {}}], "c": {"a": 1}});
    assert_eq!(json(value.to_string().as_bytes()).unwrap(), value);
    let cases = [
        (r#"{"a": 1, "a": 2}"#, "duplicate field \"a\""),
        (r#"{"spec": {"rules": [{}, {"from": [], "from": []}]}}"#, "duplicate field \"spec.rules[1].from\""),
        (
            r#"{"a": 1, "a": 2, "b": {"c": 1, "c": 2, "c": 3}}"#,
            "error: duplicate field \"a\", duplicate field \"b.c\"",
        ),
        (r#"{"a": }"#, "error decoding JSON"),
        (r#"{} x"#, "error decoding JSON"),
    ];
    for (text, expected) in cases {
        let error = json(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn yaml_is_read_as_kubernetes_reads_it() {
    let cases = [
        (
            "a: 1\nb: -2\nc: 1.5\nd: x\ne: null\nf: ~\ng:\nh: true",
            json!({"a": 1, "b": -2, "c": 1.5, "d": "x", "e": null, "f": null, "g": null, "h": true}),
        ),
        (
            "a: \"1\"\nb: 'true'\nc: |\n  two\n  lines\nd: >-\n  one\n  line",
            json!({"a": "1", "b": "true", "c": "two\nlines\n", "d": "one line"}),
        ),
        ("- {a: [1, 2]}\n- []\n- 'a & b * c'", json!([{"a": [1, 2]}, [], "a & b * c"])),
        (
            "a: 10.96.0.1\nb: 1Gi\nc: 2026-01-01T00:00:00Z",
            json!({"a": "10.96.0.1", "b": "1Gi", "c": "2026-01-01T00:00:00Z"}),
        ),
        ("{\"a\": 1}", json!({"a": 1})),
        ("{a: 1}", json!({"a": 1})),
    ];
    for (text, expected) in cases {
        assert_eq!(yaml(text.as_bytes()), Ok(expected), "{text}");
    }
    for (text, expected) in [
        ("spec: {a: 1}\nspec: {}", "line 2: key \"spec\" already set in map"),
        ("a:\n- b: 1\n  b: 2", "line 3: key \"b\" already set in map"),
        (
            "a:\n- b: 1\n  b: 2\n  c: 3\nd: 1\nd: 2",
            "line 3: key \"b\" already set in map, line 6: key \"d\" already",
        ),
        ("{\"a\": 1, \"a\": 2}", "duplicate field \"a\""),
        ("a: &x [1]\nb: 2", "error decoding YAML"),
        ("a: &x [1]\nb: *x", "error decoding YAML"),
        ("a: [", "error decoding YAML"),
    ] {
        let error = yaml(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

/// Of what stands twice the last value counts, and the names of a hostile document are bounded.
#[test]
fn duplicates_are_read_and_named_within_a_bound() {
    let read = read_json(br#"{"a": 1, "b": 2, "a": 3}"#).unwrap();
    assert_eq!((read.value, read.duplicates.len()), (json!({"a": 3, "b": 2}), 1));
    let read = read_yaml(b"a: 1\nb: 2\na: 3").unwrap();
    assert_eq!((read.value, read.duplicates[0].line), (json!({"a": 3, "b": 2}), Some(3)));
    let keys: String = (0..30_000).map(|n| format!("\"k{n}\":1,\"k{n}\":2,")).collect();
    let long = format!("{{\"{0}\":1,\"{0}\":2,{keys}\"z\":1}}", "x".repeat(1_000_000));
    for read in [read_json(long.as_bytes()).unwrap(), read_yaml(long.as_bytes()).unwrap()] {
        assert!(read.duplicates.iter().map(|one| one.to_string().len()).sum::<usize>() < 64 * 1024);
        assert!(read.duplicates.len() > 100);
    }
}

/// Documents that would be huge, deep or slow, in the form that makes them small to send.
#[test]
fn what_is_over_a_bound_is_refused_while_it_is_read() {
    let numbers = vec!["1"; 12_000].join(",");
    let aliases = vec!["*a"; 12_000].join(",");
    let cases = [
        ("aliases", yaml(format!("a: &a [{numbers}]\nb: [{aliases}]").as_bytes())),
        ("deep lists", json("[".repeat(10_000).as_bytes())),
        ("deep maps", json("{\"a\":".repeat(10_000).as_bytes())),
        ("deep YAML", yaml("[".repeat(10_000).as_bytes())),
        ("deep block YAML", yaml("- ".repeat(10_000).as_bytes())),
        ("many elements", json(format!("[{}1]", "1,".repeat(MAX_ELEMENTS)).as_bytes())),
        ("many elements of YAML", yaml(format!("[{}1]", "1,".repeat(MAX_ELEMENTS)).as_bytes())),
        ("many empty maps", json(format!("[{}{{}}]", "{},".repeat(MAX_ELEMENTS)).as_bytes())),
    ];
    for (name, read) in cases {
        assert!(read.is_err(), "{name}");
    }
}

fn any_value() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        "[ -~]{0,12}".prop_map(Into::into),
    ];
    leaf.prop_recursive(6, 64, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
            prop::collection::btree_map("[a-z$&*]{1,4}", inner, 0..6).prop_map(|map| json!(map)),
        ]
    })
}

proptest! {
    /// Both readers agree with serde_json on every JSON document, whatever the format is called.
    #[test]
    fn json_is_read_alike_as_json_and_as_yaml(value in any_value()) {
        let text = value.to_string();
        prop_assert_eq!(json(text.as_bytes()), Ok(value.clone()));
        prop_assert_eq!(yaml(text.as_bytes()), Ok(value));
    }

    /// No bytes make a reader panic, and what it returns is within the bounds.
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[\\[\\]{}:,&*!|>\"'a0 \n-]{0,200}") {
        let read = [json(&bytes), yaml(&bytes), json(text.as_bytes()), yaml(text.as_bytes())];
        for value in read.into_iter().flatten() {
            prop_assert!(Extent::of(&value).is_ok());
        }
    }
}
