// SPDX-License-Identifier: Apache-2.0
//! Changes in, differences out.

use k8s_openapi::api::core::v1::{Namespace, Pod, Service as KubeService};
use meltemi_model::authz::{Action, Scope as PolicyScope, StringMatch, ValueMatch};
use meltemi_model::workload::{Health, TunnelProtocol};

use super::*;
use crate::facts::name_of;
use crate::waypoints;

mod slices;

fn pod(yaml: &str) -> Change {
    let pod: Pod = serde_yaml_ng::from_str(yaml).unwrap();
    Change::Pod(name_of(&pod.metadata), Some(Box::new(PodFacts::read(&pod))))
}

fn service(yaml: &str) -> Change {
    let service: KubeService = serde_yaml_ng::from_str(yaml).unwrap();
    Change::Service(name_of(&service.metadata), Some(Box::new(ServiceFacts::read(&service))))
}

fn namespace(labels: &str) -> Change {
    let yaml = format!("metadata: {{name: default, labels: {labels}}}");
    let namespace: Namespace = serde_yaml_ng::from_str(&yaml).unwrap();
    Change::Namespace("default".into(), Some(NamespaceFacts::read(&namespace)))
}

fn productpage(enrolled: bool) -> Change {
    pod(&format!(
        "
metadata:
  name: productpage-v1-abc-1
  namespace: default
  labels: {{app: productpage, version: v1, pod-template-hash: abc}}
  annotations: {{ambient.istio.io/redirection: {}}}
  ownerReferences: [{{apiVersion: apps/v1, kind: ReplicaSet, name: productpage-v1-abc, uid: r, controller: true}}]
spec:
  serviceAccountName: bookinfo-productpage
  nodeName: node-1
  containers: [{{name: c, ports: [{{name: web, containerPort: 9080}}]}}]
status: {{phase: Running, podIP: 10.244.1.5, conditions: [{{type: Ready, status: 'True'}}]}}
",
        if enrolled { "enabled" } else { "pending" }
    ))
}

const SERVICE: &str = "
metadata: {name: productpage, namespace: default}
spec:
  clusterIP: 10.96.4.4
  selector: {app: productpage}
  ports: [{name: http, port: 80, targetPort: web}, {name: dns, port: 53, protocol: UDP}]
";

fn waypoint(ready: bool) -> Change {
    waypoint_for(waypoints::WaypointFor::Service, ready)
}

fn waypoint_for(takes: waypoints::WaypointFor, ready: bool) -> Change {
    let name = NamespacedName::new("default", "waypoint");
    let address = ready.then(|| WaypointFacts::expected_address(&name, &MeshConfig::default()));
    let facts = WaypointFacts {
        name: name.clone(),
        account: name.clone(),
        takes,
        allowed: waypoints::AllowedNamespaces::Same,
        address,
        inbound_binding: None,
    };
    Change::Waypoint(name, Some(facts))
}

fn policy(namespace: &str, name: &str, selector: Option<&[(&str, &str)]>) -> Change {
    let name = NamespacedName::new(namespace, name);
    let policy = Policy {
        name: name.clone(),
        scope: if selector.is_some() { PolicyScope::WorkloadSelector } else { PolicyScope::Namespace },
        action: Action::Allow,
        dry_run: false,
        rules: Vec::new(),
    };
    let selector = selector.map(|s| s.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect());
    Change::Policy(name, Some(PolicyFacts { policy: Arc::new(policy), selector }))
}

fn index(changes: Vec<Change>) -> (Index, Delta) {
    let mut index = Index::new(MeshConfig::default());
    for change in changes {
        index.apply(change);
    }
    let delta = index.flush();
    (index, delta)
}

#[test]
fn a_pod_becomes_a_workload_of_its_services() {
    let (_, delta) = index(vec![productpage(true), service(SERVICE)]);
    let [workload] = delta.workloads.as_slice() else { panic!("{delta:?}") };
    assert_eq!(workload.uid.as_str(), "Kubernetes//Pod/default/productpage-v1-abc-1");
    assert_eq!(&*workload.workload_name, "productpage-v1");
    assert_eq!(&*workload.canonical_name, "productpage");
    assert_eq!(&*workload.canonical_revision, "v1");
    assert_eq!(workload.tunnel_protocol, TunnelProtocol::Hbone);
    assert_eq!(workload.health, Health::Healthy);
    let (key, ports) = workload.services.first_key_value().unwrap();
    assert_eq!(key.to_string(), "default/productpage.default.svc.cluster.local");
    let ports: Vec<_> = ports.iter().map(|p| (p.service_port, p.target_port)).collect();
    assert_eq!(ports, [(80, 9080)]);
    assert_eq!(delta.services[0].ports[0].target_port, 0, "a named port is resolved by each workload");
    assert_eq!(delta.services[0].ports.len(), 1, "UDP is no port of the mesh");
}

#[test]
fn nothing_changes_twice() {
    let (mut index, _) = index(vec![productpage(true), service(SERVICE), namespace("{}")]);
    index.apply(productpage(true));
    index.apply(service(SERVICE));
    assert!(index.flush().is_empty());
}

#[test]
fn a_change_touches_its_dependents_only() {
    let other = "
metadata: {name: curl, namespace: default, labels: {app: curl}}
spec: {nodeName: node-2, containers: []}
status: {phase: Running, podIP: 10.244.2.5}
";
    let (mut index, _) = index(vec![productpage(true), pod(other), service(SERVICE), namespace("{}")]);
    index.apply(policy("default", "productpage-ztunnel", Some(&[("app", "productpage")])));
    let delta = index.flush();
    assert_eq!(delta.policies.len(), 1);
    assert_eq!(delta.workloads.len(), 1);
    assert_eq!(delta.workloads[0].authorization_policies[0].to_string(), "default/productpage-ztunnel");
    // A namespace policy is named by no workload.
    index.apply(policy("default", "all", None));
    let delta = index.flush();
    assert_eq!((delta.policies.len(), delta.workloads.len()), (1, 0));
    // One of the root namespace selects everywhere.
    index.apply(policy("istio-system", "mesh-curl", Some(&[("app", "curl")])));
    assert_eq!(index.flush().workloads[0].authorization_policies[0].to_string(), "istio-system/mesh-curl");
    // One of another namespace does not.
    index.apply(policy("other", "curl", Some(&[("app", "curl")])));
    assert!(index.flush().workloads.is_empty());
}

#[test]
fn removal_takes_the_name_from_the_workload_too() {
    let (mut index, _) =
        index(vec![productpage(true), policy("default", "p", Some(&[("app", "productpage")]))]);
    index.apply(Change::Policy(NamespacedName::new("default", "p"), None));
    let delta = index.flush();
    assert_eq!(delta.removed_policies.len(), 1);
    assert!(delta.workloads[0].authorization_policies.is_empty());
    index.apply(Change::Pod(NamespacedName::new("default", "productpage-v1-abc-1"), None));
    assert_eq!(index.flush().removed_workloads.len(), 1);
}

#[test]
fn a_namespace_enrols_its_services_in_a_waypoint_once_it_is_ready() {
    let (mut index, _) = index(vec![service(SERVICE), namespace("{istio.io/use-waypoint: waypoint}")]);
    let condition = |delta: &Delta| delta.service_conditions[0].1[0].clone();
    index.apply(waypoint(false));
    index.apply(namespace("{istio.io/use-waypoint: waypoint, a: b}"));
    assert!(index.flush().services.is_empty(), "not ready: nothing but the first condition");
    index.apply(waypoint(true));
    let delta = index.flush();
    assert!(delta.services[0].waypoint.is_some());
    assert!(
        condition(&delta).message.starts_with("Successfully attached to waypoint default/waypoint. Ingress")
    );
    index.apply(Change::Waypoint(NamespacedName::new("default", "waypoint"), None));
    let delta = index.flush();
    assert!(delta.services[0].waypoint.is_none());
    assert_eq!(condition(&delta).message, "waypoint \"default/waypoint\" is not ready");
}

#[test]
fn a_targeted_service_stays_bound_to_a_waypoint_that_is_gone() {
    let (mut index, _) = index(vec![
        service(SERVICE),
        namespace("{istio.io/use-waypoint: waypoint}"),
        waypoint(true),
        Change::Targets(
            NamespacedName::new("default", "productpage-waypoint"),
            vec![NamespacedName::new("default", "productpage")],
        ),
    ]);
    index.apply(Change::Waypoint(NamespacedName::new("default", "waypoint"), None));
    let delta = index.flush();
    assert!(delta.services.is_empty(), "traffic still goes to the waypoint, and is refused: {delta:?}");
    index.apply(Change::Targets(NamespacedName::new("default", "productpage-waypoint"), Vec::new()));
    assert!(index.flush().services[0].waypoint.is_none(), "given back when no policy is left");
}

#[test]
fn a_strict_mesh_names_the_policy_on_every_workload() {
    use crate::security::peer::{Peer, Peers};
    let (mut index, _) = index(vec![productpage(true)]);
    let peer = Peer {
        name: NamespacedName::new("istio-system", "default"),
        created: String::new(),
        spec: serde_yaml_ng::from_str("{mtls: {mode: STRICT}}").unwrap(),
    };
    index.apply(Change::Peers(Peers::new(vec![peer])));
    let delta = index.flush();
    assert_eq!(delta.policies.len(), 1);
    assert_eq!(delta.workloads[0].authorization_policies, [delta.policies[0].name.clone()]);
    index.apply(Change::Peers(Peers::default()));
    let delta = index.flush();
    assert_eq!((delta.removed_policies.len(), delta.workloads[0].authorization_policies.len()), (1, 0));
}

#[test]
fn the_way_around_a_waypoint_is_closed_where_a_service_or_its_namespace_asks() {
    // Labels of the Service and of its namespace, and whether its Pods are for the waypoint only.
    let cases = [
        ("{}", "{istio.io/use-waypoint: waypoint}", false),
        ("{meltemi.dev/waypoint-bypass: deny}", "{istio.io/use-waypoint: waypoint}", true),
        ("{}", "{istio.io/use-waypoint: waypoint, meltemi.dev/waypoint-bypass: deny}", true),
        (
            "{meltemi.dev/waypoint-bypass: allow}",
            "{istio.io/use-waypoint: waypoint, meltemi.dev/waypoint-bypass: deny}",
            false,
        ),
        // Without a waypoint there is nothing to go around.
        ("{meltemi.dev/waypoint-bypass: deny}", "{}", false),
    ];
    for (own, of_namespace, closed) in cases {
        let mut index = Index::new(MeshConfig::default());
        let labelled =
            SERVICE.replace("namespace: default}", &format!("namespace: default, labels: {own}}}"));
        for change in [waypoint(false), productpage(true), namespace(of_namespace), service(&labelled)] {
            index.apply(change);
        }
        let delta = index.flush();
        let name = NamespacedName::new("default", "meltemi_only_through_waypoint_productpage");
        let [workload] = delta.workloads.as_slice() else { panic!("{delta:?}") };
        assert_eq!(workload.authorization_policies.contains(&name), closed, "{own} {of_namespace}");
        assert_eq!(delta.policies.iter().any(|p| p.name == name), closed, "{own} {of_namespace}");
        // The label goes, and with it the policy.
        index.apply(service(SERVICE));
        index.apply(namespace("{istio.io/use-waypoint: waypoint}"));
        let delta = index.flush();
        assert_eq!(delta.removed_policies.contains(&name), closed, "{own} {of_namespace}");
    }
}

#[test]
fn the_way_around_is_open_to_the_account_that_the_waypoint_runs_as_and_to_no_other() {
    let gateway = |annotations: &str| {
        let text = format!(
            "{{metadata: {{name: waypoint, namespace: default, annotations: {annotations}}}, \
             spec: {{gatewayClassName: istio-waypoint, listeners: [{{name: m, port: 15008, protocol: HBONE}}]}}}}"
        );
        let gateway = serde_yaml_ng::from_str(&text).unwrap();
        let facts = WaypointFacts::read(&gateway, &MeshConfig::default()).unwrap();
        Change::Waypoint(NamespacedName::new("default", "waypoint"), Some(facts))
    };
    let closed = SERVICE.replace(
        "namespace: default}",
        "namespace: default, labels: {istio.io/use-waypoint: waypoint, meltemi.dev/waypoint-bypass: deny}}",
    );
    let mut index = Index::new(MeshConfig::default());
    for change in [gateway("{}"), productpage(true), namespace("{}"), service(&closed)] {
        index.apply(change);
    }
    // The annotation comes and goes while the Service stays as it is.
    for (annotations, account) in [
        ("{}", "waypoint"),
        ("{gateway.istio.io/service-account: proxy}", "proxy"),
        ("{gateway.istio.io/name-override: other}", "other"),
        ("{gateway.istio.io/name-override: other, gateway.istio.io/service-account: proxy}", "proxy"),
        ("{}", "waypoint"),
    ] {
        index.apply(gateway(annotations));
        index.flush();
        let name = NamespacedName::new("default", "meltemi_only_through_waypoint_productpage");
        let policy = index.policy(&name).unwrap_or_else(|| panic!("{annotations}: no policy"));
        let predicate = &policy.policy.rules[0].clauses[0].matches[0].predicates[0];
        let admitted = format!("cluster.local/ns/default/sa/{account}");
        let expected = [ValueMatch::String(StringMatch::Exact(admitted.into()))];
        assert_eq!(predicate.not_values, expected, "{annotations}");
    }
}

#[test]
fn a_waypoint_takes_the_traffic_that_it_is_for_and_fails_closed() {
    use waypoints::WaypointFor::{All, None as Nothing, Service, Workload};
    let enrolled = "{istio.io/use-waypoint: waypoint}";
    for (takes, of_service, of_pod) in
        [(Service, true, false), (Workload, false, true), (All, true, true), (Nothing, false, false)]
    {
        let (index, _) =
            index(vec![productpage(true), service(SERVICE), namespace(enrolled), waypoint_for(takes, true)]);
        let pod = index.out.workloads.values().next().unwrap();
        let expected =
            WaypointFacts::expected_address(&NamespacedName::new("default", "waypoint"), &index.mesh);
        assert_eq!(pod.waypoint, of_pod.then(|| expected.clone()), "{takes:?}");
        let service = index.out.services.values().next().unwrap();
        assert_eq!(service.waypoint, of_service.then(|| expected.clone()), "{takes:?}");
        // While it is not ready, what is for it goes nowhere else.
        let mut index = index;
        index.apply(waypoint_for(takes, false));
        index.flush();
        let pod = index.out.workloads.values().next().unwrap();
        assert_eq!(pod.waypoint, of_pod.then_some(expected), "{takes:?}, not ready");
    }
    // A waypoint that does not exist may be for Services, unless the Pod itself asks for it.
    let (of_namespace, _) = index(vec![productpage(true), namespace(enrolled)]);
    assert_eq!(of_namespace.out.workloads.values().next().unwrap().waypoint, None);
    let own = "
metadata: {name: own, namespace: default, labels: {istio.io/use-waypoint: waypoint}}
spec: {containers: [{name: c}]}
status: {phase: Running, podIP: 10.244.1.9}
";
    let (mut of_pod, _) = index(vec![pod(own)]);
    assert!(of_pod.out.workloads.values().next().unwrap().waypoint.is_some());
    // One that is there and for Services only is not meant (`UnsupportedTrafficType` in Istio's words).
    of_pod.apply(waypoint(true));
    of_pod.flush();
    assert_eq!(of_pod.out.workloads.values().next().unwrap().waypoint, None);
    // One that does not admit the namespace lets nothing past its policies.
    let known = of_pod.waypoints.values().next().unwrap().clone();
    let name = known.name.clone();
    let allowed = waypoints::AllowedNamespaces::None;
    of_pod.apply(Change::Waypoint(name.clone(), Some(WaypointFacts { takes: All, allowed, ..known })));
    of_pod.flush();
    let nowhere = WaypointFacts::nowhere(&name);
    assert_eq!(of_pod.out.workloads.values().next().unwrap().waypoint, Some(nowhere));
}
