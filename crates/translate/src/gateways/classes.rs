// SPDX-License-Identifier: Apache-2.0
//! The GatewayClasses of the mesh.

use serde_json::{Value, json};

/// A class of Gateways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// `istio`: an ingress gateway with a LoadBalancer Service.
    Ingress,
    /// `istio-waypoint`: a waypoint with a ClusterIP Service.
    Waypoint,
    /// `istio-remote`: names the gateway of another network; nothing is deployed for it.
    Remote,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 3] = [Self::Ingress, Self::Waypoint, Self::Remote];

    /// Name of the GatewayClass.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ingress => "istio",
            Self::Waypoint => "istio-waypoint",
            Self::Remote => "istio-remote",
        }
    }

    /// Its controller.
    pub fn controller(self) -> &'static str {
        match self {
            Self::Ingress => "istio.io/gateway-controller",
            Self::Waypoint => "istio.io/mesh-controller",
            Self::Remote => "istio.io/unmanaged-gateway",
        }
    }

    /// Value of the label `gateway.istio.io/managed` on what is deployed for it.
    pub fn managed_label(self) -> &'static str {
        match self {
            Self::Ingress => "istio.io-gateway-controller",
            Self::Waypoint => "istio.io-mesh-controller",
            Self::Remote => "istio.io-unmanaged-gateway",
        }
    }

    fn description(self) -> &'static str {
        match self {
            Self::Ingress => "Ingress gateway of the mesh",
            Self::Waypoint => "Waypoint of the mesh: policies and routes of layer 7",
            Self::Remote => "Gateway of another network: nothing is deployed for it",
        }
    }

    /// Features of the Gateway API that Gateways of the class have, by the names of its conformance suite, in order.
    pub fn features(self) -> &'static [&'static str] {
        match self {
            Self::Ingress => &[
                "GRPCRoute",
                "GRPCRouteNamedRouteRule",
                "Gateway",
                "GatewayAddressEmpty",
                "GatewayHTTPListenerIsolation",
                "GatewayHTTPSListenerDetectMisdirectedRequests",
                "GatewayInfrastructure",
                "GatewayPort8080",
                "HTTPRoute",
                "HTTPRoute303RedirectStatusCode",
                "HTTPRoute307RedirectStatusCode",
                "HTTPRoute308RedirectStatusCode",
                "HTTPRouteBackendProtocolH2C",
                "HTTPRouteBackendProtocolWebSocket",
                "HTTPRouteBackendRequestHeaderModification",
                "HTTPRouteBackendTimeout",
                "HTTPRouteCORS",
                "HTTPRouteDestinationPortMatching",
                "HTTPRouteHostRewrite",
                "HTTPRouteMethodMatching",
                "HTTPRouteNamedRouteRule",
                "HTTPRouteParentRefPort",
                "HTTPRoutePathRedirect",
                "HTTPRoutePathRewrite",
                "HTTPRoutePortRedirect",
                "HTTPRouteQueryParamMatching",
                "HTTPRouteRequestMirror",
                "HTTPRouteRequestMultipleMirrors",
                "HTTPRouteRequestPercentageMirror",
                "HTTPRouteRequestTimeout",
                "HTTPRouteResponseHeaderModification",
                "HTTPRouteRetry",
                "HTTPRouteRetryBackendTimeout",
                "HTTPRouteRetryConnectionError",
                "HTTPRouteSchemeRedirect",
                "ReferenceGrant",
                "TLSRoute",
                "TLSRouteModeTerminate",
            ],
            Self::Waypoint | Self::Remote => &[],
        }
    }

    /// The GatewayClass object.
    pub fn object(self) -> Value {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "GatewayClass",
            "metadata": { "name": self.name() },
            "spec": { "controllerName": self.controller(), "description": self.description() },
        })
    }
}

/// The class of a controller; none when it is none of ours.
pub fn by_controller(controller: &str) -> Option<Class> {
    Class::ALL.into_iter().find(|class| class.controller() == controller)
}

/// The class of that name; none when another controller's.
pub fn of(name: &str) -> Option<Class> {
    Class::ALL.into_iter().find(|c| c.name() == name)
}
