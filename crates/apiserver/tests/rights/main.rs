// SPDX-License-Identifier: Apache-2.0
//! Rights are what RBAC says: random roles, bindings, users and requests, for every verb and subresource that discovery
//! lists, judged by an independent reading of Kubernetes' documentation.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod accounts;
mod collections;
mod escalation;
mod oracle;
mod subresources;
mod world;

use http::Method;
use proptest::prelude::{Just, Strategy};
use proptest::{collection, option, prop_assert, prop_assert_eq, proptest, sample};
use serde_json::{Value, json};

use self::oracle::{Asked, Who, allows};
use self::world::{Server, users};

/// A verb of a resource or subresource, as discovery lists it.
#[derive(Clone, Debug)]
struct Offered {
    group: String,
    version: String,
    /// `pods` or `pods/log`.
    resource: String,
    namespaced: bool,
    verb: String,
}

/// A custom resource with a scale, so that discovery lists one.
fn definition() -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.x.io"}, "spec": {"group": "x.io", "scope": "Namespaced",
        "names": {"plural": "things", "kind": "Thing"}, "versions": [{"name": "v1", "served": true, "storage": true,
        "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.n", "statusReplicasPath": ".status.n"}},
        "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}})
}

fn server() -> Server {
    let server = Server::new();
    server.api.registry.add_definition(&definition());
    server
}

/// Everything that discovery lists.
fn offered() -> Vec<Offered> {
    let server = server();
    let root = users().pop().unwrap();
    let get = |path: &str| server.send(&root, Method::GET, path, "application/json", None).body;
    let groups = get("/apis")["groups"].as_array().unwrap().clone();
    let versions = groups.iter().flat_map(|group| group["versions"].as_array().unwrap().clone());
    let paths = versions.map(|version| format!("/apis/{}", version["groupVersion"].as_str().unwrap()));
    let mut all = Vec::new();
    for path in std::iter::once("/api/v1".to_owned()).chain(paths) {
        let list = get(&path);
        let (group, version) =
            list["groupVersion"].as_str().map(|gv| gv.rsplit_once('/').unwrap_or(("", gv))).unwrap();
        for one in list["resources"].as_array().unwrap() {
            for verb in one["verbs"].as_array().unwrap() {
                all.push(Offered {
                    group: group.to_owned(),
                    version: version.to_owned(),
                    resource: one["name"].as_str().unwrap().to_owned(),
                    namespaced: one["namespaced"] == true,
                    verb: verb.as_str().unwrap().to_owned(),
                });
            }
        }
    }
    all
}

#[derive(Clone, Debug)]
struct Case {
    who: Who,
    offered: Offered,
    namespace: &'static str,
    name: &'static str,
    /// A list or watch of one name, by a field selector.
    selected: Option<&'static str>,
    /// A list or watch in all namespaces.
    everywhere: bool,
}

fn cases(offered: Vec<Offered>) -> impl Strategy<Value = Vec<Case>> {
    let case = (
        sample::select(users()),
        sample::select(offered),
        sample::select(vec!["a", "b"]),
        sample::select(vec!["one", "two"]),
        option::weighted(0.3, Just("one")),
        sample::select(vec![false, false, true]),
    );
    let case = case.prop_map(|(who, offered, namespace, name, selected, everywhere)| Case {
        who,
        offered,
        namespace,
        name,
        selected,
        everywhere,
    });
    collection::vec(case, 60)
}

impl Case {
    /// A request for the object `one` of the namespace `a`.
    fn of(who: &Who, offered: Offered) -> Self {
        Self { who: who.clone(), offered, namespace: "a", name: "one", selected: None, everywhere: false }
    }

    fn is_collection(&self) -> bool {
        matches!(self.offered.verb.as_str(), "list" | "watch" | "deletecollection")
    }

    fn is_everywhere(&self) -> bool {
        self.everywhere && self.is_collection()
    }

    /// Whether the path ends with the resource.
    fn is_unnamed(&self) -> bool {
        self.is_collection() || (self.offered.verb == "create" && !self.offered.resource.contains('/'))
    }

    fn path(&self) -> String {
        let Offered { group, version, resource, namespaced, verb } = &self.offered;
        let mut path =
            if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        // Clients of long ago say in the path that they watch.
        let is_legacy = verb == "watch" && self.name == "two";
        if is_legacy {
            path += "/watch";
        }
        if *namespaced && !self.is_everywhere() {
            path += &format!("/namespaces/{}", self.namespace);
        }
        let (plural, sub) = resource.split_once('/').map_or((resource.as_str(), None), |(p, s)| (p, Some(s)));
        path += &format!("/{plural}");
        if !self.is_unnamed() {
            path += &format!("/{}", self.name);
        }
        if let Some(sub) = sub {
            path += &format!("/{sub}");
        }
        path += "?dryRun=All&fieldManager=test";
        if verb == "watch" {
            path += if is_legacy { "&timeoutSeconds=1" } else { "&watch=true&timeoutSeconds=1" };
        }
        if let Some(name) = self.selected.filter(|_| self.is_collection()) {
            path += &format!("&fieldSelector=metadata.name%3D{name}");
        }
        path
    }

    /// Method, content type and body. A body of the right shape: what is stored must not depend on it, on a dry run.
    fn request(&self) -> (Method, &'static str, Option<Value>) {
        let json_type = "application/json";
        let metadata = json!({"name": self.name});
        match (self.offered.verb.as_str(), self.offered.resource.split_once('/').map_or("", |(_, sub)| sub)) {
            ("get" | "list" | "watch", _) => (Method::GET, json_type, None),
            ("delete" | "deletecollection", _) => (Method::DELETE, json_type, None),
            ("patch", "") => (
                Method::PATCH,
                "application/merge-patch+json",
                Some(json!({"metadata": {"labels": {"l": "m"}}})),
            ),
            ("patch", _) => {
                (Method::PATCH, "application/merge-patch+json", Some(json!({"spec": {"replicas": 3}})))
            }
            ("update", "scale") => {
                (Method::PUT, json_type, Some(json!({"metadata": metadata, "spec": {"replicas": 3}})))
            }
            ("update", "finalize") => {
                (Method::PUT, json_type, Some(json!({"metadata": metadata, "spec": {"finalizers": []}})))
            }
            ("update", _) => (
                Method::PUT,
                json_type,
                Some(
                    json!({"metadata": {"name": self.name, "labels": {"l": "m"}}, "status": {"phase": "X"}}),
                ),
            ),
            (_, "binding") => (
                Method::POST,
                json_type,
                Some(json!({"metadata": metadata, "target": {"kind": "Node", "name": "n"}})),
            ),
            (_, "token") => (Method::POST, json_type, Some(json!({"spec": {}}))),
            (_, "") => (Method::POST, json_type, Some(json!({"metadata": {"name": "new"}}))),
            _ => (Method::POST, json_type, Some(json!({"metadata": metadata}))),
        }
    }

    /// What RBAC is asked: the streams that act in a Pod ask for `create` whatever the method, as Kubernetes does since
    /// 1.35.
    fn asked(&self) -> Vec<Asked> {
        let Offered { group, resource, namespaced, verb, .. } = &self.offered;
        let selected = self.selected.filter(|_| matches!(verb.as_str(), "list" | "watch"));
        let name = if self.is_unnamed() { selected.unwrap_or_default() } else { self.name };
        let namespace = match (*namespaced && !self.is_everywhere(), resource.split('/').next()) {
            (true, _) => self.namespace,
            // A namespace is in itself.
            (false, Some("namespaces")) if !self.is_unnamed() => self.name,
            _ => "",
        };
        let asked = |verb: &str| Asked {
            verb: verb.to_owned(),
            group: group.clone(),
            resource: resource.clone(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        let acts = matches!(resource.as_str(), "pods/exec" | "pods/attach" | "pods/portforward");
        if acts && verb == "get" { vec![asked("get"), asked("create")] } else { vec![asked(verb)] }
    }
}

/// One object named `one` of every kind, in both namespaces.
fn fill(server: &Server) {
    for info in
        server.api.registry.all().iter().filter(|info| !info.virtual_only && info.group != world::RBAC)
    {
        if info.group == "events.k8s.io" || info.kind == "CustomResourceDefinition" {
            continue;
        }
        for namespace in if info.namespaced { vec!["a", "b"] } else { vec![""] } {
            let mut object = json!({"apiVersion": info.api_version(), "kind": info.kind,
                "metadata": {"name": "one", "uid": format!("{}-{namespace}", info.plural)}});
            if info.namespaced {
                object["metadata"]["namespace"] = namespace.into();
            }
            server.put(&info.key, object);
        }
    }
    for name in ["a", "b"] {
        server
            .put("/namespaces", json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    }
}

proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_verdict_is_what_the_documentation_says_and_a_dry_run_changes_nothing(
        objects in world::objects(), cases in cases(offered())
    ) {
        let server = server();
        fill(&server);
        server.put_rbac(&objects);
        let before = server.api.store.revision();
        for case in cases {
            let (method, kind, body) = case.request();
            let answer = server.send(&case.who, method, &case.path(), kind, body.as_ref());
            let expected = case.asked().iter().all(|asked| allows(&objects, &case.who, asked));
            prop_assert_eq!(!answer.is_unauthorized(), expected, "{:?} {}: {:?}", case.who, case.path(), answer);
            prop_assert!(answer.code != 500, "{}: {:?}", case.path(), answer);
            prop_assert_eq!(server.api.store.revision(), before, "a dry run wrote: {:?} {}", case, case.path());
        }
    }
}

#[test]
fn every_verb_that_discovery_lists_is_served_and_no_other() {
    let server = server();
    fill(&server);
    let root = users().pop().unwrap();
    let all = offered();
    for offered in &all {
        let case = Case::of(&root, offered.clone());
        let (method, kind, body) = case.request();
        let answer = server.send(&root, method, &case.path(), kind, body.as_ref());
        // A path that nothing serves has no details; an object that is not there is named in them.
        let is_served = answer.code != 404 || answer.body["details"]["name"].is_string();
        assert!(is_served && !matches!(answer.code, 405 | 500), "{}: {answer:?}", case.path());
    }
    for (resource, verb) in [
        ("pods/log", "update"),
        ("pods/eviction", "get"),
        ("serviceaccounts/token", "patch"),
        ("namespaces/finalize", "delete"),
        ("pods/status", "delete"),
        ("pods/status", "create"),
        ("pods/proxy", "get"),
    ] {
        let offered = Offered {
            group: String::new(),
            version: "v1".into(),
            resource: resource.into(),
            namespaced: !resource.starts_with("namespaces"),
            verb: verb.into(),
        };
        let case = Case::of(&root, offered);
        let (method, kind, body) = case.request();
        let answer = server.send(&root, method, &case.path(), kind, body.as_ref());
        assert!(matches!(answer.code, 404 | 405), "{resource} {verb}: {answer:?}");
    }
}

#[test]
fn a_path_that_does_not_fit_its_resource_is_404_for_everybody() {
    let server = server();
    fill(&server);
    // A tenant: everything in the namespace a.
    server.put(
        &format!("{}/clusterroles", world::RBAC),
        json!({"metadata": {"name": "all"},
        "rules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]}),
    );
    server.put(
        &format!("{}/rolebindings", world::RBAC),
        json!({"metadata": {"name": "all", "namespace": "a"},
        "roleRef": {"kind": "ClusterRole", "name": "all"}, "subjects": [{"kind": "User", "name": "alice"}]}),
    );
    let before = server.api.store.revision();
    let everybody = users();
    for who in [everybody.first().unwrap(), everybody.last().unwrap()] {
        for path in [
            "/api/v1/namespaces/a/namespaces",
            "/api/v1/namespaces/a/namespaces/a",
            "/api/v1/namespaces/a/namespaces/b",
            "/api/v1/namespaces/a/namespaces/b/status",
            "/api/v1/namespaces/a/namespaces/b/finalize",
            "/api/v1/namespaces/a/nodes",
            "/api/v1/namespaces/a/nodes/one",
            "/apis/rbac.authorization.k8s.io/v1/namespaces/a/clusterroles/all",
            "/api/v1/pods/one",
            "/apis/apps/v1/deployments/one/scale",
        ] {
            for method in [Method::GET, Method::PUT, Method::PATCH, Method::DELETE, Method::POST] {
                let body = (method != Method::GET).then(|| json!({"metadata": {"labels": {"x": "y"}}}));
                let answer =
                    server.send(who, method.clone(), path, "application/merge-patch+json", body.as_ref());
                assert_eq!(answer.code, 404, "{} {method} {path}: {answer:?}", who.name);
                assert!(answer.body["details"].is_object(), "kubectl reads the details: {answer:?}");
            }
        }
        // Nor is an empty segment a way around its parent.
        for path in ["/api/v1/namespaces//pods", "/api/v1/namespaces/a//one"] {
            let answer = server.send(who, Method::GET, path, "application/json", None);
            assert!(matches!(answer.code, 403 | 404), "{path}: {answer:?}");
        }
    }
    assert_eq!(server.api.store.revision(), before);
}

#[test]
fn server_side_apply_creates_only_for_those_who_may_create() {
    let server = server();
    fill(&server);
    let rules = json!([{"verbs": ["get", "patch"], "apiGroups": [""], "resources": ["configmaps"]}]);
    server.put(
        &format!("{}/roles", world::RBAC),
        json!({"metadata": {"name": "patcher", "namespace": "a"}, "rules": rules}),
    );
    server.put(
        &format!("{}/rolebindings", world::RBAC),
        json!({"metadata": {"name": "patcher", "namespace": "a"},
        "roleRef": {"kind": "Role", "name": "patcher"}, "subjects": [{"kind": "User", "name": "alice"}]}),
    );
    let alice = users().remove(0);
    let apply = |name: &str| {
        let body =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}});
        let path = format!("/api/v1/namespaces/a/configmaps/{name}?fieldManager=m&force=true");
        server.send(&alice, Method::PATCH, &path, "application/apply-patch+yaml", Some(&body))
    };
    let answer = apply("new");
    assert!(answer.is_unauthorized(), "{answer:?}");
    assert!(answer.body["message"].as_str().unwrap().contains("cannot create"), "{answer:?}");
    assert_eq!(apply("one").code, 200, "what exists may be patched");
}
