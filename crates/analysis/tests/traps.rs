// SPDX-License-Identifier: Apache-2.0
//! Slips that people have made with real policies: each is found, and what they had meant is not.

#![expect(clippy::unwrap_used, reason = "a test")]

#[path = "traps/shop.rs"]
mod shop;

use meltemi_analysis::{Level, World, analyze, suspicious};
use meltemi_translate::MeshConfig;
use shop::{Case, OBJECTS, check, found, policy, read, rules, world};

#[test]
fn a_dash_too_many_makes_two_rules_of_one() {
    const FOO: &str = "from: [{source: {principals: [cluster.local/ns/shop/sa/plain]}}]";
    const OPENS: &str = "rule[1] has no `from`, other rules of the policy have one: everybody, clients without an identity included";
    let cases: [Case; 5] = [
        (
            "as it was written",
            rules("ALLOW", &format!("[{{{FOO}}}, {{to: [{{operation: {{hosts: [demo.shop]}}}}]}}]")),
            &["rule[0] has no `to`", OPENS],
        ),
        (
            "as it was meant",
            rules("ALLOW", &format!("[{{{FOO}, to: [{{operation: {{hosts: [demo.shop]}}}}]}}]")),
            &[],
        ),
        (
            "the first rule is whole",
            rules(
                "ALLOW",
                &format!(
                    "[{{{FOO}, to: [{{operation: {{methods: [GET]}}}}]}}, {{to: [{{operation: {{paths: ['/admin*']}}}}]}}]"
                ),
            ),
            &[OPENS],
        ),
        (
            "who is asked for in `when`",
            rules(
                "ALLOW",
                &format!(
                    "[{{{FOO}, to: [{{operation: {{methods: [GET]}}}}]}}, {{to: [{{operation: {{methods: [PUT]}}}}], when: [{{key: source.namespace, values: [shop]}}]}}]"
                ),
            ),
            &[],
        ),
        (
            "public paths beside those with a token",
            rules(
                "ALLOW",
                "[{to: [{operation: {methods: [PUT]}}], when: [{key: request.auth.audiences, values: [a]}]}, {to: [{operation: {methods: [GET]}}]}]",
            ),
            &[],
        ),
    ];
    check(&cases);
    let only = rules("ALLOW", "[{when: [{key: 'request.headers[x-user]', values: [admin]}]}]");
    let all = analyze(&world(&only), None);
    assert!(
        all.iter().any(|f| f.level == Level::Info && f.message.contains("what any client can write")),
        "{all:#?}"
    );
}

#[test]
fn near_paths_are_named_for_every_form_of_both_actions() {
    let paths = |action: &str, field: &str, list: &str| {
        rules(action, &format!("[{{to: [{{operation: {{{field}: [{list}]}}}}]}}]"))
    };
    let cases: [Case; 12] = [
        (
            "an exact path",
            paths("DENY", "paths", "/admin"),
            &["rule[0] denies /admin and not /admin/ or what is below it"],
        ),
        ("a prefix", paths("DENY", "paths", "/admin/*"), &["rule[0] denies /admin/* and not /admin itself"]),
        (
            "a template",
            paths("DENY", "paths", "'/admin/{**}'"),
            &["rule[0] denies /admin/{**} and not /admin itself"],
        ),
        ("both", paths("DENY", "paths", "/admin, /admin/*"), &[]),
        ("a prefix without a slash", paths("DENY", "paths", "/admin*"), &[]),
        ("everything", paths("DENY", "paths", "/*"), &[]),
        ("an ALLOW of a path", paths("ALLOW", "paths", "/admin/*"), &[]),
        (
            "an ALLOW of all but a path",
            paths("ALLOW", "notPaths", "/admin"),
            &["allows every path but /admin, so that /admin/ or what is below it is open"],
        ),
        (
            "an ALLOW of all but a prefix",
            paths("ALLOW", "notPaths", "/api/*"),
            &["allows every path but /api/*, so that /api itself is open"],
        ),
        ("an ALLOW of all but both", paths("ALLOW", "notPaths", "/api, /api/*"), &[]),
        (
            "a DENY of all but a prefix",
            paths("DENY", "notPaths", "/public*"),
            &["exempts /public*, which is every path that begins so", "will deny all traffic to TCP ports"],
        ),
        (
            "covered by another rule",
            rules("DENY", "[{to: [{operation: {paths: [/a]}}]}, {to: [{operation: {paths: [/a/*]}}]}]"),
            &[],
        ),
    ];
    let cases = cases.map(|(what, policies, expected)| {
        // Without a port every DENY of HTTP gets Istio's warning about TCP; it has a test of its own.
        let warned = policies.replace("operation: {paths", "operation: {ports: ['80'], paths");
        (what, warned, expected)
    });
    check(&cases);
    // Tokens for /api but not for its documents: the edge that is left open.
    let documents = rules(
        "ALLOW",
        "[{to: [{operation: {paths: ['/api/*']}}], when: [{key: request.auth.audiences, values: [shop]}]}, \
         {to: [{operation: {paths: ['/api/v3/api-docs/*', /api/swagger]}}]}, {to: [{operation: {notPaths: ['/api/*']}}]}]",
    );
    check(&[(
        "documents",
        documents,
        &["rule[2] allows every path but /api/*, so that /api itself is open"],
    )]);
}

#[test]
fn exemptions_that_two_denials_take_from_each_other() {
    let one = |name: &str, field: &str, value: &str| {
        let rule = format!(
            "[{{to: [{{operation: {{ports: ['80'], {field}: ['{value}']}}}}], when: [{{key: 'request.auth.claims[iss]', notValues: ['*']}}]}}]"
        );
        policy(name, &format!("  action: DENY\n  rules: {rule}"))
    };
    let both = |a: &str, b: &str| one("a", "notPaths", a) + &one("b", "notPaths", b);
    let cases: [Case; 5] = [
        ("one alone", one("a", "notPaths", "/test/*"), &[]),
        (
            "two that differ",
            both("/test/*", "/ui/*"),
            &[
                "AuthorizationPolicy shop/a rule[0] does not deny paths=[/test/*], but shop/b rule[0] does",
                "AuthorizationPolicy shop/b rule[0] does not deny paths=[/ui/*], but shop/a rule[0] does",
            ],
        ),
        ("two that overlap", both("/test/*", "/test/a/*"), &["shop/a rule[0] changes nothing"]),
        (
            "accounts",
            policy(
                "a",
                "  action: DENY\n  rules: [{from: [{source: {notPrincipals: [cluster.local/ns/shop/sa/a]}}]}, {from: [{source: {notPrincipals: [cluster.local/ns/shop/sa/b]}}]}]",
            ),
            &[
                "rule[0] does not deny principals=[cluster.local/ns/shop/sa/a]",
                "rule[1] does not deny principals=[cluster.local/ns/shop/sa/b]",
            ],
        ),
        (
            "an exemption of another attribute stays",
            one("a", "notPaths", "/test/*") + &one("b", "notMethods", "GET"),
            &[],
        ),
    ];
    check(&cases);
}

#[test]
fn ports_that_nobody_has_where_the_policy_is_enforced() {
    let selected = |spec: &str| policy("p", &format!("  selector: {{matchLabels: {{app: plain}}}}\n{spec}"));
    let peer = |port: u16, mode: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: shop}}\nspec: {{selector: {{matchLabels: {{app: plain}}}}, portLevelMtls: {{'{port}': {{mode: {mode}}}}}}}\n"
        )
    };
    let cases: [Case; 13] = [
        (
            "the Pod's port at a node proxy",
            selected("  rules: [{to: [{operation: {ports: ['8080']}}]}]"),
            &[],
        ),
        (
            "the Service's port at a node proxy",
            selected("  rules: [{to: [{operation: {ports: ['80']}}]}]"),
            &[
                "Warning MLT0101 AuthorizationPolicy shop/p rule[0] can never match: port 80 is not declared by a container of the selected Pods, or the target of a Service (8080); 80 is the Service's port",
            ],
        ),
        (
            "the Pods' port at a waypoint",
            rules("DENY", "[{to: [{operation: {ports: ['8080'], methods: [DELETE]}}]}]"),
            &[
                "Error MLT0101 AuthorizationPolicy shop/p rule[0] can never match: port 8080 is not a port of Service shop/api at its waypoint (80); 8080 is the Pods' port",
            ],
        ),
        (
            "the Service's port at a waypoint",
            rules("DENY", "[{to: [{operation: {ports: ['80'], methods: [DELETE]}}]}]"),
            &[],
        ),
        (
            "one of two",
            rules("ALLOW", "[{to: [{operation: {ports: ['80', '81']}}]}]"),
            &["Warning MLT0101 AuthorizationPolicy shop/p rule[0]: port 81 is not a port"],
        ),
        (
            "as a condition",
            rules("ALLOW", "[{when: [{key: destination.port, values: ['8080']}]}]"),
            &["rule[0] can never match: port 8080"],
        ),
        (
            "every port is excluded",
            rules("DENY", "[{to: [{operation: {notPorts: ['80']}}]}]"),
            &[
                "Error MLT0101 AuthorizationPolicy shop/p rule[0] can never match: it excludes every port there is (80)",
            ],
        ),
        (
            "what is excluded is not there",
            rules("DENY", "[{to: [{operation: {notPorts: ['8080']}}]}]"),
            &[
                "rule[0]: port 8080 is not a port of Service shop/api at its waypoint (80); 8080 is the Pods' port: a waypoint sees the Service's, so that excluding it excludes nothing",
            ],
        ),
        (
            "another alternative is possible",
            rules("DENY", "[{to: [{operation: {ports: ['8080']}}, {operation: {ports: ['80']}}]}]"),
            &["Warning MLT0101 AuthorizationPolicy shop/p rule[0]: port 8080"],
        ),
        (
            "a Service that is not known",
            policy(
                "p",
                "  targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: waypoint}]\n  rules: [{to: [{operation: {ports: ['1']}}]}]",
            ),
            &[],
        ),
        ("a port of mTLS that is there", peer(8080, "STRICT"), &[]),
        (
            "a port of mTLS that is not there",
            peer(80, "STRICT"),
            &[
                "Error MLT0101 PeerAuthentication shop/p portLevelMtls of 80 has no effect: nothing is protected by it; port 80 is not declared",
            ],
        ),
        (
            "the same without STRICT",
            peer(80, "PERMISSIVE"),
            &["Warning MLT0101 PeerAuthentication shop/p portLevelMtls of 80 has no effect"],
        ),
    ];
    check(&cases);
}

#[test]
fn conditions_on_what_no_proxy_sees_are_named() {
    let when = |action: &str, key: &str| {
        rules(
            action,
            &format!("[{{to: [{{operation: {{ports: ['80']}}}}], when: [{{key: '{key}', values: [a]}}]}}]"),
        )
    };
    let not = rules(
        "DENY",
        "[{to: [{operation: {ports: ['80']}}], when: [{key: connection.sni, notValues: [a]}]}]",
    );
    let cases: [Case; 5] = [
        (
            "a server name on a port with HTTP",
            when("DENY", "connection.sni"),
            &[
                "Error MLT0101 AuthorizationPolicy shop/p rule[0] can never match: a waypoint reads no server name",
            ],
        ),
        (
            "of an ALLOW",
            when("ALLOW", "connection.sni"),
            &["Warning MLT0101 AuthorizationPolicy shop/p rule[0] can never match"],
        ),
        ("any but a server name", not, &[]),
        (
            "a header of one hop",
            when("DENY", "request.headers[Keep-Alive]"),
            &[
                "Error MLT0101 AuthorizationPolicy shop/p rule[0] can never match: the header is for the proxy",
            ],
        ),
        ("another header", when("DENY", "request.headers[x-a]"), &[]),
    ];
    check(&cases);
    let tls = OBJECTS.replace("name: http, port: 80", "name: tls, port: 80");
    let mut objects = read(&tls);
    objects.extend(read(&when("DENY", "connection.sni")));
    let all = found(&World::read(&objects, MeshConfig::default()));
    let named: Vec<&String> = all.iter().filter(|line| line.contains("server name")).collect();
    let denies = "Warning MLT0116 AuthorizationPolicy shop/p rule[0] denies connections to port 80 of Service shop/api";
    assert!(named.len() == 1 && named[0].starts_with(denies), "{all:#?}");
}

#[test]
fn fields_of_requests_on_ports_without_requests_are_named() {
    // A second port of `api` that takes no requests.
    let objects = OBJECTS.replacen(
        "ports: [{name: http, port: 80, targetPort: 8080}]",
        "ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-db, port: 5432, targetPort: 8080}]",
        1,
    );
    let get = |ports: &str| format!("[{{to: [{{operation: {{methods: [GET]{ports}}}}}]}}]");
    let (http, db) = (", ports: ['80']", ", ports: ['5432']");
    let either = "[{to: [{operation: {methods: [GET]}}, {operation: {ports: ['5432']}}]}]";
    let at_gateway = |action: &str| {
        let spec = format!(
            "  targetRefs: [{{kind: Gateway, group: gateway.networking.k8s.io, name: waypoint}}]\n  action: {action}\n  \
             rules: [{{from: [{{source: {{namespaces: [shop]}}}}], when: [{{key: connection.sni, values: [a]}}]}}]"
        );
        policy("p", &spec)
    };
    let denies = "Warning MLT0116 AuthorizationPolicy shop/p rule[0] denies connections to port 5432 of Service shop/api, declared \
                  to be TCP or TLS, as if methods=[GET] matched";
    let cases = [
        ("a DENY for all ports", rules("DENY", &get("")), Some(denies)),
        ("a DENY for the port", rules("DENY", &get(db)), Some(denies)),
        ("a DENY for the other port", rules("DENY", &get(http)), None),
        ("an alternative that a connection shows", rules("DENY", either), None),
        ("an ALLOW for all ports is for requests", rules("ALLOW", &get("")), None),
        (
            "an ALLOW for the port",
            rules("ALLOW", &get(db)),
            Some(
                "Warning MLT0116 AuthorizationPolicy shop/p rule[0] allows nothing: port 5432 of Service shop/api",
            ),
        ),
        (
            "a server name in a DENY of a Gateway",
            at_gateway("DENY"),
            Some("Error MLT0116 AuthorizationPolicy shop/p rule[0] denies no request"),
        ),
        (
            "in an ALLOW of a Gateway",
            at_gateway("ALLOW"),
            Some("Warning MLT0116 AuthorizationPolicy shop/p rule[0] allows nothing"),
        ),
    ];
    for (what, policies, expected) in cases {
        let mut all = read(&objects);
        all.extend(read(&policies));
        let all = found(&World::read(&all, MeshConfig::default()));
        let named: Vec<&String> = all.iter().filter(|line| line.contains("MLT0116")).collect();
        assert_eq!(named.len(), usize::from(expected.is_some()), "{what}: {all:#?}");
        assert!(expected.is_none_or(|text| named[0].starts_with(text)), "{what}: {all:#?}");
    }
}

/// What a policy's status says (`meltemi.dev/Suspicious`).
#[test]
fn the_status_knows_the_traps() {
    let cases = [
        (
            rules(
                "ALLOW",
                "[{from: [{source: {namespaces: [a]}}], to: [{operation: {methods: [GET]}}]}, {to: [{operation: {paths: [/x]}}]}]",
            ),
            "MLT0108",
        ),
        (rules("DENY", "[{to: [{operation: {paths: ['/admin/*']}}]}]"), "MLT0109"),
        (rules("ALLOW", "[{to: [{operation: {notPaths: ['/api/*']}}]}]"), "MLT0109"),
        (rules("DENY", "[{to: [{operation: {ports: ['8080'], methods: [DELETE]}}]}]"), "MLT0101"),
        (
            rules(
                "DENY",
                "[{from: [{source: {notNamespaces: [a]}}]}, {from: [{source: {notNamespaces: [b]}}]}]",
            ),
            "MLT0113",
        ),
    ];
    for (policies, code) in cases {
        let all = suspicious(&world(&policies), &|| true);
        assert!(all.iter().any(|f| f.code == code), "{code}: {all:#?}");
    }
}
