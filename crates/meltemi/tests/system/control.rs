// SPDX-License-Identifier: Apache-2.0
//! The control plane's doors, knocked at with real tokens: the CA and xDS of a live mesh.

use std::time::Duration;

use futures::StreamExt as _;
use meltemi_identity::channel::ControlPlane;
use meltemi_identity::manager::CaFetcher;
use meltemi_identity::{Fetcher as _, svid};
use meltemi_model::SpiffeId;
use meltemi_wire::proto::discovery::Node;
use meltemi_wire::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use meltemi_wire::xds::{DeltaDiscoveryRequest, types};
use tonic::{Code, Status};

use crate::machine::Machine;

/// A way to the control plane, as a Pod with this token has it.
fn knock(machine: &Machine, port: u16, token: &str) -> ControlPlane {
    let (roots, file) = (machine.file("roots.pem"), machine.file("token"));
    let map = "kubectl -n mesh get configmap istio-ca-root-cert -o jsonpath='{.data.root-cert\\.pem}'";
    std::fs::write(&roots, machine.output(map)).unwrap();
    std::fs::write(&file, token).unwrap();
    ControlPlane {
        address: format!("127.0.0.1:{port}"),
        server_name: "istiod.istio-system.svc".to_owned(),
        roots,
        token: file,
    }
}

fn token(machine: &Machine, namespace: &str, account: &str, pod: &str) -> String {
    let token = machine.output(&format!(
        "kubectl -n {namespace} create token {account} --audience istio-ca --bound-object-kind Pod --bound-object-name {pod}"
    ));
    assert!(token.starts_with("ey"), "{token}");
    token.trim().to_owned()
}

fn ztunnel_of(machine: &Machine, node: &str) -> String {
    machine.output(&format!(
        "kubectl -n istio-system get pods -l app=ztunnel --field-selector spec.nodeName={node} -o jsonpath='{{.items[0].metadata.name}}'"
    ))
}

/// A node proxy gets the identities of Pods on its node, a workload its own, and nobody anything else.
pub(crate) fn own_identities_only(machine: &Machine) {
    let (forward, port) = machine.forward("-n istio-system deploy/istiod", 15012);
    let proxy = token(machine, "istio-system", "ztunnel", &ztunnel_of(machine, "node-1"));
    let workload = token(machine, "mesh", "a", "a");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // Who asks, for whom, by naming it, and whether it is given.
    let cases = [
        ("the node proxy, for a Pod of its node", &proxy, "mesh/a", true, true),
        ("the node proxy, for a Pod of the other node", &proxy, "mesh/echo", true, false),
        ("the node proxy, for nobody", &proxy, "mesh/ghost", true, false),
        ("the node proxy, for the control plane", &proxy, "istio-system/istiod", true, false),
        ("a workload, for another", &workload, "mesh/b", true, false),
        ("a workload, for the node proxy", &workload, "istio-system/ztunnel", true, false),
        ("nobody", &"x.y.z".to_owned(), "mesh/a", true, false),
    ];
    for (what, token, of, impersonate, given) in cases {
        let (namespace, account) = of.split_once('/').unwrap();
        let identity =
            SpiffeId::parse(&format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")).unwrap();
        let fetcher = CaFetcher {
            control: knock(machine, port, token),
            ttl: Duration::from_secs(3600),
            impersonate,
            cluster_id: "Kubernetes".to_owned(),
        };
        let (_key, csr) = svid::key_and_csr(&identity).unwrap();
        let answer = runtime.block_on(fetcher.fetch(&identity, csr));
        assert_eq!(answer.is_ok(), given, "{what}: {answer:?}");
    }
    drop(forward);
}

/// xDS serves a node proxy, and gives nothing to an ordinary ServiceAccount or to nobody.
pub(crate) fn no_configuration_for_workloads(machine: &Machine) {
    let (_forward, port) = machine.forward("-n istio-system deploy/istiod", 15012);
    let proxy = token(machine, "istio-system", "ztunnel", &ztunnel_of(machine, "node-1"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let cases = [
        ("the node proxy", Some(proxy), None),
        ("a workload", Some(token(machine, "mesh", "a", "a")), Some(Code::PermissionDenied)),
        ("nobody", None, Some(Code::Unauthenticated)),
    ];
    for (who, token, refused) in cases {
        let door = knock(machine, port, token.as_deref().unwrap_or_default());
        let answer = runtime.block_on(addresses(&door, token.as_deref()));
        assert_eq!(answer.as_ref().err().map(Status::code), refused, "{who}: {answer:?}");
        if let Ok(resources) = answer {
            assert!(resources > 0, "{who} was told of no workload");
        }
    }
}

/// Asks for all addresses; how many the first answer holds.
async fn addresses(door: &ControlPlane, token: Option<&str>) -> Result<usize, Status> {
    let channel = door.connect().await.map_err(|e| Status::unavailable(e.to_string()))?;
    let ask = DeltaDiscoveryRequest {
        node: Some(Node { id: "test".to_owned(), ..Node::default() }),
        type_url: types::ADDRESS.to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    // The stream stays open: the answer comes on it.
    let mut request = tonic::Request::new(futures::stream::iter([ask]).chain(futures::stream::pending()));
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let mut answers = AggregatedDiscoveryServiceClient::new(channel)
        .delta_aggregated_resources(request)
        .await?
        .into_inner();
    Ok(answers.message().await?.map_or(0, |answer| answer.resources.len()))
}
