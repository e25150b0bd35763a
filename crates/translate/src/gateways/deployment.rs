// SPDX-License-Identifier: Apache-2.0
//! The objects that stand behind a Gateway: a ServiceAccount, a Deployment and a Service, as values.

use std::collections::BTreeMap;

use gateway_api::gateways::{Gateway, GatewayListeners};
use meltemi_model::NamespacedName;
use meltemi_model::net::ports;
use serde_json::{Map, Value, json};

use super::classes::{self, Class};
use crate::facts::{Labels, name_of};
use crate::labels;
use crate::mesh::MeshConfig;

/// Field manager of everything the gateway controller applies.
pub const FIELD_MANAGER: &str = "istio.io/gateway-controller";

/// Newest form of the managed objects that this controller writes; a Gateway that a newer one took over is
/// left alone.
const CONTROLLER_VERSION: u32 = 5;

/// Where the proxies of a Gateway find the control plane, and what they run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyTemplate {
    /// Image of the proxy.
    pub image: String,
    /// Address of xDS and CA, `<host>:<port>`.
    pub control_address: String,
}

/// What to apply for a Gateway.
#[derive(Clone, Debug, PartialEq)]
pub struct Managed {
    /// Name of the Deployment and the Service.
    pub name: NamespacedName,
    /// Name of the ServiceAccount: the identity of the proxies.
    pub service_account: String,
    /// The objects, in the order in which they are applied.
    pub objects: Vec<Value>,
}

/// Name of the Deployment and Service of a Gateway; none when nothing is deployed for it.
pub fn managed_name(gateway: &Gateway) -> Option<NamespacedName> {
    let name = name_of(&gateway.metadata);
    let suffix = match classes::of(&gateway.spec.gateway_class_name)? {
        Class::Ingress => "-istio",
        Class::Waypoint => "",
        Class::Remote => return None,
    };
    let annotation = gateway.metadata.annotations.as_ref().and_then(|a| a.get(labels::NAME_OVERRIDE));
    let own = annotation.cloned().unwrap_or_else(|| format!("{}{suffix}", name.name));
    Some(NamespacedName::new(name.namespace, own))
}

/// The ServiceAccount that the proxies of a Gateway run as; none when nothing is deployed for it.
pub fn service_account(gateway: &Gateway) -> Option<String> {
    let annotation = gateway.metadata.annotations.as_ref().and_then(|a| a.get(labels::SERVICE_ACCOUNT));
    annotation.cloned().or_else(|| Some(managed_name(gateway)?.name.to_string()))
}

/// Labels of the proxies of a Gateway as [`render`] makes them; none when nothing is deployed for it.
pub fn pod_labels(gateway: &Gateway) -> Option<Labels> {
    let class = classes::of(&gateway.spec.gateway_class_name)?;
    let name = managed_name(gateway)?;
    let parts = Parts { gateway, class, name: &name, service_account: "" };
    let text = |(key, value): (String, Value)| Some((key, value.as_str()?.to_owned()));
    Some(parts.pod_labels().into_iter().filter_map(text).collect())
}

/// Why nothing is (or may be) deployed for a Gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Skip {
    /// Its class is another controller's, or deploys nothing.
    Class,
    /// `spec.addresses` is set: its user deploys it.
    Addresses,
    /// A newer (or unreadable) controller version has taken it over.
    Version,
    /// It belongs to another revision of the control plane.
    Revision,
    /// It is being deleted.
    Deleted,
}

/// The objects to apply for a Gateway.
///
/// # Errors
/// [`Skip`] when there are none.
pub fn render(gateway: &Gateway, template: &ProxyTemplate, mesh: &MeshConfig) -> Result<Managed, Skip> {
    let class = classes::of(&gateway.spec.gateway_class_name).ok_or(Skip::Class)?;
    let name = managed_name(gateway).ok_or(Skip::Class)?;
    if gateway.metadata.deletion_timestamp.is_some() {
        return Err(Skip::Deleted);
    }
    if gateway.spec.addresses.as_ref().is_some_and(|a| !a.is_empty()) {
        return Err(Skip::Addresses);
    }
    let annotation = |key: &str| gateway.metadata.annotations.as_ref().and_then(|a| a.get(key));
    if let Some(version) = annotation(labels::CONTROLLER_VERSION)
        && !version.parse::<u32>().is_ok_and(|v| v <= CONTROLLER_VERSION)
    {
        return Err(Skip::Version);
    }
    let revision = gateway.metadata.labels.as_ref().and_then(|l| l.get(labels::REVISION));
    if revision.is_some_and(|r| !r.is_empty() && r != "default") {
        return Err(Skip::Revision);
    }
    let service_account = service_account(gateway).ok_or(Skip::Class)?;
    let parts = Parts { gateway, class, name: &name, service_account: &service_account };
    let mut objects = Vec::with_capacity(3);
    if annotation(labels::SERVICE_ACCOUNT).is_none() {
        objects.push(parts.service_account());
    }
    objects.push(parts.deployment(template, mesh));
    objects.push(parts.service());
    Ok(Managed { name, service_account, objects })
}

struct Parts<'a> {
    gateway: &'a Gateway,
    class: Class,
    name: &'a NamespacedName,
    service_account: &'a str,
}

impl Parts<'_> {
    fn gateway_name(&self) -> &str {
        self.gateway.metadata.name.as_deref().unwrap_or_default()
    }

    fn infrastructure(
        &self,
        read: impl Fn(&gateway_api::gateways::GatewayInfrastructure) -> Option<&BTreeMap<String, String>>,
    ) -> Map<String, Value> {
        let found = self.gateway.spec.infrastructure.as_ref().and_then(read);
        found.into_iter().flatten().map(|(k, v)| (k.clone(), json!(v))).collect()
    }

    fn labels(&self) -> Map<String, Value> {
        let mut out = self.infrastructure(|i| i.labels.as_ref());
        out.insert(labels::GATEWAY_NAME.to_owned(), json!(self.gateway_name()));
        out.insert(labels::GATEWAY_CLASS_NAME.to_owned(), json!(self.class.name()));
        out.insert(labels::MANAGED.to_owned(), json!(self.class.managed_label()));
        out
    }

    fn metadata(&self, name: &str) -> Value {
        json!({
            "name": name,
            "namespace": &*self.name.namespace,
            "labels": self.labels(),
            "annotations": self.infrastructure(|i| i.annotations.as_ref()),
            "ownerReferences": [{
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "Gateway",
                "name": self.gateway_name(),
                "uid": self.gateway.metadata.uid.as_deref().unwrap_or_default(),
            }],
        })
    }

    fn service_account(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": self.metadata(self.service_account),
        })
    }

    fn service(&self) -> Value {
        let mut metadata = self.metadata(&self.name.name);
        metadata["annotations"][labels::TRAFFIC_DISTRIBUTION] = json!("PreferClose");
        let annotation = self.gateway.metadata.annotations.as_ref().and_then(|a| a.get(labels::SERVICE_TYPE));
        let default_type = if self.class == Class::Waypoint { "ClusterIP" } else { "LoadBalancer" };
        let mut service_ports = vec![
            json!({ "name": "status-port", "port": ports::READY, "protocol": "TCP", "appProtocol": "tcp" }),
        ];
        let mut seen = vec![i32::from(ports::READY)];
        for listener in &self.gateway.spec.listeners {
            if !seen.contains(&listener.port) {
                seen.push(listener.port);
                service_ports.push(listener_port(listener));
            }
        }
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {
                "type": annotation.map_or(default_type, String::as_str),
                "ipFamilyPolicy": "PreferDualStack",
                "selector": { labels::GATEWAY_NAME: self.gateway_name() },
                "ports": service_ports,
            },
        })
    }

    fn pod_labels(&self) -> Map<String, Value> {
        let mut out = self.labels();
        for (key, value) in [
            (labels::DATAPLANE_MODE, "none"),
            ("sidecar.istio.io/inject", "false"),
            (labels::CANONICAL_NAME, &*self.name.name),
            (labels::CANONICAL_REVISION, "latest"),
        ] {
            out.insert(key.to_owned(), json!(value));
        }
        out
    }

    fn deployment(&self, template: &ProxyTemplate, mesh: &MeshConfig) -> Value {
        let pod_labels = self.pod_labels();
        let mut pod_annotations = self.infrastructure(|i| i.annotations.as_ref());
        pod_annotations.insert("prometheus.io/scrape".to_owned(), json!("true"));
        pod_annotations.insert("prometheus.io/port".to_owned(), json!("15020"));
        pod_annotations.insert("prometheus.io/path".to_owned(), json!("/stats/prometheus"));
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": self.metadata(&self.name.name),
            "spec": {
                "selector": { "matchLabels": { labels::GATEWAY_NAME: self.gateway_name() } },
                "template": {
                    "metadata": { "labels": pod_labels, "annotations": pod_annotations },
                    "spec": self.pod(template, mesh),
                },
            },
        })
    }

    fn pod(&self, template: &ProxyTemplate, mesh: &MeshConfig) -> Value {
        json!({
            "serviceAccountName": self.service_account,
            "terminationGracePeriodSeconds": 30,
            // A gateway may listen on ports below 1024 without a privilege.
            "securityContext": { "sysctls": [{ "name": "net.ipv4.ip_unprivileged_port_start", "value": "0" }] },
            "containers": [self.container(template, mesh)],
            "volumes": [
                {
                    "name": "istio-token",
                    "projected": { "sources": [{ "serviceAccountToken": {
                        "audience": "istio-ca", "expirationSeconds": 43200, "path": "istio-token",
                    }}]},
                },
                { "name": "istiod-ca-cert", "configMap": { "name": "istio-ca-root-cert" } },
            ],
        })
    }

    fn container(&self, template: &ProxyTemplate, mesh: &MeshConfig) -> Value {
        let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
        let value = |name: &str, value: &str| json!({ "name": name, "value": value });
        json!({
            "name": "istio-proxy",
            "image": template.image,
            "args": ["serve", "waypoint"],
            "env": [
                field("POD_NAME", "metadata.name"),
                field("POD_NAMESPACE", "metadata.namespace"),
                field("INSTANCE_IP", "status.podIP"),
                field("NODE_NAME", "spec.nodeName"),
                field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
                value("GATEWAY_NAME", self.gateway_name()),
                value("GATEWAY_CLASS", self.class.name()),
                value("CA_ADDRESS", &template.control_address),
                value("XDS_ADDRESS", &template.control_address),
                value("TRUST_DOMAIN", mesh.trust_domain.as_str()),
                value("CLUSTER_ID", &mesh.cluster_id),
                value("CLUSTER_DOMAIN", &mesh.cluster_domain),
            ],
            "ports": [
                { "containerPort": ports::STATS, "name": "metrics", "protocol": "TCP" },
                { "containerPort": ports::READY, "name": "status-port", "protocol": "TCP" },
            ],
            "startupProbe": probe(1, 30),
            "readinessProbe": probe(2, 4),
            "resources": { "requests": { "cpu": "100m", "memory": "32Mi" }, "limits": { "cpu": "2", "memory": "1Gi" } },
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "capabilities": { "drop": ["ALL"] },
                "privileged": false,
                "readOnlyRootFilesystem": true,
                "runAsGroup": 1337,
                "runAsNonRoot": true,
                "runAsUser": 1337,
            },
            "volumeMounts": [
                { "name": "istio-token", "mountPath": "/var/run/secrets/tokens" },
                { "name": "istiod-ca-cert", "mountPath": "/var/run/secrets/istio" },
            ],
        })
    }
}

fn probe(period: u32, failures: u32) -> Value {
    json!({
        "httpGet": { "path": "/healthz/ready", "port": ports::READY, "scheme": "HTTP" },
        "periodSeconds": period,
        "timeoutSeconds": 1,
        "failureThreshold": failures,
        "successThreshold": 1,
    })
}

fn listener_port(listener: &GatewayListeners) -> Value {
    let app_protocol = match listener.protocol.as_str() {
        "HBONE" => "hbone".to_owned(),
        other => other.to_ascii_lowercase(),
    };
    json!({ "name": listener.name, "port": listener.port, "protocol": "TCP", "appProtocol": app_protocol })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(yaml: &str) -> Gateway {
        serde_yaml_ng::from_str(yaml).unwrap()
    }

    fn template() -> ProxyTemplate {
        ProxyTemplate {
            image: "meltemi:test".into(),
            control_address: "istiod.istio-system.svc:15012".into(),
        }
    }

    const WAYPOINT: &str = "
metadata: {name: waypoint, namespace: default, uid: u1}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
";

    const INGRESS: &str = "
metadata: {name: bookinfo-gateway, namespace: default, uid: u2}
spec:
  gatewayClassName: istio
  listeners: [{name: http, port: 80, protocol: HTTP}, {name: http2, port: 80, protocol: HTTP}]
";

    #[test]
    fn a_waypoint_has_its_own_identity_and_a_cluster_address() {
        let managed = render(&gateway(WAYPOINT), &template(), &MeshConfig::default()).unwrap();
        assert_eq!(managed.name.to_string(), "default/waypoint");
        assert_eq!(managed.service_account, "waypoint");
        let service = &managed.objects[2];
        assert_eq!(service["spec"]["type"], "ClusterIP");
        let ports: Vec<_> =
            service["spec"]["ports"].as_array().unwrap().iter().map(|p| p["port"].clone()).collect();
        assert_eq!(ports, [15021, 15008]);
        let pod = &managed.objects[1]["spec"]["template"];
        assert_eq!(pod["metadata"]["labels"]["istio.io/dataplane-mode"], "none");
        assert_eq!(pod["spec"]["serviceAccountName"], "waypoint");
        for object in &managed.objects {
            assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], "u1");
            assert_eq!(object["metadata"]["labels"][labels::MANAGED], "istio.io-mesh-controller");
        }
    }

    #[test]
    fn an_ingress_gateway_is_suffixed_and_listens_once_on_each_port() {
        let managed = render(&gateway(INGRESS), &template(), &MeshConfig::default()).unwrap();
        assert_eq!(managed.name.to_string(), "default/bookinfo-gateway-istio");
        assert_eq!(managed.service_account, "bookinfo-gateway-istio");
        let service = &managed.objects[2];
        assert_eq!(service["spec"]["type"], "LoadBalancer");
        assert_eq!(service["spec"]["ports"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn what_others_own_is_skipped() {
        let edit = |change: &dyn Fn(&mut Gateway)| {
            let mut gateway = gateway(WAYPOINT);
            change(&mut gateway);
            render(&gateway, &template(), &MeshConfig::default()).unwrap_err()
        };
        let annotate = |gateway: &mut Gateway, key: &str, value: &str| {
            gateway.metadata.annotations.get_or_insert_default().insert(key.into(), value.into());
        };
        assert_eq!(edit(&|g| g.spec.gateway_class_name = "nginx".into()), Skip::Class);
        assert_eq!(edit(&|g| g.spec.gateway_class_name = "istio-remote".into()), Skip::Class);
        assert_eq!(edit(&|g| annotate(g, labels::CONTROLLER_VERSION, "6")), Skip::Version);
        assert_eq!(edit(&|g| annotate(g, labels::CONTROLLER_VERSION, "x")), Skip::Version);
        assert_eq!(edit(&|g| g.spec.addresses = Some(vec![Default::default()])), Skip::Addresses);
        let revise = |g: &mut Gateway| {
            g.metadata.labels.get_or_insert_default().insert(labels::REVISION.into(), "canary".into());
        };
        assert_eq!(edit(&revise), Skip::Revision);
    }
}
