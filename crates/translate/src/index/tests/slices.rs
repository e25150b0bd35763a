// SPDX-License-Identifier: Apache-2.0
//! Endpoints that are written by hand.

use super::*;
use crate::facts::NamedEndpoint;

#[test]
fn endpoints_without_a_pod_are_workloads_in_the_clear() {
    let slice = SliceFacts {
        name: NamespacedName::new("default", "kubernetes"),
        service: "kubernetes".into(),
        endpoints: vec![("172.30.0.1".parse().unwrap(), true)],
        named: Vec::new(),
        ports: [("https".to_owned(), 6443)].into(),
    };
    let kubernetes = service(
        "
metadata: {name: kubernetes, namespace: default}
spec: {clusterIP: 10.96.0.1, ports: [{name: https, port: 443, targetPort: 6443}]}
",
    );
    let (mut index, delta) = index(vec![kubernetes, Change::Slice(slice.name.clone(), Some(slice.clone()))]);
    let [workload] = delta.workloads.as_slice() else { panic!("{delta:?}") };
    assert_eq!(workload.tunnel_protocol, TunnelProtocol::None);
    assert_eq!(workload.services.first_key_value().unwrap().1[0].target_port, 6443);
    index.apply(Change::Slice(slice.name, None));
    assert_eq!(index.flush().removed_workloads.len(), 1);
}

#[test]
fn pods_that_slices_name_are_behind_services_without_a_selector() {
    let name = NamespacedName::new("default", "by-hand");
    let slice = |pod: &str, ip: &str| {
        let named = vec![NamedEndpoint { pod: pod.into(), ip: ip.parse().unwrap() }];
        let ports = [("http".to_owned(), 9080)].into();
        Change::Slice(
            name.clone(),
            Some(SliceFacts {
                name: name.clone(),
                service: "by-hand".into(),
                endpoints: Vec::new(),
                named,
                ports,
            }),
        )
    };
    let by_hand = |selector: &str| {
        service(&format!(
            "
metadata: {{name: by-hand, namespace: default}}
spec: {{clusterIP: 10.96.0.77, {selector}ports: [{{name: http, port: 80}}]}}
"
        ))
    };
    let Change::Pod(pod, Some(facts)) = productpage(true) else { panic!() };
    let ip = facts.ips[0].to_string();
    let mut index = Index::new(MeshConfig::default());
    let key = index.mesh().service_key("default", "by-hand");
    let uid = WorkloadUid::pod("Kubernetes", "default", &pod.name);
    // Each change alone moves the Pod in or out; the port at the Pod is the slice's.
    let steps = [
        (slice(&pod.name, &ip), None),
        (productpage(true), None),
        (by_hand(""), Some(9080)),
        (slice(&pod.name, "10.9.9.9"), None),
        (slice(&pod.name, &ip), Some(9080)),
        (by_hand("selector: {app: nobody}, "), None),
        (by_hand(""), Some(9080)),
        (slice("another", &ip), None),
        (slice(&pod.name, &ip), Some(9080)),
        (Change::Slice(name.clone(), None), None),
        (slice(&pod.name, &ip), Some(9080)),
        (Change::Pod(pod.clone(), None), None),
    ];
    for (step, (change, expected)) in steps.into_iter().enumerate() {
        index.apply(change);
        index.flush();
        let ports = index.workload(&uid).and_then(|w| w.services.get(&key));
        assert_eq!(ports.map(|ports| ports[0].target_port), expected, "step {step}");
        let listed = index.workloads().filter(|w| w.services.contains_key(&key)).count();
        assert_eq!(listed, usize::from(expected.is_some()), "step {step}");
    }
}
