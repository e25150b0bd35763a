// SPDX-License-Identifier: Apache-2.0
//! Labels, annotations and names of Istio's ambient mode, and our own.

pub use meltemi_model::enrolment::{BYPASS_INBOUND, DATAPLANE_MODE, SIDECAR_STATUS};

/// What enrols a Pod; written by whoever captured its traffic.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";
/// Type of a Pod's condition: whether its traffic passes a node proxy, as the agent of its node says.
pub const CAPTURED: &str = "meltemi.dev/Captured";
/// Which traffic a waypoint takes: `service` (default), `workload`, `all`, `none`.
pub const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
/// The waypoint of an object, or `none`.
pub const USE_WAYPOINT: &str = "istio.io/use-waypoint";
/// Namespace of that waypoint.
pub const USE_WAYPOINT_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
/// Ingress traffic goes through the waypoint as well.
pub const INGRESS_USE_WAYPOINT: &str = "istio.io/ingress-use-waypoint";
/// A tunnel that the workload terminates itself (`http`).
pub const NATIVE_TUNNEL: &str = "networking.istio.io/tunnel";
/// `PROXY[/port]` or `NONE[/port]`, on a waypoint.
pub const WAYPOINT_INBOUND_BINDING: &str = "ambient.istio.io/waypoint-inbound-binding";
/// Preference for near endpoints, as an annotation.
pub const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";
/// Type of the Service of a managed gateway.
pub const SERVICE_TYPE: &str = "networking.istio.io/service-type";
/// Name of the objects of a managed gateway.
pub const NAME_OVERRIDE: &str = "gateway.istio.io/name-override";
/// Service account of a managed gateway.
pub const SERVICE_ACCOUNT: &str = "gateway.istio.io/service-account";
/// What was made by the gateway controller.
pub const MANAGED: &str = "gateway.istio.io/managed";
/// Version of the controller that made it.
pub const CONTROLLER_VERSION: &str = "gateway.istio.io/controller-version";
/// Name of the Gateway that an object belongs to.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// Its class.
pub const GATEWAY_CLASS_NAME: &str = "gateway.networking.k8s.io/gateway-class-name";
/// Name of a workload for telemetry.
pub const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
/// Revision of a workload for telemetry.
pub const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";
/// Revision of the control plane that an object belongs to.
pub const REVISION: &str = "istio.io/rev";
/// Whether plaintext around the waypoint is refused: `deny` on a Service or Namespace.
pub const WAYPOINT_BYPASS: &str = "meltemi.dev/waypoint-bypass";
/// Region of a node.
pub const REGION: &str = "topology.kubernetes.io/region";
/// Zone of a node.
pub const ZONE: &str = "topology.kubernetes.io/zone";
/// Subzone of a node.
pub const SUBZONE: &str = "topology.istio.io/subzone";
