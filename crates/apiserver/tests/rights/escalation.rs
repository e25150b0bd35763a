// SPDX-License-Identifier: Apache-2.0
//! Whatever roles and bindings a user writes, in whatever order: they never come to more than they had.

use http::Method;
use proptest::prelude::{Strategy, any};
use proptest::{collection, prop_assert, proptest, sample};
use serde_json::{Value, json};

use super::oracle::{Asked, Objects, Who, allows};
use super::world::{RBAC, Server, selector};

fn alice() -> Who {
    Who { name: "alice".to_owned(), groups: vec!["system:authenticated".to_owned()] }
}

/// What alice writes.
#[derive(Clone, Debug)]
enum Write {
    Role { name: String, rules: Vec<Value>, selector: Option<Value>, label: bool, by: By },
    Binding { name: String, role: String, by: By },
}

#[derive(Clone, Copy, Debug)]
enum By {
    Create,
    Update,
    Merge,
    Apply,
}

const BY: [By; 4] = [By::Create, By::Update, By::Merge, By::Apply];

fn rule() -> impl Strategy<Value = Value> {
    let verbs = sample::subsequence(vec!["get", "create", "delete", "bind", "escalate", "*"], 1..3);
    let resources =
        sample::subsequence(vec!["pods", "pods/exec", "secrets", "clusterroles", "*/scale", "*"], 1..3);
    (verbs, sample::select(vec!["", "apps", "*", RBAC]), resources, any::<bool>()).prop_map(
        |(verbs, group, resources, named)| {
            let mut rule = json!({"verbs": verbs, "apiGroups": [group], "resources": resources});
            if named {
                rule["resourceNames"] = json!(["one"]);
            }
            rule
        },
    )
}

fn write() -> impl Strategy<Value = Write> {
    let name = || sample::select(vec!["mine", "yours"]);
    let by = || sample::select(BY.to_vec());
    let role = (name(), collection::vec(rule(), 0..2), proptest::option::of(selector()), any::<bool>(), by())
        .prop_map(|(name, rules, selector, label, by)| Write::Role {
            name: name.into(),
            rules,
            selector,
            label,
            by,
        });
    let roles = sample::select(vec!["mine", "yours", "cluster-admin", "reader", "later"]);
    let binding = (name(), roles, by()).prop_map(|(name, role, by)| Write::Binding {
        name: name.into(),
        role: role.into(),
        by,
    });
    proptest::prop_oneof![role, binding]
}

fn send(server: &Server, write: &Write) -> u16 {
    let (plural, name, mut object, by) = match write {
        Write::Role { name, rules, selector, label, by } => {
            let mut role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
                "metadata": {"name": name}, "rules": rules});
            if let Some(selector) = selector {
                role["aggregationRule"] = json!({"clusterRoleSelectors": [selector]});
            }
            if *label {
                role["metadata"]["labels"] = json!({"part": "x"});
            }
            ("clusterroles", name, role, by)
        }
        Write::Binding { name, role, by } => {
            let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
                "metadata": {"name": name}, "subjects": [{"kind": "User", "name": "alice", "apiGroup": RBAC}],
                "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role}});
            ("clusterrolebindings", name, binding, by)
        }
    };
    let path = format!("/apis/{RBAC}/v1/{plural}");
    let named = format!("{path}/{name}?fieldManager=m");
    let (method, path, kind) = match by {
        By::Create => (Method::POST, path, "application/json"),
        By::Update => (Method::PUT, named, "application/json"),
        By::Merge => (Method::PATCH, named, "application/merge-patch+json"),
        By::Apply => (Method::PATCH, format!("{named}&force=true"), "application/apply-patch+yaml"),
    };
    if matches!(by, By::Merge) && object.get("roleRef").is_none() {
        // A patch leaves alone what it does not name.
        object.as_object_mut().unwrap().retain(|_, value| *value != json!([]));
    }
    server.send(&alice(), method, &path, kind, Some(&object)).code
}

/// All that a right could be for.
fn questions() -> impl Iterator<Item = Asked> {
    let verbs = ["get", "create", "delete", "update", "bind", "escalate", "impersonate"];
    let things = [
        ("", "pods"),
        ("", "pods/exec"),
        ("", "secrets"),
        ("apps", "deployments/scale"),
        (RBAC, "clusterroles"),
    ];
    let scopes = [("", ""), ("a", ""), ("a", "one"), ("", "one")];
    verbs.into_iter().flat_map(move |verb| {
        things.into_iter().flat_map(move |(group, resource)| {
            scopes.into_iter().map(move |(namespace, name)| Asked {
                verb: verb.into(),
                group: group.into(),
                resource: resource.into(),
                namespace: namespace.into(),
                name: name.into(),
            })
        })
    })
}

fn gained(before: &Objects, after: &Objects) -> Option<Asked> {
    questions().find(|asked| allows(after, &alice(), asked) && !allows(before, &alice(), asked))
}

/// Alice may write roles and bindings and read Pods; two roles are worth having.
fn server() -> Server {
    let server = Server::new();
    let role = |name: &str, labels: Value, rules: Value| {
        let key = format!("{RBAC}/clusterroles");
        server.put(&key, json!({"metadata": {"name": name, "labels": labels}, "rules": rules}));
    };
    let all = json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]);
    role("cluster-admin", json!({"part": "x"}), all);
    role(
        "reader",
        json!({"part": "y"}),
        json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]),
    );
    role(
        "author",
        json!({}),
        json!([
        {"verbs": ["get", "create", "update", "patch", "delete"], "apiGroups": [RBAC], "resources": ["*"]},
        {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]),
    );
    let key = format!("{RBAC}/clusterrolebindings");
    server.put(
        &key,
        json!({"metadata": {"name": "author"}, "roleRef": {"kind": "ClusterRole", "name": "author"},
        "subjects": [{"kind": "User", "name": "alice"}]}),
    );
    server
}

proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 96, failure_persistence: None, ..Default::default() })]

    #[test]
    fn nobody_gains_by_writing_roles(writes in collection::vec(write(), 1..12)) {
        let server = server();
        let before = server.objects();
        for write in &writes {
            let code = send(&server, write);
            let gained = gained(&before, &server.objects());
            prop_assert!(gained.is_none(), "{gained:?} by {write:?} ({code}) in {writes:?}");
        }
    }
}

/// The property above must be able to fail: an aggregated role that is bound gathers everything.
#[test]
fn the_property_sees_an_escalation() {
    let server = server();
    let before = server.objects();
    let key = format!("{RBAC}/clusterroles");
    server.put(
        &key,
        json!({"metadata": {"name": "mine"}, "rules": [],
        "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"part": "x"}}]}}),
    );
    assert!(gained(&before, &server.objects()).is_none());
    let binding = Write::Binding { name: "mine".into(), role: "mine".into(), by: By::Create };
    assert_eq!(send(&server, &binding), 403, "what it gathers counts when it is bound");
    let key = format!("{RBAC}/clusterrolebindings");
    server.put(
        &key,
        json!({"metadata": {"name": "mine"}, "roleRef": {"kind": "ClusterRole", "name": "mine"},
        "subjects": [{"kind": "User", "name": "alice"}]}),
    );
    assert!(gained(&before, &server.objects()).is_some());
}

#[test]
fn what_one_holds_one_may_give_in_every_way() {
    let rules = vec![json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]})];
    for by in BY {
        let server = server();
        let role =
            |by| Write::Role { name: "mine".into(), rules: rules.clone(), selector: None, label: false, by };
        if matches!(by, By::Update | By::Merge) {
            assert_eq!(send(&server, &role(By::Create)), 201);
        }
        assert!(matches!(send(&server, &role(by)), 200 | 201), "{by:?}");
        let binding = Write::Binding { name: "mine".into(), role: "mine".into(), by: By::Create };
        assert_eq!(send(&server, &binding), 201, "{by:?}");
        let aggregated = Write::Role {
            name: "mine".into(),
            rules: vec![],
            selector: Some(json!({"matchLabels": {"part": "x"}})),
            label: false,
            by,
        };
        assert!(send(&server, &aggregated) >= 400, "{by:?}");
    }
}
