// SPDX-License-Identifier: Apache-2.0
//! `istio.security.Authorization`.

use std::net::IpAddr;

use ipnet::IpNet;
use meltemi_model::NamespacedName;
use meltemi_model::authz::{
    Action, Attribute, Clause, ClauseOrigin, Match, Policy, Predicate, Rule, Scope, StringMatch, ValueMatch,
};
use prost::Message as _;

use super::known::{self, Message};
use super::{Invalid, ip, ip_bytes, port};
use crate::proto::security as proto;
use crate::proto::security::string_match::MatchType;

/// The message of a policy that has been projected to layer 4.
///
/// # Errors
/// The policy has what a node proxy cannot evaluate.
pub fn authorization(policy: &Policy) -> Result<Vec<u8>, Invalid> {
    let action = match policy.action {
        Action::Allow => proto::Action::Allow,
        Action::Deny => proto::Action::Deny,
        Action::Audit | Action::Custom { .. } => {
            return Err(Invalid::new("action", "only ALLOW and DENY reach a node proxy"));
        }
    };
    let scope = match policy.scope {
        Scope::Global => proto::Scope::Global,
        Scope::Namespace => proto::Scope::Namespace,
        Scope::WorkloadSelector => proto::Scope::WorkloadSelector,
    };
    Ok(proto::Authorization {
        name: policy.name.name.to_string(),
        namespace: policy.name.namespace.to_string(),
        scope: scope.into(),
        action: action.into(),
        groups: policy.rules.iter().map(group).collect::<Result<_, _>>()?,
        dry_run: policy.dry_run,
        extensions: Vec::new(),
    }
    .encode_to_vec())
}

fn group(rule: &Rule) -> Result<proto::Group, Invalid> {
    let rules = rule.clauses.iter().map(|clause| {
        Ok(proto::Rules {
            matches: clause.matches.iter().map(match_to_proto).collect::<Result<_, Invalid>>()?,
        })
    });
    Ok(proto::Group { rules: rules.collect::<Result<_, Invalid>>()? })
}

fn match_to_proto(wanted: &Match) -> Result<proto::Match, Invalid> {
    let mut message = proto::Match::default();
    for Predicate { attribute, values, not_values } in &wanted.predicates {
        match attribute {
            Attribute::SourceNamespace => {
                message.namespaces = strings(values)?;
                message.not_namespaces = strings(not_values)?;
            }
            Attribute::SourcePrincipal => {
                message.principals = strings(values)?;
                message.not_principals = strings(not_values)?;
            }
            Attribute::SourceIp => {
                message.source_ips = ranges(values)?;
                message.not_source_ips = ranges(not_values)?;
            }
            Attribute::DestinationIp => {
                message.destination_ips = ranges(values)?;
                message.not_destination_ips = ranges(not_values)?;
            }
            Attribute::DestinationPort => {
                message.destination_ports = ports(values)?;
                message.not_destination_ports = ports(not_values)?;
            }
            Attribute::SourceServiceAccount => {
                message.service_accounts = accounts(values)?;
                message.not_service_accounts = accounts(not_values)?;
            }
            other => return Err(Invalid::new("match", format!("{other:?} cannot be told to a node proxy"))),
        }
    }
    Ok(message)
}

fn wrong(value: &ValueMatch) -> Invalid {
    Invalid::new("match", format!("{value:?} does not fit its attribute"))
}

fn strings(values: &[ValueMatch]) -> Result<Vec<proto::StringMatch>, Invalid> {
    let one = |value: &ValueMatch| match value {
        ValueMatch::String(text) => Ok(proto::StringMatch {
            match_type: Some(match text {
                StringMatch::Exact(text) => MatchType::Exact(text.to_string()),
                StringMatch::Prefix(text) => MatchType::Prefix(text.to_string()),
                StringMatch::Suffix(text) => MatchType::Suffix(text.to_string()),
                StringMatch::Presence => MatchType::Presence(()),
            }),
        }),
        other => Err(wrong(other)),
    };
    values.iter().map(one).collect()
}

fn ranges(values: &[ValueMatch]) -> Result<Vec<proto::Address>, Invalid> {
    let one = |value: &ValueMatch| match value {
        ValueMatch::Cidr(range) => {
            Ok(proto::Address { address: ip_bytes(range.addr()), length: range.prefix_len().into() })
        }
        other => Err(wrong(other)),
    };
    values.iter().map(one).collect()
}

fn ports(values: &[ValueMatch]) -> Result<Vec<u32>, Invalid> {
    let one = |value: &ValueMatch| match value {
        ValueMatch::Port(port) => Ok(u32::from(*port)),
        other => Err(wrong(other)),
    };
    values.iter().map(one).collect()
}

fn accounts(values: &[ValueMatch]) -> Result<Vec<proto::ServiceAccountMatch>, Invalid> {
    let one = |value: &ValueMatch| match value {
        ValueMatch::ServiceAccount { namespace, name } => Ok(proto::ServiceAccountMatch {
            namespace: namespace.to_string(),
            service_account: name.to_string(),
        }),
        other => Err(wrong(other)),
    };
    values.iter().map(one).collect()
}

const STRING: Message =
    Message(&[(1, "exact", None), (2, "prefix", None), (3, "suffix", None), (4, "presence", None)]);
const ADDRESS: Message = Message(&[(1, "address", None), (2, "length", None)]);
const ACCOUNT: Message = Message(&[(1, "namespace", None), (2, "service_account", None)]);
const MATCH: Message = Message(&[
    (1, "namespaces", Some(&STRING)),
    (2, "not_namespaces", Some(&STRING)),
    (3, "principals", Some(&STRING)),
    (4, "not_principals", Some(&STRING)),
    (5, "source_ips", Some(&ADDRESS)),
    (6, "not_source_ips", Some(&ADDRESS)),
    (7, "destination_ips", Some(&ADDRESS)),
    (8, "not_destination_ips", Some(&ADDRESS)),
    (9, "destination_ports", None),
    (10, "not_destination_ports", None),
    (11, "service_accounts", Some(&ACCOUNT)),
    (12, "not_service_accounts", Some(&ACCOUNT)),
    (13, "extensions", None),
]);
const RULES: Message = Message(&[(2, "matches", Some(&MATCH))]);
const GROUP: Message = Message(&[(1, "rules", Some(&RULES))]);
const AUTHORIZATION: Message = Message(&[
    (1, "name", None),
    (2, "namespace", None),
    (3, "scope", None),
    (4, "action", None),
    (5, "groups", Some(&GROUP)),
    (6, "dry_run", None),
    (7, "extensions", None),
]);

/// Where the policy of a message applies, of one that is refused for something else; none when not even that is
/// understood.
pub fn policy_scope(bytes: &[u8]) -> Option<Scope> {
    let message = proto::Authorization::decode(bytes).ok()?;
    scope(message.scope)
}

fn scope(value: i32) -> Option<Scope> {
    Some(match proto::Scope::try_from(value).ok()? {
        proto::Scope::Global => Scope::Global,
        proto::Scope::Namespace => Scope::Namespace,
        proto::Scope::WorkloadSelector => Scope::WorkloadSelector,
    })
}

/// The policy of a message.
///
/// # Errors
/// The field that is not understood: the whole policy is refused, for a part of it could be wider.
pub fn policy(bytes: &[u8]) -> Result<Policy, Invalid> {
    let message = proto::Authorization::decode(bytes).map_err(|e| Invalid::new("authorization", e))?;
    known::only(&AUTHORIZATION, bytes)?;
    let proto::Authorization { name, namespace, scope, action, groups, dry_run, extensions } = message;
    if name.is_empty() {
        return Err(Invalid::new("name", "is empty"));
    }
    if let Some(extension) = extensions.first() {
        return Err(Invalid::new("extensions", format!("{:?} is not known", extension.name)));
    }
    let unknown = |field: &str, value: i32| Invalid::new(field, format!("unknown value {value}"));
    let deny = match proto::Action::try_from(action) {
        Ok(proto::Action::Allow) => false,
        Ok(proto::Action::Deny) => true,
        Err(_) => return Err(unknown("action", action)),
    };
    Ok(Policy {
        name: NamespacedName::new(namespace, name),
        scope: self::scope(scope).ok_or_else(|| unknown("scope", scope))?,
        action: if deny { Action::Deny } else { Action::Allow },
        dry_run,
        rules: groups
            .iter()
            .enumerate()
            .map(|(g, group)| rule(group, &format!("groups[{g}]"), deny))
            .collect::<Result<_, _>>()?,
    })
}

fn rule(group: &proto::Group, at: &str, deny: bool) -> Result<Rule, Invalid> {
    let clauses = group.rules.iter().enumerate().map(|(r, rules)| {
        let at = format!("{at}.rules[{r}]");
        let matches: Vec<Match> = rules
            .matches
            .iter()
            .enumerate()
            .map(|(m, one)| match_from_proto(one, &format!("{at}.matches[{m}]")))
            .collect::<Result<_, _>>()?;
        // An empty match is what is left of one whose fields a node proxy cannot see. In an ALLOW it must not
        // widen: it never matches. In a DENY it matches all: more is denied, never less.
        let matches = if deny {
            matches
        } else {
            let some = !matches.is_empty();
            let full: Vec<Match> = matches.into_iter().filter(|m| !m.predicates.is_empty()).collect();
            if some && full.is_empty() { vec![Match::never()] } else { full }
        };
        Ok(Clause { origin: ClauseOrigin::Unknown, matches })
    });
    Ok(Rule { clauses: clauses.collect::<Result<_, Invalid>>()? })
}

fn match_from_proto(message: &proto::Match, at: &str) -> Result<Match, Invalid> {
    let proto::Match {
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
    if let Some(extension) = extensions.first() {
        return Err(Invalid::new(format!("{at}.extensions"), format!("{:?} is not known", extension.name)));
    }
    let mut predicates = Vec::new();
    let mut add = |attribute, values: Vec<ValueMatch>, not_values: Vec<ValueMatch>| {
        if !values.is_empty() || !not_values.is_empty() {
            predicates.push(Predicate { attribute, values, not_values });
        }
    };
    let text = |list: &[proto::StringMatch], field: &str| read_strings(list, &format!("{at}.{field}"));
    let range = |list: &[proto::Address], field: &str| read_ranges(list, &format!("{at}.{field}"));
    let number = |list: &[u32], field: &str| {
        let field = format!("{at}.{field}");
        list.iter().map(|p| port(&field, *p).map(ValueMatch::Port)).collect::<Result<Vec<_>, _>>()
    };
    let account = |list: &[proto::ServiceAccountMatch]| {
        list.iter()
            .map(|a| ValueMatch::ServiceAccount {
                namespace: a.namespace.as_str().into(),
                name: a.service_account.as_str().into(),
            })
            .collect::<Vec<_>>()
    };
    add(Attribute::SourceNamespace, text(namespaces, "namespaces")?, text(not_namespaces, "not_namespaces")?);
    add(Attribute::SourcePrincipal, text(principals, "principals")?, text(not_principals, "not_principals")?);
    add(Attribute::SourceIp, range(source_ips, "source_ips")?, range(not_source_ips, "not_source_ips")?);
    let (yes, no) =
        (range(destination_ips, "destination_ips")?, range(not_destination_ips, "not_destination_ips")?);
    add(Attribute::DestinationIp, yes, no);
    let (yes, no) = (
        number(destination_ports, "destination_ports")?,
        number(not_destination_ports, "not_destination_ports")?,
    );
    add(Attribute::DestinationPort, yes, no);
    add(Attribute::SourceServiceAccount, account(service_accounts), account(not_service_accounts));
    Ok(Match { predicates })
}

fn read_strings(list: &[proto::StringMatch], field: &str) -> Result<Vec<ValueMatch>, Invalid> {
    let one = |message: &proto::StringMatch| match &message.match_type {
        Some(MatchType::Exact(text)) => Ok(StringMatch::Exact(text.as_str().into())),
        Some(MatchType::Prefix(text)) => Ok(StringMatch::Prefix(text.as_str().into())),
        Some(MatchType::Suffix(text)) => Ok(StringMatch::Suffix(text.as_str().into())),
        Some(MatchType::Presence(())) => Ok(StringMatch::Presence),
        None => Err(Invalid::new(field, "match_type is not set or not known")),
    };
    list.iter().map(|message| one(message).map(ValueMatch::String)).collect()
}

fn read_ranges(list: &[proto::Address], field: &str) -> Result<Vec<ValueMatch>, Invalid> {
    let one = |message: &proto::Address| {
        let length = u8::try_from(message.length).map_err(|_| Invalid::new(field, "length is too large"))?;
        let address = ip(field, &message.address)?;
        // An IPv4 range in IPv6 clothes is the IPv4 range, as an address is.
        let (address, length) = match (address.to_canonical(), length.checked_sub(96)) {
            (v4 @ IpAddr::V4(_), Some(inner)) if address.is_ipv6() => (v4, inner),
            _ => (address, length),
        };
        IpNet::new(address, length).map_err(|e| Invalid::new(field, e))
    };
    list.iter().map(|message| one(message).map(ValueMatch::Cidr)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow(matches: Vec<proto::Match>) -> Vec<u8> {
        let groups = vec![proto::Group { rules: vec![proto::Rules { matches }] }];
        proto::Authorization { name: "p".into(), namespace: "n".into(), groups, ..Default::default() }
            .encode_to_vec()
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        let unset =
            proto::Match { principals: vec![proto::StringMatch { match_type: None }], ..Default::default() };
        let ip = proto::Match {
            source_ips: vec![proto::Address { address: vec![1], length: 8 }],
            ..Default::default()
        };
        let long = proto::Match {
            source_ips: vec![proto::Address { address: vec![1, 2, 3, 4], length: 33 }],
            ..Default::default()
        };
        let port = proto::Match { destination_ports: vec![70_000], ..Default::default() };
        for (one, field) in
            [(unset, "principals"), (ip, "source_ips"), (long, "source_ips"), (port, "destination_ports")]
        {
            let error = policy(&allow(vec![one])).unwrap_err();
            assert_eq!(error.field, format!("groups[0].rules[0].matches[0].{field}"));
        }
        let scope = proto::Authorization { name: "p".into(), scope: 9, ..Default::default() }.encode_to_vec();
        assert_eq!(policy(&scope).unwrap_err().field, "scope");
    }

    /// A newer control plane may narrow a policy by what this proxy has never heard of.
    #[test]
    fn a_field_that_is_not_known_is_refused_by_its_place() {
        // Field 15 with the text "x", where each message can hold it.
        let new = [0x7a, 1, b'x'];
        let wrap = |field: u8, inner: &[u8]| {
            let mut out = vec![field << 3 | 2, u8::try_from(inner.len()).unwrap()];
            out.extend(inner);
            out
        };
        let name = wrap(1, b"p");
        let in_group = |inner: &[u8]| [name.clone(), wrap(5, inner)].concat();
        let string = [wrap(1, b"a"), new.to_vec()].concat();
        let cases = [
            ([name.clone(), new.to_vec()].concat(), "field 15"),
            (in_group(&new), "groups[0].field 15"),
            (in_group(&wrap(1, &new)), "groups[0].rules[0].field 15"),
            (in_group(&wrap(1, &wrap(2, &new))), "groups[0].rules[0].matches[0].field 15"),
            (
                in_group(&wrap(1, &wrap(2, &wrap(3, &string)))),
                "groups[0].rules[0].matches[0].principals[0].field 15",
            ),
        ];
        for (bytes, field) in cases {
            let error = policy(&bytes).unwrap_err();
            assert_eq!((error.field.as_str(), error.reason.as_str()), (field, "is not known"));
        }
        assert!(policy(&in_group(&wrap(1, &wrap(2, &wrap(3, &wrap(1, b"a")))))).is_ok());
        let action =
            proto::Authorization { name: "p".into(), action: 2, ..Default::default() }.encode_to_vec();
        assert_eq!(policy(&action).unwrap_err(), Invalid::new("action", "unknown value 2"));
    }

    #[test]
    fn ranges_in_ipv6_clothes_are_what_they_cover() {
        let mapped = std::net::Ipv4Addr::new(10, 0, 0, 0).to_ipv6_mapped().octets().to_vec();
        let of = |address: Vec<u8>, length| {
            let bytes = allow(vec![proto::Match {
                source_ips: vec![proto::Address { address, length }],
                ..Default::default()
            }]);
            policy(&bytes).unwrap().rules[0].clauses[0].matches[0].predicates[0].values[0].clone()
        };
        assert_eq!(of(mapped, 104), ValueMatch::Cidr("10.0.0.0/8".parse().unwrap()));
        assert_eq!(of(vec![0; 16], 0), ValueMatch::Cidr("::/0".parse().unwrap()));
    }

    #[test]
    fn an_empty_match_never_widens() {
        let read = policy(&allow(vec![proto::Match::default()])).unwrap();
        assert_eq!(read.rules[0].clauses[0].matches, [Match::never()]);
        let deny = proto::Authorization {
            name: "p".into(),
            action: 1,
            groups: vec![proto::Group {
                rules: vec![proto::Rules { matches: vec![proto::Match::default()] }],
            }],
            ..Default::default()
        };
        let read = policy(&deny.encode_to_vec()).unwrap();
        assert_eq!(read.rules[0].clauses[0].matches, [Match::default()]);
    }

    #[test]
    fn policies_round_trip() {
        let bytes = allow(vec![proto::Match {
            principals: vec![proto::StringMatch { match_type: Some(MatchType::Suffix("x".into())) }],
            not_source_ips: vec![proto::Address { address: vec![10, 0, 0, 0], length: 8 }],
            destination_ports: vec![80],
            service_accounts: vec![proto::ServiceAccountMatch {
                namespace: "a".into(),
                service_account: "b".into(),
            }],
            ..Default::default()
        }]);
        let read = policy(&bytes).unwrap();
        assert_eq!(authorization(&read).unwrap(), bytes);
    }
}
