// SPDX-License-Identifier: Apache-2.0
//! Every check, with its whole text.

use serde_json::json;

use super::*;

fn yaml<T: DeserializeOwned>(text: &str) -> T {
    serde_yaml_ng::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn authorization(text: &str) -> Review {
    review_authorization(&yaml(text), &BTreeMap::new())
}

/// The whole text of the only fault.
#[test]
fn faults_of_an_authorization_policy_are_named_as_istio_names_them() {
    let source = |fields: &str| format!("{{rules: [{{from: [{{source: {{{fields}}}}}]}}]}}");
    let operation = |fields: &str| format!("{{rules: [{{to: [{{operation: {{{fields}}}}}]}}]}}");
    let when = |fields: &str| format!("{{rules: [{{when: [{{{fields}}}]}}]}}");
    let long = "a".repeat(321);
    let many = format!("serviceAccounts: [{}]", vec!["a"; 17].join(","));
    let meaningless = |word: &str| {
        format!(
            "{word} action without `rules` is meaningless as it will never be triggered, add an empty rule `{{}}` if you want it be triggered for every request"
        )
    };
    let target = |fields: &str| format!("{{targetRefs: [{{{fields}}}]}}");
    let only_one = "only one of targetRefs or workloadSelector can be set";
    let service = "{kind: Service, group: '', name: x}";
    let cases: Vec<(String, String)> = [
        // action
        ("{action: DENY}".to_owned(), meaningless("DENY")),
        ("{action: DENY, rules: []}".to_owned(), meaningless("DENY")),
        ("{action: CUSTOM, provider: {name: x}}".to_owned(), meaningless("CUSTOM")),
        ("{action: CUSTOM, rules: [{}]}".to_owned(), "`provider.name` must not be empty".to_owned()),
        (
            "{action: CUSTOM, provider: {name: ''}, rules: [{}]}".to_owned(),
            "`provider.name` must not be empty".to_owned(),
        ),
        (
            "{provider: {name: x}}".to_owned(),
            "`provider` must not be with non CUSTOM action, found ALLOW".to_owned(),
        ),
        (
            "{action: CUSTOM, provider: {name: x}, rules: [{from: [{source: {principals: [a]}}]}]}".to_owned(),
            "From.Principals is currently not supported with CUSTOM action".to_owned(),
        ),
        (
            "{action: CUSTOM, provider: {name: x}, rules: [{when: [{key: 'request.auth.claims[a]', values: [b]}]}]}"
                .to_owned(),
            "request.auth.claims[a] is currently not supported with CUSTOM action".to_owned(),
        ),
        // from
        ("{rules: [{from: []}]}".to_owned(), "`from` must not be empty, found at rule 0".to_owned()),
        ("{rules: [{}, {from: [{}]}]}".to_owned(), "`from.source` must not be nil, found at rule 1".to_owned()),
        (source(""), "`from.source` must not be empty, found at rule 0".to_owned()),
        (
            source("serviceAccounts: [a], notNamespaces: [b]"),
            "cannot set serviceAccounts with namespaces or principals, found at rule 0".to_owned(),
        ),
        (source("principals: ['']"), "empty value not allowed, found in Principals".to_owned()),
        (source("notNamespaces: [a, '']"), "empty value not allowed, found in NotNamespaces".to_owned()),
        (source("requestPrincipals: ['**']"), "at most one wildcard is allowed, found in RequestPrincipals: \"**\"".to_owned()),
        (source("namespaces: []"), "`Namespaces` must not be an empty list, found at rule 0".to_owned()),
        (
            source("ipBlocks: [1.2.3.4/99]"),
            "bad CIDR range (1.2.3.4/99): netip.ParsePrefix(\"1.2.3.4/99\"): prefix length out of range".to_owned(),
        ),
        (
            source("notIpBlocks: [10.0.0.0/08]"),
            "bad CIDR range (10.0.0.0/08): netip.ParsePrefix(\"10.0.0.0/08\"): bad bits after slash: \"08\"".to_owned(),
        ),
        (
            source("remoteIpBlocks: [a/8]"),
            "bad CIDR range (a/8): netip.ParsePrefix(\"a/8\"): ParseAddr(\"a\"): unable to parse IP".to_owned(),
        ),
        (source("notRemoteIpBlocks: [localhost]"), "bad IP address (localhost)".to_owned()),
        (source("ipBlocks: [01.2.3.4]"), "bad IP address (01.2.3.4)".to_owned()),
        (
            source("serviceAccounts: [a/b/c]"),
            "expected format 'serviceAccount' or 'namespace/serviceAccount', found \"a/b/c\" in ServiceAccounts"
                .to_owned(),
        ),
        (
            source("notServiceAccounts: [/b]"),
            "expected format 'serviceAccount' or 'namespace/serviceAccount', found empty namespace \"/b\" in NotServiceAccounts"
                .to_owned(),
        ),
        (
            source("serviceAccounts: [a/]"),
            "expected format 'serviceAccount' or 'namespace/serviceAccount', found empty serviceAccount \"a/\" in ServiceAccounts"
                .to_owned(),
        ),
        (source("serviceAccounts: ['a*']"), "wildcard not allowed, found in ServiceAccounts".to_owned()),
        (source(&many), "may not have more than 16 values".to_owned()),
        (
            source(&format!("serviceAccounts: [{long}]")),
            format!("value cannot exceed 320 characters, found \"{long}\" in ServiceAccounts"),
        ),
        (
            source("trustDomains: ['a*b']"),
            "wildcard is only allowed at the start or end, found in TrustDomains: \"a*b\"".to_owned(),
        ),
        (
            source("notTrustDomains: ['*a*']"),
            "at most one wildcard is allowed, found in NotTrustDomains: \"*a*\"".to_owned(),
        ),
        (
            source("trustDomains: [a/b]"),
            "trust domain must not contain '/', found in TrustDomains: \"a/b\"".to_owned(),
        ),
        // to
        ("{rules: [{to: []}]}".to_owned(), "`to` must not be empty, found at rule 0".to_owned()),
        ("{rules: [{to: [{}]}]}".to_owned(), "`to.operation` must not be nil, found at rule 0".to_owned()),
        (operation(""), "`to.operation` must not be empty, found at rule 0".to_owned()),
        (operation("ports: ['70000']"), "bad port (70000): <nil>".to_owned()),
        (
            operation("notPorts: ['+80']"),
            "bad port (+80): strconv.ParseUint: parsing \"+80\": invalid syntax".to_owned(),
        ),
        (
            operation("ports: ['99999999999']"),
            "bad port (99999999999): strconv.ParseUint: parsing \"99999999999\": value out of range".to_owned(),
        ),
        (operation("hosts: ['']"), "empty value not allowed, found in Hosts".to_owned()),
        (operation("methods: []"), "`Methods` must not be an empty list, found at rule 0".to_owned()),
        (
            operation("paths: ['/a/{**}/{*}']"),
            "invalid or unsupported path a/{**}/{*}, found in Paths. {**} is not the last operator".to_owned(),
        ),
        (
            operation("notPaths: ['/a{b}']"),
            "invalid or unsupported path a{b}, found in NotPaths. Contains '{' or '}' beyond a supported path template"
                .to_owned(),
        ),
        (
            operation("paths: ['/a/{*}/b*']"),
            "invalid or unsupported path a/{*}/b*, found in Paths. Contains segment b* with invalid string literal"
                .to_owned(),
        ),
        // when
        (when("key: ''"), "`key` must not be empty".to_owned()),
        (when("key: source.ip"), "at least one of `values` or `notValues` must be set for key source.ip".to_owned()),
        (
            when("key: source.ip, values: [x]"),
            "invalid `value` for `key` source.ip: bad IP address (x)".to_owned(),
        ),
        (
            when("key: destination.port, notValues: ['x']"),
            "invalid `notValue` for `key` destination.port: bad port (x): strconv.ParseUint: parsing \"x\": invalid syntax"
                .to_owned(),
        ),
        (
            when("key: source.serviceAccount, values: ['*']"),
            "invalid `value` for `key` source.serviceAccount: wildcard not allowed, found in source.serviceAccount"
                .to_owned(),
        ),
        (
            when("key: request.header, values: [a]"),
            "invalid `value` for `key` request.header: unknown attribute: request.header".to_owned(),
        ),
        (
            when("key: request.headers, values: [a]"),
            "invalid `value` for `key` request.headers: bad key (request.headers): should have format a[b]".to_owned(),
        ),
        (
            when("key: 'request.headers[a][b]', values: [a]"),
            "invalid `value` for `key` request.headers[a][b]: bad key (request.headers[a][b]): should have format a[b]"
                .to_owned(),
        ),
        (
            when("key: 'request.auth.claims[]', values: [a]"),
            "invalid `value` for `key` request.auth.claims[]: bad key (request.auth.claims[]): should have format a[b]"
                .to_owned(),
        ),
        (
            when("key: destination.namespace, values: [a]"),
            "invalid `value` for `key` destination.namespace: attribute destination.namespace is replaced by the metadata.namespace"
                .to_owned(),
        ),
        (
            when("key: 'destination.labels[a]', values: [a]"),
            "invalid `value` for `key` destination.labels[a]: attribute destination.labels[a] is replaced by the workload selector"
                .to_owned(),
        ),
        (
            when("key: destination.user, values: [a]"),
            "invalid `value` for `key` destination.user: deprecated attribute destination.user: only supported in v1alpha1"
                .to_owned(),
        ),
        // targets
        (format!("{{selector: {{matchLabels: {{a: b}}}}, targetRefs: [{service}]}}"), only_one.to_owned()),
        (format!("{{targetRef: {service}, targetRefs: [{service}]}}"), only_one.to_owned()),
        (target("kind: Service, group: ''"), "targetRef name must be set".to_owned()),
        (
            target("kind: Service, group: core, name: x, namespace: y"),
            "targetRef namespace must not be set; cross namespace referencing is not supported".to_owned(),
        ),
        (
            target("kind: Pod, group: '', name: x"),
            "targetRef must be to one of [core/v1/Service networking.istio.io/v1/ServiceEntry gateway.networking.k8s.io/v1/Gateway gateway.networking.k8s.io/v1/GatewayClass] but was /Pod"
                .to_owned(),
        ),
        (
            format!("{{targetRefs: [{}]}}", vec![service; 17].join(",")),
            "targetRefs must have at most 16 items".to_owned(),
        ),
        (
            "{selector: {matchLabels: {'': b}}}".to_owned(),
            "empty key is not supported in selector: \"=b\"".to_owned(),
        ),
        (
            "{selector: {matchLabels: {a: 'b*'}}}".to_owned(),
            "wildcard is not supported in selector: \"a=b*\"".to_owned(),
        ),
        (
            format!("{{rules: [{}]}}", vec!["{}"; 513].join(",")),
            "`rules` must have at most 512 items".to_owned(),
        ),
    ]
    .into();
    for (text, expected) in cases {
        assert_eq!(authorization(&text).faults, [expected], "{text}");
    }
}

#[test]
fn every_fault_is_told_at_once() {
    let review = authorization("{action: DENY, provider: {name: x}, rules: [{from: []}, {to: []}]}");
    let told = review.result().unwrap_err();
    assert_eq!(
        told,
        "3 errors occurred:\n\t* `provider` must not be with non CUSTOM action, found DENY\n\t* `from` must not be \
         empty, found at rule 0\n\t* `to` must not be empty, found at rule 1\n\n"
    );
}

#[test]
fn what_means_another_thing_than_it_reads_is_warned_of() {
    let deny = |rule: &str| format!("{{action: DENY, rules: [{rule}]}}");
    let tcp = "will deny all traffic to TCP ports";
    let cases = [
        (deny("{to: [{operation: {methods: [GET]}}]}"), Some(tcp)),
        (deny("{to: [{operation: {methods: [GET], ports: ['80']}}]}"), None),
        (deny("{from: [{source: {requestPrincipals: [a]}}]}"), Some(tcp)),
        (deny("{from: [{source: {principals: [a]}}]}"), None),
        (deny("{from: [{source: {principals: [a]}}], to: [{operation: {paths: [/a]}}]}"), Some(tcp)),
        ("{rules: [{to: [{operation: {methods: [GET]}}]}]}".to_owned(), None),
        ("{selector: {}}".to_owned(), Some("workload selector specified without labels")),
        ("{rules: [{to: [{operation: {paths: [/a/*/b]}}]}]}".to_owned(), Some("is matched literally")),
        ("{rules: [{to: [{operation: {paths: [admin]}}]}]}".to_owned(), Some("matches no request")),
        ("{rules: [{to: [{operation: {methods: [get]}}]}]}".to_owned(), Some("methods are upper case")),
        ("{rules: [{to: [{operation: {hosts: ['http://a']}}]}]}".to_owned(), Some("neither scheme nor path")),
        (
            "{rules: [{from: [{source: {principals: ['spiffe://td/ns/a/sa/b']}}]}]}".to_owned(),
            Some("without spiffe://"),
        ),
        ("{rules: [{to: [{operation: {paths: ['/a/{*}/{**}']}}]}]}".to_owned(), None),
    ];
    for (text, expected) in cases {
        let review = authorization(&text);
        assert_eq!(review.faults, Vec::<String>::new(), "{text}");
        match expected {
            None => assert_eq!(review.warnings, Vec::<String>::new(), "{text}"),
            Some(part) => assert!(review.warnings.iter().any(|w| w.contains(part)), "{text}: {review:?}"),
        }
    }
}

#[test]
fn every_field_has_a_valid_form() {
    let source = "principals: ['*'], notPrincipals: [td/ns/a/sa/b], requestPrincipals: [a/b], notRequestPrincipals: ['*'], \
                  namespaces: [a], notNamespaces: ['b*'], ipBlocks: [10.0.0.0/8], notIpBlocks: ['::1'], \
                  remoteIpBlocks: [1.2.3.4], notRemoteIpBlocks: ['fd00::/8'], trustDomains: ['*.local'], notTrustDomains: [a]";
    let operation = "hosts: ['*.com'], notHosts: [a], ports: ['80'], notPorts: ['0'], methods: [GET], notMethods: [PUT], \
                     paths: ['/a/{*}/b/{**}', '/store/{**}/cart', /x*], notPaths: ['*y']";
    let keys: String = [
        ("source.ip", "10.0.0.0/8"),
        ("remote.ip", "1.2.3.4"),
        ("source.namespace", "a"),
        ("source.serviceAccount", "a/b"),
        ("source.trustDomain", "a"),
        ("source.principal", "a"),
        ("destination.ip", "1.2.3.4"),
        ("destination.port", "80"),
        ("connection.sni", "a"),
        ("request.headers[User-Agent]", "a*"),
        ("request.auth.principal", "a/b"),
        ("request.auth.audiences", "a"),
        ("request.auth.presenter", "a"),
        ("request.auth.claims[a][https://b/c]", "a"),
        ("experimental.envoy.filters.a.b[c]", "a"),
    ]
    .iter()
    .map(|(key, value)| format!("{{key: '{key}', values: ['{value}'], notValues: ['{value}']}},"))
    .collect();
    let whole = format!(
        "{{action: DENY, selector: {{matchLabels: {{a: b}}}}, rules: [{{from: [{{source: {{{source}}}}}, {{source: \
         {{serviceAccounts: [a/b, c], notServiceAccounts: [d]}}}}], to: [{{operation: {{{operation}}}}}], when: [{keys}]}}]}}"
    );
    for text in [
        whole.as_str(),
        "{}",
        "{rules: [{}]}",
        "{action: AUDIT}",
        "{action: CUSTOM, provider: {name: opa}, rules: [{to: [{operation: {paths: [/a]}}]}]}",
        "{targetRef: {kind: Gateway, group: gateway.networking.k8s.io, name: x}}",
        "{targetRefs: [{kind: Service, group: core, name: x}, {kind: ServiceEntry, group: networking.istio.io, name: y}]}",
        "{targetRefs: [{kind: GatewayClass, group: gateway.networking.k8s.io, name: istio-waypoint}]}",
    ] {
        assert_eq!(authorization(text).faults, Vec::<String>::new(), "{text}");
    }
}

#[test]
fn dry_run_is_yes_or_no() {
    let review = |value: &str| {
        let annotations = [(DRY_RUN.to_owned(), value.to_owned())].into();
        review_authorization(&AuthorizationPolicySpec::default(), &annotations).faults
    };
    for value in ["true", "TRUE", "t", "1", "false", "0", ""] {
        assert_eq!(review(value), Vec::<String>::new(), "{value}");
    }
    assert_eq!(
        review("yes"),
        ["annotation istio.io/dry-run: strconv.ParseBool: parsing \"yes\": invalid syntax"]
    );
}

#[test]
fn faults_of_a_peer_authentication() {
    let labels = "selector: {matchLabels: {a: b}}";
    let cases = [
        ("{mtls: {mode: STRICT}}".to_owned(), vec![]),
        (format!("{{{labels}, portLevelMtls: {{'80': {{mode: DISABLE}}}}}}"), vec![]),
        (
            "{portLevelMtls: {'80': {mode: STRICT}}}".to_owned(),
            vec!["mesh/namespace peer authentication cannot have port level mTLS"],
        ),
        (
            "{selector: {matchLabels: {}}, portLevelMtls: {'80': {mode: STRICT}}}".to_owned(),
            vec!["mesh/namespace peer authentication cannot have port level mTLS"],
        ),
        (
            format!("{{{labels}, portLevelMtls: {{}}}}"),
            vec!["port level mTLS, if defined, must have at least one element"],
        ),
        (
            format!("{{{labels}, portLevelMtls: {{'0': {{mode: STRICT}}}}}}"),
            vec!["port must be in range 1..65535"],
        ),
        (
            format!("{{{labels}, portLevelMtls: {{'65536': {{mode: STRICT}}}}}}"),
            vec!["port must be in range 1..65535"],
        ),
        (
            format!("{{{labels}, portLevelMtls: {{'080': {{mode: STRICT}}}}}}"),
            vec!["port must be in range 1..65535"],
        ),
        (
            "{selector: {matchLabels: {'a*': b}}}".to_owned(),
            vec!["wildcard is not supported in selector: \"a*=b\""],
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(review_peer(&yaml(&text)).faults, expected, "{text}");
    }
}

#[test]
fn faults_of_a_request_authentication() {
    let rule = |fields: &str| format!("{{jwtRules: [{{{fields}}}]}}");
    let long = format!("issuer: a, jwksUri: 'https://a/{}'", "b".repeat(2048));
    let cases = [
        (rule("issuer: a"), vec![]),
        (rule("jwksUri: 'https://a.b:443/c'"), vec![]),
        (rule("jwks_uri: 'https://a.b:443/c'"), vec![]),
        (
            rule(
                "issuer: a, audiences: [b], jwks: '{\"keys\":[{\"kty\":\"RSA\",\"n\":\"x\",\"e\":\"AQAB\"}]}', fromHeaders: \
                 [{name: X, prefix: 'Bearer '}], fromParams: [t], fromCookies: [c], outputPayloadToHeader: x-payload, \
                 forwardOriginalToken: true, outputClaimToHeaders: [{header: x-sub, claim: sub}], timeout: 1m0.5s, \
                 spaceDelimitedClaims: [roles]",
            ),
            vec![],
        ),
        (rule("audiences: [a]"), vec!["issuer or jwksUri must be non-empty string"]),
        (rule("issuer: a, audiences: ['']"), vec!["audience must be non-empty string"]),
        (
            rule("issuer: a, jwksUri: 'https://a', jwks: '{\"keys\":[]}'"),
            vec!["only one of jwks or jwksUri can be set"],
        ),
        (rule("jwksUri: 'file:///etc/passwd'"), vec!["URI scheme \"file\" is not supported"]),
        (rule("jwksUri: 'https://a:99999'"), vec!["parse \"https://a:99999\": invalid port number"]),
        (rule(&long), vec!["jwksUri must not be longer than 2048 characters"]),
        (rule("issuer: a, jwks: 'x'"), vec!["jwks parse error: expected value at line 1 column 1"]),
        (rule("issuer: a, jwks: '[]'"), vec!["jwks parse error: neither a set of keys nor a key"]),
        (rule("issuer: a, jwks: '{\"keys\":[{}]}'"), vec!["jwks parse error: key at index 0 has no kty"]),
        (
            rule("issuer: a, fromHeaders: [{prefix: x}]"),
            vec!["location header name must be non-empty string"],
        ),
        (rule("issuer: a, fromParams: ['']"), vec!["location query must be non-empty string"]),
        (rule("issuer: a, fromCookies: ['']"), vec!["cookie name must be non-empty string"]),
        (
            rule("issuer: a, outputClaimToHeaders: [{header: x}]"),
            vec!["outputClaimToHeaders header and claim value must be non-empty string"],
        ),
        (
            rule("issuer: a, outputClaimToHeaders: [{header: 'x y', claim: c}]"),
            vec!["header name x y is not a valid header name"],
        ),
        (rule("issuer: a, timeout: 100us"), vec!["duration must be greater than 1ms"]),
        (rule("issuer: a, timeout: 1.0005s"), vec!["only durations to ms precision are supported"]),
        (rule("issuer: a, timeout: soon"), vec!["invalid duration \"soon\""]),
        (
            rule("issuer: a, spaceDelimitedClaims: ['']"),
            vec!["spaceDelimitedClaims must be non-empty strings"],
        ),
        (
            "{selector: {}, targetRefs: [{kind: Service, name: x}]}".to_owned(),
            vec!["only one of targetRefs or workloadSelector can be set"],
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(review_request(&yaml(&text)).faults, expected, "{text}");
    }
    let private = rule("issuer: a, jwks: '{\"keys\":[{\"kty\":\"EC\"},{\"kty\":\"EC\",\"d\":\"x\"}]}'");
    assert_eq!(
        review_request(&yaml(&private)).warnings,
        ["jwks key at index 1 contains private key material; only public keys are used for verification"]
    );
}

#[test]
fn an_object_is_judged_with_its_name() {
    let of = |kind: &str, spec: Value| {
        let metadata = json!({"name": "p", "namespace": "default"});
        object(
            &json!({"apiVersion": "security.istio.io/v1", "kind": kind, "metadata": metadata, "spec": spec}),
        )
        .map(|review| review.faults)
    };
    assert_eq!(of("AuthorizationPolicy", json!(null)), Some(vec![]));
    assert_eq!(
        of("AuthorizationPolicy", json!({"action": "DENY", "rules": [{"from": []}]})).unwrap(),
        ["invalid policy p.default: `from` must not be empty, found at rule 0"]
    );
    let typo = of("AuthorizationPolicy", json!({"rules": [{"from": [{"source": {"principal": ["a"]}}]}]}));
    let told = typo.unwrap().remove(0);
    assert!(
        told.starts_with(
            "error decoding configuration: spec.rules[0].from[0].source.principal: unknown field `principal`"
        ),
        "{told}"
    );
    let action = of("AuthorizationPolicy", json!({"action": "DROP"})).unwrap().remove(0);
    assert!(
        action.starts_with("error decoding configuration: spec.action: unknown variant `DROP`"),
        "{action}"
    );
    assert_eq!(
        of("RequestAuthentication", json!({"jwtRules": [{}]})).unwrap(),
        ["issuer or jwksUri must be non-empty string"]
    );
    assert_eq!(of("Telemetry", json!({})), None);
    let beside = json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "rules": [],
        "metadata": {"name": "p", "namespace": "default"}});
    assert_eq!(
        object(&beside).unwrap().faults,
        ["unknown field \"rules\" on PeerAuthentication resource default/p"]
    );
}

#[test]
fn ranges_and_ports_are_read_in_one_way() {
    let cases = [
        ("10.1.2.3", "10.1.2.3/32"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("::ffff:10.1.2.3", "10.1.2.3/32"),
        ("::ffff:10.1.2.3/104", "10.0.0.0/8"),
        ("fd00::1/8", "fd00::/8"),
        ("::/0", "::/0"),
    ];
    for (text, expected) in cases {
        assert_eq!(range(text).unwrap().to_string(), expected, "{text}");
    }
    assert_eq!((port("0"), port("65535")), (Ok(0), Ok(65535)));
    assert_eq!(duration_ms("1h1m1.5s5ms"), Ok(3_661_505));
}
