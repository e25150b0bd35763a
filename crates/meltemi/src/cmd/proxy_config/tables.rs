// SPDX-License-Identifier: Apache-2.0
//! Parts of a configuration dump, and their tables.

use base64::Engine as _;
use serde_json::{Value, json};
use x509_parser::pem::Pem;

use crate::cmd::columns::{lay_out, row};

const GAP: usize = 5;

/// A list of the dump; an object of lists by name becomes the list of its values.
pub(super) fn section(dump: &Value, name: &str) -> Value {
    match &dump[name] {
        Value::Object(map) => Value::Array(map.values().cloned().collect()),
        Value::Array(list) => Value::Array(list.clone()),
        _ => json!([]),
    }
}

/// The certificates, those of one identity when it is given as (namespace, service account).
pub(super) fn certificates(dump: &Value, of: Option<&(String, String)>) -> Value {
    let Value::Array(mut all) = section(dump, "certificates") else { return json!([]) };
    for certificate in &mut all {
        let roots = items(&certificate["rootCerts"]).flat_map(read).collect();
        certificate["rootCerts"] = Value::Array(roots);
    }
    let ours = |certificate: &Value| {
        let Some((namespace, account)) = of else { return true };
        let identity = certificate["identity"].as_str().unwrap_or_default();
        identity.ends_with(&format!("/ns/{namespace}/sa/{account}"))
    };
    Value::Array(all.into_iter().filter(ours).collect())
}

/// A part of a dump that says no times: each certificate of its PEM, with what is written in it.
fn read(part: &Value) -> Vec<Value> {
    let Some(pem) = part["pem"].as_str().filter(|_| part["validFrom"].is_null()) else {
        return vec![part.clone()];
    };
    let time = |seconds| jiff::Timestamp::from_second(seconds).map(|t| t.to_string()).unwrap_or_default();
    let blocks = Pem::iter_from_buffer(pem.as_bytes()).filter_map(Result::ok);
    let read = blocks.filter_map(|block| {
        let certificate = block.parse_x509().ok()?;
        Some(json!({
            "pem": pem,
            "serialNumber": format!("{:x}", certificate.tbs_certificate.serial),
            "validFrom": time(certificate.validity().not_before.timestamp()),
            "expirationTime": time(certificate.validity().not_after.timestamp()),
        }))
    });
    read.collect()
}

/// The policies, those that concern one workload when it is given as (namespace, name).
pub(super) fn policies(dump: &Value, of: Option<&(String, String)>) -> Value {
    let Value::Array(all) = section(dump, "policies") else { return json!([]) };
    let Some((namespace, name)) = of else { return Value::Array(all) };
    let Value::Array(workloads) = section(dump, "workloads") else { return json!([]) };
    let workload = workloads.into_iter().find(|w| w["namespace"] == *namespace && w["name"] == *name);
    let named: Vec<String> = workload
        .and_then(|w| w["authorizationPolicies"].as_array().cloned())
        .unwrap_or_default()
        .iter()
        .filter_map(|p| p.as_str().map(str::to_owned))
        .collect();
    let applies = |policy: &Value| {
        let full = format!("{}/{}", text(policy, "namespace"), text(policy, "name"));
        match policy["scope"].as_str().unwrap_or_default() {
            "Global" => true,
            "Namespace" => policy["namespace"] == *namespace,
            _ => named.contains(&full),
        }
    };
    Value::Array(all.into_iter().filter(applies).collect())
}

fn text(value: &Value, key: &str) -> String {
    match &value[key] {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// The table of `proxy-config secret`.
pub(super) fn secret(certificates: &Value) -> String {
    let mut rows = vec![row([
        "RESOURCE NAME",
        "TYPE",
        "STATUS",
        "VALID CERT",
        "SERIAL NUMBER",
        "NOT AFTER",
        "NOT BEFORE",
        "TRUST DOMAIN",
    ])];
    for certificate in items(certificates) {
        let identity = text(certificate, "identity");
        let trust_domain = identity
            .strip_prefix("spiffe://")
            .and_then(|r| r.split('/').next())
            .unwrap_or_default()
            .to_owned();
        let status = match certificate["state"].as_str() {
            Some("Available") => "ACTIVE".to_owned(),
            Some(other) => other.to_uppercase(),
            None => "WARMING".to_owned(),
        };
        for (chain, kind) in [("certChain", "Cert Chain"), ("rootCerts", "CA")] {
            for part in items(&certificate[chain]) {
                let name = if chain == "certChain" { identity.clone() } else { "ROOTCA".to_owned() };
                rows.push(vec![
                    name,
                    kind.to_owned(),
                    status.clone(),
                    valid(part).to_string(),
                    text(part, "serialNumber"),
                    text(part, "expirationTime"),
                    text(part, "validFrom"),
                    trust_domain.clone(),
                ]);
            }
        }
        if items(&certificate["certChain"]).next().is_none() {
            let mut line = vec![identity, "Cert Chain".to_owned(), status, "false".to_owned()];
            line.extend([String::new(), String::new(), String::new(), trust_domain]);
            rows.push(line);
        }
    }
    lay_out(&rows, GAP)
}

/// Whether a certificate of the dump is valid now: by its times, as RFC 3339.
fn valid(part: &Value) -> bool {
    let time = |key: &str| part[key].as_str().and_then(|t| t.parse::<jiff::Timestamp>().ok());
    let now = jiff::Timestamp::now();
    // A PEM that cannot even be decoded is no certificate.
    let decodes = part["pem"].as_str().is_none_or(|pem| {
        let body: String = pem.lines().filter(|l| !l.starts_with("-----")).collect();
        base64::engine::general_purpose::STANDARD.decode(body.trim()).is_ok()
    });
    decodes && time("validFrom").is_some_and(|t| t <= now) && time("expirationTime").is_some_and(|t| now < t)
}

/// `NAMESPACE/NAME`, or `NAME.NAMESPACE.svc.…` of a Service, from a name of the dump.
fn full_name(name: &Value) -> String {
    match name["hostname"].as_str() {
        Some(host) => host.to_owned(),
        None if name.is_object() => format!("{}/{}", text(name, "namespace"), text(name, "name")),
        None => name.as_str().unwrap_or_default().to_owned(),
    }
}

/// What something is attached to: `Gateway default/a`, `Service a.default.svc.cluster.local`.
fn target(target: &Value) -> String {
    format!("{} {}", text(target, "kind"), full_name(&target["name"]))
}

/// A target with the listener and the port that are meant, where they are said.
fn parent(parent: &Value) -> String {
    let mut out = target(&parent["target"]);
    for (key, word) in [("section", "listener"), ("port", "port")] {
        if !parent[key].is_null() {
            out.push_str(&format!(" {word} {}", text(parent, key)));
        }
    }
    out
}

/// Every one of a list in words; `none` when there is none.
fn listed(list: &Value, none: &str, word: impl Fn(&Value) -> String) -> String {
    let all: Vec<String> = items(list).map(word).collect();
    if all.is_empty() { none.to_owned() } else { all.join(", ") }
}

/// The table of `proxy-config route`.
pub(super) fn route(routes: &Value) -> String {
    let mut rows = vec![row(["NAME", "HOSTNAMES", "PARENTS", "RULES"])];
    for route in items(routes) {
        rows.push(vec![
            full_name(&route["name"]),
            listed(&route["hostnames"], "*", |host| host.as_str().unwrap_or_default().to_owned()),
            listed(&route["parents"], "", parent),
            items(&route["rules"]).count().to_string(),
        ]);
    }
    lay_out(&rows, GAP)
}

/// The table of `proxy-config policy`: of a node proxy's policies, and of a waypoint's with what they are attached to.
pub(super) fn policy(policies: &Value) -> String {
    let mut rows = vec![row(["NAMESPACE", "POLICY NAME", "ACTION", "SCOPE"])];
    for entry in items(policies) {
        let policy = if entry["policy"].is_object() { &entry["policy"] } else { entry };
        let (namespace, name) = match &policy["name"] {
            Value::Object(name) => (name["namespace"].as_str(), name["name"].as_str()),
            name => (policy["namespace"].as_str(), name.as_str()),
        };
        let scope = listed(&entry["targets"], &text(policy, "scope"), target);
        let row = [namespace.unwrap_or_default(), name.unwrap_or_default(), &text(policy, "action"), &scope];
        rows.push(row.map(str::to_owned).to_vec());
    }
    lay_out(&rows, GAP)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dump() -> Value {
        let part = json!({
            "serialNumber": "1",
            "validFrom": "2020-01-01T00:00:00Z",
            "expirationTime": "2100-01-01T00:00:00Z",
        });
        let certificate = |account: &str| {
            json!({
                "identity": format!("spiffe://cluster.local/ns/default/sa/{account}"),
                "state": "Available",
                "certChain": [part],
                "rootCerts": [part],
            })
        };
        json!({
            "certificates": [certificate("curl"), certificate("bookinfo-reviews")],
            "workloads": [{ "namespace": "default", "name": "curl-0", "authorizationPolicies": ["default/a"] }],
            "policies": [
                { "namespace": "default", "name": "a", "scope": "WorkloadSelector", "action": "Allow" },
                { "namespace": "default", "name": "b", "scope": "WorkloadSelector", "action": "Allow" },
                { "namespace": "other", "name": "c", "scope": "Namespace", "action": "Deny" },
                { "namespace": "istio-system", "name": "d", "scope": "Global", "action": "Deny" },
            ],
        })
    }

    #[test]
    fn a_pod_sees_its_own_certificate_with_its_identity() {
        let found = certificates(&dump(), Some(&("default".to_owned(), "curl".to_owned())));
        let table = secret(&found);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 3, "{table}");
        assert!(lines[1].starts_with("spiffe://cluster.local/ns/default/sa/curl"));
        assert!(lines[1].contains("Cert Chain") && lines[1].contains("ACTIVE") && lines[1].contains("true"));
        assert!(lines[2].starts_with("ROOTCA"));
    }

    #[test]
    fn a_pod_sees_the_policies_that_concern_it() {
        let found = policies(&dump(), Some(&("default".to_owned(), "curl-0".to_owned())));
        let names: Vec<_> = items(&found).map(|p| text(p, "name")).collect();
        assert_eq!(names, ["a", "d"]);
    }

    #[test]
    fn the_policies_and_routes_of_a_waypoint_have_names() {
        let service =
            json!({"kind": "Service", "name": {"namespace": "a", "hostname": "b.a.svc.cluster.local"}});
        let name = json!({"namespace": "a", "name": "only-get"});
        let policies = json!([{"policy": {"name": name, "action": "Allow", "scope": "WorkloadSelector"}, "targets": [service]}]);
        let words: Vec<String> =
            policy(&policies).lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(words[1], "a only-get Allow Service b.a.svc.cluster.local");
        let gateway = json!({"target": {"kind": "Gateway", "name": {"namespace": "a", "name": "g"}}, "section": "http", "port": 80});
        let routes = json!([{"name": name, "hostnames": [], "parents": [gateway], "rules": [{}]}]);
        let words: Vec<String> =
            route(&routes).lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(words[1], "a/only-get * Gateway a/g listener http port 80 1");
    }

    #[test]
    fn a_root_that_comes_as_pem_only_is_read() {
        let pem = meltemi_identity::CaMaterial::generate("cluster.local", std::time::SystemTime::now())
            .unwrap()
            .root;
        let dump = json!({"certificates": [{"identity": "spiffe://cluster.local/ns/a/sa/b", "state": "Available",
            "certChain": [], "rootCerts": [{"pem": pem}]}]});
        let found = certificates(&dump, None);
        assert!(valid(&found[0]["rootCerts"][0]), "{found}");
        assert!(!text(&found[0]["rootCerts"][0], "serialNumber").is_empty());
    }

    #[test]
    fn an_expired_certificate_is_not_valid() {
        let part = json!({ "validFrom": "2020-01-01T00:00:00Z", "expirationTime": "2021-01-01T00:00:00Z" });
        assert!(!valid(&part));
    }
}
