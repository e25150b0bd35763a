// SPDX-License-Identifier: Apache-2.0
//! From a RequestAuthentication to what a layer 7 proxy is told of tokens.

use std::sync::Arc;

use meltemi_model::NamespacedName;
use meltemi_model::l7::{JwtRule, check_header_name};
use meltemi_resources::policies::{self as api, RequestAuthenticationSpec, Values, validate};

use super::authorization::{Reference, reference};
use crate::condition::Condition;
use crate::facts::Labels;

/// A RequestAuthentication, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Its name.
    pub name: NamespacedName,
    /// Labels that select workloads; none when it applies by its namespace or its targets.
    pub selector: Option<Labels>,
    /// Targets; empty when it applies to workloads.
    pub targets: Vec<Reference>,
    /// Whose tokens are taken; none when it asks for nothing.
    pub rules: Vec<JwtRule>,
}

/// Reads a RequestAuthentication.
///
/// # Errors
/// What its validation says.
pub fn read(name: &NamespacedName, spec: &RequestAuthenticationSpec) -> Result<Tokens, String> {
    validate::request_authentication(spec)?;
    let RequestAuthenticationSpec { selector, target_ref, target_refs, jwt_rules } = spec;
    let targets = match target_refs.as_deref().unwrap_or_default() {
        [] => target_ref.iter().map(reference).collect(),
        many => many.iter().map(reference).collect(),
    };
    Ok(Tokens {
        name: name.clone(),
        selector: selector.as_ref().map(|s| s.match_labels.clone().unwrap_or_default()),
        targets,
        rules: jwt_rules.iter().flatten().map(rule).collect::<Result<_, _>>()?,
    })
}

/// What is enforced of one that is not valid and came past admission: its targets as far as they can be read, and a rule
/// that takes no token of anybody.
pub fn stand_in(name: &NamespacedName, spec: &serde_json::Value) -> Tokens {
    let (selector, targets) = super::stand_in::place(spec);
    Tokens { name: name.clone(), selector, targets, rules: vec![JwtRule::default()] }
}

fn rule(rule: &api::JwtRule) -> Result<JwtRule, String> {
    let api::JwtRule {
        issuer,
        audiences,
        jwks_uri,
        jwks,
        from_headers,
        from_params,
        from_cookies,
        output_payload_to_header,
        forward_original_token,
        output_claim_to_headers,
        timeout,
        space_delimited_claims,
    } = rule;
    let text = |text: &Option<String>| text.as_deref().filter(|t| !t.is_empty()).map(Arc::from);
    let texts = |values: &Values| values.iter().flatten().map(|v| Arc::from(v.as_str())).collect();
    let headers = from_headers.iter().flatten();
    let claims = output_claim_to_headers.iter().flatten();
    let written = output_payload_to_header.iter().filter(|name| !name.is_empty());
    for name in written.chain(claims.clone().map(|c| &c.header)) {
        check_header_name(name).map_err(|reason| format!("header name {name}: {reason}"))?;
    }
    Ok(JwtRule {
        issuer: text(issuer),
        audiences: texts(audiences),
        jwks: text(jwks),
        jwks_uri: text(jwks_uri),
        timeout_ms: timeout.as_deref().map(validate::duration_ms).transpose()?,
        from_headers: headers
            .map(|h| (h.name.to_ascii_lowercase().into(), h.prefix.as_deref().unwrap_or_default().into()))
            .collect(),
        from_params: texts(from_params),
        from_cookies: texts(from_cookies),
        forward: forward_original_token.unwrap_or(false),
        payload_header: text(output_payload_to_header),
        claim_headers: claims
            .map(|c| (c.header.to_ascii_lowercase().into(), c.claim.as_str().into()))
            .collect(),
        space_delimited_claims: texts(space_delimited_claims),
    })
}

/// `ZtunnelAccepted` of one without targets: a node proxy reads no tokens.
pub fn at_node_proxies(tokens: &Tokens) -> Option<Condition> {
    let message = "ztunnel does not support RequestAuthentication: it has no effect on workloads. Use targetRefs to have a \
                   waypoint proxy enforce it";
    tokens
        .targets
        .is_empty()
        .then(|| Condition::no(super::layer4::ZTUNNEL_ACCEPTED, "UnsupportedValue", message))
}

/// Where its gateways are stricter than Istio's.
pub fn differs(tokens: &Tokens) -> Option<Condition> {
    let message = "A request with several different tokens where its rules look for one is refused (401): Istio judges it by \
                   one of them.";
    (!tokens.rules.is_empty()).then(|| Condition::yes(super::notes::DIFFERS, "FailsClosed", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_yaml(yaml: &str) -> Result<Tokens, String> {
        read(&NamespacedName::new("default", "jwt"), &serde_yaml_ng::from_str(yaml).unwrap())
    }

    #[test]
    fn every_field_arrives() {
        let tokens = read_yaml(
            "{targetRefs: [{kind: Service, group: '', name: x}], jwtRules: [{issuer: i, audiences: [a], jwksUri: \
             'https://k/jwks', fromHeaders: [{name: X-Token, prefix: 'Bearer '}, {name: y}], fromParams: [p], fromCookies: \
             [c], outputPayloadToHeader: x-payload, forwardOriginalToken: true, outputClaimToHeaders: [{header: X-Sub, \
             claim: sub}], timeout: 1.5s, spaceDelimitedClaims: [roles]}]}",
        )
        .unwrap();
        let arc = |t: &str| Arc::<str>::from(t);
        let expected = JwtRule {
            issuer: Some(arc("i")),
            audiences: vec![arc("a")],
            jwks: None,
            jwks_uri: Some(arc("https://k/jwks")),
            timeout_ms: Some(1500),
            from_headers: vec![(arc("x-token"), arc("Bearer ")), (arc("y"), arc(""))],
            from_params: vec![arc("p")],
            from_cookies: vec![arc("c")],
            forward: true,
            payload_header: Some(arc("x-payload")),
            claim_headers: vec![(arc("x-sub"), arc("sub"))],
            space_delimited_claims: vec![arc("roles")],
        };
        assert_eq!(tokens.rules, [expected]);
        assert_eq!(tokens.targets, [Reference::Service("x".into())]);
        assert_eq!((at_node_proxies(&tokens), tokens.selector), (None, None));
    }

    #[test]
    fn what_is_stricter_is_said_and_what_is_not_valid_is_closed() {
        let selected = read_yaml("{selector: {matchLabels: {a: b}}, jwtRules: [{issuer: i}]}").unwrap();
        assert_eq!(at_node_proxies(&selected).unwrap().reason, "UnsupportedValue");
        assert!(differs(&selected).unwrap().message.contains("several different tokens"));
        assert_eq!(differs(&read_yaml("{}").unwrap()), None);
        assert_eq!(read_yaml("{jwtRules: [{}]}").unwrap_err(), "issuer or jwksUri must be non-empty string");
        for name in ["host", "Content_Length", "transfer-encoding"] {
            let rules = [
                format!("outputPayloadToHeader: {name}"),
                format!("outputClaimToHeaders: [{{header: {name}, claim: c}}]"),
            ];
            for rule in rules {
                let fault = read_yaml(&format!("{{jwtRules: [{{issuer: i, {rule}}}]}}")).unwrap_err();
                assert!(fault.contains("the proxy writes this header itself"), "{rule}: {fault}");
            }
        }
        let spec = serde_json::json!({"targetRefs": [{"kind": "Gateway", "group": "gateway.networking.k8s.io", "name": "g"}],
            "jwtRules": [{}]});
        let instead = stand_in(&NamespacedName::new("default", "jwt"), &spec);
        assert_eq!((instead.targets.len(), instead.rules), (1, vec![JwtRule::default()]));
    }
}
