// SPDX-License-Identifier: Apache-2.0
//! Bodies put together by hand, as a client written in Go sends them.

use super::*;

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn len(number: u64, bytes: &[u8]) -> Vec<u8> {
    [varint(number << 3 | 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

fn int(number: u64, value: i64) -> Vec<u8> {
    [varint(number << 3), varint(value as u64)].concat()
}

fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = [len(1, api_version.as_bytes()), len(2, kind.as_bytes())].concat();
    [MAGIC.to_vec(), len(1, &meta), len(2, raw), len(3, b""), len(4, b"")].concat()
}

#[test]
fn zero_is_absent_unless_the_field_says_otherwise() {
    // replicas: 0 is a value (a pointer in Go), minReadySeconds: 0 and paused: false are not.
    let spec = [int(1, 0), int(5, 0), int(7, 0), len(3, &[])].concat();
    let metadata = [len(1, b"d"), len(2, b""), len(8, &[]), len(11, &[len(1, b"a"), len(2, b"b")].concat())];
    let raw = [len(1, &metadata.concat()), len(2, &spec)].concat();
    assert_eq!(
        decode(&body("apps/v1", "Deployment", &raw)).unwrap(),
        json!({"metadata": {"name": "d", "labels": {"a": "b"}}, "spec": {"replicas": 0, "template": {}},
               "apiVersion": "apps/v1", "kind": "Deployment"})
    );
}

#[test]
fn fields_of_embedded_structures_stand_in_the_parent() {
    let port = [int(1, 1), len(3, b"http")].concat();
    let handler = len(2, &[len(1, b"/ready"), len(2, &port)].concat());
    let probe = [len(1, &handler), int(2, -1)].concat();
    let container = [len(1, b"c"), len(10, &probe)].concat();
    let volume = [len(1, b"v"), len(2, &len(2, &[]))].concat();
    let spec = [len(1, &volume), len(2, &container)].concat();
    let pod = decode(&body("v1", "Pod", &len(2, &spec))).unwrap();
    assert_eq!(
        pod["spec"]["containers"][0]["livenessProbe"],
        json!({"httpGet": {"path": "/ready", "port": "http"}, "initialDelaySeconds": -1})
    );
    assert_eq!(pod["spec"]["volumes"], json!([{"name": "v", "emptyDir": {}}]));
}

#[test]
fn special_forms() {
    let secret = len(2, &[len(1, b"k"), len(2, b"\x01\x02")].concat());
    assert_eq!(decode(&body("v1", "Secret", &secret)).unwrap()["data"], json!({"k": "AQI="}));
    let options = decode(&body("apps/v1", "DeleteOptions", &int(1, 0))).unwrap();
    assert_eq!(options["gracePeriodSeconds"], 0);
    let lease = len(2, &len(3, &[]));
    assert!(decode(&body("coordination.k8s.io/v1", "Lease", &lease)).is_ok());
    let at = [int(1, 1_700_000_000), int(2, 5000)].concat();
    let event = decode(&body("v1", "Event", &len(10, &at))).unwrap();
    assert_eq!(event["eventTime"], "2023-11-14T22:13:20.000005Z");
}

#[test]
fn malformed_bodies_are_refused() {
    let endless = [0xff; 16];
    for (bytes, expected) in [
        (b"{}".to_vec(), ProtobufError::Magic),
        (body("v1", "Nothing", &[]), ProtobufError::Kind),
        (body("v1", "Pod", &[0x0a, 0x05, 0x00]), ProtobufError::Malformed),
        (body("v1", "Pod", &endless), ProtobufError::Malformed),
        (body("v1", "Pod", &len(1, &len(1, b"\xff"))), ProtobufError::Text),
    ] {
        assert_eq!(decode(&bytes), Err(expected));
    }
    let mut schema = Vec::new();
    for _ in 0..100 {
        schema = len(28, &schema);
    }
    let crd = len(2, &len(7, &len(4, &len(1, &schema))));
    assert_eq!(
        decode(&body("apiextensions.k8s.io/v1", "CustomResourceDefinition", &crd)),
        Err(ProtobufError::OverBound(OverBound::Depth))
    );
}
