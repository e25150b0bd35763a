// SPDX-License-Identifier: Apache-2.0
//! From an AuthorizationPolicy to the model, clause by clause.

use std::sync::Arc;

use meltemi_model::NamespacedName;
use meltemi_model::authz::{
    Action, Attribute, Clause, ClauseOrigin, Match, PathTemplate, Policy, Predicate, Rule, Scope,
    StringMatch, ValueMatch,
};
use meltemi_resources::policies::validate::{self, Key};
use meltemi_resources::policies::{self as api, AuthorizationPolicySpec, Values};

use crate::facts::Labels;
use crate::mesh::MeshConfig;

/// Annotation of a policy that is only reported on.
const DRY_RUN: &str = "istio.io/dry-run";

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
    pub policy: Policy,
    /// Labels that select workloads; none when it applies by its scope or its targets.
    pub selector: Option<Labels>,
    /// Targets; empty when it applies to workloads.
    pub targets: Vec<Reference>,
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
    let selector = spec.selector.as_ref().map(|s| s.match_labels.clone().unwrap_or_default());
    let targets =
        spec.target_refs.iter().flatten().chain(spec.target_ref.as_ref()).map(reference).collect::<Vec<_>>();
    let scope = match (&selector, targets.is_empty()) {
        (Some(_), _) | (None, false) => Scope::WorkloadSelector,
        (None, true) if name.namespace == mesh.root_namespace => Scope::Global,
        (None, true) => Scope::Namespace,
    };
    let action = match spec.action.unwrap_or_default() {
        api::Action::Allow => Action::Allow,
        api::Action::Deny => Action::Deny,
        api::Action::Audit => Action::Audit,
        api::Action::Custom => {
            let provider = spec.provider.as_ref().map(|p| p.name.as_str()).unwrap_or_default();
            Action::Custom { provider: provider.into() }
        }
    };
    let rules = spec.rules.iter().flatten().map(|r| rule(r, name)).collect::<Result<_, _>>()?;
    let dry_run = annotations
        .get(DRY_RUN)
        .is_some_and(|v| matches!(v.as_str(), "true" | "True" | "TRUE" | "t" | "T" | "1"));
    Ok(Authorization {
        policy: Policy { name: name.clone(), scope, action, dry_run, rules },
        selector,
        targets,
    })
}

fn reference(target: &api::TargetRef) -> Reference {
    let name = target.name.clone().unwrap_or_default();
    match target.kind.as_deref() {
        Some("ServiceEntry") => Reference::ServiceEntry(name),
        Some("Gateway") => Reference::Gateway(name),
        Some("GatewayClass") => Reference::GatewayClass(name),
        _ => Reference::Service(name),
    }
}

fn rule(rule: &api::Rule, policy: &NamespacedName) -> Result<Rule, String> {
    let mut clauses = Vec::new();
    let sources: Vec<&api::Source> = rule.from.iter().flatten().filter_map(|f| f.source.as_ref()).collect();
    if !sources.is_empty() {
        let matches = sources.into_iter().map(|s| source(s, policy)).collect::<Result<_, _>>()?;
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
        clauses.push(Clause { origin, matches: vec![condition(when, policy)?] });
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

fn source(s: &api::Source, policy: &NamespacedName) -> Result<Match, String> {
    let mut out = Reading(Vec::new());
    out.add(Attribute::SourcePrincipal, &s.principals, &s.not_principals, text)?;
    out.add(Attribute::RequestPrincipal, &s.request_principals, &s.not_request_principals, text)?;
    out.add(Attribute::SourceNamespace, &s.namespaces, &s.not_namespaces, text)?;
    out.add(Attribute::SourceIp, &s.ip_blocks, &s.not_ip_blocks, range)?;
    out.add(Attribute::RemoteIp, &s.remote_ip_blocks, &s.not_remote_ip_blocks, range)?;
    out.add(Attribute::SourceServiceAccount, &s.service_accounts, &s.not_service_accounts, |v| {
        account(v, policy)
    })?;
    out.add(Attribute::SourceTrustDomain, &s.trust_domains, &s.not_trust_domains, text)?;
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

fn condition(condition: &api::Condition, policy: &NamespacedName) -> Result<Match, String> {
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
        Key::Header(name) => (Attribute::Header(name.to_ascii_lowercase().into()), text),
        Key::Claim(path) => {
            let path: Vec<Arc<str>> = path.into_iter().map(Into::into).collect();
            (Attribute::RequestAuthClaim(path.into()), text)
        }
        Key::Experimental(key) => (Attribute::Unsupported(key.into()), text),
    };
    let mut out = Reading(Vec::new());
    if attribute == Attribute::SourceServiceAccount {
        out.add(attribute, &condition.values, &condition.not_values, |v| account(v, policy))?;
    } else {
        out.add(attribute, &condition.values, &condition.not_values, read)?;
    }
    Ok(Match { predicates: out.0 })
}
