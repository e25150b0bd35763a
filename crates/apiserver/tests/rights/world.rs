// SPDX-License-Identifier: Apache-2.0
//! A server in this process, without a network, and random roles, bindings and users.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use axum::body::Body;
use http::{Method, Request};
use http_body_util::BodyExt;
use meltemi_apiserver::api::Api;
use meltemi_apiserver::auth::User;
use meltemi_apiserver::pki::{self, Layout, Pki};
use meltemi_apiserver::rest;
use meltemi_apiserver::store::Store;
use meltemi_runtime::{Tasks, drain};
use proptest::prelude::{Strategy, any};
use proptest::{collection, option, sample};
use serde_json::{Value, json};

use super::oracle::{Objects, Who};

pub(crate) const RBAC: &str = "rbac.authorization.k8s.io";

static PKI: LazyLock<(tempfile::TempDir, Pki)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let layout =
        Layout { data_dir: dir.path().into(), cluster_name: "m".into(), host_port: 1, nodes: Vec::new() };
    let pki = pki::ensure(&layout, SystemTime::now()).unwrap();
    (dir, pki)
});

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
});

/// A server with a store of its own.
pub(crate) struct Server {
    pub(crate) api: Api,
    _directory: tempfile::TempDir,
    _drain: drain::DrainTrigger,
}

/// An answer: status and body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) body: Value,
}

impl Answer {
    /// Whether authorization refused it; there are other reasons for 403.
    pub(crate) fn is_unauthorized(&self) -> bool {
        let message = self.body["message"].as_str().unwrap_or_default();
        self.code == 403 && message.contains("is forbidden: User ") && message.contains(" cannot ")
    }
}

impl Server {
    pub(crate) fn new() -> Self {
        let _inside = RUNTIME.enter();
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("db.sqlite")).unwrap();
        let (trigger, watch) = drain::channel();
        let (tasks, _supervisor) = Tasks::new("apiserver", watch);
        let api = Api::new(store, &PKI.1, IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)), &tasks).unwrap();
        Self { api, _directory: directory, _drain: trigger }
    }

    /// Stores an object without asking anybody.
    pub(crate) fn put(&self, key: &str, object: Value) {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (text("namespace"), text("name"));
        self.api.store.create(key, &namespace, &name, object).unwrap();
    }

    /// Sends a request as a user; the body of a watch is not read.
    pub(crate) fn send(
        &self,
        who: &Who,
        method: Method,
        path: &str,
        kind: &str,
        body: Option<&Value>,
    ) -> Answer {
        RUNTIME.block_on(async {
            let user = User { name: who.name.clone(), groups: who.groups.clone(), ..User::default() };
            let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
            let request =
                Request::builder().method(method).uri(path).header("content-type", kind).body(body).unwrap();
            let response = rest::handle(self.api.clone(), Some(Arc::new(user)), request).await;
            let code = response.status().as_u16();
            let body = if (path.contains("watch=true") || path.contains("/watch/")) && code == 200 {
                Value::Null
            } else {
                let bytes = response.into_body().collect().await.unwrap().to_bytes();
                serde_json::from_slice(&bytes).unwrap_or_default()
            };
            Answer { code, body }
        })
    }

    /// The roles and bindings as they are stored.
    pub(crate) fn objects(&self) -> Objects {
        let of = |plural: &str| {
            let stored = self.api.store.list(&format!("{RBAC}/{plural}"), None, None).0;
            stored.into_iter().map(|stored| (*stored.value).clone()).collect()
        };
        Objects {
            roles: of("roles"),
            cluster_roles: of("clusterroles"),
            role_bindings: of("rolebindings"),
            cluster_role_bindings: of("clusterrolebindings"),
        }
    }

    pub(crate) fn put_rbac(&self, objects: &Objects) {
        for (plural, list) in [
            ("roles", &objects.roles),
            ("clusterroles", &objects.cluster_roles),
            ("rolebindings", &objects.role_bindings),
            ("clusterrolebindings", &objects.cluster_role_bindings),
        ] {
            list.iter().for_each(|object| self.put(&format!("{RBAC}/{plural}"), object.clone()));
        }
    }
}

/// Users that the bindings name, by user, group or ServiceAccount.
pub(crate) fn users() -> Vec<Who> {
    let who = |name: &str, groups: &[&str]| Who {
        name: name.to_owned(),
        groups: groups.iter().map(|&group| group.to_owned()).collect(),
    };
    vec![
        who("alice", &["system:authenticated"]),
        who("bob", &["system:authenticated", "team"]),
        who("system:serviceaccount:a:robot", &["system:serviceaccounts", "system:serviceaccounts:a"]),
        who("system:serviceaccount:b:robot", &["system:serviceaccounts", "system:serviceaccounts:b"]),
        who("system:anonymous", &["system:unauthenticated"]),
        who("root", &["system:masters"]),
    ]
}

fn few(words: &'static [&'static str], most: usize) -> impl Strategy<Value = Vec<&'static str>> {
    sample::subsequence(words, 1..=most)
}

const VERBS: &[&str] =
    &["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "*"];
const GROUPS: &[&str] = &["", "apps", "batch", "policy", "rbac.authorization.k8s.io", "x.io", "*"];
const RESOURCES: &[&str] = &[
    "pods",
    "pods/exec",
    "pods/log",
    "pods/status",
    "pods/eviction",
    "pods/binding",
    "pods/*",
    "serviceaccounts/token",
    "namespaces",
    "namespaces/finalize",
    "nodes",
    "configmaps",
    "deployments",
    "deployments/scale",
    "*/scale",
    "*/status",
    "roles",
    "things",
    "*",
];

/// A rule; `verbs` must not be empty.
fn rule(verbs: &'static [&'static str]) -> impl Strategy<Value = Value> {
    (few(verbs, 3), few(GROUPS, 3), few(RESOURCES, 4), option::weighted(0.2, few(&["one", "two"], 2)))
        .prop_map(|(verbs, groups, resources, names)| {
            let mut rule = json!({"verbs": verbs, "apiGroups": groups, "resources": resources});
            if let Some(names) = names {
                rule["resourceNames"] = names.into();
            }
            rule
        })
}

fn rules() -> impl Strategy<Value = Vec<Value>> {
    collection::vec(rule(VERBS), 0..3)
}

fn subject() -> impl Strategy<Value = Value> {
    sample::select(vec![
        json!({"kind": "User", "name": "alice"}),
        json!({"kind": "User", "name": "system:serviceaccount:b:robot"}),
        json!({"kind": "Group", "name": "team"}),
        json!({"kind": "Group", "name": "system:serviceaccounts:a"}),
        json!({"kind": "ServiceAccount", "name": "robot", "namespace": "a"}),
        json!({"kind": "ServiceAccount", "name": "robot"}),
    ])
}

pub(crate) fn selector() -> impl Strategy<Value = Value> {
    sample::select(vec![
        json!({"matchLabels": {"part": "x"}}),
        json!({"matchLabels": {"part": "y"}}),
        json!({"matchExpressions": [{"key": "part", "operator": "In", "values": ["y"]}]}),
        json!({"matchLabels": {"part": "x"}, "matchExpressions": [{"key": "more", "operator": "Exists"}]}),
        json!({"matchExpressions": [{"key": "part", "operator": "DoesNotExist"}]}),
    ])
}

/// Roles `r0`… in the namespaces a and b, ClusterRoles `c0`…, and bindings to them.
pub(crate) fn objects() -> impl Strategy<Value = Objects> {
    let role = (sample::select(vec!["a", "b"]), rules());
    let cluster_role = (
        rules(),
        option::weighted(0.3, selector()),
        option::of(sample::select(vec!["x", "y"])),
        any::<bool>(),
    );
    let binding =
        (sample::select(vec!["a", "b"]), any::<bool>(), 0..4_usize, collection::vec(subject(), 1..3));
    (
        collection::vec(role, 1..4),
        collection::vec(cluster_role, 1..5),
        collection::vec(binding, 1..5),
        collection::vec((0..4_usize, collection::vec(subject(), 1..3)), 0..2),
    )
        .prop_map(|(roles, cluster_roles, role_bindings, cluster_role_bindings)| Objects {
            roles: (0..).zip(roles).map(|(i, (ns, rules))| named_role(i, ns, &rules)).collect(),
            cluster_roles: (0..)
                .zip(cluster_roles)
                .map(|(i, (rules, selector, part, more))| cluster_role_of(i, &rules, selector, part, more))
                .collect(),
            role_bindings: (0..)
                .zip(role_bindings)
                .map(|(i, (namespace, cluster, role, subjects))| {
                    let (kind, prefix) = if cluster { ("ClusterRole", "c") } else { ("Role", "r") };
                    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
                        "metadata": {"name": format!("b{i}"), "namespace": namespace}, "subjects": subjects,
                        "roleRef": {"apiGroup": RBAC, "kind": kind, "name": format!("{prefix}{role}")}})
                })
                .collect(),
            cluster_role_bindings: (0..)
                .zip(cluster_role_bindings)
                .map(|(i, (role, subjects)): (usize, (usize, Vec<Value>))| {
                    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
                        "metadata": {"name": format!("b{i}")}, "subjects": subjects,
                        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": format!("c{role}")}})
                })
                .collect(),
        })
}

fn named_role(index: usize, namespace: &str, rules: &[Value]) -> Value {
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": format!("r{index}"), "namespace": namespace}, "rules": rules})
}

fn cluster_role_of(
    index: usize,
    rules: &[Value],
    selector: Option<Value>,
    part: Option<&str>,
    more: bool,
) -> Value {
    let mut role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": format!("c{index}"), "labels": {}}, "rules": rules});
    if let Some(part) = part {
        role["metadata"]["labels"]["part"] = part.into();
    }
    if more {
        role["metadata"]["labels"]["more"] = "".into();
    }
    if let Some(selector) = selector {
        role["aggregationRule"] = json!({"clusterRoleSelectors": [selector]});
    }
    role
}
