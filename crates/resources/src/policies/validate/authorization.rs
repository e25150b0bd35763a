// SPDX-License-Identifier: Apache-2.0
//! Checks of an AuthorizationPolicy.

use std::collections::BTreeMap;

use super::super::{Action, AuthorizationPolicySpec, Condition, From, Operation, Rule, Source, To, Values};
use super::keys::{Key, key};
use super::values::{
    Check, dry_run, list, not_empty, paths, port, range, service_accounts, trust_domains, wildcards,
};
use super::{DRY_RUN, Review, targets};

/// Most rules, and most sources of a rule.
const MOST_RULES: usize = 512;
const MOST_SOURCES: usize = 512;

/// What a DENY rule without a word about ports does to plain TCP.
const TCP_WARNING: &str = "configured AuthorizationPolicy will deny all traffic to TCP ports under its scope due to the use \
                           of only HTTP attributes in a DENY rule; it is recommended to explicitly specify the port";

pub(super) fn review(spec: &AuthorizationPolicySpec, annotations: &BTreeMap<String, String>) -> Review {
    let mut review = Review::default();
    let AuthorizationPolicySpec { selector, target_ref, target_refs, rules, action, provider } = spec;
    targets::review(selector.as_ref(), target_ref.as_ref(), target_refs.as_ref(), &mut review);
    let action = action.unwrap_or_default();
    let named = provider.as_ref().is_some_and(|p| !p.name.is_empty());
    let rules = rules.as_deref().unwrap_or_default();
    if matches!(action, Action::Deny | Action::Custom) && rules.is_empty() {
        review.fault(format!(
            "{} action without `rules` is meaningless as it will never be triggered, add an empty rule `{{}}` if you \
             want it be triggered for every request",
            word(action)
        ));
    } else if action == Action::Custom && !named {
        review.fault("`provider.name` must not be empty");
    }
    if action == Action::Custom {
        rules.iter().for_each(|rule| custom(rule, &mut review));
    }
    if provider.is_some() && action != Action::Custom {
        review.fault(format!("`provider` must not be with non CUSTOM action, found {}", word(action)));
    }
    if rules.len() > MOST_RULES {
        review.fault(format!("`rules` must have at most {MOST_RULES} items"));
    }
    for (index, one) in rules.iter().enumerate() {
        rule(one, index, action, &mut review);
    }
    if let Some(value) = annotations.get(DRY_RUN) {
        review.take(dry_run(value).map(drop));
    }
    review
}

fn word(action: Action) -> &'static str {
    match action {
        Action::Allow => "ALLOW",
        Action::Deny => "DENY",
        Action::Audit => "AUDIT",
        Action::Custom => "CUSTOM",
    }
}

/// What an external authorizer cannot be asked about.
fn custom(rule: &Rule, review: &mut Review) {
    let mut check = |found: bool, name: &str| {
        if found {
            review.fault(format!("{name} is currently not supported with CUSTOM action"));
        }
    };
    for source in rule.from.iter().flatten().filter_map(|f| f.source.as_ref()) {
        for (name, values) in [
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
        ] {
            check(!list(values).is_empty(), name);
        }
    }
    for when in rule.when.iter().flatten() {
        let identity =
            ["source.namespace", "source.serviceAccount", "source.trustDomain", "source.principal"];
        let key = when.key.as_str();
        check(identity.contains(&key) || key.starts_with("request.auth."), key);
    }
}

fn rule(rule: &Rule, index: usize, action: Action, review: &mut Review) {
    let at = format!("found at rule {index}");
    let Rule { from, to, when } = rule;
    if from.as_ref().is_some_and(Vec::is_empty) {
        review.fault(format!("`from` must not be empty, {at}"));
    }
    if from.as_ref().is_some_and(|f| f.len() > MOST_SOURCES) {
        review.fault(format!("`from` must have at most {MOST_SOURCES} items, {at}"));
    }
    for From { source } in from.iter().flatten() {
        match source {
            None => review.fault(format!("`from.source` must not be nil, {at}")),
            Some(one) => source_of(one, &at, review),
        }
    }
    if to.as_ref().is_some_and(Vec::is_empty) {
        review.fault(format!("`to` must not be empty, {at}"));
    }
    for To { operation } in to.iter().flatten() {
        match operation {
            None => review.fault(format!("`to.operation` must not be nil, {at}")),
            Some(one) => operation_of(one, &at, review),
        }
    }
    when.iter().flatten().for_each(|one| condition(one, review));
    if action == Action::Deny && only_http(rule) {
        review.warn(TCP_WARNING);
    }
}

/// Whether nothing of a rule's `from` and `to` can be seen on a plain TCP connection.
fn only_http(rule: &Rule) -> bool {
    let sources: Vec<&Source> = rule.from.iter().flatten().filter_map(|f| f.source.as_ref()).collect();
    let operations: Vec<&Operation> = rule.to.iter().flatten().filter_map(|t| t.operation.as_ref()).collect();
    let tcp_source = |s: &&Source| {
        [
            &s.principals,
            &s.not_principals,
            &s.ip_blocks,
            &s.not_ip_blocks,
            &s.namespaces,
            &s.not_namespaces,
            &s.remote_ip_blocks,
            &s.not_remote_ip_blocks,
            &s.service_accounts,
            &s.not_service_accounts,
        ]
        .iter()
        .any(|v| v.is_some())
    };
    let tcp_operation = |o: &&Operation| o.ports.is_some() || o.not_ports.is_some();
    if operations.is_empty() {
        !sources.is_empty() && !sources.iter().any(tcp_source)
    } else {
        !operations.iter().any(tcp_operation)
    }
}

/// An empty list is not the same as no list: its author may have meant nobody, and it would mean everybody.
fn not_without_values(fields: &[(&str, &Values)], at: &str, review: &mut Review) {
    for (name, values) in fields {
        if values.as_ref().is_some_and(Vec::is_empty) {
            review.fault(format!("`{name}` must not be an empty list, {at}"));
        }
    }
}

fn source_of(source: &Source, at: &str, review: &mut Review) {
    if *source == Source::default() {
        review.fault(format!("`from.source` must not be empty, {at}"));
    }
    let accounts = source.service_accounts.is_some() || source.not_service_accounts.is_some();
    let others = [&source.principals, &source.not_principals, &source.namespaces, &source.not_namespaces];
    if accounts && others.iter().any(|l| l.is_some()) {
        review.fault(format!("cannot set serviceAccounts with namespaces or principals, {at}"));
    }
    let texts: [(&str, &Values); 6] = [
        ("Principals", &source.principals),
        ("RequestPrincipals", &source.request_principals),
        ("Namespaces", &source.namespaces),
        ("NotPrincipals", &source.not_principals),
        ("NotRequestPrincipals", &source.not_request_principals),
        ("NotNamespaces", &source.not_namespaces),
    ];
    let ranges: [(&str, &Values); 4] = [
        ("IpBlocks", &source.ip_blocks),
        ("RemoteIpBlocks", &source.remote_ip_blocks),
        ("NotIpBlocks", &source.not_ip_blocks),
        ("NotRemoteIpBlocks", &source.not_remote_ip_blocks),
    ];
    let named = [
        ("ServiceAccounts", &source.service_accounts),
        ("TrustDomains", &source.trust_domains),
        ("NotServiceAccounts", &source.not_service_accounts),
        ("NotTrustDomains", &source.not_trust_domains),
    ];
    for (name, values) in ranges {
        review.take(not_empty(name, list(values)));
        list(values).iter().filter(|v| !v.is_empty()).for_each(|v| review.take(range(v).map(drop)));
    }
    for (name, values) in texts {
        review.take(not_empty(name, list(values)));
        review.take(asterisks(name, list(values)));
        list(values).iter().for_each(|v| literal_asterisk(name, v, review));
    }
    for value in [&source.principals, &source.not_principals].into_iter().flat_map(list) {
        if value.starts_with("spiffe://") {
            review.warn(format!("{value:?} matches no peer: principals are written without spiffe://"));
        }
    }
    review.take(service_accounts("ServiceAccounts", list(&source.service_accounts)));
    review.take(trust_domains("TrustDomains", list(&source.trust_domains)));
    review.take(service_accounts("NotServiceAccounts", list(&source.not_service_accounts)));
    review.take(trust_domains("NotTrustDomains", list(&source.not_trust_domains)));
    for group in [texts.as_slice(), ranges.as_slice(), named.as_slice()] {
        not_without_values(group, at, review);
    }
}

fn operation_of(operation: &Operation, at: &str, review: &mut Review) {
    if *operation == Operation::default() {
        review.fault(format!("`to.operation` must not be empty, {at}"));
    }
    let ports = [("Ports", &operation.ports), ("NotPorts", &operation.not_ports)];
    let fields = [
        ports[0],
        ("Methods", &operation.methods),
        ("Paths", &operation.paths),
        ("Hosts", &operation.hosts),
        ports[1],
        ("NotMethods", &operation.not_methods),
        ("NotPaths", &operation.not_paths),
        ("NotHosts", &operation.not_hosts),
    ];
    for (_, values) in ports {
        list(values).iter().filter(|v| !v.is_empty()).for_each(|v| review.take(port(v).map(drop)));
    }
    for (name, values) in fields {
        review.take(not_empty(name, list(values)));
        review.take(asterisks(name, list(values)));
    }
    for (name, values) in [("Paths", &operation.paths), ("NotPaths", &operation.not_paths)] {
        review.take(paths(name, list(values)));
        for value in list(values) {
            literal_asterisk(name, value, review);
            if !value.starts_with(['/', '*']) || value.contains(['?', '#']) {
                review.warn(format!(
                    "{value:?} in {name} matches no request: a path begins with / and has no query"
                ));
            }
        }
    }
    for (name, values) in [("Methods", &operation.methods), ("NotMethods", &operation.not_methods)] {
        for value in list(values) {
            literal_asterisk(name, value, review);
            if value.bytes().any(|b| b.is_ascii_lowercase()) {
                review.warn(format!("{value:?} in {name} matches no request: methods are upper case"));
            }
        }
    }
    for (name, values) in [("Hosts", &operation.hosts), ("NotHosts", &operation.not_hosts)] {
        for value in list(values) {
            literal_asterisk(name, value, review);
            if value.contains('/') {
                review.warn(format!(
                    "{value:?} in {name} matches no request: a host has neither scheme nor path"
                ));
            }
        }
    }
    not_without_values(&fields, at, review);
}

/// Asterisks alone are `*` or a mistake.
fn asterisks(name: &str, values: &[String]) -> Check {
    match values.iter().find(|v| v.len() > 1 && v.bytes().all(|b| b == b'*')) {
        Some(value) => Err(format!("at most one wildcard is allowed, found in {name}: {value:?}")),
        None => Ok(()),
    }
}

/// An asterisk that is no wildcard is itself, which is hardly what was meant.
fn literal_asterisk(name: &str, value: &str, review: &mut Review) {
    let inner = value.strip_suffix('*').or_else(|| value.strip_prefix('*')).unwrap_or(value);
    if inner.replace("{*}", "").replace("{**}", "").contains('*') {
        review.warn(format!(
            "`*` in {value:?}, found in {name}, is matched literally: it is a wildcard only at the start or the end"
        ));
    }
}

fn condition(condition: &Condition, review: &mut Review) {
    let Condition { key: text, values, not_values } = condition;
    if text.is_empty() {
        return review.fault("`key` must not be empty");
    }
    if list(values).is_empty() && list(not_values).is_empty() {
        return review.fault(format!("at least one of `values` or `notValues` must be set for key {text}"));
    }
    for (word, values) in [("value", values), ("notValue", not_values)] {
        // A key that is no key is one fault, not two.
        let first = word == "value";
        let checked = match key(text) {
            Err(_) if !first => Ok(()),
            Err(fault) => Err(fault),
            Ok(key) => condition_values(&key, text, list(values)),
        };
        review.take(checked.map_err(|fault| format!("invalid `{word}` for `key` {text}: {fault}")));
        if values.as_ref().is_some_and(Vec::is_empty) {
            review.fault(format!("`{word}s` must not be an empty list for key {text}"));
        }
    }
}

fn condition_values(key: &Key<'_>, name: &str, values: &[String]) -> Check {
    not_empty(name, values)?;
    match key {
        Key::SourceIp | Key::RemoteIp | Key::DestinationIp => {
            values.iter().try_for_each(|v| range(v).map(drop))
        }
        Key::DestinationPort => values.iter().try_for_each(|v| port(v).map(drop)),
        Key::SourceServiceAccount => service_accounts(name, values),
        Key::SourceTrustDomain => wildcards(name, values),
        _ => asterisks(name, values),
    }
}
