// SPDX-License-Identifier: Apache-2.0
//! Which of two routes has a hostname.

use std::sync::Arc;

use meltemi_model::NamespacedName;

use crate::routes::{RouteKind, RouteName, Table};
use crate::{Index, MeshConfig};

const GATEWAY: &str = "
metadata: {name: g, namespace: default}
spec:
  gatewayClassName: istio
  listeners:
  - {name: all, port: 80, protocol: HTTP}
  - {name: wild, port: 81, protocol: HTTP, hostname: '*.example'}
";

/// A route by its kind, name, hour of its making, section and hostnames.
type Written = (RouteKind, &'static str, u8, &'static str, &'static str);

/// The routes that are accepted.
fn accepted(routes: &[Written]) -> Vec<&'static str> {
    let mut table = Table::default();
    let gateway = serde_yaml_ng::from_str(GATEWAY).unwrap();
    table.set_gateway(&NamespacedName::new("default", "g"), Some(Arc::new(gateway)));
    for (kind, name, hour, section, hosts) in routes {
        let yaml = format!(
            "
metadata: {{name: {name}, namespace: default, creationTimestamp: '2026-01-01T0{hour}:00:00Z'}}
spec: {{parentRefs: [{{name: g, {section}}}], hostnames: {hosts}, rules: [{{}}]}}
"
        );
        let route = serde_yaml_ng::from_str(&yaml).unwrap();
        let name = RouteName { kind: *kind, name: NamespacedName::new("default", *name) };
        table.set_route(&name, Some(Arc::new(route)));
    }
    let routed = table.flush(&Index::new(MeshConfig::default()));
    let mut out = Vec::new();
    for (_, name, ..) in routes {
        let status = routed.statuses.iter().find(|(route, ..)| *route.name.name == **name).unwrap();
        let condition = &status.2[0].conditions[0];
        let sent = routed.routes.iter().any(|(route, _)| *route.name.name == **name);
        assert_eq!(condition.status, sent, "{name}: {condition:?}");
        match condition.status {
            true => out.push(*name),
            false => assert_eq!(condition.reason, "HostnameConflict"),
        }
    }
    out
}

#[test]
fn the_older_of_two_kinds_has_a_hostname() {
    use RouteKind::{Grpc, Http};
    let all = "sectionName: all";
    let cases: Vec<(Vec<Written>, Vec<&str>)> = vec![
        (vec![(Http, "h", 1, all, "[a.b]"), (Grpc, "g", 2, all, "[a.b]")], vec!["h"]),
        (vec![(Http, "h", 2, all, "[a.b]"), (Grpc, "g", 1, all, "[A.b]")], vec!["g"]),
        // Of one age: by name.
        (vec![(Http, "h", 1, all, "[a.b]"), (Grpc, "g", 1, all, "[a.b]")], vec!["g"]),
        (vec![(Http, "h", 1, all, "[a.b]"), (Grpc, "g", 2, all, "[b.b]")], vec!["h", "g"]),
        (vec![(Http, "h", 1, all, "['*.b']"), (Grpc, "g", 2, all, "[x.b, c.c]")], vec!["h"]),
        (vec![(Http, "h", 1, all, "[]"), (Grpc, "g", 2, all, "[x.b]")], vec!["h"]),
        (vec![(Http, "h", 1, all, "[x.b]"), (Grpc, "g", 2, all, "[]")], vec!["h"]),
        (vec![(Http, "h", 1, all, "[x.b]"), (Http, "i", 2, all, "[x.b]")], vec!["h", "i"]),
        // Another listener.
        (vec![(Http, "h", 1, all, "[]"), (Grpc, "g", 2, "sectionName: wild", "[]")], vec!["h", "g"]),
        // Only what the listener has of a route's hostnames counts.
        (
            vec![
                (Http, "h", 1, "sectionName: wild", "[x.example, same.b]"),
                (Grpc, "g", 2, "sectionName: wild", "[y.example, same.b]"),
            ],
            vec!["h", "g"],
        ),
        (
            vec![
                (Http, "h", 1, "sectionName: wild", "[x.example]"),
                (Grpc, "g", 2, "sectionName: wild", "[]"),
            ],
            vec!["h"],
        ),
        // One that is refused keeps nobody else away.
        (
            vec![
                (Http, "h", 1, all, "[a.b]"),
                (Grpc, "g", 2, all, "[a.b, c.d]"),
                (Http, "i", 3, all, "[c.d]"),
            ],
            vec!["h", "i"],
        ),
        // A parent with two listeners is refused whole.
        (vec![(Http, "h", 1, all, "[a.b]"), (Grpc, "g", 2, "port: 81", "[]")], vec!["h", "g"]),
        (
            vec![
                (Http, "h", 1, all, "[x.example]"),
                (Grpc, "g", 2, "group: gateway.networking.k8s.io", "[]"),
            ],
            vec!["h"],
        ),
    ];
    for (routes, expected) in cases {
        assert_eq!(accepted(&routes), expected, "{routes:?}");
    }
}
