// SPDX-License-Identifier: Apache-2.0
//! What every cluster has from its first moment: namespaces, roles, the Service of the API itself.

use serde_json::{Value, json};

use crate::api::Api;
use crate::status::Refusal;
use crate::store::StoreError;

const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// Creates what is missing.
///
/// # Errors
/// The store refuses.
pub(crate) fn ensure(api: &Api) -> Result<(), Refusal> {
    for name in NAMESPACES {
        let object = json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
            "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
        put(api, "/namespaces", object)?;
    }
    for object in crate::auth::bootstrap_objects() {
        let plural = match object["kind"].as_str() {
            Some("ClusterRole") => "clusterroles",
            Some("ClusterRoleBinding") => "clusterrolebindings",
            Some("Role") => "roles",
            _ => "rolebindings",
        };
        put(api, &format!("rbac.authorization.k8s.io/{plural}"), object)?;
    }
    api.aggregate_roles();
    sync_api_services(api);
    let address = api.advertise.to_string();
    let port = json!({"name": "https", "port": 443, "protocol": "TCP"});
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let mut service_port = port.clone();
    service_port["targetPort"] = 443.into();
    put(
        api,
        "/services",
        json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
        "spec": {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ports": [service_port],
                 "sessionAffinity": "None", "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
                 "internalTrafficPolicy": "Cluster"},
        "status": {"loadBalancer": {}}}),
    )?;
    put(
        api,
        "/endpoints",
        json!({"apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default"},
        "subsets": [{"addresses": [{"ip": address}], "ports": [port]}]}),
    )?;
    put(
        api,
        "discovery.k8s.io/endpointslices",
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4", "endpoints": [{"addresses": [address], "conditions": {"ready": true}}], "ports": [port]}),
    )
}

fn put(api: &Api, resource: &str, mut object: Value) -> Result<(), Refusal> {
    let metadata = &mut object["metadata"];
    metadata["uid"] = uuid::Uuid::new_v4().to_string().into();
    metadata["creationTimestamp"] = api.now().into();
    let text = |key: &str| metadata[key].as_str().unwrap_or_default().to_owned();
    let (namespace, name) = (text("namespace"), text("name"));
    match api.store.create(resource, &namespace, &name, object) {
        Ok(_) | Err(StoreError::AlreadyExists) => Ok(()),
        Err(error) => Err(Refusal::internal(error)),
    }
}

/// Keeps an APIService for every group version that is served, and none for those that are not.
pub(crate) fn sync_api_services(api: &Api) {
    const RESOURCE: &str = "apiregistration.k8s.io/apiservices";
    let served = api.registry.groups().into_iter().flat_map(|(group, versions)| {
        versions.into_iter().map(move |version| (format!("{version}.{group}"), group.clone(), version))
    });
    let served: std::collections::BTreeMap<String, (String, String)> =
        served.map(|(name, group, version)| (name, (group, version))).collect();
    for stored in api.store.list(RESOURCE, None, None).0 {
        let name = stored.value["metadata"]["name"].as_str().unwrap_or_default();
        if !served.contains_key(name) {
            // Gone already, or changed meanwhile by another write, which comes here again.
            let _ = api.store.remove(RESOURCE, "", name, stored.revision);
        }
    }
    for (name, (group, version)) in served {
        if api.store.get(RESOURCE, "", &name).is_some() {
            continue;
        }
        let condition = json!({"type": "Available", "status": "True", "reason": "Local",
            "message": "Local APIServices are always available", "lastTransitionTime": api.now()});
        let object = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": name, "labels": {"kube-aggregator.kubernetes.io/automanaged": "true"}},
            "spec": {"group": group, "version": version, "groupPriorityMinimum": 1000, "versionPriority": 15},
            "status": {"conditions": [condition]}});
        if let Err(refusal) = put(api, RESOURCE, object) {
            tracing::warn!(%name, error = %refusal.message, "APIService not written");
        }
    }
}
