// SPDX-License-Identifier: Apache-2.0
//! What a change of something else does to the status of a policy.

use super::*;

#[test]
fn strict_peers_leave_plaintext_no_way_past_a_denial() {
    let mut mesh = Mesh::new();
    let from = json!([{"source": {"namespaces": ["a"]}}]);
    let policy = json!({"spec": {"selector": {"matchLabels": {"app": "web"}}, "action": "DENY", "rules": [{"from": from}]}});
    mesh.set("AuthorizationPolicy", "shop", 1, policy);
    mesh.flush();
    assert_eq!(mesh.said("AuthorizationPolicy", &shop("p")).1.len(), 3);
    mesh.set("PeerAuthentication", "istio-system", 1, json!({"spec": {"mtls": {"mode": "STRICT"}}}));
    mesh.flush();
    let through = "meltemi.dev/Escapes=True ThroughWaypoint: Rule 0 denies by source, and of clients that come through waypoint \
                   shop/wp a node proxy sees the waypoint only: they pass, unless a policy with targetRefs denies them there.";
    assert_eq!(mesh.said("AuthorizationPolicy", &shop("p")).1, [ATTACHED, through, ON_NODE]);
}

#[test]
fn an_invalid_update_changes_nothing_but_the_status() {
    let mut mesh = Mesh::new();
    mesh.set(
        "AuthorizationPolicy",
        "shop",
        1,
        json!({"spec": {"selector": {"matchLabels": {"app": "web"}}}}),
    );
    mesh.flush();
    mesh.set("AuthorizationPolicy", "shop", 2, json!({"spec": {"rulez": []}}));
    let step = mesh.flush();
    assert!(step.delta.policies.is_empty() && step.delta.removed_policies.is_empty());
    let (generation, said) = mesh.said("AuthorizationPolicy", &shop("p"));
    assert_eq!(generation, Some(2));
    assert!(said[0].starts_with(
        "ZtunnelAccepted=False Invalid: error decoding configuration: spec.rulez: unknown field"
    ));
    assert!(said[0].ends_with("; what was accepted before stays in force"), "{}", said[0]);
}

#[test]
fn a_new_generation_is_enforced_when_it_is_acknowledged() {
    let mut mesh = Mesh::new();
    mesh.set(
        "AuthorizationPolicy",
        "shop",
        1,
        json!({"spec": {"selector": {"matchLabels": {"app": "web"}}}}),
    );
    mesh.flush();
    let mut behind = proxy("ztunnel", Scope::NodeProxy, Some("node-1"));
    let reached = mesh.publisher.generation();
    for state in behind.types.values_mut() {
        state.0 = reached;
    }
    mesh.proxies.put(behind.clone());
    // The same rules for other workloads: only the workloads are sent, and they have to be acknowledged.
    for (selector, expected) in [(json!({"app": "no"}), NOWHERE), (json!({"app": "web"}), "0/1 proxies")] {
        mesh.set("AuthorizationPolicy", "shop", 2, json!({"spec": {"selector": {"matchLabels": selector}}}));
        let step = mesh.flush();
        assert!(step.delta.policies.is_empty(), "the policy itself is the same");
        let said = mesh.said("AuthorizationPolicy", &shop("p")).1;
        assert!(said[1].ends_with(expected), "{said:?}");
    }
    for state in behind.types.values_mut() {
        state.0 = mesh.publisher.generation();
    }
    mesh.proxies.put(behind);
    mesh.security.acknowledged(&mesh.index, &mesh.status);
    assert_eq!(mesh.said("AuthorizationPolicy", &shop("p")).1, [ATTACHED, ON_NODE]);
}

#[test]
fn another_configuration_of_the_mesh_reads_policies_again() {
    let mut mesh = Mesh::new();
    let from = json!([{"source": {"principals": ["cluster.local/ns/a/sa/b"]}}]);
    let policy = json!({"spec": {"selector": {"matchLabels": {"app": "web"}}, "rules": [{"from": from}]}});
    mesh.set("AuthorizationPolicy", "shop", 1, policy);
    mesh.flush();
    let configured = MeshConfig::default()
        .configured("trustDomainAliases: [old]\npathNormalization: {normalization: MERGE_SLASHES}")
        .unwrap();
    mesh.index.set_mesh(configured.clone());
    mesh.security.set_mesh(configured);
    let step = mesh.flush();
    let sent = serde_json::to_string(&step.delta.policies).unwrap();
    assert!(sent.contains("cluster.local/ns/a/sa/b") && sent.contains("old/ns/a/sa/b"), "{sent}");
    let merge = l7::PathNormalization::MergeSlashes;
    assert_eq!(step.settings, Some(l7::Settings { path_normalization: merge, providers: Vec::new() }));
    assert!(mesh.publisher.get(types::SETTINGS, "mesh").is_some());
}

#[test]
fn a_way_around_that_a_namespace_closes_is_no_longer_named() {
    let mut mesh = Mesh::new();
    let target = json!({"kind": "Service", "group": "", "name": "web"});
    mesh.set("AuthorizationPolicy", "shop", 7, json!({"spec": {"targetRefs": [target]}}));
    mesh.flush();
    assert!(mesh.said("AuthorizationPolicy", &shop("p")).1.contains(&AROUND.to_owned()));
    let mut labels = ambient();
    labels.insert("meltemi.dev/waypoint-bypass".to_owned(), "deny".to_owned());
    let closed = NamespaceFacts { labels, ..NamespaceFacts::default() };
    mesh.index.apply(Change::Namespace("shop".into(), Some(closed)));
    mesh.security.see_namespace("shop");
    mesh.flush();
    assert!(!mesh.said("AuthorizationPolicy", &shop("p")).1.contains(&AROUND.to_owned()));
    // A Pod of the Service that no node proxy stands before is not closed by anything.
    mesh.set_pod("shop", "web-2", &json!({"istio.io/dataplane-mode": "none"}));
    mesh.flush();
    assert!(mesh.said("AuthorizationPolicy", &shop("p")).1.contains(&AROUND.to_owned()));
}

#[test]
fn a_selected_pod_that_no_proxy_stands_before_is_named() {
    let enforced = |mesh: &Mesh, kind: &str, namespace: &str| {
        let (_, said) = mesh.said(kind, &NamespacedName::new(namespace, "p"));
        said.into_iter().find(|c| c.starts_with("meltemi.dev/Enforced")).unwrap()
    };
    let open = "meltemi.dev/Enforced=False NotCaptured: 1/1 proxies; it is not enforced for Pods shop/web-2 (label \
                istio.io/dataplane-mode=none)";
    for (kind, spec) in [
        ("AuthorizationPolicy", json!({"selector": {"matchLabels": {"app": "web"}}})),
        (
            "PeerAuthentication",
            json!({"selector": {"matchLabels": {"app": "web"}}, "mtls": {"mode": "STRICT"}}),
        ),
    ] {
        let mut mesh = Mesh::new();
        mesh.set(kind, "shop", 7, json!({ "spec": spec }));
        mesh.flush();
        assert_eq!(enforced(&mesh, kind, "shop"), ON_NODE);
        mesh.set_pod("shop", "web-2", &json!({"istio.io/dataplane-mode": "none"}));
        mesh.flush();
        assert_eq!(enforced(&mesh, kind, "shop"), open);
        mesh.set_pod("shop", "web-2", &json!({"istio.io/dataplane-mode": "ambient"}));
        mesh.flush();
        assert_eq!(enforced(&mesh, kind, "shop"), ON_NODE);
    }
}

#[test]
fn a_proxy_of_a_gateway_is_known_by_its_stream_and_not_by_its_label() {
    let mut mesh = Mesh::new();
    let spec = json!({"mtls": {"mode": "STRICT"}});
    mesh.set("PeerAuthentication", "shop", 7, json!({ "spec": spec }));
    let labels = json!({"istio.io/dataplane-mode": "none", "gateway.networking.k8s.io/gateway-name": "wp"});
    mesh.set_pod("shop", "wp-1", &labels);
    mesh.flush();
    let said = mesh.said("PeerAuthentication", &shop("p")).1;
    assert!(said.iter().any(|c| c.contains("NotCaptured") && c.contains("shop/wp-1")), "{said:?}");
    let mut stream = proxy("wp-1.shop", Scope::Gateway(shop("wp")), None);
    stream.name = "wp-1.shop".into();
    mesh.proxies.put(stream);
    mesh.security.acknowledged(&mesh.index, &mesh.status);
    let said = mesh.said("PeerAuthentication", &shop("p")).1;
    assert!(said.contains(&ON_NODE.to_owned()), "{said:?}");
}

#[test]
fn a_policy_of_the_whole_mesh_names_the_namespaces_outside_of_it() {
    let mut mesh = Mesh::new();
    mesh.set_pod("elsewhere", "x", &json!({}));
    mesh.set("AuthorizationPolicy", "istio-system", 7, json!({"spec": {}}));
    mesh.flush();
    let (_, said) = mesh.said("AuthorizationPolicy", &NamespacedName::new("istio-system", "p"));
    let outside = "meltemi.dev/Escapes=True OutsideMesh: Pods of namespaces that are not in the mesh are selected, and nothing \
                   is enforced for them: elsewhere.";
    assert!(said.contains(&outside.to_owned()), "{said:?}");
}

#[test]
fn what_a_review_says_stands_in_the_status_until_the_policy_changes() {
    let mut mesh = Mesh::new();
    let target = json!({"kind": "Service", "group": "", "name": "web"});
    let policy = |method: &str| {
        let to = json!([{"operation": {"methods": [method]}}]);
        json!({"spec": {"targetRefs": [target], "rules": [{"to": to}]}})
    };
    let suspicious = |mesh: &Mesh| -> Vec<String> {
        let said = mesh.said("AuthorizationPolicy", &shop("p")).1;
        said.into_iter().filter(|c| c.starts_with("meltemi.dev/Suspicious")).collect()
    };
    let review = |mesh: &mut Mesh, subject, texts: &[&str]| {
        let remark = |text: &&str| Remark { reason: "RuleNeverMatches", text: (*text).to_owned() };
        let remarks = [(shop("p"), texts.iter().map(remark).collect())].into();
        mesh.security.remark(&subject, remarks);
        mesh.security.report(&mesh.index, &mesh.status);
    };
    mesh.security.take_unreviewed();
    mesh.set("AuthorizationPolicy", "shop", 1, policy("get"));
    mesh.flush();
    assert!(mesh.security.take_unreviewed());
    assert!(!mesh.security.take_unreviewed(), "asked again, with nothing changed");
    assert!(suspicious(&mesh).is_empty());
    let before = mesh.security.subject(&mesh.index);
    assert_eq!(before.policies.keys().collect::<Vec<_>>(), [&shop("p")]);
    assert_eq!(before.services[&shop("web")].labels["istio.io/use-waypoint"], "wp");
    assert_eq!(before.ingress.keys().collect::<Vec<_>>(), [&shop("gw")]);
    assert!(before.namespaces.contains_key("shop"));
    review(&mut mesh, before.clone(), &["One.", "Two."]);
    assert_eq!(suspicious(&mesh), ["meltemi.dev/Suspicious=True RuleNeverMatches: One. Two."]);
    mesh.set("AuthorizationPolicy", "shop", 2, policy("GET"));
    mesh.flush();
    assert!(mesh.security.take_unreviewed());
    assert!(suspicious(&mesh).is_empty(), "it was said of another text");
    review(&mut mesh, before, &["Late."]);
    assert!(mesh.status.take().is_empty(), "what a review says of an older text is dropped");
    // What is not in force is not looked at.
    mesh.set("AuthorizationPolicy", "shop", 3, json!({"spec": {"rules": [{"from": []}]}}));
    mesh.flush();
    assert!(mesh.security.subject(&mesh.index).policies.is_empty());
}

#[test]
fn a_waypoint_that_is_gone_is_named_until_it_is_back() {
    let mut mesh = Mesh::new();
    let target = json!({"kind": "Service", "group": "", "name": "web"});
    mesh.set("AuthorizationPolicy", "shop", 1, json!({"spec": {"targetRefs": [target]}}));
    mesh.flush();
    let wp = gateway("wp", "istio-waypoint");
    let gone = "WaypointAccepted=False AncestorNotBound: waypoint shop/wp does not exist: connections to it are refused until it does";
    let bound = "WaypointAccepted=True Accepted: bound to shop/wp";
    for (there, expected) in [(false, gone), (true, bound)] {
        let facts = there.then(|| WaypointFacts::read(&wp, &MeshConfig::default())).flatten();
        mesh.index.apply(Change::Waypoint(shop("wp"), facts));
        mesh.gateways.set(&shop("wp"), there.then_some("wp"));
        mesh.security.set_gateway(&shop("wp"), there.then_some(&wp));
        let step = mesh.flush();
        assert!(step.removed_http_policies.is_empty(), "its proxies keep the policy");
        assert_eq!(mesh.said("AuthorizationPolicy", &shop("p")).1[0], expected);
    }
}
