// SPDX-License-Identifier: Apache-2.0
//! Whether a policy means something, with the messages that Istio's admission gives.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Action, AuthorizationPolicySpec, Condition, Operation, PeerAuthenticationSpec, Rule, Source, TargetRef,
    WorkloadSelector,
};

/// Longest service account reference.
const LONGEST_ACCOUNT: usize = 320;

type Check = Result<(), String>;

/// Checks an AuthorizationPolicy.
///
/// # Errors
/// The first fault, in the words of Istio.
pub fn authorization_policy(spec: &AuthorizationPolicySpec) -> Check {
    let targets: Vec<&TargetRef> =
        spec.target_refs.iter().flatten().chain(spec.target_ref.as_ref()).collect();
    targets_and_selector(&targets, spec.selector.as_ref())?;
    let action = spec.action.unwrap_or_default();
    match (action, &spec.provider) {
        (Action::Custom, None) => return Err("`provider.name` must not be empty".to_owned()),
        (Action::Custom, Some(provider)) if provider.name.is_empty() => {
            return Err("`provider.name` must not be empty".to_owned());
        }
        (Action::Custom, _) | (_, None) => {}
        (other, Some(_)) => {
            let word = format!("{other:?}").to_uppercase();
            return Err(format!("`provider` must not be with non CUSTOM action, found {word}"));
        }
    }
    if matches!(action, Action::Deny | Action::Custom) && spec.rules.is_none() {
        let word = format!("{action:?}").to_uppercase();
        return Err(format!(
            "{word} action without `rules` is meaningless as it will never be triggered, add an empty rule `{{}}` if you \
             want it be triggered for every request"
        ));
    }
    for (index, rule) in spec.rules.iter().flatten().enumerate() {
        check_rule(rule, action).map_err(|fault| format!("{fault}, found at rule {index}"))?;
    }
    Ok(())
}

/// Checks a PeerAuthentication of a namespace.
///
/// # Errors
/// The first fault, in the words of Istio.
pub fn peer_authentication(spec: &PeerAuthenticationSpec) -> Check {
    let selects = spec.selector.as_ref().and_then(|s| s.match_labels.as_ref()).is_some_and(|l| !l.is_empty());
    targets_and_selector(&[], spec.selector.as_ref())?;
    if let Some(ports) = &spec.port_level_mtls {
        if !selects {
            return Err("mesh/namespace peer authentication cannot have port level mTLS".to_owned());
        }
        if ports.is_empty() {
            return Err("port level mTLS, if defined, must have at least one element".to_owned());
        }
        if ports.keys().any(|p| p.parse::<u16>().map_or(true, |p| p == 0)) {
            return Err("port must be in range 1..65535".to_owned());
        }
    }
    Ok(())
}

fn targets_and_selector(targets: &[&TargetRef], selector: Option<&WorkloadSelector>) -> Check {
    if !targets.is_empty() && selector.is_some() {
        return Err("only one of targetRefs or workloadSelector can be set".to_owned());
    }
    for target in targets {
        if target.name.as_deref().unwrap_or_default().is_empty() {
            return Err("targetRef name must be set".to_owned());
        }
        if target.namespace.as_deref().is_some_and(|n| !n.is_empty()) {
            return Err("targetRef namespace must not be set; cross namespace referencing is not supported"
                .to_owned());
        }
        let (group, kind) =
            (target.group.as_deref().unwrap_or_default(), target.kind.as_deref().unwrap_or_default());
        let known = matches!(
            (group, kind),
            ("" | "core", "Service")
                | ("networking.istio.io", "ServiceEntry")
                | ("gateway.networking.k8s.io", "Gateway" | "GatewayClass")
        );
        if !known {
            return Err(format!(
                "targetRef must be to one of [core/Service networking.istio.io/ServiceEntry \
                 gateway.networking.k8s.io/Gateway gateway.networking.k8s.io/GatewayClass] but was {group}/{kind}"
            ));
        }
    }
    for (key, value) in selector.and_then(|s| s.match_labels.as_ref()).into_iter().flatten() {
        if key.is_empty() {
            return Err(format!("empty key is not supported in selector: {:?}", format!("{key}={value}")));
        }
        if key.contains('*') || value.contains('*') {
            return Err(format!("wildcard is not supported in selector: {:?}", format!("{key}={value}")));
        }
    }
    Ok(())
}

fn check_rule(rule: &Rule, action: Action) -> Check {
    if rule.from.as_ref().is_some_and(Vec::is_empty) {
        return Err("`from` must not be nil/empty".to_owned());
    }
    for from in rule.from.iter().flatten() {
        let source = from.source.as_ref().filter(|s| **s != Source::default());
        check_source(source.ok_or("`from.source` must not be nil/empty")?, action)?;
    }
    if rule.to.as_ref().is_some_and(Vec::is_empty) {
        return Err("`to` must not be nil/empty".to_owned());
    }
    for to in rule.to.iter().flatten() {
        let operation = to.operation.as_ref().filter(|o| **o != Operation::default());
        check_operation(operation.ok_or("`to.operation` must not be nil/empty")?)?;
    }
    rule.when.iter().flatten().try_for_each(|condition| check_condition(condition, action))
}

fn no_empty<'a>(lists: impl IntoIterator<Item = (&'static str, &'a super::Values)>) -> Check {
    for (name, values) in lists {
        if values.iter().flatten().any(String::is_empty) || values.as_ref().is_some_and(Vec::is_empty) {
            return Err(format!("empty value not allowed, found in {name}"));
        }
    }
    Ok(())
}

fn check_source(source: &Source, action: Action) -> Check {
    let accounts = source.service_accounts.is_some() || source.not_service_accounts.is_some();
    let others = [&source.principals, &source.not_principals, &source.namespaces, &source.not_namespaces];
    if accounts && others.iter().any(|l| l.is_some()) {
        return Err("cannot set serviceAccounts with namespaces or principals".to_owned());
    }
    if action == Action::Custom {
        let identity = [
            ("From.Namespaces", &source.namespaces),
            ("From.NotNamespaces", &source.not_namespaces),
            ("From.ServiceAccounts", &source.service_accounts),
            ("From.NotServiceAccounts", &source.not_service_accounts),
            ("From.TrustDomains", &source.trust_domains),
            ("From.NotTrustDomains", &source.not_trust_domains),
            ("From.Principals", &source.principals),
            ("From.NotPrincipals", &source.not_principals),
            ("From.RequestPrincipals", &source.request_principals),
            ("From.NotRequestPrincipals", &source.not_request_principals),
        ];
        if let Some((name, _)) = identity.iter().find(|(_, v)| v.is_some()) {
            return Err(format!("{name} is currently not supported with CUSTOM action"));
        }
    }
    no_empty([
        ("From.Principals", &source.principals),
        ("From.NotPrincipals", &source.not_principals),
        ("From.RequestPrincipals", &source.request_principals),
        ("From.NotRequestPrincipals", &source.not_request_principals),
        ("From.Namespaces", &source.namespaces),
        ("From.NotNamespaces", &source.not_namespaces),
        ("From.IpBlocks", &source.ip_blocks),
        ("From.NotIpBlocks", &source.not_ip_blocks),
        ("From.RemoteIpBlocks", &source.remote_ip_blocks),
        ("From.NotRemoteIpBlocks", &source.not_remote_ip_blocks),
        ("From.ServiceAccounts", &source.service_accounts),
        ("From.NotServiceAccounts", &source.not_service_accounts),
        ("From.TrustDomains", &source.trust_domains),
        ("From.NotTrustDomains", &source.not_trust_domains),
    ])?;
    let blocks =
        [&source.ip_blocks, &source.not_ip_blocks, &source.remote_ip_blocks, &source.not_remote_ip_blocks];
    blocks.into_iter().flatten().flatten().try_for_each(|block| range(block).map(drop))?;
    for list in [&source.service_accounts, &source.not_service_accounts] {
        if list.as_ref().is_some_and(|l| l.len() > 16) {
            return Err("may not have more than 16 values".to_owned());
        }
        list.iter().flatten().try_for_each(|account| service_account(account))?;
    }
    for list in [&source.trust_domains, &source.not_trust_domains] {
        list.iter().flatten().try_for_each(|domain| trust_domain(domain))?;
    }
    Ok(())
}

fn check_operation(operation: &Operation) -> Check {
    no_empty([
        ("To.Hosts", &operation.hosts),
        ("To.NotHosts", &operation.not_hosts),
        ("To.Ports", &operation.ports),
        ("To.NotPorts", &operation.not_ports),
        ("To.Methods", &operation.methods),
        ("To.NotMethods", &operation.not_methods),
        ("To.Paths", &operation.paths),
        ("To.NotPaths", &operation.not_paths),
    ])?;
    for list in [&operation.ports, &operation.not_ports] {
        list.iter().flatten().try_for_each(|p| port(p).map(drop))?;
    }
    for (name, list) in [("To.Paths", &operation.paths), ("To.NotPaths", &operation.not_paths)] {
        list.iter().flatten().try_for_each(|path| path_form(path, name))?;
    }
    Ok(())
}

fn check_condition(condition: &Condition, action: Action) -> Check {
    let key = condition.key.as_str();
    if key.is_empty() {
        return Err("`key` must not be empty".to_owned());
    }
    let given = |v: &super::Values| v.as_ref().is_some_and(|v| !v.is_empty());
    if !given(&condition.values) && !given(&condition.not_values) {
        return Err(format!("at least one of `values` or `notValues` must be set for key {key}"));
    }
    let identity = matches!(
        key,
        "source.namespace" | "source.serviceAccount" | "source.trustDomain" | "source.principal"
    );
    if action == Action::Custom && (identity || key.starts_with("request.auth.")) {
        return Err(format!("{key} is currently not supported with CUSTOM action"));
    }
    let check = |value: &String| -> Check {
        if value.is_empty() {
            return Err("empty value not allowed".to_owned());
        }
        match key {
            "source.ip" | "remote.ip" | "destination.ip" => range(value).map(drop),
            "destination.port" => port(value).map(drop),
            "source.trustDomain" => trust_domain(value),
            "source.serviceAccount" => service_account(value),
            _ => Ok(()),
        }
    };
    known_key(key)?;
    for (word, values) in [("value", &condition.values), ("notValue", &condition.not_values)] {
        for value in values.iter().flatten() {
            check(value).map_err(|fault| format!("invalid `{word}` for `key` {key}: {fault}"))?;
        }
    }
    Ok(())
}

fn known_key(key: &str) -> Check {
    let plain = matches!(
        key,
        "source.ip"
            | "remote.ip"
            | "source.namespace"
            | "source.serviceAccount"
            | "source.trustDomain"
            | "source.principal"
            | "destination.ip"
            | "destination.port"
            | "connection.sni"
            | "request.auth.principal"
            | "request.auth.audiences"
            | "request.auth.presenter"
    );
    if plain {
        return Ok(());
    }
    for prefix in ["request.headers", "request.auth.claims", "experimental.envoy.filters."] {
        if key.starts_with(prefix) {
            return match subscripts(key) {
                Some(all) if !all.is_empty() => Ok(()),
                _ => Err(format!("bad key ({key}): should have format a[b]")),
            };
        }
    }
    Err(format!("unknown attribute: {key}"))
}

/// `a[b][c]` → `b`, `c`.
pub fn subscripts(key: &str) -> Option<Vec<&str>> {
    let mut rest = &key[key.find('[')?..];
    let mut out = Vec::new();
    while !rest.is_empty() {
        let end = rest.find(']')?;
        let inner = rest.strip_prefix('[')?.get(..end - 1)?;
        if inner.is_empty() {
            return None;
        }
        out.push(inner);
        rest = &rest[end + 1..];
    }
    Some(out)
}

/// An address or range.
///
/// # Errors
/// In the words of Istio.
pub fn range(text: &str) -> Result<IpNet, String> {
    if text.contains('/') {
        return text.parse().map_err(|e| format!("bad CIDR range ({text}): {e}"));
    }
    text.parse::<IpAddr>().map(IpNet::from).map_err(|_| format!("bad IP address ({text})"))
}

/// A port.
///
/// # Errors
/// In the words of Istio.
pub fn port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|e| format!("bad port ({text}): {e}"))
}

fn service_account(text: &str) -> Check {
    if text.len() > LONGEST_ACCOUNT {
        return Err("value cannot exceed 320 characters".to_owned());
    }
    if text.contains('*') {
        return Err("wildcard not allowed".to_owned());
    }
    if text.matches('/').count() > 1 || text.starts_with('/') || text.ends_with('/') {
        return Err("expected format 'serviceAccount' or 'namespace/serviceAccount'".to_owned());
    }
    Ok(())
}

fn trust_domain(text: &str) -> Check {
    let inner = text.strip_prefix('*').or_else(|| text.strip_suffix('*')).unwrap_or(text);
    if inner.contains('*') {
        return Err(format!("trust domain ({text}): at most one `*`, at the start or the end"));
    }
    if text.contains('/') {
        return Err(format!("trust domain ({text}) must not contain `/`"));
    }
    Ok(())
}

/// A path or a path template.
fn path_form(path: &str, name: &str) -> Check {
    if !path.contains(['{', '}']) {
        return Ok(());
    }
    let fault = |why: String| Err(format!("invalid or unsupported path {path}, found in {name}. {why}"));
    if path.contains('*') && path.replace("{*}", "").replace("{**}", "").contains('*') {
        return fault("Contains '*' beyond a supported path template".to_owned());
    }
    let mut last = false;
    for segment in path.trim_start_matches('/').split('/') {
        match segment {
            "{*}" if last => return fault("{**} is not the last operator".to_owned()),
            "{**}" if last => return fault("{**} is not the last operator".to_owned()),
            "{**}" => last = true,
            "{*}" => {}
            other if other.contains(['{', '}']) => {
                return fault("Contains '{' or '}' beyond a supported path template".to_owned());
            }
            other => {
                let good = |c: char| c.is_ascii_alphanumeric() || "-._~%!$&'()+,;:@=".contains(c);
                if !other.chars().all(good) {
                    return fault(format!("Contains segment {other} with invalid string literal"));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(yaml: &str) -> String {
        let spec: AuthorizationPolicySpec = serde_yaml_ng::from_str(yaml).unwrap();
        authorization_policy(&spec).err().unwrap_or_else(|| panic!("accepted: {yaml}"))
    }

    #[test]
    fn faults_are_named_as_istio_names_them() {
        let cases = [
            (
                "{action: DENY}",
                "DENY action without `rules` is meaningless as it will never be triggered, add an empty rule `{}` if you want it be triggered for every request",
            ),
            ("{rules: [{from: []}]}", "`from` must not be nil/empty, found at rule 0"),
            ("{rules: [{}, {from: [{source: {}}]}]}", "`from.source` must not be nil/empty, found at rule 1"),
            ("{rules: [{to: [{operation: {}}]}]}", "`to.operation` must not be nil/empty, found at rule 0"),
            ("{rules: [{from: [{source: {ipBlocks: [1.2.3.4/99]}}]}]}", "bad CIDR range (1.2.3.4/99)"),
            (
                "{rules: [{from: [{source: {ipBlocks: [localhost]}}]}]}",
                "bad IP address (localhost), found at rule 0",
            ),
            ("{rules: [{to: [{operation: {ports: ['70000']}}]}]}", "bad port (70000)"),
            (
                "{rules: [{from: [{source: {principals: ['']}}]}]}",
                "empty value not allowed, found in From.Principals",
            ),
            ("{rules: [{when: [{key: request.header, values: [a]}]}]}", "unknown attribute: request.header"),
            (
                "{rules: [{when: [{key: source.ip}]}]}",
                "at least one of `values` or `notValues` must be set for key source.ip",
            ),
            (
                "{rules: [{when: [{key: source.ip, values: [x]}]}]}",
                "invalid `value` for `key` source.ip: bad IP address (x)",
            ),
            ("{rules: [{to: [{operation: {paths: ['/a/{**}/{*}']}}]}]}", "{**} is not the last operator"),
            ("{rules: [{to: [{operation: {paths: ['/a{b}']}}]}]}", "beyond a supported path template"),
            (
                "{selector: {matchLabels: {a: b}}, targetRefs: [{kind: Service, group: '', name: x}]}",
                "only one of targetRefs or workloadSelector can be set",
            ),
            ("{targetRefs: [{kind: Pod, group: '', name: x}]}", "but was /Pod"),
            ("{targetRefs: [{kind: Service, group: ''}]}", "targetRef name must be set"),
            (
                "{targetRefs: [{kind: Service, group: '', name: x, namespace: y}]}",
                "cross namespace referencing is not supported",
            ),
            ("{selector: {matchLabels: {a: 'b*'}}}", "wildcard is not supported in selector"),
            (
                "{rules: [{from: [{source: {serviceAccounts: [a/b/c]}}]}]}",
                "expected format 'serviceAccount' or 'namespace/serviceAccount'",
            ),
            (
                "{rules: [{from: [{source: {serviceAccounts: [a], principals: [b]}}]}]}",
                "cannot set serviceAccounts with namespaces or principals",
            ),
            ("{action: CUSTOM, rules: [{}]}", "`provider.name` must not be empty"),
            ("{provider: {name: x}}", "`provider` must not be with non CUSTOM action, found ALLOW"),
        ];
        for (yaml, expected) in cases {
            let got = fault(yaml);
            assert!(got.contains(expected), "{yaml}: {got}");
        }
    }

    #[test]
    fn the_seeds_and_the_empty_policy_are_valid() {
        let cases = [
            "{}",
            "{rules: [{}]}",
            "{selector: {matchLabels: {app: productpage}}, action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/curl]}}]}]}",
            "{targetRefs: [{kind: Service, group: '', name: mlflow}], rules: [{to: [{operation: {methods: [GET], paths: ['/*']}}]}]}",
            "{rules: [{to: [{operation: {paths: ['/store/{**}/cart', '/foo/{*}/bar/{**}']}}], when: [{key: 'request.headers[x]', values: [a]}]}]}",
        ];
        for yaml in cases {
            let spec: AuthorizationPolicySpec = serde_yaml_ng::from_str(yaml).unwrap();
            assert_eq!(authorization_policy(&spec), Ok(()), "{yaml}");
        }
    }

    #[test]
    fn a_typo_is_not_a_policy() {
        for yaml in ["{rule: []}", "{rules: [{form: []}]}", "{rules: [{from: [{source: {principal: [a]}}]}]}"]
        {
            assert!(serde_yaml_ng::from_str::<AuthorizationPolicySpec>(yaml).is_err(), "{yaml}");
        }
    }

    #[test]
    fn port_levels_need_workloads() {
        let parse = |yaml: &str| serde_yaml_ng::from_str::<PeerAuthenticationSpec>(yaml).unwrap();
        assert!(peer_authentication(&parse("{mtls: {mode: STRICT}}")).is_ok());
        let bad = "{portLevelMtls: {'80': {mode: STRICT}}}";
        assert_eq!(
            peer_authentication(&parse(bad)).unwrap_err(),
            "mesh/namespace peer authentication cannot have port level mTLS"
        );
        let bad = "{selector: {matchLabels: {a: b}}, portLevelMtls: {'0': {mode: STRICT}}}";
        assert_eq!(peer_authentication(&parse(bad)).unwrap_err(), "port must be in range 1..65535");
    }
}
