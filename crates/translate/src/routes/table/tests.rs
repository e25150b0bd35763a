// SPDX-License-Identifier: Apache-2.0
//! What is sent of routes, and what their status says.

use k8s_openapi::api::core::v1::Service as KubeService;

use super::*;
use crate::facts::ServiceFacts;
use crate::routes::RouteKind;
use crate::{Change, MeshConfig};

fn parse<T: serde::de::DeserializeOwned>(yaml: &str) -> T {
    serde_yaml_ng::from_str(yaml).unwrap()
}

fn http(route: &HttpRoute) -> RouteName {
    RouteName { kind: RouteKind::Http, name: name_of(&route.metadata) }
}

fn bookinfo() -> (Table, Index) {
    let mut index = Index::new(MeshConfig::default());
    let service: KubeService = parse(
        "
metadata: {name: productpage, namespace: default}
spec: {clusterIP: 10.96.0.9, ports: [{port: 9080}]}
",
    );
    index.apply(Change::Service(name_of(&service.metadata), Some(Box::new(ServiceFacts::read(&service)))));
    index.flush();
    let mut table = Table::default();
    let gateway: Gateway = parse(
        "
metadata: {name: bookinfo-gateway, namespace: default}
spec: {gatewayClassName: istio, listeners: [{name: http, port: 80, protocol: HTTP}]}
",
    );
    table.set_gateway(&name_of(&gateway.metadata), Some(Arc::new(gateway)));
    let route: HttpRoute = parse(
        "
metadata: {name: bookinfo, namespace: default, generation: 1}
spec:
  parentRefs: [{name: bookinfo-gateway}]
  rules:
  - matches:
    - path: {type: Exact, value: /productpage}
    - path: {type: PathPrefix, value: /static}
    backendRefs: [{name: productpage, port: 9080}]
",
    );
    table.set_route(&http(&route), Some(Arc::new(route)));
    (table, index)
}

#[test]
fn bookinfo_is_routed_through_its_gateway() {
    let (mut table, index) = bookinfo();
    let routed = table.flush(&index);
    let [(_, route)] = routed.routes.as_slice() else { panic!("{routed:?}") };
    let gateway = NamespacedName::new("default", "bookinfo-gateway");
    assert_eq!(route.gateways, [gateway.clone()].into());
    assert_eq!(route.what.parents[0].target, l7::Target::Gateway(gateway.clone()));
    let rule = &route.what.rules[0];
    assert_eq!(rule.matches[0].path, Some(l7::PathMatch::Exact("/productpage".into())));
    assert_eq!(rule.backends[0].service, Some(MeshConfig::default().service_key("default", "productpage")));
    assert_eq!(routed.listeners[0].0, "default/bookinfo-gateway/http");
    assert_eq!(routed.attached, [(gateway, BTreeMap::from([("http".to_owned(), 1)]))]);
    assert!(routed.statuses[0].2[0].conditions.iter().all(|c| c.status));
    let again = table.flush(&index);
    assert!(again.routes.is_empty() && again.statuses.is_empty());
}

#[test]
fn a_service_that_goes_takes_its_share_to_nowhere() {
    let (mut table, mut index) = bookinfo();
    table.flush(&index);
    let name = NamespacedName::new("default", "productpage");
    index.apply(Change::Service(name.clone(), None));
    index.flush();
    table.see_service(&NamespacedName::new("default", "unrelated"));
    assert!(table.flush(&index).routes.is_empty());
    table.see_service(&name);
    let routed = table.flush(&index);
    assert_eq!(routed.routes[0].1.what.rules[0].backends[0].service, None);
    assert_eq!(routed.statuses[0].2[0].conditions[1].reason, "BackendNotFound");
}

#[test]
fn a_rule_that_cannot_be_followed_answers_for_its_requests_only() {
    let (mut table, index) = bookinfo();
    let mut route: HttpRoute = parse(
        "
metadata: {name: bookinfo, namespace: default, generation: 2}
spec: {parentRefs: [{name: bookinfo-gateway}]}
",
    );
    let good =
        "{matches: [{path: {type: Exact, value: /a}}], backendRefs: [{name: productpage, port: 9080}]}";
    let bad = "{matches: [{path: {type: Exact, value: /b}}], filters: [{type: ExtensionRef, extensionRef: {group: g, kind: K, name: n}}]}";
    let unreadable = "{matches: [{path: {type: RegularExpression, value: '/(a'}}]}";
    route.spec.rules = Some([good, bad, unreadable].map(parse).into());
    table.set_route(&http(&route), Some(Arc::new(route)));
    let routed = table.flush(&index);
    let rules = &routed.routes[0].1.what.rules;
    let seen: Vec<_> = rules.iter().map(|r| (r.matches.len(), r.backends.len())).collect();
    assert_eq!(seen, [(1, 1), (1, 0), (0, 0)]);
    assert!(routed.attached.iter().all(|(_, counts)| counts.values().all(|n| *n == 0)), "{routed:?}");
}

#[test]
fn a_rule_that_cannot_be_followed_makes_the_route_unacceptable() {
    for (rule, message) in [
        (
            "filters: [{type: CORS, cors: {allowOrigins: ['ftp://a.example']}}]",
            r#"rule 0: CORS: allowOrigins "ftp://a.example" is neither * nor <scheme>://<host>, optionally with a port"#,
        ),
        (
            "filters: [{type: ExtensionRef, extensionRef: {group: g, kind: K, name: n}}]",
            "rule 0: an ExtensionRef filter is not supported",
        ),
        (
            "filters: [{type: RequestMirror, requestMirror: {percent: 101, backendRef: {name: productpage, port: 9080}}}]",
            "rule 0: RequestMirror: 101 of 100 requests is no share",
        ),
        ("retry: {attempts: 11}", "rule 0: retry.attempts 11 is not between 0 and 10"),
        ("retry: {codes: [200]}", "rule 0: retry.codes 200 is not between 400 and 599"),
        ("sessionPersistence: {type: Cookie}", "rule 0: sessionPersistence is not supported"),
        (
            "backendRefs: [{name: productpage, port: 9080, filters: [{type: CORS, cors: {allowOrigins: ['*']}}]}]",
            "rule 0: a CORS filter of a single backend is not supported",
        ),
        (
            "matches: [{path: {type: RegularExpression, value: '/(a'}}]",
            r#"rule 0: regular expression "/(a": unclosed group"#,
        ),
        (
            "matches: [{headers: [{type: RegularExpression, name: x, value: '[z-a]'}]}]",
            r#"rule 0: regular expression "[z-a]": invalid character class range, the start must be <= the end"#,
        ),
        (
            "matches: [{queryParams: [{type: RegularExpression, name: x, value: '*'}]}]",
            r#"rule 0: regular expression "*": repetition operator missing expression"#,
        ),
        (
            "{matches: [{path: {type: Exact, value: /a}}], \
             filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}]}",
            "rule 0: replacePrefixMatch needs matches of type PathPrefix",
        ),
        (
            "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-user, value: \"gate\\nway\"}]}}]",
            r#"rule 0: RequestHeaderModifier: set "x-user": the value has a line break"#,
        ),
        (
            "filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {remove: [Content-Length]}}]",
            r#"rule 0: ResponseHeaderModifier: remove "Content-Length": the proxy writes this header itself; a route cannot change it"#,
        ),
        (
            "filters: [{type: URLRewrite, urlRewrite: {hostname: 'a b'}}]",
            r#"rule 0: URLRewrite: hostname "a b" is no host name"#,
        ),
    ] {
        let (mut table, index) = bookinfo();
        let mut route: HttpRoute = parse(
            "
metadata: {name: bookinfo, namespace: default, generation: 2}
spec: {parentRefs: [{name: bookinfo-gateway}]}
",
        );
        route.spec.rules = Some(vec![parse(rule)]);
        table.flush(&index);
        table.set_route(&http(&route), Some(Arc::new(route)));
        let routed = table.flush(&index);
        // Without a backend: 500.
        let [(_, sent)] = routed.routes.as_slice() else { panic!("{rule}: {routed:?}") };
        assert_eq!((sent.what.rules[0].backends.len(), sent.what.rules[0].filters.len()), (0, 0), "{rule}");
        let accepted = &routed.statuses[0].2[0].conditions[0];
        assert_eq!((accepted.status, accepted.reason.as_str()), (false, "UnsupportedValue"), "{rule}");
        let answered = "; requests that it is for are answered with 500";
        assert_eq!(accepted.message, format!("{message}{answered}"), "{rule}");
    }
}

#[test]
fn a_certificate_goes_to_the_gateways_that_name_it_and_a_missing_one_is_named() {
    let (mut table, index) = bookinfo();
    let gateway: Gateway = parse(
        "
metadata: {name: secure, namespace: default}
spec:
  gatewayClassName: istio
  listeners:
  - {name: good, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}
  - {name: bad, port: 444, protocol: HTTPS, tls: {certificateRefs: [{name: missing}]}}
",
    );
    let (name, secret) = (name_of(&gateway.metadata), NamespacedName::new("default", "cert"));
    table.set_gateway(&name, Some(Arc::new(gateway)));
    let usable = |text: &str| {
        let (certificate, key) = (text.to_owned(), text.to_owned());
        Arc::new(Certificate::Usable(l7::TlsSecret { name: secret.clone(), certificate, key }))
    };
    table.set_certificate(&secret, Some(usable("1")));
    let routed = table.flush(&index);
    let opened: Vec<&str> = routed.listeners.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(opened, ["default/bookinfo-gateway/http", "default/secure/good"]);
    assert_eq!(routed.certificates[0].1.gateways, [name.clone()].into());
    let (_, unresolved) = routed.unresolved.iter().find(|(gateway, _)| *gateway == name).unwrap();
    assert_eq!(unresolved.keys().collect::<Vec<_>>(), ["bad"]);
    // Another Secret changes nothing; this one, rotated, is sent again; gone, it is taken away, and its listener with it.
    table.set_certificate(&NamespacedName::new("default", "other"), Some(usable("1")));
    assert!(table.flush(&index).certificates.is_empty());
    table.set_certificate(&secret, Some(usable("2")));
    let rotated = table.flush(&index);
    assert_eq!((rotated.certificates.len(), rotated.listeners.len()), (1, 0));
    table.set_certificate(&secret, None);
    let gone = table.flush(&index);
    assert_eq!(gone.removed_certificates, [secret]);
    assert_eq!(gone.removed_listeners, ["default/secure/good"]);
    assert_eq!(gone.unresolved[0].1.len(), 2);
}
