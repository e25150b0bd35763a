// SPDX-License-Identifier: Apache-2.0
//! The kinds of routes that waypoints and gateways follow.

use std::fmt;

use meltemi_model::NamespacedName;

/// A kind of route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouteKind {
    /// HTTPRoute.
    Http,
    /// GRPCRoute.
    Grpc,
    /// TLSRoute.
    Tls,
}

impl RouteKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Http, Self::Grpc, Self::Tls];

    /// The kind's name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "HTTPRoute",
            Self::Grpc => "GRPCRoute",
            Self::Tls => "TLSRoute",
        }
    }

    /// The kind's plural in the API.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Http => "httproutes",
            Self::Grpc => "grpcroutes",
            Self::Tls => "tlsroutes",
        }
    }

    /// The kind of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// A route among those of all kinds. Its text is the name under which proxies are told of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteName {
    /// Namespace and name.
    pub name: NamespacedName,
    /// Its kind: two routes of one name are two routes.
    pub kind: RouteKind,
}

impl fmt::Display for RouteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            RouteKind::Http => self.name.fmt(f),
            kind => write!(f, "{}/{}", self.name, kind.name()),
        }
    }
}

/// Where a reference is written; a ReferenceGrant names both.
#[derive(Clone, Copy, Debug)]
pub struct Referrer<'a> {
    /// Kind of the route.
    pub kind: RouteKind,
    /// Its namespace.
    pub namespace: &'a str,
}
