// SPDX-License-Identifier: Apache-2.0
//! Routes of connections: TLSRoute.

use gateway_api::experimental::tlsroutes::{TlsRouteSpec, TlsRouteStatus};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::json;

use super::super::rules::{apply, cels, list};
use super::super::{definition, structural};
use super::routes::{parent_rules, route_status};
use super::{age, kind, v1};

pub(super) fn tls_route() -> CustomResourceDefinition {
    let mut spec = structural::of::<TlsRouteSpec>();
    apply(&mut spec, parent_rules());
    apply(
        &mut spec,
        vec![
            ("hostnames", list(1, 1024)),
            (
                "hostnames",
                cels(&[(r"self.all(h, !h.matches(r'^[0-9.]+$'))", "Hostnames cannot contain an IP")]),
            ),
            ("rules", list(1, 1)),
            ("rules[].backendRefs", list(1, 16)),
        ],
    );
    let mut status = structural::of::<TlsRouteStatus>();
    route_status(&mut status);
    definition(&kind("TLSRoute", "tlsroutes", &[], true), v1(spec, Some(status), json!([age()])))
}
