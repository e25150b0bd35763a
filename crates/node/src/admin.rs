// SPDX-License-Identifier: Apache-2.0
//! The admin endpoint: what the proxy knows, in the form that Istio's tools read.

mod policies;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::routing::get;
use axum::{Json, Router};
use base64::Engine as _;
use meltemi_identity::manager::Issued;
use meltemi_model::service::PortMapping;
use meltemi_model::workload::{
    GatewayAddress, GatewayDestination, Health, NetworkMode, TunnelProtocol, WorkloadType,
};
use meltemi_model::{Service, SpiffeId, Workload};
use meltemi_state::Snapshot;
use meltemi_view::access_log::Direction;
use serde_json::{Map, Value, json};
use x509_parser::pem::Pem;

use crate::context::Context;

/// `/config_dump`.
pub(crate) fn routes(context: Arc<Context>) -> Router {
    Router::new().route("/config_dump", get(move || async move { Json(dump(&context)) }))
}

fn dump(context: &Context) -> Value {
    let mesh = context.view.mesh();
    let snapshot = &mesh.snapshot;
    let mut workloads: Vec<_> = snapshot.workloads().collect();
    workloads.sort_by(|a, b| a.uid.cmp(&b.uid));
    let mut services: Vec<_> = snapshot.services().collect();
    services.sort_by(|a, b| a.key.cmp(&b.key));
    let mut policies: Vec<_> = snapshot.policies().collect();
    policies.sort_by(|a, b| a.name.cmp(&b.name));
    json!({
        "certificates": context.certificates.all().iter().map(certificate).collect::<Vec<_>>(),
        "config": {
            "clusterId": context.cluster_id,
            "trustDomain": context.trust_domain.as_str(),
            "dnsResolver": context.resolver.to_string(),
        },
        "generation": snapshot.generation(),
        "policies": policies.into_iter().map(|p| policies::policy(p)).collect::<Vec<_>>(),
        "services": services.into_iter().map(|s| service(snapshot, s)).collect::<Vec<_>>(),
        "version": { "version": env!("CARGO_PKG_VERSION"), "product": "meltemi" },
        "workloadState": state(context, snapshot),
        "workloads": workloads.into_iter().map(|w| workload(w)).collect::<Vec<_>>(),
    })
}

fn health(health: Health) -> &'static str {
    match health {
        Health::Healthy => "Healthy",
        Health::Unhealthy => "Unhealthy",
    }
}

fn gateway(gateway: &GatewayAddress) -> Value {
    let destination = match &gateway.destination {
        GatewayDestination::Hostname(name) => name.to_string(),
        GatewayDestination::Address(address) => address.to_string(),
    };
    json!({ "destination": destination, "hboneMtlsPort": gateway.hbone_port })
}

fn workload(w: &Workload) -> Value {
    let kind = match w.workload_type {
        WorkloadType::Deployment => "deployment",
        WorkloadType::CronJob => "cronjob",
        WorkloadType::Pod => "pod",
        WorkloadType::Job => "job",
    };
    let protocol = match w.tunnel_protocol {
        TunnelProtocol::None => "TCP",
        TunnelProtocol::Hbone => "HBONE",
        TunnelProtocol::LegacyIstioMtls => "LegacyIstioMtls",
    };
    let mut value = json!({
        "uid": w.uid.as_str(),
        "name": w.name,
        "namespace": w.namespace,
        "workloadIps": w.addresses,
        "network": w.network,
        "networkMode": if w.network_mode == NetworkMode::HostNetwork { "HostNetwork" } else { "Standard" },
        "protocol": protocol,
        "trustDomain": w.trust_domain.as_str(),
        "serviceAccount": w.service_account,
        "node": w.node,
        "canonicalName": w.canonical_name,
        "canonicalRevision": w.canonical_revision,
        "workloadType": kind,
        "workloadName": w.workload_name,
        "status": health(w.health),
        "clusterId": w.cluster_id,
        "capacity": w.capacity,
        "services": w.services.keys().map(ToString::to_string).collect::<Vec<_>>(),
        "authorizationPolicies": w.authorization_policies.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "locality": {
            "region": w.locality.region, "zone": w.locality.zone, "subzone": w.locality.subzone,
        },
    });
    if let Some(waypoint) = &w.waypoint {
        value["waypoint"] = gateway(waypoint);
    }
    value
}

fn ports(ports: &[PortMapping]) -> Map<String, Value> {
    ports.iter().map(|p| (p.service_port.to_string(), p.target_port.into())).collect()
}

fn service(snapshot: &Snapshot, s: &Service) -> Value {
    let endpoints: Map<String, Value> = snapshot
        .endpoints(&s.key)
        .map(|w| {
            let own = w.services.get(&s.key).map(|p| ports(p)).unwrap_or_default();
            let endpoint = json!({
                "workloadUid": w.uid.as_str(), "service": "", "port": own, "status": health(w.health),
            });
            (w.uid.to_string(), endpoint)
        })
        .collect();
    let mut value = json!({
        "name": s.name,
        "namespace": s.key.namespace,
        "hostname": s.key.hostname,
        "vips": s.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "ports": ports(&s.ports),
        "endpoints": endpoints,
        "subjectAltNames": s.subject_alt_names,
    });
    if let Some(waypoint) = &s.waypoint {
        value["waypoint"] = gateway(waypoint);
    }
    value
}

/// Open connections by the workload that is served.
fn state(context: &Context, snapshot: &Snapshot) -> Value {
    let mut by_workload: BTreeMap<String, (Vec<Value>, Vec<Value>)> = BTreeMap::new();
    let mut infos = BTreeMap::new();
    for connection in context.connections.all() {
        let uid = connection.workload.to_string();
        if let Some(w) = snapshot.workload(&connection.workload) {
            let info = json!({
                "name": w.name, "namespace": w.namespace, "trustDomain": w.trust_domain.as_str(),
                "serviceAccount": w.service_account,
            });
            infos.insert(uid.clone(), info);
        }
        let (inbound, outbound) = by_workload.entry(uid).or_default();
        let list = match connection.direction {
            Direction::Inbound => inbound,
            Direction::Outbound => outbound,
        };
        list.push(serde_json::to_value(&connection).unwrap_or_default());
    }
    let states = by_workload.into_iter().map(|(uid, (inbound, outbound))| {
        let info = infos.remove(&uid).unwrap_or_default();
        let connections = json!({ "inbound": inbound, "outbound": outbound });
        (uid, json!({ "state": "Up", "info": info, "connections": connections }))
    });
    Value::Object(states.collect())
}

fn certificate((identity, issued): &(SpiffeId, Issued)) -> Value {
    match issued {
        Issued::Pending(error) => json!({
            "identity": identity.as_str(), "state": "Initializing", "error": error,
            "certChain": [], "rootCerts": [],
        }),
        Issued::Ready(svid) => json!({
            "identity": identity.as_str(), "state": "Available",
            "certChain": svid.chain_pem.iter().flat_map(|pem| described(pem)).collect::<Vec<_>>(),
            "rootCerts": described(&svid.roots_pem),
        }),
    }
}

/// Every certificate of a PEM text.
fn described(text: &str) -> Vec<Value> {
    let blocks = Pem::iter_from_buffer(text.as_bytes()).filter_map(Result::ok);
    let described = blocks.filter_map(|block| {
        let certificate = block.parse_x509().ok()?;
        let validity = certificate.validity();
        let time = |seconds| jiff::Timestamp::from_second(seconds).map(|t| t.to_string()).unwrap_or_default();
        let body = base64::engine::general_purpose::STANDARD.encode(&block.contents);
        let pem = format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
        Some(json!({
            "pem": base64::engine::general_purpose::STANDARD.encode(pem),
            "serialNumber": certificate.tbs_certificate.serial.to_string(),
            "validFrom": time(validity.not_before.timestamp()),
            "expirationTime": time(validity.not_after.timestamp()),
        }))
    });
    described.collect()
}
