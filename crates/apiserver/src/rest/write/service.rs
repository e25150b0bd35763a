// SPDX-License-Identifier: Apache-2.0
//! Addresses of Services: allocated, checked, and never those of another Service, a Pod or a node.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::call::Call;
use crate::status::{Cause, Refusal};

/// The pool of load balancers, 172.30.1.0/24: the only addresses of the cluster that `externalIPs` can name. What is sent to
/// such an address by a client is led to the Service, so that it must not be an address of anything else.
const POOL: [u8; 3] = [172, 30, 1];

/// Checks the addresses of a Service and allocates what is missing. The caller holds the allocation lock.
pub(super) fn addresses(call: &Call, object: &mut Value, live: Option<&Value>) -> Result<(), Refusal> {
    external_ips(call, object)?;
    if object["spec"]["type"] == "ExternalName" {
        return without_address(call, object, live);
    }
    // An ExternalName has no address of its own, whatever is written in it.
    let live = live.filter(|live| live["spec"]["type"] != "ExternalName");
    let old =
        live.and_then(|l| l["spec"]["clusterIP"].as_str()).filter(|ip| !ip.is_empty()).map(str::to_owned);
    let wanted = object["spec"]["clusterIP"].as_str().filter(|ip| !ip.is_empty()).map(str::to_owned);
    let address = match (old, wanted) {
        (Some(old), Some(wanted)) if old != wanted => {
            return Err(refusal(
                call,
                object,
                Cause::invalid("spec.clusterIPs[0]", &wanted.into(), "may not change once set"),
            ));
        }
        (Some(old), _) => old,
        (None, Some(wanted)) if wanted == "None" => wanted,
        (None, Some(wanted)) => free_or_refused(call, object, &wanted)?,
        (None, None) => call
            .api
            .free_cluster_ip()
            .ok_or_else(|| Refusal::internal("failed to allocate a serviceIP: range is full"))?
            .to_string(),
    };
    object["spec"]["clusterIPs"] = json!([address]);
    object["spec"]["clusterIP"] = address.into();
    Ok(())
}

/// An ExternalName lets its address go when it becomes one, and cannot name another.
fn without_address(call: &Call, object: &mut Value, live: Option<&Value>) -> Result<(), Refusal> {
    let kept = |field: &str| live.is_some_and(|live| live["spec"][field] == object["spec"][field]);
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    };
    for field in ["clusterIP", "clusterIPs"] {
        if !empty(&object["spec"][field]) && !kept(field) {
            let message = "Forbidden: may not be set for ExternalName services".to_owned();
            let field = format!("spec.{field}");
            return Err(refusal(call, object, Cause { field, reason: "FieldValueForbidden", message }));
        }
    }
    if let Some(spec) = object["spec"].as_object_mut() {
        spec.remove("clusterIP");
        spec.remove("clusterIPs");
    }
    Ok(())
}

fn external_ips(call: &Call, object: &Value) -> Result<(), Refusal> {
    let Some(wanted) = object["spec"]["externalIPs"].as_array() else { return Ok(()) };
    for (index, value) in wanted.iter().enumerate() {
        let field = format!("spec.externalIPs[{index}]");
        let address = value.as_str().and_then(|text| text.parse::<Ipv4Addr>().ok());
        if !address.is_some_and(in_pool) {
            let [a, b, c] = POOL;
            let why = format!(
                "must be an address of the private pool {a}.{b}.{c}.0/24: other addresses belong to nodes, Pods and Services"
            );
            return Err(refusal(call, object, Cause::invalid(field, value, why)));
        }
        if let Some(other) = other_with(call, object, value) {
            let why = format!("is an address of Service {other}");
            return Err(refusal(call, object, Cause::invalid(field, value, why)));
        }
    }
    Ok(())
}

fn in_pool(address: Ipv4Addr) -> bool {
    address.octets()[..3] == POOL && !matches!(address.octets()[3], 0 | 255)
}

/// Another Service that has or asks for an address.
fn other_with(call: &Call, object: &Value, address: &Value) -> Option<String> {
    let (services, ..) = call.api.store.list("/services", None, None);
    let name = |value: &Value| {
        let text = |field: &str| value["metadata"][field].as_str().unwrap_or_default().to_owned();
        format!("{}/{}", text("namespace"), text("name"))
    };
    let own = format!("{}/{}", call.namespace(), object["metadata"]["name"].as_str().unwrap_or_default());
    services
        .iter()
        .map(|stored| &stored.value)
        .find(|other| {
            let spec = &other["spec"];
            let among = |list: &Value| list.as_array().is_some_and(|all| all.contains(address));
            let ingress = other["status"]["loadBalancer"]["ingress"].as_array();
            let has = spec["clusterIP"] == *address
                || spec["loadBalancerIP"] == *address
                || among(&spec["externalIPs"])
                || ingress.is_some_and(|all| all.iter().any(|entry| entry["ip"] == *address));
            has && name(other) != own
        })
        .map(|other| name(other))
}

fn free_or_refused(call: &Call, object: &Value, wanted: &str) -> Result<String, Refusal> {
    let inside = wanted.parse::<Ipv4Addr>().is_ok_and(|ip| ip.octets()[..2] == [10, 96]);
    if !inside {
        let why = "failed to allocate IP: the provided network does not match the current range 10.96.0.0/16";
        return Err(refusal(call, object, Cause::invalid("spec.clusterIPs", &json!([wanted]), why)));
    }
    if other_with(call, object, &wanted.into()).is_some() {
        let why = "failed to allocate IP: provided IP is already allocated";
        return Err(refusal(call, object, Cause::invalid("spec.clusterIPs", &json!([wanted]), why)));
    }
    Ok(wanted.to_owned())
}

fn refusal(call: &Call, object: &Value, cause: Cause) -> Refusal {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    Refusal::invalid(&call.info.kind, &call.info.group, name, &[cause])
}
