// SPDX-License-Identifier: Apache-2.0
//! ConfigMaps and Secrets: keys that can be files, and the keys that a Secret's type promises.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::status::Cause;

pub(super) fn config_map(object: &Value, faults: &mut Vec<Cause>) {
    keys(object, &["data", "binaryData"], faults);
    for key in object["binaryData"].as_object().into_iter().flat_map(|data| data.keys()) {
        if !object["data"][key].is_null() {
            let why = format!("duplicate of key present in data[{key}]");
            faults.push(Cause::invalid(format!("binaryData[{key}]"), &key.as_str().into(), why));
        }
    }
}

pub(super) fn secret(object: &Value, faults: &mut Vec<Cause>) {
    keys(object, &["data"], faults);
    let data = &object["data"];
    for (key, value) in data.as_object().into_iter().flatten() {
        if value.as_str().is_none_or(|text| STANDARD.decode(text).is_err()) {
            faults.push(Cause::invalid(format!("data[{key}]"), &"<secret>".into(), "illegal base64 data"));
        }
    }
    let required: &[&str] = match object["type"].as_str().unwrap_or_default() {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        _ => &[],
    };
    let missing = required.iter().filter(|key| data[**key].is_null());
    faults.extend(missing.map(|key| Cause::required(format!("data[{key}]"))));
    for key in [".dockerconfigjson", ".dockercfg"].iter().filter(|key| required.contains(key)) {
        let bytes = data[*key].as_str().and_then(|text| STANDARD.decode(text).ok());
        if bytes.is_some_and(|bytes| serde_json::from_slice::<Value>(&bytes).is_err()) {
            faults.push(Cause::invalid(
                format!("data[{key}]"),
                &"<secret contents redacted>".into(),
                "not JSON",
            ));
        }
    }
}

fn keys(object: &Value, fields: &[&str], faults: &mut Vec<Cause>) {
    for field in fields {
        for key in object[*field].as_object().into_iter().flat_map(|data| data.keys()) {
            let letters = key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
            if key.is_empty() || key.len() > 253 || !letters || key == "." || key.starts_with("..") {
                let why = "a valid config key must consist of alphanumeric characters, '-', '_' or '.', and cannot be \
                           '.' or begin with '..'";
                faults.push(Cause::invalid(format!("{field}[{key}]"), &key.as_str().into(), why));
            }
        }
    }
}
