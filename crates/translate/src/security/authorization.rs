// SPDX-License-Identifier: Apache-2.0
//! From an AuthorizationPolicy to the model, clause by clause.

use std::collections::BTreeSet;
use std::sync::Arc;

use meltemi_model::NamespacedName;
use meltemi_model::authz::{
    Action, Attribute, Clause, ClauseOrigin, Match, PathTemplate, Policy, Predicate, Rule, Scope,
    StringMatch, ValueMatch,
};
use meltemi_policy::ValidPolicy;
use meltemi_resources::policies::validate::{self, Key};
use meltemi_resources::policies::{self as api, AuthorizationPolicySpec, Values};

use super::aliases;
use crate::facts::Labels;
use crate::mesh::MeshConfig;

/// What a policy is attached to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reference {
    /// A Service of the policy's namespace.
    Service(String),
    /// A ServiceEntry of the policy's namespace.
    ServiceEntry(String),
    /// A Gateway of the policy's namespace.
    Gateway(String),
    /// Every Gateway of a class.
    GatewayClass(String),
}

impl Reference {
    /// `<Kind>.<group>:<namespace>/<name>`, as conditions name it.
    pub fn describe(&self, namespace: &str) -> String {
        match self {
            Self::Service(name) => format!("Service.core:{namespace}/{name}"),
            Self::ServiceEntry(name) => format!("ServiceEntry.networking.istio.io:{namespace}/{name}"),
            Self::Gateway(name) => format!("Gateway.gateway.networking.k8s.io:{namespace}/{name}"),
            Self::GatewayClass(name) => format!("GatewayClass.gateway.networking.k8s.io:{namespace}/{name}"),
        }
    }
}

/// A policy, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorization {
    /// The whole policy, layer 7 included.
    pub policy: ValidPolicy,
    /// Labels that select workloads; none when it applies by its scope or its targets.
    pub selector: Option<Labels>,
    /// Targets; empty when it applies to workloads.
    pub targets: Vec<Reference>,
    /// Fields and keys that a node proxy cannot evaluate, as their author wrote them.
    pub http: BTreeSet<String>,
    /// Something of it was written for one trust domain and holds for its aliases too.
    pub aliased: bool,
    /// What is wrong with it and was resolved towards denial; none when it is valid.
    pub faults: Vec<String>,
}

impl Authorization {
    /// Whether it selects workloads by an empty selector.
    pub fn selects_with_nothing(&self) -> bool {
        self.selector.as_ref().is_some_and(Labels::is_empty)
    }
}

/// Reads a policy.
///
/// # Errors
/// What its validation says.
pub fn read(
    name: &NamespacedName,
    spec: &AuthorizationPolicySpec,
    annotations: &Labels,
    mesh: &MeshConfig,
) -> Result<Authorization, String> {
    validate::authorization_policy(spec)?;
    let rules = spec.rules.iter().flatten().map(|r| rule(r, name, mesh)).collect::<Result<_, _>>()?;
    let provider = spec.provider.as_ref().map(|p| p.name.as_str()).unwrap_or_default();
    let selector = spec.selector.as_ref().map(|s| s.match_labels.clone().unwrap_or_default());
    let many = spec.target_refs.as_deref().unwrap_or_default();
    let targets: Vec<Reference> = match many {
        [] => spec.target_ref.iter().map(reference).collect(),
        many => many.iter().map(reference).collect(),
    };
    let policy = Policy {
        scope: scope(&selector, &targets, name, mesh),
        name: name.clone(),
        action: action(spec.action.unwrap_or_default(), provider),
        dry_run: dry_run(annotations),
        rules,
    };
    Ok(Authorization {
        // What the engine does not accept is no policy, and is rejected where its author still looks.
        policy: ValidPolicy::new(policy).map_err(|e| e.to_string())?,
        selector,
        targets,
        http: http(spec.rules.iter().flatten()),
        aliased: aliased(spec.rules.iter().flatten(), mesh),
        faults: Vec::new(),
    })
}

/// Where a policy applies.
pub(super) fn scope(
    selector: &Option<Labels>,
    targets: &[Reference],
    name: &NamespacedName,
    mesh: &MeshConfig,
) -> Scope {
    match (selector, targets) {
        (None, []) if name.namespace == mesh.root_namespace => Scope::Global,
        (None, []) => Scope::Namespace,
        _ => Scope::WorkloadSelector,
    }
}

pub(super) fn action(action: api::Action, provider: &str) -> Action {
    match action {
        api::Action::Allow => Action::Allow,
        api::Action::Deny => Action::Deny,
        api::Action::Audit => Action::Audit,
        api::Action::Custom => Action::Custom { provider: provider.into() },
    }
}

/// Whether a policy is only reported on; one whose annotation says neither yes nor no is enforced.
pub(super) fn dry_run(annotations: &Labels) -> bool {
    annotations.get(validate::DRY_RUN).is_some_and(|value| validate::dry_run(value).unwrap_or(false))
}

/// Fields and keys of rules that a node proxy cannot evaluate.
pub(super) fn http<'a>(rules: impl Iterator<Item = &'a api::Rule>) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    let mut given = |name: &str, values: &Values| {
        if values.as_ref().is_some_and(|v| !v.is_empty()) {
            out.insert(name.to_owned());
        }
    };
    let mut keys = Vec::new();
    for rule in rules {
        for source in rule.from.iter().flatten().filter_map(|f| f.source.as_ref()) {
            given("requestPrincipals", &source.request_principals);
            given("notRequestPrincipals", &source.not_request_principals);
            given("remoteIpBlocks", &source.remote_ip_blocks);
            given("notRemoteIpBlocks", &source.not_remote_ip_blocks);
            given("trustDomains", &source.trust_domains);
            given("notTrustDomains", &source.not_trust_domains);
        }
        for operation in rule.to.iter().flatten().filter_map(|t| t.operation.as_ref()) {
            given("hosts", &operation.hosts);
            given("notHosts", &operation.not_hosts);
            given("methods", &operation.methods);
            given("notMethods", &operation.not_methods);
            given("paths", &operation.paths);
            given("notPaths", &operation.not_paths);
        }
        keys.extend(rule.when.iter().flatten().map(|when| when.key.clone()));
    }
    out.extend(keys.into_iter().filter(|key| !L4_KEYS.contains(&key.as_str())));
    out
}

/// Keys of `when` that a node proxy evaluates.
const L4_KEYS: &[&str] =
    &["source.ip", "source.namespace", "source.principal", "destination.ip", "destination.port"];

/// Whether trust domain aliases make any difference to rules.
pub(super) fn aliased<'a>(mut rules: impl Iterator<Item = &'a api::Rule>, mesh: &MeshConfig) -> bool {
    let moved =
        |values: &Values| values.iter().flatten().any(|v| aliases::principals(v, mesh) != [v.as_str()]);
    rules.any(|rule| {
        let sources = rule.from.iter().flatten().filter_map(|f| f.source.as_ref());
        let mut whens = rule.when.iter().flatten().filter(|when| when.key == "source.principal");
        sources.into_iter().any(|s| moved(&s.principals) || moved(&s.not_principals))
            || whens.any(|when| moved(&when.values) || moved(&when.not_values))
    })
}

pub(super) fn reference(target: &api::TargetRef) -> Reference {
    let name = target.name.clone().unwrap_or_default();
    match target.kind.as_deref() {
        Some("ServiceEntry") => Reference::ServiceEntry(name),
        Some("Gateway") => Reference::Gateway(name),
        Some("GatewayClass") => Reference::GatewayClass(name),
        _ => Reference::Service(name),
    }
}

/// Reads one rule.
///
/// # Errors
/// A value that is none.
pub(super) fn rule(rule: &api::Rule, policy: &NamespacedName, mesh: &MeshConfig) -> Result<Rule, String> {
    let mut clauses = Vec::new();
    let sources: Vec<&api::Source> = rule.from.iter().flatten().filter_map(|f| f.source.as_ref()).collect();
    if !sources.is_empty() {
        let matches = sources.into_iter().map(|s| source(s, policy, mesh)).collect::<Result<_, _>>()?;
        clauses.push(Clause { origin: ClauseOrigin::From, matches });
    }
    let operations: Vec<&api::Operation> =
        rule.to.iter().flatten().filter_map(|t| t.operation.as_ref()).collect();
    if !operations.is_empty() {
        let matches = operations.into_iter().map(operation).collect::<Result<_, _>>()?;
        clauses.push(Clause { origin: ClauseOrigin::To, matches });
    }
    for (index, when) in rule.when.iter().flatten().enumerate() {
        let origin = ClauseOrigin::When(u16::try_from(index).unwrap_or(u16::MAX));
        clauses.push(Clause { origin, matches: vec![condition(when, policy, mesh)?] });
    }
    Ok(Rule { clauses })
}

type Reader = fn(&str) -> Result<ValueMatch, String>;

/// A match out of pairs of lists.
struct Reading(Vec<Predicate>);

impl Reading {
    fn add(
        &mut self,
        attribute: Attribute,
        values: &Values,
        not_values: &Values,
        read: impl Fn(&str) -> Result<ValueMatch, String>,
    ) -> Result<(), String> {
        let all = |list: &Values| list.iter().flatten().map(|v| read(v)).collect::<Result<Vec<_>, _>>();
        let (values, not_values) = (all(values)?, all(not_values)?);
        if !values.is_empty() || !not_values.is_empty() {
            self.0.push(Predicate { attribute, values, not_values });
        }
        Ok(())
    }
}

fn text(value: &str) -> Result<ValueMatch, String> {
    Ok(ValueMatch::String(StringMatch::parse(value)))
}

fn range(value: &str) -> Result<ValueMatch, String> {
    validate::range(value).map(ValueMatch::Cidr)
}

fn port(value: &str) -> Result<ValueMatch, String> {
    validate::port(value).map(ValueMatch::Port)
}

fn path(value: &str) -> Result<ValueMatch, String> {
    if validate::is_template(value) {
        return Ok(ValueMatch::PathTemplate(PathTemplate(value.into())));
    }
    text(value)
}

fn account(value: &str, policy: &NamespacedName) -> Result<ValueMatch, String> {
    let (namespace, name): (Arc<str>, &str) = match value.split_once('/') {
        Some((namespace, name)) => (namespace.into(), name),
        None => (policy.namespace.clone(), value),
    };
    Ok(ValueMatch::ServiceAccount { namespace, name: name.into() })
}

/// Identities in every trust domain that they are meant in.
fn everywhere(values: &Values, expand: fn(&str, &MeshConfig) -> Vec<String>, mesh: &MeshConfig) -> Values {
    let mut out: Vec<String> = Vec::new();
    for value in values.as_ref()?.iter().flat_map(|v| expand(v, mesh)) {
        if !out.contains(&value) {
            out.push(value);
        }
    }
    Some(out)
}

fn source(s: &api::Source, policy: &NamespacedName, mesh: &MeshConfig) -> Result<Match, String> {
    let mut out = Reading(Vec::new());
    let principals = |values| everywhere(values, aliases::principals, mesh);
    let domains = |values| everywhere(values, aliases::trust_domains, mesh);
    out.add(Attribute::SourcePrincipal, &principals(&s.principals), &principals(&s.not_principals), text)?;
    out.add(Attribute::RequestPrincipal, &s.request_principals, &s.not_request_principals, text)?;
    out.add(Attribute::SourceNamespace, &s.namespaces, &s.not_namespaces, text)?;
    out.add(Attribute::SourceIp, &s.ip_blocks, &s.not_ip_blocks, range)?;
    out.add(Attribute::RemoteIp, &s.remote_ip_blocks, &s.not_remote_ip_blocks, range)?;
    out.add(Attribute::SourceServiceAccount, &s.service_accounts, &s.not_service_accounts, |v| {
        account(v, policy)
    })?;
    out.add(Attribute::SourceTrustDomain, &domains(&s.trust_domains), &domains(&s.not_trust_domains), text)?;
    Ok(Match { predicates: out.0 })
}

fn operation(o: &api::Operation) -> Result<Match, String> {
    let mut out = Reading(Vec::new());
    out.add(Attribute::Host, &o.hosts, &o.not_hosts, text)?;
    out.add(Attribute::DestinationPort, &o.ports, &o.not_ports, port)?;
    out.add(Attribute::Method, &o.methods, &o.not_methods, text)?;
    out.add(Attribute::Path, &o.paths, &o.not_paths, path)?;
    Ok(Match { predicates: out.0 })
}

fn condition(
    condition: &api::Condition,
    policy: &NamespacedName,
    mesh: &MeshConfig,
) -> Result<Match, String> {
    let (attribute, read): (Attribute, Reader) = match validate::key(&condition.key)? {
        Key::SourceIp => (Attribute::SourceIp, range),
        Key::RemoteIp => (Attribute::RemoteIp, range),
        Key::SourceNamespace => (Attribute::SourceNamespace, text),
        Key::SourceServiceAccount => (Attribute::SourceServiceAccount, text),
        Key::SourceTrustDomain => (Attribute::SourceTrustDomain, text),
        Key::SourcePrincipal => (Attribute::SourcePrincipal, text),
        Key::DestinationIp => (Attribute::DestinationIp, range),
        Key::DestinationPort => (Attribute::DestinationPort, port),
        Key::ConnectionSni => (Attribute::ConnectionSni, text),
        Key::RequestPrincipal => (Attribute::RequestPrincipal, text),
        Key::Audiences => (Attribute::RequestAuthAudiences, text),
        Key::Presenter => (Attribute::RequestAuthPresenter, text),
        // A header in HTTP/1.1, a pseudo header in HTTP/2: one attribute, which is compared with case.
        Key::Header(name) if name == ":authority" || name.eq_ignore_ascii_case("host") => {
            (Attribute::Header("host".into()), text)
        }
        Key::Header(":method") => (Attribute::Method, text),
        // What is judged is the normalised path without query, which is not this header.
        Key::Header(name) if name.starts_with(':') => {
            (Attribute::Unsupported(condition.key.as_str().into()), text)
        }
        Key::Header(name) => (Attribute::Header(name.to_ascii_lowercase().into()), text),
        Key::Claim(path) => {
            let path: Vec<Arc<str>> = path.into_iter().map(Into::into).collect();
            (Attribute::RequestAuthClaim(path.into()), text)
        }
        Key::Experimental(key) => (Attribute::Unsupported(key.into()), text),
    };
    let mut out = Reading(Vec::new());
    let (values, not_values) = (&condition.values, &condition.not_values);
    let all = |expand| (everywhere(values, expand, mesh), everywhere(not_values, expand, mesh));
    match attribute {
        Attribute::SourceServiceAccount => out.add(attribute, values, not_values, |v| account(v, policy))?,
        Attribute::SourcePrincipal => {
            let (values, not_values) = all(aliases::principals);
            out.add(attribute, &values, &not_values, read)?;
        }
        Attribute::SourceTrustDomain => {
            let (values, not_values) = all(aliases::trust_domains);
            out.add(attribute, &values, &not_values, read)?;
        }
        _ => out.add(attribute, values, not_values, read)?,
    }
    Ok(Match { predicates: out.0 })
}
