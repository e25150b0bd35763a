// SPDX-License-Identifier: Apache-2.0
//! What the status of a Gateway and its listeners says.

use super::*;

fn gateway(class: &str, protocol: &str, port: u16) -> Gateway {
    let yaml = format!(
        "
metadata: {{name: waypoint, namespace: default}}
spec:
  gatewayClassName: {class}
  listeners: [{{name: mesh, port: {port}, protocol: {protocol}}}]
"
    );
    serde_yaml_ng::from_str(&yaml).unwrap()
}

fn status(gateway: &Gateway, observed: &Observed) -> Report {
    report(gateway, observed, &BTreeMap::new(), &BTreeMap::new(), &MeshConfig::default()).unwrap()
}

fn find<'a>(report: &'a Report, kind: &str) -> &'a Condition {
    report.conditions.iter().find(|c| c.kind == kind).unwrap()
}

#[test]
fn a_ready_waypoint_is_programmed_with_both_addresses() {
    let observed = Observed { cluster_ips: vec!["10.96.58.95".into()], ready: 1, ..Observed::default() };
    let report = status(&gateway("istio-waypoint", "HBONE", 15008), &observed);
    assert_eq!(report.addresses[0], ("IPAddress".into(), "10.96.58.95".into()));
    assert_eq!(report.addresses[1], ("Hostname".into(), "waypoint.default.svc.cluster.local".into()));
    let programmed = find(&report, "Programmed");
    assert!(programmed.status);
    assert_eq!(
        programmed.message,
        "Resource programmed, assigned to service(s) waypoint.default.svc.cluster.local:15008"
    );
}

#[test]
fn addresses_appear_with_the_first_ready_proxy_and_stay() {
    let gateway = gateway("istio-waypoint", "HBONE", 15008);
    let mut observed = Observed { cluster_ips: vec!["10.96.58.95".into()], ..Observed::default() };
    assert!(status(&gateway, &observed).addresses.is_empty());
    observed.had_addresses = true;
    let report = status(&gateway, &observed);
    assert_eq!(report.addresses.len(), 2);
    assert!(!find(&report, "Programmed").status);
}

#[test]
fn no_service_yet() {
    let report = status(&gateway("istio-waypoint", "HBONE", 15008), &Observed::default());
    assert_eq!(
        find(&report, "Programmed").message,
        "Failed to assign to any requested addresses: hostname \"waypoint.default.svc.cluster.local\" not found"
    );
}

#[test]
fn what_no_request_can_tell_apart_is_a_conflict_and_kinds_are_those_that_are_served() {
    let of = |listeners: &str| -> Report {
        let yaml = format!(
            "metadata: {{name: g, namespace: default}}\nspec: {{gatewayClassName: istio, listeners: {listeners}}}"
        );
        status(&serde_yaml_ng::from_str(&yaml).unwrap(), &Observed::default())
    };
    let said = |report: &Report, index: usize, kind: &str| {
        let condition = report.listeners[index].conditions.iter().find(|c| c.kind == kind).unwrap();
        (condition.status, condition.reason.clone())
    };
    let http = |name: &str, rest: &str| format!("{{name: {name}, port: 80, protocol: HTTP{rest}}}");
    let two = |a: &str, b: &str| format!("[{}, {}]", http("a", a), http("b", b));
    for (listeners, conflicted, reason) in [
        (two("", ""), true, "HostnameConflict"),
        (two(", hostname: a.example", ", hostname: A.example"), true, "HostnameConflict"),
        (two("", ", hostname: a.example"), false, "NoConflicts"),
        (format!("[{}, {{name: b, port: 80, protocol: TCP}}]", http("a", "")), true, "ProtocolConflict"),
        (format!("[{}, {{name: b, port: 81, protocol: HTTP}}]", http("a", "")), false, "NoConflicts"),
    ] {
        let report = of(&listeners);
        assert_eq!(said(&report, 0, "Conflicted"), (conflicted, reason.to_owned()), "{listeners}");
        assert_eq!(said(&report, 0, "Programmed").0, !conflicted, "{listeners}");
        let expected = if conflicted { "ListenersNotValid" } else { "Accepted" };
        assert_eq!(find(&report, "Accepted").reason, expected, "{listeners}");
    }
    let tls = |name: &str, rest: &str| format!("{{name: {name}, port: 443, protocol: TLS, {rest}}}");
    let (through, ends) =
        ("tls: {mode: Passthrough}", "tls: {mode: Terminate, certificateRefs: [{name: c}]}");
    for (other, conflict, supported) in [
        (tls("b", &format!("hostname: b.example, {through}")), "NoConflicts", vec!["TLSRoute"]),
        (tls("b", &format!("hostname: A.example, {through}")), "HostnameConflict", vec!["TLSRoute"]),
        // What a port speaks is known before a host is named.
        (tls("b", &format!("hostname: b.example, {ends}")), "ProtocolConflict", vec![]),
        (
            format!("{{name: b, port: 443, protocol: HTTPS, hostname: b.example, {ends}}}"),
            "ProtocolConflict",
            vec![],
        ),
    ] {
        let report = of(&format!("[{}, {other}]", tls("a", &format!("hostname: a.example, {through}"))));
        assert_eq!(said(&report, 0, "Conflicted").1, conflict, "{other}");
        assert_eq!(report.listeners[0].supported, supported, "{other}");
    }
    for (kinds, supported, resolved) in [
        ("[{kind: HTTPRoute}]", vec!["HTTPRoute"], true),
        ("[{kind: TCPRoute}]", vec![], false),
        ("[{kind: GRPCRoute}]", vec!["GRPCRoute"], true),
        ("[{kind: HTTPRoute, group: other.example}]", vec![], false),
        ("[{kind: HTTPRoute}, {kind: TCPRoute}]", vec!["HTTPRoute"], false),
    ] {
        let report = of(&format!("[{}]", http("a", &format!(", allowedRoutes: {{kinds: {kinds}}}"))));
        assert_eq!(report.listeners[0].supported, supported, "{kinds}");
        let reason = if resolved { "ResolvedRefs" } else { "InvalidRouteKinds" };
        assert_eq!(said(&report, 0, "ResolvedRefs"), (resolved, reason.to_owned()), "{kinds}");
        assert_eq!(said(&report, 0, "Programmed").0, !supported.is_empty(), "{kinds}");
    }
    for port in OWN_PORTS {
        let report = of(&format!("[{{name: a, port: {port}, protocol: HTTP}}]"));
        assert_eq!(said(&report, 0, "Accepted"), (false, "PortUnavailable".to_owned()), "{port}");
    }
}

#[test]
fn a_waypoint_needs_its_one_listener() {
    let report = status(&gateway("istio-waypoint", "HTTP", 80), &Observed::default());
    assert!(!find(&report, "Accepted").status);
    let accepted = &report.listeners[0].conditions[0];
    assert_eq!(accepted.message, "Expected a single listener on port 15008 with protocol \"HBONE\"");
}

#[test]
fn an_ingress_gateway_waits_for_its_load_balancer() {
    let mut observed = Observed {
        cluster_ips: vec!["10.96.1.1".into()],
        load_balancer: true,
        ready: 1,
        ..Observed::default()
    };
    let gateway = gateway("istio", "HTTP", 80);
    assert_eq!(find(&status(&gateway, &observed), "Programmed").reason, "AddressNotAssigned");
    observed.external.push(("IPAddress".into(), "172.30.1.1".into()));
    let report = status(&gateway, &observed);
    assert!(find(&report, "Programmed").status);
    assert_eq!(report.addresses, observed.external);
}

#[test]
fn a_listener_that_asks_more_of_tls_than_is_done_is_not_served() {
    let validation = "{validation: {caCertificateRefs: [{name: ca, kind: ConfigMap, group: ''}]}}";
    let ends = "{mode: Terminate, certificateRefs: [{name: c}]}";
    let mutual = "{mode: Terminate, certificateRefs: [{name: c}], options: {gateway.istio.io/tls-terminate-mode: MUTUAL}}";
    let all = format!("{{frontend: {{default: {validation}}}}}");
    let of_port = |port: u16, tls: &str| {
        format!("{{frontend: {{default: {{}}, perPort: [{{port: {port}, tls: {tls}}}]}}}}")
    };
    let but_443 = format!("{{frontend: {{default: {validation}, perPort: [{{port: 443, tls: {{}}}}]}}}}");
    for (protocol, of_listener, of_gateway, is_served) in [
        ("HTTPS", ends, "{}", true),
        ("HTTPS", mutual, "{}", false),
        ("TLS", mutual, "{}", false),
        ("HTTPS", ends, &*all, false),
        ("TLS", ends, &*all, false),
        // It ends elsewhere, where clients can be asked for a certificate.
        ("TLS", "{mode: Passthrough}", &*all, true),
        ("HTTPS", ends, &*of_port(443, validation), false),
        ("HTTPS", ends, &*of_port(8443, validation), true),
        ("HTTPS", ends, &*but_443, true),
    ] {
        let yaml = format!(
            "
metadata: {{name: g, namespace: default}}
spec:
  gatewayClassName: istio
  tls: {of_gateway}
  listeners: [{{name: a, port: 443, protocol: {protocol}, tls: {of_listener}}}]
"
        );
        let report = status(&serde_yaml_ng::from_str(&yaml).unwrap(), &Observed::default());
        let accepted = report.listeners[0].conditions.iter().find(|c| c.kind == "Accepted").unwrap();
        assert_eq!(accepted.status, is_served, "{protocol} {of_listener} {of_gateway}");
        assert!(is_served || accepted.reason == "UnsupportedValue", "{accepted:?}");
    }
}
