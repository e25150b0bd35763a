// SPDX-License-Identifier: Apache-2.0
//! HTTPRoute and GRPCRoute.

use gateway_api::experimental::httproutes::{HttpRouteSpec, HttpRouteStatus};
use gateway_api::grpcroutes::{GrpcRouteSpec, GrpcRouteStatus};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};

use super::super::rules::{Rule, apply, apply_at, cel, cels, default, list, list_map, name, port};
use super::super::{column, definition, structural};
use super::{DNS_SUBDOMAIN, GROUP, HOSTNAME, age, conditions, kind, v1};

const HEADER_NAME: &str = r"^[A-Za-z0-9!#$%&'*+\-.^_\x60|~]+$";
const DURATION: &str = r"^([0-9]{1,5}(h|m|s|ms)){1,4}$";
const GRPC_SERVICE: &str = r"^(?i)\.?[a-z_][a-z_0-9]*(\.[a-z_][a-z_0-9]*)*$";
const GRPC_METHOD: &str = r"^[A-Za-z_][A-Za-z_0-9]*$";

/// Where filters stand.
const FILTERS: [&str; 2] = ["rules[].filters", "rules[].backendRefs[].filters"];

pub(super) fn http_route() -> CustomResourceDefinition {
    let mut spec = structural::of::<HttpRouteSpec>();
    apply(&mut spec, parent_rules());
    apply(&mut spec, match_rules());
    apply(&mut spec, http_rules());
    for filters in FILTERS {
        apply_at(&mut spec, filters, filters_rules(&HTTP_FILTERS));
        apply_at(&mut spec, &format!("{filters}[]"), filter_rules(&HTTP_FILTERS));
        apply_at(&mut spec, &format!("{filters}[]"), http_filter_rules());
    }
    let mut status = structural::of::<HttpRouteStatus>();
    route_status(&mut status);
    let columns = json!([column("Hostnames", ".spec.hostnames", "string"), age()]);
    definition(&kind("HTTPRoute", "httproutes", &[], true), v1(spec, Some(status), columns))
}

pub(super) fn grpc_route() -> CustomResourceDefinition {
    let mut spec = structural::of::<GrpcRouteSpec>();
    apply(&mut spec, parent_rules());
    apply(&mut spec, match_rules());
    apply(&mut spec, grpc_rules());
    for filters in FILTERS {
        apply_at(&mut spec, filters, filters_rules(&GRPC_FILTERS));
        apply_at(&mut spec, &format!("{filters}[]"), filter_rules(&GRPC_FILTERS));
    }
    let mut status = structural::of::<GrpcRouteStatus>();
    route_status(&mut status);
    let columns = json!([column("Hostnames", ".spec.hostnames", "string"), age()]);
    definition(&kind("GRPCRoute", "grpcroutes", &[], true), v1(spec, Some(status), columns))
}

pub(super) fn route_status(status: &mut Value) {
    conditions(status, "parents[].conditions");
    apply(status, vec![("parents", json!({ "maxItems": 32, "x-kubernetes-list-type": "atomic" }))]);
}

/// What routes of every kind have in common.
pub(super) fn parent_rules() -> Vec<Rule> {
    vec![
        ("parentRefs", list(0, 32)),
        ("parentRefs[].group", default(json!(GROUP))),
        ("parentRefs[].kind", default(json!("Gateway"))),
        ("parentRefs[].name", name()),
        ("parentRefs[].port", port()),
        ("hostnames", list(0, 16)),
        ("hostnames[]", json!({ "minLength": 1, "maxLength": 253, "pattern": HOSTNAME })),
        (
            "rules",
            json!({
                "minItems": 1,
                "maxItems": 16,
                "x-kubernetes-validations": [{
                    "rule": "self.all(l1, !has(l1.name) || self.exists_one(l2, has(l2.name) && l1.name == l2.name))",
                    "message": "Rule name must be unique within the route",
                }],
            }),
        ),
        ("rules[].name", json!({ "minLength": 1, "maxLength": 253, "pattern": DNS_SUBDOMAIN })),
        ("rules[].backendRefs", list(0, 16)),
        ("rules[].backendRefs[].group", default(json!(""))),
        ("rules[].backendRefs[].kind", default(json!("Service"))),
        ("rules[].backendRefs[].name", name()),
        ("rules[].backendRefs[].port", port()),
        ("rules[].backendRefs[].weight", json!({ "default": 1, "minimum": 0, "maximum": 1_000_000 })),
        ("rules[].backendRefs[]", service_port("self")),
    ]
}

fn match_rules() -> Vec<Rule> {
    vec![
        ("rules[].matches", list(0, 64)),
        ("rules[].matches[].headers", list_map(&["name"], 0, 16)),
        ("rules[].matches[].headers[].type", default(json!("Exact"))),
        (
            "rules[].matches[].headers[].name",
            json!({ "minLength": 1, "maxLength": 256, "pattern": HEADER_NAME }),
        ),
        ("rules[].matches[].headers[].value", json!({ "minLength": 1, "maxLength": 4096 })),
    ]
}

/// A Service is named with a port.
fn service_port(reference: &str) -> Value {
    cel(
        &format!(
            "(size({reference}.group) == 0 && {reference}.kind == 'Service') ? has({reference}.port) : true"
        ),
        "Must have port for Service reference",
    )
}

fn http_rules() -> Vec<Rule> {
    let any_path = json!({ "path": { "type": "PathPrefix", "value": "/" } });
    vec![
        ("rules", default(json!([{ "matches": [any_path] }]))),
        ("rules[].matches", default(json!([any_path]))),
        ("rules[].matches[].path", default(json!({ "type": "PathPrefix", "value": "/" }))),
        ("rules[].matches[].path.type", default(json!("PathPrefix"))),
        ("rules[].matches[].path.value", json!({ "default": "/", "maxLength": 1024 })),
        (
            "rules[].matches[].path",
            cel(
                "(self.type in ['Exact', 'PathPrefix']) ? self.value.startsWith('/') : true",
                "value must be an absolute path and start with '/' when type one of ['Exact', 'PathPrefix']",
            ),
        ),
        ("rules[].matches[].queryParams", list_map(&["name"], 0, 16)),
        ("rules[].matches[].queryParams[].type", default(json!("Exact"))),
        ("rules[].timeouts.request", json!({ "pattern": DURATION })),
        ("rules[].timeouts.backendRequest", json!({ "pattern": DURATION })),
        (
            "rules[].timeouts",
            cel(
                "!(has(self.request) && has(self.backendRequest) && duration(self.request) != duration('0s') && \
                 duration(self.backendRequest) > duration(self.request))",
                "backendRequest timeout cannot be longer than request timeout",
            ),
        ),
        ("rules[].retry.backoff", json!({ "pattern": DURATION })),
        ("rules[].retry.codes[]", json!({ "minimum": 400, "maximum": 599 })),
        (
            "rules[]",
            cel(
                "(has(self.backendRefs) && size(self.backendRefs) > 0) ? (!has(self.filters) || \
                 self.filters.all(f, f.type != 'RequestRedirect')) : true",
                "RequestRedirect filter must not be used together with backendRefs",
            ),
        ),
    ]
}

fn grpc_rules() -> Vec<Rule> {
    vec![
        ("rules[].matches[].method.type", default(json!("Exact"))),
        ("rules[].matches[].method.service", json!({ "maxLength": 1024 })),
        ("rules[].matches[].method.method", json!({ "maxLength": 1024 })),
        (
            "rules[].matches[].method",
            cels(&[
                (
                    "has(self.type) ? has(self.service) || has(self.method) : true",
                    "One or both of 'service' or 'method' must be specified",
                ),
                (
                    &format!(
                        "(!has(self.type) || self.type == 'Exact') && has(self.service) ? self.service.matches(r\"{GRPC_SERVICE}\") : true"
                    ),
                    "service must only contain valid characters",
                ),
                (
                    &format!(
                        "(!has(self.type) || self.type == 'Exact') && has(self.method) ? self.method.matches(r\"{GRPC_METHOD}\") : true"
                    ),
                    "method must only contain valid characters",
                ),
            ]),
        ),
    ]
}

/// A type of filter, its settings, and how often it may stand in a list.
struct FilterType {
    name: &'static str,
    settings: &'static str,
    is_repeatable: bool,
}

const fn once(name: &'static str, settings: &'static str) -> FilterType {
    FilterType { name, settings, is_repeatable: false }
}

const MIRROR: FilterType =
    FilterType { name: "RequestMirror", settings: "requestMirror", is_repeatable: true };

const HTTP_FILTERS: [FilterType; 6] = [
    once("RequestHeaderModifier", "requestHeaderModifier"),
    once("ResponseHeaderModifier", "responseHeaderModifier"),
    MIRROR,
    once("RequestRedirect", "requestRedirect"),
    once("URLRewrite", "urlRewrite"),
    once("CORS", "cors"),
];

const GRPC_FILTERS: [FilterType; 3] = [
    once("RequestHeaderModifier", "requestHeaderModifier"),
    once("ResponseHeaderModifier", "responseHeaderModifier"),
    MIRROR,
];

/// For a list of filters.
fn filters_rules(types: &[FilterType]) -> Vec<Rule> {
    let mut out = list(0, 16);
    let once = types.iter().filter(|filter| !filter.is_repeatable).map(|filter| {
        json!({
            "rule": format!("self.filter(f, f.type == '{}').size() <= 1", filter.name),
            "message": format!("{} filter cannot be repeated", filter.name),
        })
    });
    let mut rules: Vec<Value> = once.collect();
    if types.iter().any(|filter| filter.name == "URLRewrite") {
        rules.push(json!({
            "rule": "!(self.exists(f, f.type == 'RequestRedirect') && self.exists(f, f.type == 'URLRewrite'))",
            "message": "RequestRedirect and URLRewrite exclude each other",
        }));
    }
    out["x-kubernetes-validations"] = rules.into();
    vec![("", out)]
}

/// For a filter.
fn filter_rules(types: &[FilterType]) -> Vec<Rule> {
    let header = || json!({ "minLength": 1, "maxLength": 256, "pattern": HEADER_NAME });
    let value = || json!({ "minLength": 1, "maxLength": 4096 });
    let rules: Vec<Value> = types
        .iter()
        .flat_map(|FilterType { name, settings, .. }| {
            [
                json!({
                    "rule": format!("!(has(self.{settings}) && self.type != '{name}')"),
                    "message": format!("filter.{settings} must be nil if the filter.type is not {name}"),
                }),
                json!({
                    "rule": format!("self.type != '{name}' || has(self.{settings})"),
                    "message": format!("filter.{settings} must be specified for {name} filter.type"),
                }),
            ]
        })
        .collect();
    vec![
        ("", json!({ "x-kubernetes-validations": rules })),
        ("requestHeaderModifier.set", list_map(&["name"], 0, 16)),
        ("requestHeaderModifier.set[].name", header()),
        ("requestHeaderModifier.set[].value", value()),
        ("requestHeaderModifier.add", list_map(&["name"], 0, 16)),
        ("requestHeaderModifier.add[].name", header()),
        ("requestHeaderModifier.add[].value", value()),
        ("requestHeaderModifier.remove", list(0, 16)),
        ("responseHeaderModifier.set", list_map(&["name"], 0, 16)),
        ("responseHeaderModifier.set[].name", header()),
        ("responseHeaderModifier.set[].value", value()),
        ("responseHeaderModifier.add", list_map(&["name"], 0, 16)),
        ("responseHeaderModifier.add[].name", header()),
        ("responseHeaderModifier.add[].value", value()),
        ("responseHeaderModifier.remove", list(0, 16)),
        ("requestMirror.backendRef.group", default(json!(""))),
        ("requestMirror.backendRef.kind", default(json!("Service"))),
        ("requestMirror.backendRef.name", name()),
        ("requestMirror.backendRef.port", port()),
        ("requestMirror.backendRef", service_port("self")),
        ("requestMirror.percent", json!({ "minimum": 0, "maximum": 100 })),
        ("requestMirror.fraction.numerator", json!({ "minimum": 0 })),
        ("requestMirror.fraction.denominator", json!({ "default": 100, "minimum": 1 })),
        (
            "requestMirror.fraction",
            cel("self.numerator <= self.denominator", "numerator must be less than or equal to denominator"),
        ),
        (
            "requestMirror",
            cel(
                "!(has(self.percent) && has(self.fraction))",
                "Only one of percent or fraction may be specified in HTTPRequestMirrorFilter",
            ),
        ),
    ]
}

/// For a filter of HTTPRoutes, beside [`filter_rules`].
fn http_filter_rules() -> Vec<Rule> {
    let host = || json!({ "minLength": 1, "maxLength": 253, "pattern": DNS_SUBDOMAIN });
    let path = || json!({ "maxLength": 1024 });
    let names = || json!({ "maxItems": 64, "x-kubernetes-list-type": "set" });
    vec![
        ("urlRewrite.hostname", host()),
        ("urlRewrite.path.replaceFullPath", path()),
        ("urlRewrite.path.replacePrefixMatch", path()),
        ("requestRedirect.hostname", host()),
        ("requestRedirect.path.replaceFullPath", path()),
        ("requestRedirect.path.replacePrefixMatch", path()),
        ("requestRedirect.statusCode", json!({ "default": 302, "enum": [301, 302, 303, 307, 308] })),
        ("requestRedirect.port", port()),
        ("cors.allowOrigins", names()),
        ("cors.allowOrigins[]", json!({ "minLength": 1, "maxLength": 253 })),
        ("cors.allowMethods", names()),
        ("cors.allowHeaders", names()),
        ("cors.exposeHeaders", names()),
        ("cors.maxAge", json!({ "default": 5, "minimum": 1 })),
    ]
}
