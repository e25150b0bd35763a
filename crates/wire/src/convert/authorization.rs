// SPDX-License-Identifier: Apache-2.0
//! `istio.security.Authorization` from and to [`authz::Policy`].
//!
//! On the wire every match is a flat list of attributes. An empty match is what Istio's node proxy skips, so
//! one that matches everything is never sent: its clause is left out instead.

use ipnet::IpNet;
use meltemi_model::NamespacedName;
use meltemi_model::authz::{
    Action, Attribute, Clause, ClauseOrigin, Match, Policy, Predicate, Rule, Scope, StringMatch, ValueMatch,
};

use super::{Invalid, decode_strict, ip, ip_bytes, port};
use crate::proto::security as pb;

/// Type URL of policies.
pub const TYPE_URL: &str = "type.googleapis.com/istio.security.Authorization";

/// Name of a policy on the wire.
pub fn name(policy: &Policy) -> String {
    policy.name.to_string()
}

/// Decodes and checks a policy.
///
/// # Errors
/// Whatever is not understood: see [`Invalid`].
pub fn decode(bytes: &[u8]) -> Result<Policy, Invalid> {
    from_proto(decode_strict(bytes)?)
}

/// Checks a policy.
///
/// # Errors
/// Whatever is not understood: see [`Invalid`].
pub fn from_proto(message: pb::Authorization) -> Result<Policy, Invalid> {
    let pb::Authorization { name, namespace, scope, action, groups, dry_run, extensions } = message;
    if !extensions.is_empty() {
        return Err(Invalid::UnknownField);
    }
    if name.is_empty() {
        return Err(Invalid::Missing("name"));
    }
    let scope = match pb::Scope::try_from(scope) {
        Ok(pb::Scope::Global) => Scope::Global,
        Ok(pb::Scope::Namespace) => Scope::Namespace,
        Ok(pb::Scope::WorkloadSelector) => Scope::WorkloadSelector,
        Err(_) => return Err(Invalid::UnknownValue { field: "scope", value: scope }),
    };
    let action = match pb::Action::try_from(action) {
        Ok(pb::Action::Allow) => Action::Allow,
        Ok(pb::Action::Deny) => Action::Deny,
        Err(_) => return Err(Invalid::UnknownValue { field: "action", value: action }),
    };
    let rules = groups.into_iter().map(rule).collect::<Result<_, _>>()?;
    Ok(Policy { name: NamespacedName::new(namespace, name), scope, action, dry_run, rules })
}

fn rule(group: pb::Group) -> Result<Rule, Invalid> {
    let clauses = group.rules.into_iter().map(clause).collect::<Result<_, _>>()?;
    Ok(Rule { clauses })
}

fn clause(rules: pb::Rules) -> Result<Clause, Invalid> {
    let matches = rules.matches.into_iter().map(one).collect::<Result<_, _>>()?;
    Ok(Clause { origin: ClauseOrigin::Unknown, matches })
}

fn one(message: pb::Match) -> Result<Match, Invalid> {
    let pb::Match {
        namespaces,
        not_namespaces,
        principals,
        not_principals,
        source_ips,
        not_source_ips,
        destination_ips,
        not_destination_ips,
        destination_ports,
        not_destination_ports,
        service_accounts,
        not_service_accounts,
        extensions,
    } = message;
    if !extensions.is_empty() {
        return Err(Invalid::UnknownField);
    }
    let mut predicates = Vec::new();
    let mut add = |attribute, values: Vec<ValueMatch>, not_values: Vec<ValueMatch>| {
        if !values.is_empty() || !not_values.is_empty() {
            predicates.push(Predicate { attribute, values, not_values });
        }
    };
    add(
        Attribute::SourcePrincipal,
        strings("principals", principals)?,
        strings("not_principals", not_principals)?,
    );
    add(
        Attribute::SourceNamespace,
        strings("namespaces", namespaces)?,
        strings("not_namespaces", not_namespaces)?,
    );
    add(Attribute::SourceServiceAccount, accounts(service_accounts), accounts(not_service_accounts));
    add(Attribute::SourceIp, ranges("source_ips", source_ips)?, ranges("not_source_ips", not_source_ips)?);
    add(
        Attribute::DestinationIp,
        ranges("destination_ips", destination_ips)?,
        ranges("not_destination_ips", not_destination_ips)?,
    );
    add(
        Attribute::DestinationPort,
        ports("destination_ports", destination_ports)?,
        ports("not_destination_ports", not_destination_ports)?,
    );
    Ok(Match { predicates })
}

fn strings(field: &'static str, all: Vec<pb::StringMatch>) -> Result<Vec<ValueMatch>, Invalid> {
    use pb::string_match::MatchType;
    all.into_iter()
        .map(|m| {
            Ok(ValueMatch::String(match m.match_type {
                Some(MatchType::Exact(text)) => StringMatch::Exact(text.into()),
                Some(MatchType::Prefix(text)) => StringMatch::Prefix(text.into()),
                Some(MatchType::Suffix(text)) => StringMatch::Suffix(text.into()),
                Some(MatchType::Presence(())) => StringMatch::Presence,
                None => return Err(Invalid::Missing(field)),
            }))
        })
        .collect()
}

fn accounts(all: Vec<pb::ServiceAccountMatch>) -> Vec<ValueMatch> {
    all.into_iter()
        .map(|a| ValueMatch::ServiceAccount { namespace: a.namespace.into(), name: a.service_account.into() })
        .collect()
}

fn ranges(field: &'static str, all: Vec<pb::Address>) -> Result<Vec<ValueMatch>, Invalid> {
    all.into_iter()
        .map(|a| {
            let address = ip(field, &a.address)?;
            let length = u8::try_from(a.length).unwrap_or(u8::MAX);
            IpNet::new(address, length).map(ValueMatch::Cidr).map_err(|e| Invalid::value(field, e))
        })
        .collect()
}

fn ports(field: &'static str, all: Vec<u32>) -> Result<Vec<ValueMatch>, Invalid> {
    all.into_iter().map(|p| port(field, p).map(ValueMatch::Port)).collect()
}

/// Encodes a policy of layer 4.
///
/// # Errors
/// A policy that has an action or attribute which a node proxy cannot be told: it must be projected first.
pub fn to_proto(policy: &Policy) -> Result<pb::Authorization, Invalid> {
    let scope = match policy.scope {
        Scope::Global => pb::Scope::Global,
        Scope::Namespace => pb::Scope::Namespace,
        Scope::WorkloadSelector => pb::Scope::WorkloadSelector,
    };
    let action = match &policy.action {
        Action::Allow => pb::Action::Allow,
        Action::Deny => pb::Action::Deny,
        other => return Err(Invalid::value("action", format!("{other:?} is not one of layer 4"))),
    };
    Ok(pb::Authorization {
        name: policy.name.name.to_string(),
        namespace: policy.name.namespace.to_string(),
        scope: scope.into(),
        action: action.into(),
        groups: policy.rules.iter().map(group).collect::<Result<_, _>>()?,
        dry_run: policy.dry_run,
        extensions: Vec::new(),
    })
}

fn group(rule: &Rule) -> Result<pb::Group, Invalid> {
    let mut rules = Vec::with_capacity(rule.clauses.len());
    for clause in &rule.clauses {
        if clause.matches.is_empty() || clause.matches.iter().any(|m| m.predicates.is_empty()) {
            continue;
        }
        let matches = clause.matches.iter().map(encode_match).collect::<Result<_, _>>()?;
        rules.push(pb::Rules { matches });
    }
    Ok(pb::Group { rules })
}

fn encode_match(m: &Match) -> Result<pb::Match, Invalid> {
    let mut out = pb::Match::default();
    for Predicate { attribute, values, not_values } in &m.predicates {
        match attribute {
            Attribute::SourcePrincipal => {
                out.principals = encode_strings(values)?;
                out.not_principals = encode_strings(not_values)?;
            }
            Attribute::SourceNamespace => {
                out.namespaces = encode_strings(values)?;
                out.not_namespaces = encode_strings(not_values)?;
            }
            Attribute::SourceServiceAccount => {
                out.service_accounts = encode_accounts(values)?;
                out.not_service_accounts = encode_accounts(not_values)?;
            }
            Attribute::SourceIp => {
                out.source_ips = encode_ranges(values)?;
                out.not_source_ips = encode_ranges(not_values)?;
            }
            Attribute::DestinationIp => {
                out.destination_ips = encode_ranges(values)?;
                out.not_destination_ips = encode_ranges(not_values)?;
            }
            Attribute::DestinationPort => {
                out.destination_ports = encode_ports(values)?;
                out.not_destination_ports = encode_ports(not_values)?;
            }
            other => return Err(Invalid::value("match", format!("{other:?} is not one of layer 4"))),
        }
    }
    Ok(out)
}

fn wrong<T>(value: &ValueMatch) -> Result<T, Invalid> {
    Err(Invalid::value("match", format!("{value:?} has the wrong form for its attribute")))
}

fn encode_strings(all: &[ValueMatch]) -> Result<Vec<pb::StringMatch>, Invalid> {
    use pb::string_match::MatchType;
    all.iter()
        .map(|value| {
            let ValueMatch::String(text) = value else { return wrong(value) };
            let match_type = Some(match text {
                StringMatch::Exact(text) => MatchType::Exact(text.to_string()),
                StringMatch::Prefix(text) => MatchType::Prefix(text.to_string()),
                StringMatch::Suffix(text) => MatchType::Suffix(text.to_string()),
                StringMatch::Presence => MatchType::Presence(()),
            });
            Ok(pb::StringMatch { match_type })
        })
        .collect()
}

fn encode_accounts(all: &[ValueMatch]) -> Result<Vec<pb::ServiceAccountMatch>, Invalid> {
    all.iter()
        .map(|value| {
            let ValueMatch::ServiceAccount { namespace, name } = value else { return wrong(value) };
            Ok(pb::ServiceAccountMatch {
                namespace: namespace.to_string(),
                service_account: name.to_string(),
            })
        })
        .collect()
}

fn encode_ranges(all: &[ValueMatch]) -> Result<Vec<pb::Address>, Invalid> {
    all.iter()
        .map(|value| {
            let ValueMatch::Cidr(range) = value else { return wrong(value) };
            Ok(pb::Address { address: ip_bytes(range.addr()), length: range.prefix_len().into() })
        })
        .collect()
}

fn encode_ports(all: &[ValueMatch]) -> Result<Vec<u32>, Invalid> {
    all.iter()
        .map(|value| {
            let ValueMatch::Port(port) = value else { return wrong(value) };
            Ok((*port).into())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    fn policy() -> Policy {
        let string = |text: &str| ValueMatch::String(StringMatch::parse(text));
        let predicate = |attribute, values, not_values| Predicate { attribute, values, not_values };
        let from = Clause {
            origin: ClauseOrigin::Unknown,
            matches: vec![Match {
                predicates: vec![
                    predicate(
                        Attribute::SourcePrincipal,
                        vec![string("a/ns/b/sa/c"), string("x*")],
                        vec![string("*")],
                    ),
                    predicate(
                        Attribute::SourceIp,
                        vec![ValueMatch::Cidr("10.0.0.0/8".parse().unwrap())],
                        vec![],
                    ),
                ],
            }],
        };
        let to = Clause {
            origin: ClauseOrigin::Unknown,
            matches: vec![Match {
                predicates: vec![predicate(Attribute::DestinationPort, vec![ValueMatch::Port(80)], vec![])],
            }],
        };
        Policy {
            name: NamespacedName::new("default", "p"),
            scope: Scope::WorkloadSelector,
            action: Action::Deny,
            dry_run: false,
            rules: vec![Rule { clauses: vec![from, to] }, Rule::default()],
        }
    }

    #[test]
    fn a_policy_survives_the_wire() {
        let bytes = to_proto(&policy()).unwrap().encode_to_vec();
        assert_eq!(decode(&bytes).unwrap(), policy());
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let good = to_proto(&policy()).unwrap();
        let mut unknown_field = good.encode_to_vec();
        // Field 100, varint 1.
        unknown_field.extend([0xa0, 0x06, 0x01]);
        assert_eq!(decode(&unknown_field), Err(Invalid::UnknownField));
        let edit = |change: &dyn Fn(&mut pb::Authorization)| {
            let mut message = good.clone();
            change(&mut message);
            decode(&message.encode_to_vec()).unwrap_err().to_string()
        };
        assert_eq!(edit(&|m| m.action = 7), "action: value 7 is not known");
        assert_eq!(edit(&|m| m.scope = 9), "scope: value 9 is not known");
        assert_eq!(edit(&|m| m.extensions.push(pb::Extension::default())), "has a field that is not known");
        assert_eq!(
            edit(&|m| m.groups[0].rules[0].matches[0].principals[0].match_type = None),
            "principals is missing"
        );
        let cut = |m: &mut pb::Authorization| {
            m.groups[0].rules[0].matches[0].source_ips[0].address =
                prost::bytes::Bytes::from_static(&[1, 2, 3]);
        };
        assert_eq!(edit(&cut), "source_ips: 3 bytes are no IP address");
    }

    #[test]
    fn a_clause_that_matches_all_is_left_out() {
        let mut policy = policy();
        policy.rules[0].clauses[0].matches.push(Match::default());
        let sent = to_proto(&policy).unwrap();
        assert_eq!(sent.groups[0].rules.len(), 1, "Istio's node proxy would skip the empty match");
    }

    #[test]
    fn layer_seven_is_not_sent_to_node_proxies() {
        let mut policy = policy();
        policy.rules[0].clauses[0].matches[0].predicates[0].attribute = Attribute::Method;
        assert!(to_proto(&policy).is_err());
        policy = self::policy();
        policy.action = Action::Audit;
        assert!(to_proto(&policy).is_err());
    }
}
