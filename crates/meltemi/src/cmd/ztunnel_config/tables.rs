// SPDX-License-Identifier: Apache-2.0
//! Parts of a node proxy's configuration dump, and their tables.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::cmd::columns::{lay_out, row};

const GAP: usize = 1;

/// What of a section is shown.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    pub namespace: Option<String>,
    pub address: Option<String>,
    pub node: Option<String>,
    pub direction: Option<String>,
    pub raw: bool,
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    let list = value.as_array().into_iter().flatten();
    list.chain(value.as_object().into_iter().flat_map(|map| map.values()))
}

fn texts(value: &Value) -> Vec<&str> {
    items(value).filter_map(Value::as_str).collect()
}

/// The part of a section that the filter lets through.
pub(super) fn select(dump: &Value, section: &str, filter: &Filter) -> Value {
    let namespace = |value: &Value| {
        let own = if section == "workloadState" {
            text(&value["info"], "namespace")
        } else {
            text(value, "namespace")
        };
        filter.namespace.as_ref().is_none_or(|wanted| wanted == own)
    };
    let address = |value: &Value| {
        filter.address.as_ref().is_none_or(|wanted| texts(&value["workloadIps"]).contains(&wanted.as_str()))
    };
    let node = |value: &Value| filter.node.as_ref().is_none_or(|wanted| wanted == text(value, "node"));
    let wanted = |value: &Value| namespace(value) && address(value) && node(value);
    match &dump[section] {
        Value::Object(map) => Value::Object(
            map.iter().filter(|(_, v)| wanted(v)).map(|(k, v)| (k.clone(), v.clone())).collect(),
        ),
        Value::Array(list) => Value::Array(list.iter().filter(|v| wanted(v)).cloned().collect()),
        _ => json!([]),
    }
}

/// The table of a section.
pub(super) fn table(dump: &Value, section: &str, selected: &Value, filter: &Filter) -> String {
    let rows = match section {
        "workloads" => workloads(selected, &waypoints(dump)),
        "services" => services(selected, &waypoints(dump)),
        "policies" => policies(selected),
        "certificates" => certificates(selected),
        _ => connections(dump, selected, filter),
    };
    lay_out(&rows, GAP)
}

/// All tables.
pub(super) fn all(dump: &Value, with_headers: bool) -> String {
    let sections = [
        ("WORKLOAD", "workloads"),
        ("SERVICE", "services"),
        ("POLICY", "policies"),
        ("CERTIFICATE", "certificates"),
        ("CONNECTION", "workloadState"),
    ];
    let filter = Filter::default();
    let mut out = String::new();
    for (index, (title, section)) in sections.into_iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        if with_headers {
            out.push_str(&format!("------ {title} INFO ------\n"));
        }
        out.push_str(&table(dump, section, &select(dump, section, &filter), &filter));
    }
    out
}

/// Names of services by host name and by virtual address: what a waypoint is called.
fn waypoints(dump: &Value) -> HashMap<String, String> {
    let mut names = HashMap::new();
    for service in items(&dump["services"]) {
        let name = text(service, "name").to_owned();
        names.insert(format!("{}/{}", text(service, "namespace"), text(service, "hostname")), name.clone());
        names.extend(texts(&service["vips"]).into_iter().map(|vip| (vip.to_owned(), name.clone())));
    }
    names
}

fn waypoint(value: &Value, names: &HashMap<String, String>) -> String {
    match value["waypoint"]["destination"].as_str() {
        None => "None".to_owned(),
        Some(destination) => names.get(destination).cloned().unwrap_or_else(|| destination.to_owned()),
    }
}

fn workloads(list: &Value, names: &HashMap<String, String>) -> Vec<Vec<String>> {
    let mut rows = vec![row(["NAMESPACE", "POD NAME", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL"])];
    for w in items(list) {
        let address = texts(&w["workloadIps"]).first().copied().unwrap_or_default();
        let mut line = row([text(w, "namespace"), text(w, "name"), address, text(w, "node")]);
        line.extend([waypoint(w, names), text(w, "protocol").to_owned()]);
        rows.push(line);
    }
    rows[1..].sort();
    rows
}

fn services(list: &Value, names: &HashMap<String, String>) -> Vec<Vec<String>> {
    let mut rows = vec![row(["NAMESPACE", "SERVICE NAME", "SERVICE VIP", "WAYPOINT", "ENDPOINTS"])];
    for s in items(list) {
        let vips: Vec<&str> =
            texts(&s["vips"]).into_iter().map(|v| v.rsplit_once('/').map_or(v, |(_, ip)| ip)).collect();
        let total = items(&s["endpoints"]).count();
        let healthy = items(&s["endpoints"]).filter(|e| text(e, "status") == "Healthy").count();
        let mut line = row([text(s, "namespace"), text(s, "name"), &vips.join(",")]);
        line.extend([waypoint(s, names), format!("{healthy}/{total}")]);
        rows.push(line);
    }
    rows[1..].sort();
    rows
}

fn policies(list: &Value) -> Vec<Vec<String>> {
    let mut rows = vec![row(["NAMESPACE", "POLICY NAME", "ACTION", "SCOPE"])];
    for p in items(list) {
        rows.push(row([text(p, "namespace"), text(p, "name"), text(p, "action"), text(p, "scope")]));
    }
    rows
}

fn certificates(list: &Value) -> Vec<Vec<String>> {
    let mut rows = vec![row([
        "CERTIFICATE NAME",
        "TYPE",
        "STATUS",
        "VALID CERT",
        "SERIAL NUMBER",
        "NOT AFTER",
        "NOT BEFORE",
    ])];
    for c in items(list) {
        let (identity, state) = (text(c, "identity"), text(c, "state"));
        if items(&c["certChain"]).next().is_none() {
            rows.push(row([identity, "NA", state, "false", "NA", "NA", "NA"]));
        }
        for (part, kind) in [("certChain", "Leaf"), ("rootCerts", "Root")] {
            for (index, one) in items(&c[part]).enumerate() {
                let kind = if kind == "Leaf" && index > 0 { "Intermediate" } else { kind };
                let (after, before) = (text(one, "expirationTime"), text(one, "validFrom"));
                let valid = valid(after, before, jiff::Timestamp::now()).to_string();
                rows.push(row([identity, kind, state, &valid, text(one, "serialNumber"), after, before]));
            }
        }
    }
    rows
}

fn valid(after: &str, before: &str, now: jiff::Timestamp) -> bool {
    let parsed = |t: &str| t.parse::<jiff::Timestamp>().ok();
    matches!((parsed(before), parsed(after)), (Some(from), Some(to)) if from <= now && now < to)
}

fn connections(dump: &Value, states: &Value, filter: &Filter) -> Vec<Vec<String>> {
    let mut names = HashMap::new();
    for w in items(&dump["workloads"]) {
        names.extend(
            texts(&w["workloadIps"]).into_iter().map(|ip| (ip.to_owned(), text(w, "name").to_owned())),
        );
    }
    for s in items(&dump["services"]) {
        let vips = texts(&s["vips"]).into_iter().filter_map(|v| v.rsplit_once('/'));
        names.extend(vips.map(|(_, ip)| (ip.to_owned(), text(s, "hostname").to_owned())));
    }
    let named = |address: &str| match address.rsplit_once(':') {
        Some((ip, port)) if !filter.raw => {
            let name = names.get(ip.trim_matches(['[', ']']));
            name.map_or_else(|| address.to_owned(), |name| format!("{name}:{port}"))
        }
        _ => address.to_owned(),
    };
    let mut rows = vec![row(["WORKLOAD", "DIRECTION", "LOCAL", "REMOTE", "REMOTE TARGET", "PROTOCOL"])];
    for state in items(states) {
        let workload = format!("{}.{}", text(&state["info"], "name"), text(&state["info"], "namespace"));
        for (direction, shown) in [("inbound", "Inbound"), ("outbound", "Outbound")] {
            if filter.direction.as_ref().is_some_and(|wanted| wanted != direction) {
                continue;
            }
            for c in items(&state["connections"][direction]) {
                let (src, dst) = (named(text(c, "src")), named(text(c, "actualDst")));
                let target = named(text(c, "originalDst"));
                let (local, remote) = if direction == "inbound" { (dst, src) } else { (src, dst) };
                rows.push(row([&workload, shown, &local, &remote, &target, text(c, "protocol")]));
            }
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dump() -> Value {
        json!({
            "workloads": [
                { "namespace": "default", "name": "curl-1", "workloadIps": ["10.244.1.2"], "node": "node-1", "protocol": "HBONE" },
                {
                    "namespace": "other", "name": "web-1", "workloadIps": ["10.244.1.3"], "node": "node-2", "protocol": "TCP",
                    "waypoint": { "destination": "default/waypoint.default.svc.cluster.local" },
                },
            ],
            "services": [{
                "namespace": "default", "name": "waypoint", "hostname": "waypoint.default.svc.cluster.local",
                "vips": ["/10.96.0.7"],
                "endpoints": { "a": { "status": "Healthy" }, "b": { "status": "Unhealthy" } },
            }],
            "policies": [{ "namespace": "default", "name": "p", "action": "Allow", "scope": "Namespace" }],
            "certificates": [{ "identity": "spiffe://x", "state": "Initializing", "certChain": [], "rootCerts": [] }],
            "workloadState": { "u": {
                "info": { "name": "web-1", "namespace": "other" },
                "connections": { "inbound": [{
                    "src": "10.244.1.2:40000", "actualDst": "10.244.1.3:15008", "originalDst": "10.244.1.3:80", "protocol": "HBONE",
                }], "outbound": [] },
            } },
        })
    }

    #[test]
    fn tables_as_istioctl_prints_them() {
        let shown = |section: &str, filter: Filter| {
            let dump = dump();
            table(&dump, section, &select(&dump, section, &filter), &filter)
        };
        let none = Filter::default;
        for (section, filter, expected) in [
            (
                "workloads",
                none(),
                "NAMESPACE POD NAME ADDRESS    NODE   WAYPOINT PROTOCOL\n\
                 default   curl-1   10.244.1.2 node-1 None     HBONE\n\
                 other     web-1    10.244.1.3 node-2 waypoint TCP\n",
            ),
            (
                "workloads",
                Filter { address: Some("10.244.1.2".into()), ..none() },
                "NAMESPACE POD NAME ADDRESS    NODE   WAYPOINT PROTOCOL\n\
                 default   curl-1   10.244.1.2 node-1 None     HBONE\n",
            ),
            (
                "services",
                none(),
                "NAMESPACE SERVICE NAME SERVICE VIP WAYPOINT ENDPOINTS\n\
                 default   waypoint     10.96.0.7   None     1/2\n",
            ),
            (
                "policies",
                none(),
                "NAMESPACE POLICY NAME ACTION SCOPE\ndefault   p           Allow  Namespace\n",
            ),
            (
                "workloadState",
                none(),
                "WORKLOAD    DIRECTION LOCAL       REMOTE       REMOTE TARGET PROTOCOL\n\
                 web-1.other Inbound   web-1:15008 curl-1:40000 web-1:80      HBONE\n",
            ),
            (
                "workloadState",
                Filter { direction: Some("outbound".into()), ..none() },
                "WORKLOAD DIRECTION LOCAL REMOTE REMOTE TARGET PROTOCOL\n",
            ),
        ] {
            assert_eq!(shown(section, filter), expected, "{section}");
        }
        assert!(all(&dump(), true).starts_with("------ WORKLOAD INFO ------\nNAMESPACE POD NAME"));
    }
}
