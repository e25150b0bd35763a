// SPDX-License-Identifier: Apache-2.0
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderMap, HeaderValue};
use serde_json::{Value, json};

use super::{
    Attributes, Auth, ISSUER, Objects, ResourceTarget, Target, User, Verdict, bootstrap_objects,
    token_request,
};
use crate::pki::{self, Layout};
use crate::status::Refusal;

/// A store of a few objects, by group, resource, namespace and name.
#[derive(Default)]
struct Fixture(BTreeMap<(String, String, String, String), Arc<Value>>);

impl Fixture {
    fn with(mut self, group: &str, resource: &str, object: Value) -> Self {
        let text = |p: &str| object.pointer(p).and_then(Value::as_str).unwrap_or_default().to_owned();
        let key =
            (group.to_owned(), resource.to_owned(), text("/metadata/namespace"), text("/metadata/name"));
        self.0.insert(key, Arc::new(object));
        self
    }

    fn rbac(self, object: Value) -> Self {
        let resource = format!("{}s", object["kind"].as_str().unwrap().to_lowercase());
        self.with("rbac.authorization.k8s.io", &resource, object)
    }
}

impl Objects for Fixture {
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.0.get(&(group.into(), resource.into(), namespace.into(), name.into())).cloned()
    }

    fn list(&self, group: &str, resource: &str, namespace: Option<&str>) -> Vec<Arc<Value>> {
        let of = |k: &(String, String, String, String)| {
            k.0 == group && k.1 == resource && namespace.is_none_or(|n| n == k.2)
        };
        self.0.iter().filter(|(k, _)| of(k)).map(|(_, v)| v.clone()).collect()
    }

    fn rbac_revision(&self) -> u64 {
        1
    }
}

fn cluster() -> Fixture {
    let pod = |name: &str, uid: &str, node: &str| {
        json!({"metadata": {"name": name, "namespace": "default", "uid": uid},
            "spec": {"nodeName": node, "serviceAccountName": "curl", "volumes": [{"projected": {"sources": [
                {"serviceAccountToken": {}}, {"serviceAccountToken": {"audience": "istio-ca"}}]}},
                {"persistentVolumeClaim": {"claimName": "data"}}], "containers": [{"name": "c",
                "env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "mine", "key": "k"}}}]}]}})
    };
    let mut deleted = pod("old", "pod-old", "node-1");
    deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    bootstrap_objects()
        .into_iter()
        .fold(Fixture::default(), Fixture::rbac)
        .with("", "serviceaccounts", json!({"metadata": {"name": "curl", "namespace": "default", "uid": "sa-1"}}))
        .with("", "serviceaccounts", json!({"metadata": {"name": "reader", "namespace": "default", "uid": "sa-2"}}))
        .with("", "pods", pod("curl", "pod-1", "node-1"))
        .with("", "pods", pod("far", "pod-2", "node-2"))
        .with("", "pods", deleted)
        .with("", "nodes", json!({"metadata": {"name": "node-1", "uid": "n-1"}}))
        .rbac(json!({"kind": "Role", "metadata": {"name": "logs", "namespace": "default"}, "rules": [
            {"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list"]},
            {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["one"], "verbs": ["get", "list"]},
            {"apiGroups": ["apps"], "resources": ["*/scale"], "verbs": ["*"]},
        ]}))
        .rbac(json!({"kind": "RoleBinding", "metadata": {"name": "logs", "namespace": "default"},
            "roleRef": {"kind": "Role", "name": "logs"}, "subjects": [{"kind": "ServiceAccount", "name": "reader"}]}))
        .rbac(json!({"kind": "RoleBinding", "metadata": {"name": "dangling", "namespace": "default"},
            "roleRef": {"kind": "Role", "name": "later"}, "subjects": [{"kind": "User", "name": "eve"}]}))
        .rbac(json!({"kind": "ClusterRole", "metadata": {"name": "mesh-view",
            "labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}}, "rules": [
            {"apiGroups": ["security.istio.io"], "resources": ["*"], "verbs": ["get"]}]}))
        .rbac(json!({"kind": "ClusterRoleBinding", "metadata": {"name": "viewers"},
            "roleRef": {"kind": "ClusterRole", "name": "view"}, "subjects": [{"kind": "Group", "name": "viewers"}]}))
}

fn auth(objects: Fixture) -> Auth {
    let dir = tempfile::tempdir().unwrap();
    let layout =
        Layout { data_dir: dir.path().into(), cluster_name: "m".into(), host_port: 1, nodes: Vec::new() };
    let pki = pki::ensure(&layout, SystemTime::now()).unwrap();
    Auth::new(Arc::new(objects), &pki).unwrap()
}

fn user(name: &str, groups: &[&str]) -> User {
    User { name: name.into(), groups: groups.iter().map(|&g| g.to_owned()).collect(), ..User::default() }
}

fn account(name: &str) -> User {
    user(
        &format!("system:serviceaccount:default:{name}"),
        &["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"],
    )
}

fn node(name: &str) -> User {
    user(&format!("system:node:{name}"), &["system:nodes", "system:authenticated"])
}

/// `verb group/resource[/sub] namespace/name [selector]`, or `verb /path`.
fn attributes(text: &str) -> Attributes<'_> {
    let mut words = text.split(' ');
    let verb = words.next().unwrap();
    let what = words.next().unwrap();
    if what.starts_with('/') {
        return Attributes { verb, target: Target::Path(what) };
    }
    let mut what = what.split('/');
    let (group, resource) = (what.next().unwrap(), what.next().unwrap());
    let (namespace, name) = words.next().unwrap_or("/").split_once('/').unwrap();
    let group = if group == "core" { "" } else { group };
    let subresource = what.next().unwrap_or_default();
    let field_selector = words.next().unwrap_or_default();
    Attributes {
        verb,
        target: Target::Resource(ResourceTarget {
            group,
            resource,
            subresource,
            namespace,
            name,
            field_selector,
        }),
    }
}

#[test]
fn what_nobody_allows_is_denied() {
    let auth = auth(cluster());
    let cases = [
        // Every other ServiceAccount can do nothing.
        (account("curl"), "list core/pods default/", false),
        (account("curl"), "get core/configmaps default/one", false),
        (account("curl"), "get /version", true),
        (account("curl"), "create authorization.k8s.io/selfsubjectaccessreviews /", true),
        (account("reader"), "list core/pods default/", true),
        (account("reader"), "get core/pods/log default/x", true),
        (account("reader"), "get core/pods/exec default/x", false),
        (account("reader"), "delete core/pods default/x", false),
        (account("reader"), "list core/pods other/", false),
        (account("reader"), "list core/pods /", false),
        // A rule with names allows no request without a name.
        (account("reader"), "get core/configmaps default/one", true),
        (account("reader"), "get core/configmaps default/two", false),
        (account("reader"), "list core/configmaps default/", false),
        (account("reader"), "update apps/deployments/scale default/x", true),
        (account("reader"), "update apps/deployments default/x", false),
        (user("eve", &["system:authenticated"]), "get core/pods default/x", false),
        (user("v", &["viewers"]), "get security.istio.io/authorizationpolicies any/x", true),
        (user("v", &["viewers"]), "get core/secrets any/x", false),
        (user("root", &["system:masters"]), "delete core/nodes /x", true),
        (User::anonymous(), "get /healthz", true),
        (User::anonymous(), "get /readyz/x", true),
        (User::anonymous(), "get /version", true),
        (User::anonymous(), "get /api", false),
        (User::anonymous(), "list core/pods default/", false),
        (user("system:kube-controller-manager", &["system:authenticated"]), "create core/pods a/", true),
        (user("system:kube-controller-manager", &["system:authenticated"]), "create core/secrets a/", false),
    ];
    for (who, what, expected) in cases {
        let verdict = auth.judge(&who, &attributes(what));
        assert_eq!(matches!(verdict, Verdict::Allowed(_)), expected, "{} {what}: {verdict:?}", who.name);
    }
}

#[test]
fn a_node_reaches_its_own_pods_only() {
    let auth = auth(cluster());
    let cases = [
        ("node-1", "get core/pods default/curl", true),
        ("node-1", "get core/pods default/far", false),
        ("node-1", "patch core/pods/status default/curl", true),
        ("node-1", "patch core/pods default/curl", false),
        ("node-1", "patch core/pods/status default/far", false),
        ("node-1", "delete core/pods default/far", false),
        ("node-1", "create core/pods default/", false),
        ("node-1", "create core/pods/exec default/curl", false),
        ("node-1", "watch core/pods / spec.nodeName=node-1", true),
        ("node-1", "watch core/pods / spec.nodeName=node-2", false),
        ("node-1", "list core/pods /", false),
        ("node-1", "update core/nodes/status /node-1", true),
        ("node-1", "update core/nodes/status /node-2", false),
        ("node-1", "get core/secrets default/mine", true),
        ("node-1", "list core/secrets default/ metadata.name=mine", true),
        ("node-1", "get core/secrets default/other", false),
        ("node-1", "list core/secrets default/", false),
        ("node-3", "get core/secrets default/mine", false),
        ("node-1", "get core/persistentvolumeclaims default/data", true),
        ("node-1", "get core/persistentvolumeclaims default/other", false),
        ("node-3", "get core/persistentvolumeclaims default/data", false),
        ("node-1", "update core/persistentvolumeclaims default/data", false),
        ("node-1", "list core/persistentvolumeclaims default/", false),
        ("node-1", "create core/serviceaccounts/token default/curl", true),
        ("node-1", "create core/serviceaccounts/token default/reader", false),
        ("node-1", "update coordination.k8s.io/leases kube-node-lease/node-1", true),
        ("node-1", "update coordination.k8s.io/leases kube-node-lease/node-2", false),
        ("node-1", "get rbac.authorization.k8s.io/roles default/logs", false),
    ];
    for (who, what, expected) in cases {
        let verdict = auth.judge(&node(who), &attributes(what));
        assert_eq!(matches!(verdict, Verdict::Allowed(_)), expected, "{who} {what}: {verdict:?}");
    }
}

/// What a node writes: attributes, object, what is stored, whether it is admitted.
#[test]
fn a_node_writes_what_is_its_own() {
    let node_1 = json!({"metadata": {"name": "node-1", "labels": {"kubernetes.io/os": "linux"}},
        "spec": {"podCIDR": "10.244.1.0/24"}, "status": {"addresses": [{"address": "172.30.0.11"}]}});
    let auth = auth(cluster().with("", "nodes", node_1.clone()));
    let request = |pod: &str, uid: &str, audiences: &[&str]| json!({"spec": {"audiences": audiences, "boundObjectRef": {"kind": "Pod", "name": pod, "uid": uid}}});
    let token = "create core/serviceaccounts/token default/curl";
    let status = "update core/pods/status default/curl";
    let pod = |patch: Value| {
        let mut pod =
            json!({"metadata": {"labels": {"app": "a"}}, "spec": {}, "status": {"podIP": "10.244.1.7"}});
        crate::patch::merge(&mut pod, &patch);
        pod
    };
    let changed = |patch: Value| {
        let mut node = node_1.clone();
        crate::patch::merge(&mut node, &patch);
        node
    };
    let cases = [
        (token, json!({"spec": {}}), None, false),
        (token, request("curl", "pod-1", &[]), None, true),
        (token, request("curl", "pod-1", &["istio-ca"]), None, true),
        (token, request("curl", "pod-1", &["vault"]), None, false),
        (token, request("curl", "", &[]), None, false),
        (token, request("far", "pod-2", &[]), None, false),
        (token, request("none", "pod-9", &[]), None, false),
        (status, pod(json!({"status": {"podIP": "10.244.1.8"}})), Some(pod(json!({}))), true),
        (status, pod(json!({"status": {"podIP": "10.244.2.8"}})), Some(pod(json!({}))), false),
        (status, pod(json!({"status": {"podIPs": [{"ip": "10.96.0.1"}]}})), Some(pod(json!({}))), false),
        (status, pod(json!({"status": {"podIP": "172.30.0.11"}})), Some(pod(json!({}))), false),
        (
            status,
            pod(json!({"spec": {"hostNetwork": true}, "status": {"podIP": "172.30.0.11"}})),
            Some(pod(json!({}))),
            true,
        ),
        (status, pod(json!({"metadata": {"labels": {"app": "b"}}})), Some(pod(json!({}))), false),
        (status, pod(json!({"metadata": {"annotations": {"a": "b"}}})), Some(pod(json!({}))), true),
        (
            "update core/nodes /node-1",
            changed(json!({"metadata": {"labels": {"own": "x"}}})),
            Some(node_1.clone()),
            true,
        ),
        (
            "update core/nodes/status /node-1",
            changed(json!({"metadata": {"labels": {"node-restriction.kubernetes.io/pci": "x"}}})),
            Some(node_1.clone()),
            false,
        ),
        (
            "update core/nodes /node-1",
            changed(json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}})),
            Some(node_1.clone()),
            false,
        ),
        (
            "update core/nodes /node-1",
            changed(json!({"spec": {"podCIDR": "10.244.0.0/16"}})),
            Some(node_1.clone()),
            false,
        ),
        (
            "update core/nodes /node-1",
            changed(json!({"spec": {"taints": [{"key": "x"}]}})),
            Some(node_1.clone()),
            false,
        ),
        ("create core/nodes /", json!({"metadata": {"name": "node-2"}}), None, false),
        (
            "create core/nodes /",
            json!({"metadata": {"name": "node-1", "labels": {"kubernetes.io/os": "linux"}}}),
            None,
            true,
        ),
        (
            "create coordination.k8s.io/leases kube-node-lease/",
            json!({"metadata": {"name": "node-2"}}),
            None,
            false,
        ),
    ];
    for (what, object, old, expected) in cases {
        let admitted = auth.admit_node(&node("node-1"), &attributes(what), &object, old.as_ref());
        assert_eq!(admitted.is_ok(), expected, "{what} {object}: {admitted:?}");
    }
}

#[test]
fn a_token_of_a_node_lives_a_day_and_any_other_a_year() {
    let auth = auth(cluster());
    let hundred_years = json!({"spec": {"expirationSeconds": 3_153_600_000_u64}});
    for (who, expected) in [(node("node-1"), 24 * 3600), (account("curl"), 365 * 24 * 3600)] {
        let answer = auth.create_token(&who, "default", "curl", &hundred_years).unwrap();
        assert_eq!(answer["spec"]["expirationSeconds"], expected, "{}", who.name);
    }
}

#[test]
fn refusals_are_worded_as_kubernetes_does() {
    let auth = auth(cluster());
    let cases = [
        (
            "list core/pods default/",
            r#"pods is forbidden: User "system:serviceaccount:default:curl" cannot list resource "pods" in API group "" in the namespace "default""#,
        ),
        (
            "delete apps/deployments default/web",
            r#"deployments.apps "web" is forbidden: User "system:serviceaccount:default:curl" cannot delete resource "deployments" in API group "apps" in the namespace "default""#,
        ),
        (
            "get core/pods/log default/web",
            r#"pods "web" is forbidden: User "system:serviceaccount:default:curl" cannot get resource "pods/log" in API group "" in the namespace "default""#,
        ),
        (
            "list core/nodes /",
            r#"nodes is forbidden: User "system:serviceaccount:default:curl" cannot list resource "nodes" in API group "" at the cluster scope"#,
        ),
        (
            "get core/namespaces /default",
            r#"namespaces "default" is forbidden: User "system:serviceaccount:default:curl" cannot get resource "namespaces" in API group "" in the namespace "default""#,
        ),
        (
            "get /metrics",
            r#"forbidden: User "system:serviceaccount:default:curl" cannot get path "/metrics""#,
        ),
    ];
    for (what, expected) in cases {
        let refusal = auth.authorize(&account("curl"), &attributes(what)).unwrap_err();
        assert_eq!((refusal.code, refusal.message.as_str()), (403, expected));
    }
}

fn token(auth: &Auth, spec: Value) -> Result<String, Refusal> {
    auth.create_token(&account("curl"), "default", "curl", &json!({"spec": spec}))
        .map(|answer| answer["status"]["token"].as_str().unwrap().to_owned())
}

fn bearer(token: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("authorization", HeaderValue::from_str(&format!("Bearer {token}")).unwrap());
    headers
}

#[test]
fn a_token_is_judged_against_the_live_objects() {
    let first = auth(cluster());
    let bound = |pod: &str, uid: &str| json!({"boundObjectRef": {"kind": "Pod", "name": pod, "uid": uid}});
    let good = token(&first, bound("curl", "pod-1")).unwrap();
    let user = first.authenticate(&bearer(&good), None).unwrap();
    assert_eq!((user.name.as_str(), user.uid.as_str()), ("system:serviceaccount:default:curl", "sa-1"));
    let extra = |key: &str| user.extra[&format!("authentication.kubernetes.io/{key}")][0].clone();
    assert_eq!([extra("pod-name"), extra("pod-uid"), extra("node-name")], ["curl", "pod-1", "node-1"]);
    assert!(user.is_in("system:serviceaccounts:default") && user.is_in("system:authenticated"));

    let refused = |objects: Fixture, token: &str, why: &str| {
        let mut second = auth(objects);
        second.tokens = super::token::Tokens::new(&KEYS.0, &KEYS.1).unwrap();
        let error = second.tokens.verify(&*second.objects, token, &[ISSUER], super::now()).unwrap_err();
        assert!(error.contains(why), "{error}");
    };
    // The same key, another cluster state.
    let mut signer = auth(cluster());
    signer.tokens = super::token::Tokens::new(&KEYS.0, &KEYS.1).unwrap();
    let good = token(&signer, bound("curl", "pod-1")).unwrap();
    let mut gone = cluster();
    gone.0.remove(&("".into(), "pods".into(), "default".into(), "curl".into()));
    refused(gone, &good, "pods default/curl has been deleted");
    let again = json!({"metadata": {"name": "curl", "namespace": "default", "uid": "sa-9"}});
    refused(cluster().with("", "serviceaccounts", again), &good, "deleted and made again");
    let mut pod = Value::clone(&cluster().get("", "pods", "default", "curl").unwrap());
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    refused(cluster().with("", "pods", pod), &good, "is being deleted");

    let other = token(&first, json!({"audiences": ["istio-ca"]})).unwrap();
    assert_eq!(first.authenticate(&bearer(&other), None).unwrap_err().code, 401, "for another audience");
    assert_eq!(first.authenticate(&bearer(&good), None).unwrap_err().code, 401, "signed by another key");
    let early = token_request::create(
        &first,
        &account("curl"),
        ("default", "curl"),
        &json!({"spec": {}}),
        super::now() - 7200,
    )
    .unwrap();
    let early = early["status"]["token"].as_str().unwrap();
    assert_eq!(first.authenticate(&bearer(early), None).unwrap_err().code, 401, "expired");
    let cut = &good[..good.len() - 3];
    for wrong in ["x", "a.b.c", cut] {
        assert_eq!(first.authenticate(&bearer(wrong), None).unwrap_err().code, 401, "{wrong}");
    }
}

static KEYS: std::sync::LazyLock<(String, String)> = std::sync::LazyLock::new(|| {
    let key = rcgen::KeyPair::generate().unwrap();
    (key.serialize_pem(), key.public_key_pem())
});

#[test]
fn token_requests_that_cannot_be_met() {
    let auth = auth(cluster());
    let pod = |name: &str, uid: &str| json!({"boundObjectRef": {"kind": "Pod", "name": name, "uid": uid}});
    let cases = [
        (json!({"expirationSeconds": 599}), 422),
        (json!({"expirationSeconds": 600}), 200),
        (pod("curl", "pod-9"), 409),
        (pod("none", ""), 404),
        (json!({"boundObjectRef": {"kind": "Service", "name": "x"}}), 400),
        (json!({"audiences": "istio-ca"}), 400),
    ];
    for (spec, code) in cases {
        let got = token(&auth, spec.clone()).map_or_else(|e| e.code, |_| 200);
        assert_eq!(got, code, "{spec}");
    }
    let other = auth
        .create_token(&account("curl"), "default", "reader", &json!({"spec": pod("curl", "pod-1")}))
        .unwrap_err();
    assert_eq!(other.code, 400, "a Pod that runs as another account");
}

#[test]
fn reviews_answer_what_is_true() {
    let auth = auth(cluster());
    let token = token(&auth, json!({"audiences": ["istio-ca", "x"]})).unwrap();
    let review = |spec: Value| {
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec});
        auth.review(&account("curl"), "authentication.k8s.io", "tokenreviews", "", &body).unwrap().unwrap()
    };
    let ok = review(json!({"token": token, "audiences": ["istio-ca", "y"]}));
    assert_eq!(ok["status"]["authenticated"], true);
    assert_eq!(ok["status"]["audiences"], json!(["istio-ca"]));
    assert_eq!(ok["status"]["user"]["username"], "system:serviceaccount:default:curl");
    let wrong = review(json!({"token": token}));
    assert_eq!(wrong["status"]["authenticated"], false, "not for the API server");

    let can = |user: &User, attributes: Value| {
        let body = json!({"spec": {"resourceAttributes": attributes}});
        auth.review(user, "authorization.k8s.io", "selfsubjectaccessreviews", "", &body).unwrap().unwrap()["status"]
            ["allowed"]
            .clone()
    };
    assert_eq!(
        can(&account("reader"), json!({"verb": "list", "resource": "pods", "namespace": "default"})),
        true
    );
    assert_eq!(
        can(&account("curl"), json!({"verb": "list", "resource": "pods", "namespace": "default"})),
        false
    );
    assert!(auth.review(&account("curl"), "", "pods", "", &json!({})).is_none());
}

#[test]
fn impersonation_needs_a_right_and_takes_the_others_rights() {
    let auth = auth(cluster());
    let mut headers = HeaderMap::new();
    headers.insert("impersonate-user", HeaderValue::from_static("system:serviceaccount:default:reader"));
    let admin = user("kubernetes-admin", &["system:masters", "system:authenticated"]);
    let as_reader = auth.authenticate(&headers, Some(&admin)).unwrap();
    assert_eq!(as_reader, account("reader"));
    assert_eq!(auth.authenticate(&headers, Some(&account("curl"))).unwrap_err().code, 403);
    assert_eq!(auth.authenticate(&HeaderMap::new(), None).unwrap(), User::anonymous());
}

#[test]
fn nobody_grants_what_they_lack() {
    let auth = auth(cluster());
    let role = |rules: Value| json!({"kind": "Role", "metadata": {"name": "new", "namespace": "default"}, "rules": rules});
    let pods = |verb: &str| role(json!([{"apiGroups": [""], "resources": ["pods"], "verbs": [verb]}]));
    let reader = account("reader");
    auth.admit_rbac(&reader, "roles", "", &pods("get"), None).unwrap();
    let error = auth.admit_rbac(&reader, "roles", "", &pods("delete"), None).unwrap_err();
    assert!(error.message.contains(r#"{APIGroups:[""], Resources:["pods"], Verbs:["delete"]}"#), "{error}");
    assert!(auth.admit_rbac(&reader, "roles", "", &pods("*"), None).is_err());
    let bind = |kind: &str, name: &str| json!({"metadata": {"name": "b", "namespace": "default"}, "roleRef": {"kind": kind, "name": name}});
    auth.admit_rbac(&reader, "rolebindings", "", &bind("Role", "logs"), None).unwrap();
    assert!(
        auth.admit_rbac(&reader, "rolebindings", "", &bind("ClusterRole", "cluster-admin"), None).is_err()
    );
    assert!(auth.admit_rbac(&reader, "rolebindings", "", &bind("Role", "missing"), None).is_err());
    let aggregated = |selector: Value| {
        json!({"kind": "ClusterRole", "metadata": {"name": "mine"}, "rules": [],
            "aggregationRule": {"clusterRoleSelectors": [selector]}})
    };
    let all = aggregated(json!({"matchLabels": {"kubernetes.io/bootstrapping": "rbac-defaults"}}));
    assert!(auth.admit_rbac(&reader, "clusterroles", "mine", &all, None).is_err());
    let plain = json!({"kind": "ClusterRole", "metadata": {"name": "mine"}, "rules": []});
    auth.admit_rbac(&reader, "clusterroles", "mine", &plain, None).unwrap();
    assert!(
        auth.admit_rbac(&reader, "clusterroles", "mine", &plain, Some(&all)).is_err(),
        "nor takes it away"
    );
    let mut released = all.clone();
    released["metadata"]["finalizers"] = json!(["x"]);
    auth.admit_rbac(&reader, "clusterroles", "mine", &released, Some(&all)).unwrap();
    let admin = user("a", &["system:masters"]);
    auth.admit_rbac(&admin, "rolebindings", "", &bind("ClusterRole", "cluster-admin"), None).unwrap();
}
