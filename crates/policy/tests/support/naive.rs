// SPDX-License-Identifier: Apache-2.0
//! A second evaluator: the specification, sentence by sentence, as slow and as plain as can be. It shares no code with
//! the engine.

use std::net::IpAddr;

use ipnet::IpNet;
use meltemi_model::authz::{
    Action, Attribute, Clause, PathTemplate, Policy, Predicate, Rule, StringMatch, ValueMatch,
};
use meltemi_policy::Facts;

/// What is decided, with the place of the rule that decides: policy and rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allow(Option<(usize, usize)>),
    Deny(Option<(usize, usize)>),
    Ask(usize, usize),
    Undecided,
}

/// "CUSTOM, then DENY, then ALLOW; without an ALLOW policy everything else is allowed." `asked` are the providers that
/// have said yes.
pub(crate) fn judge(policies: &[Policy], missing: bool, facts: &Facts<'_>, asked: &[&str]) -> Verdict {
    let in_force = || policies.iter().enumerate().filter(|(_, p)| !p.dry_run);
    let mut providers: Vec<&str> = Vec::new();
    for (_, policy) in in_force() {
        if let Action::Custom { provider } = &policy.action
            && !providers.contains(&&**provider)
        {
            providers.push(provider);
        }
    }
    // Providers are asked in the order in which policies name them, each of them once.
    for provider in providers.into_iter().filter(|p| !asked.contains(p)) {
        let theirs = in_force()
            .filter(|(_, p)| matches!(&p.action, Action::Custom { provider: named } if **named == *provider));
        if let Some((policy, rule)) = first(theirs, facts, false) {
            return Verdict::Ask(policy, rule);
        }
    }
    if let Some(by) = first(in_force().filter(|(_, p)| p.action == Action::Deny), facts, false) {
        return Verdict::Deny(Some(by));
    }
    if missing {
        return Verdict::Undecided;
    }
    let allow: Vec<_> = in_force().filter(|(_, p)| p.action == Action::Allow).collect();
    if allow.is_empty() {
        return Verdict::Allow(None);
    }
    match first(allow.into_iter(), facts, true) {
        Some(by) => Verdict::Allow(Some(by)),
        None => Verdict::Deny(None),
    }
}

/// What AUDIT policies and dry runs would report: the first rule of each that matches.
pub(crate) fn reported(policies: &[Policy], facts: &Facts<'_>) -> Vec<(usize, usize)> {
    let silent = policies.iter().enumerate().filter(|(_, p)| p.dry_run || p.action == Action::Audit);
    silent.filter_map(|one| first(std::iter::once(one), facts, one.1.action == Action::Allow)).collect()
}

fn first<'p>(
    policies: impl Iterator<Item = (usize, &'p Policy)>,
    facts: &Facts<'_>,
    allow: bool,
) -> Option<(usize, usize)> {
    for (index, policy) in policies {
        // "Rules are ORed; a policy without rules never matches."
        if let Some(at) = policy.rules.iter().position(|r| rule(r, facts, allow)) {
            return Some((index, at));
        }
    }
    None
}

/// "Clauses are ANDed; a rule without clauses matches everything."
pub(crate) fn rule(rule: &Rule, facts: &Facts<'_>, allow: bool) -> bool {
    rule.clauses.iter().all(|c| clause(c, facts, allow))
}

/// "Entries are ORed; fields of an entry are ANDed."
pub(crate) fn clause(clause: &Clause, facts: &Facts<'_>, allow: bool) -> bool {
    let one = |m: &meltemi_model::authz::Match| m.predicates.iter().all(|p| holds(p, facts, allow));
    clause.matches.is_empty() || clause.matches.iter().any(one)
}

/// What a request says of an attribute.
enum Said {
    /// Nobody can tell: an ALLOW does not match, a DENY does.
    Unknown,
    /// Several texts that are one thing: elements of a claim.
    One(Vec<String>),
    /// Readings of which one is meant.
    Readings(Vec<Seen>),
    Address(Option<IpAddr>),
    Port(u16),
}

/// One reading.
enum Seen {
    Whole(String),
    /// Of a list, or of a host: "only what a policy must not miss is compared with it".
    Part(String),
    /// "Some server does not see it."
    Absent,
}

fn holds(predicate: &Predicate, facts: &Facts<'_>, allow: bool) -> bool {
    let (attribute, yes, no) = (&predicate.attribute, &predicate.values, &predicate.not_values);
    let one = |m: &dyn Fn(&ValueMatch) -> bool| {
        // "Some value matches, if there are values, and no not-value does."
        (yes.is_empty() || yes.iter().any(m)) && !no.iter().any(m)
    };
    let text = |value: &ValueMatch, said: &str| matches(attribute, value, said);
    match said(attribute, facts) {
        Said::Unknown => !allow,
        Said::One(all) => one(&|v| all.iter().any(|said| text(v, said))),
        Said::Readings(all) => {
            let paths: &[String] = facts.http.as_ref().map_or(&[], |http| http.paths);
            let wide =
                |v: &ValueMatch, said: &str| forms(attribute, v).iter().any(|v| loosely(attribute, v, said));
            let narrow = |v: &ValueMatch, said: &str| match attribute {
                Attribute::Path if odd(v) => literal(v, paths),
                _ => text(v, said),
            };
            let some = |list: &[ValueMatch], m: &dyn Fn(&ValueMatch, &str) -> bool, said: &str| {
                list.iter().any(|v| m(v, said))
            };
            // "A DENY matches on any reading, an ALLOW needs all."
            let whole = |said: &str| {
                if allow {
                    (yes.is_empty() || some(yes, &narrow, said)) && !some(no, &wide, said)
                } else {
                    (yes.is_empty() || some(yes, &wide, said)) && !some(no, &narrow, said)
                }
            };
            // "A DENY looks for its values among parts, an ALLOW for its not-values."
            if allow {
                all.iter().all(|seen| match seen {
                    Seen::Whole(said) => whole(said),
                    Seen::Part(said) => !some(no, &wide, said),
                    Seen::Absent => yes.is_empty(),
                })
            } else {
                all.iter().any(|seen| match seen {
                    Seen::Whole(said) => whole(said),
                    Seen::Part(said) => some(yes, &wide, said) && !some(no, &narrow, said),
                    Seen::Absent => yes.is_empty(),
                })
            }
        }
        Said::Address(ip) => {
            one(&|v| matches!((v, ip), (ValueMatch::Cidr(range), Some(ip)) if within(range, ip)))
        }
        Said::Port(port) => one(&|v| *v == ValueMatch::Port(port)),
    }
}

fn is_host(attribute: &Attribute) -> bool {
    [Attribute::Host, Attribute::Header("host".into()), Attribute::Header(":authority".into())]
        .contains(attribute)
}

/// "`hosts` are compared without case; a header is compared with case, but a DENY does not depend on it."
fn loosely(attribute: &Attribute, value: &ValueMatch, said: &str) -> bool {
    matches(if is_host(attribute) { &Attribute::Host } else { attribute }, value, said)
}

/// `%`, `\`, `;` and `//`: "the policy means them".
fn odd(value: &ValueMatch) -> bool {
    let text = value.to_string();
    ["%", "\\", ";", "//"].iter().any(|odd| text.contains(odd))
}

fn with_text(value: &ValueMatch, change: &dyn Fn(&str) -> String) -> ValueMatch {
    let new = |text: &str| change(text).into();
    match value {
        ValueMatch::String(StringMatch::Exact(t)) => ValueMatch::String(StringMatch::Exact(new(t))),
        ValueMatch::String(StringMatch::Prefix(t)) => ValueMatch::String(StringMatch::Prefix(new(t))),
        ValueMatch::String(StringMatch::Suffix(t)) => ValueMatch::String(StringMatch::Suffix(new(t))),
        ValueMatch::PathTemplate(t) => ValueMatch::PathTemplate(PathTemplate(new(&t.0))),
        other => other.clone(),
    }
}

/// Escapes of the bytes that are wanted, decoded; the digits of all others in upper case.
fn decoded(text: &str, wanted: &dyn Fn(u8) -> bool) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let digits = tail.get(..2).and_then(|two| std::str::from_utf8(two).ok()).filter(|_| *first == b'%');
        let byte =
            digits.filter(|d| d.chars().all(|c| c.is_ascii_hexdigit())).map(|d| u8::from_str_radix(d, 16));
        match (byte, digits) {
            (Some(Ok(byte)), _) if wanted(byte) => out.push(byte),
            (Some(Ok(_)), Some(digits)) => out.extend(format!("%{}", digits.to_ascii_uppercase()).bytes()),
            _ => {
                out.push(*first);
                rest = tail;
                continue;
            }
        }
        rest = &tail[2..];
    }
    String::from_utf8_lossy(&out).into_owned()
}

type Server = Box<dyn Fn(&str) -> String>;

/// "Without parameters, with slashes merged before or after dot segments are removed, behind a host, decoded by more or
/// less": what servers make of a path.
fn servers() -> Vec<Server> {
    let mut all: Vec<Server> = Vec::new();
    for number in 0..36u32 {
        let (decode, merge, parameters, host) = (number % 3, number / 3 % 3, number / 9 % 2, number / 18);
        all.push(Box::new(move |text| {
            let unreserved = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
            let takes = |b: u8| decode == 2 || unreserved(b) || (decode == 1 && b"/\\".contains(&b));
            let mut text = text.to_owned();
            if host == 1 && text.len() - text.trim_start_matches(['/', '\\']).len() > 1 {
                let behind = text.trim_start_matches(['/', '\\']);
                text = behind.find(['/', '\\']).map_or("/".to_owned(), |at| behind[at..].to_owned());
            }
            text = decoded(&text, &takes).replace('\\', "/");
            let mut segments: Vec<&str> = text.split('/').collect();
            if parameters == 1 {
                segments = segments.into_iter().map(|s| s.split(';').next().unwrap()).collect();
            }
            let once = |segments: Vec<&str>| {
                let whole = format!("/{}", segments[1..].join("/"));
                let mut merged = whole.clone();
                while merged.contains("//") {
                    merged = merged.replace("//", "/");
                }
                if merge == 1 { merged } else { whole }
            };
            let before = once(segments);
            let mut left: Vec<&str> = Vec::new();
            let parts: Vec<&str> = before[1..].split('/').collect();
            for (at, part) in parts.iter().enumerate() {
                match *part {
                    "." => {}
                    ".." => drop(left.pop()),
                    other => left.push(other),
                }
                if at + 1 == parts.len() && [".", ".."].contains(part) {
                    left.push("");
                }
            }
            let mut out = format!("/{}", left.join("/"));
            while merge == 2 && out.contains("//") {
                out = out.replace("//", "/");
            }
            out
        }));
    }
    all
}

/// "It holds of the path as it is forwarded (and as it was sent), and whatever a server makes of the path is what it makes
/// of the pattern."
fn literal(value: &ValueMatch, paths: &[String]) -> bool {
    let Some(forwarded) = paths.first() else { return false };
    let upper = |text: &str| decoded(text, &|_| false);
    let sent = paths.iter().find(|p| *p != forwarded && upper(p) == *forwarded).unwrap_or(forwarded);
    let braces = |value: &ValueMatch| value.to_string().matches(['{', '}']).count();
    matches(&Attribute::Path, value, sent)
        && servers().iter().all(|server| {
            let own = with_text(value, &|text| {
                let rooted = text.starts_with(['/', '\\']);
                let out = server(&if rooted { text.to_owned() } else { format!("/{text}") });
                if rooted { out } else { out[1..].to_owned() }
            });
            let template = matches!(value, ValueMatch::PathTemplate(_));
            (!template || braces(&own) == braces(value))
                && matches(&Attribute::Path, &own, &server(&upper(forwarded)))
        })
}

/// "Escapes are a notation; a host has no dot at its end": what a value may mean as well.
fn forms(attribute: &Attribute, value: &ValueMatch) -> Vec<ValueMatch> {
    let mut all = vec![value.clone()];
    if *attribute == Attribute::Path && odd(value) {
        all.push(with_text(value, &|text| decoded(text, &|_| false)));
        let plain = with_text(value, &|text| decoded(text, &|b| !b"/\\".contains(&b)));
        let braces = |value: &ValueMatch| value.to_string().matches(['{', '}']).count();
        let same = !matches!(value, ValueMatch::PathTemplate(_)) || braces(&plain) == braces(value);
        // What is no text is no value.
        if same && !plain.to_string().contains(char::REPLACEMENT_CHARACTER) {
            // Those of slashes are left, and as they were written.
            all.push(plain);
        }
    }
    if is_host(attribute) {
        all.push(with_text(value, &|text| {
            let name = name_of(text);
            match name.strip_suffix('.') {
                Some(left) if !left.is_empty() => format!("{left}{}", &text[name.len()..]),
                _ => text.to_owned(),
            }
        }));
    }
    all
}

/// A host without its port.
fn name_of(host: &str) -> String {
    match host.find(']') {
        Some(end) if host.starts_with('[') => host[..=end].to_owned(),
        _ if host.starts_with('[') => host.to_owned(),
        _ => host.split(':').next().unwrap_or_default().to_owned(),
    }
}

fn said(attribute: &Attribute, facts: &Facts<'_>) -> Said {
    let one = |text: Option<&str>| Said::One(text.map(str::to_owned).into_iter().collect());
    match attribute {
        Attribute::SourcePrincipal => one(facts.source.map(|id| id.principal())),
        Attribute::SourceNamespace => one(facts.source.map(|id| id.namespace())),
        Attribute::SourceTrustDomain => one(facts.source.map(|id| id.trust_domain())),
        Attribute::SourceServiceAccount => {
            let text = facts.source.map(|id| format!("{}/{}", id.namespace(), id.service_account()));
            one(text.as_deref())
        }
        Attribute::SourceIp => Said::Address(Some(facts.source_ip)),
        Attribute::DestinationIp => Said::Address(Some(facts.destination_ip)),
        Attribute::DestinationPort => Said::Port(facts.destination_port),
        Attribute::ConnectionSni if facts.sni.is_some() => one(facts.sni),
        Attribute::Unsupported(_) => Said::Unknown,
        _ => facts.http.as_ref().map_or(Said::Unknown, |http| said_by_http(attribute, http)),
    }
}

fn said_by_http(attribute: &Attribute, http: &meltemi_policy::HttpFacts<'_>) -> Said {
    let claim = |path: &[std::sync::Arc<str>]| {
        let mut all = Vec::new();
        if let Some(claims) = http.claims {
            claims.each(path, &mut |text| all.push(text.to_owned()));
        }
        // "`scope` and `permission` are lists between spaces."
        if path.len() == 1 && ["scope", "permission"].contains(&&*path[0]) {
            all =
                all.iter().flat_map(|t| t.split(' ')).filter(|t| !t.is_empty()).map(str::to_owned).collect();
        }
        Said::One(all)
    };
    match attribute {
        // HTTP without TLS has no server name.
        Attribute::ConnectionSni => Said::One(Vec::new()),
        Attribute::RemoteIp => Said::Address(http.remote_ip),
        Attribute::Method => Said::Readings(vec![Seen::Whole(http.method.to_owned())]),
        Attribute::Path if http.paths.is_empty() => Said::Readings(vec![Seen::Absent]),
        Attribute::Path => Said::Readings(http.paths.iter().cloned().map(Seen::Whole).collect()),
        _ if is_host(attribute) => {
            // "As written; without the port, without the trailing dot, without either."
            let (host, name) = (http.host.to_owned(), name_of(http.host));
            let port = host[name.len()..].to_owned();
            let dotless = name.strip_suffix('.').unwrap_or(&name).to_owned();
            let parts = [dotless.clone() + &port, dotless, name].map(Seen::Part);
            Said::Readings(std::iter::once(Seen::Whole(host)).chain(parts).collect())
        }
        Attribute::Header(name) => {
            let mut all = Vec::new();
            http.headers.each(name, &mut |text| {
                let trim = |text: &str| text.trim_matches([' ', '\t']).to_owned();
                all.push(Seen::Whole(trim(text)));
                // "With the blanks around it, or without them."
                all.push(Seen::Whole(text.to_owned()));
                // "A header may be a list."
                if text.contains(',') {
                    all.extend(text.split(',').map(trim).filter(|e| !e.is_empty()).map(Seen::Part));
                }
            });
            if all.is_empty() || http.headers.may_lack(name) {
                all.push(Seen::Absent);
            }
            Said::Readings(all)
        }
        Attribute::RequestPrincipal => {
            let both = http.claims.and_then(|c| c.issuer_and_subject());
            let both = both.filter(|(iss, sub)| !iss.is_empty() && !sub.is_empty());
            // A character that no claim of the tests has, so that what issuer and subject hold stays apart.
            Said::One(both.map(|(iss, sub)| format!("{iss}\n{sub}")).into_iter().collect())
        }
        Attribute::RequestAuthAudiences => claim(&["aud".into()]),
        Attribute::RequestAuthPresenter => claim(&["azp".into()]),
        Attribute::RequestAuthClaim(path) => claim(path),
        _ => Said::Unknown,
    }
}

fn within(range: &IpNet, ip: IpAddr) -> bool {
    // "An IPv4 address in IPv6 clothes is the IPv4 address", in a policy as on the wire.
    match (range, ip.to_canonical()) {
        (IpNet::V4(range), IpAddr::V4(ip)) => range.contains(&ip),
        (IpNet::V6(range), IpAddr::V6(ip)) => range.contains(&ip),
        (IpNet::V6(range), IpAddr::V4(ip)) => {
            range.prefix_len() >= 96 && range.contains(&ip.to_ipv6_mapped())
        }
        (IpNet::V4(_), IpAddr::V6(_)) => false,
    }
}

fn matches(attribute: &Attribute, value: &ValueMatch, said: &str) -> bool {
    match (attribute, value) {
        (_, ValueMatch::ServiceAccount { namespace, name }) => said == format!("{namespace}/{name}"),
        (_, ValueMatch::PathTemplate(template)) => template_matches(&template.0, said),
        (Attribute::Host, ValueMatch::String(text)) => string(attribute, text, said, str::to_ascii_lowercase),
        (Attribute::RequestPrincipal, ValueMatch::String(text)) => request_principal(text, said),
        (_, ValueMatch::String(text)) => string(attribute, text, said, str::to_owned),
        _ => false,
    }
}

/// "`abc`, `abc*`, `*abc`; `*` of a header asks whether it is there, of anything else for a text that is not empty."
fn string(attribute: &Attribute, pattern: &StringMatch, said: &str, fold: fn(&str) -> String) -> bool {
    let said = fold(said);
    match pattern {
        StringMatch::Exact(text) => said == fold(text),
        StringMatch::Prefix(text) => said.starts_with(&fold(text)),
        StringMatch::Suffix(text) => said.ends_with(&fold(text)),
        StringMatch::Presence => {
            matches!(attribute, Attribute::Host | Attribute::Method | Attribute::Header(_))
                || !said.is_empty()
        }
    }
}

/// "Split at the last `/` into issuer and subject; both must match."
fn request_principal(pattern: &StringMatch, said: &str) -> bool {
    let (iss, sub) = said.split_once('\n').unwrap_or_default();
    match pattern {
        StringMatch::Presence => true,
        StringMatch::Exact(text) => text.rsplit_once('/') == Some((iss, sub)),
        StringMatch::Prefix(text) => match text.rsplit_once('/') {
            Some((left, right)) => iss == left && sub.starts_with(right),
            None => iss.starts_with(&**text),
        },
        StringMatch::Suffix(text) => match text.rsplit_once('/') {
            Some((left, right)) => iss.ends_with(left) && sub == right,
            None => sub.ends_with(&**text),
        },
    }
}

/// "`{*}` is one segment, not empty; `{**}` is zero or more characters, `/` among them."
fn template_matches(template: &str, path: &str) -> bool {
    fn go(pattern: &[&str], path: &[&str]) -> bool {
        match (pattern.first(), path.first()) {
            (None, None) => true,
            (Some(&"{**}"), Some(_)) if pattern.len() == 1 => true,
            // Zero characters are a segment too, an empty one.
            (Some(&"{**}"), Some(_)) => (1..=path.len()).any(|taken| go(&pattern[1..], &path[taken..])),
            (Some(&"{*}"), Some(segment)) => !segment.is_empty() && go(&pattern[1..], &path[1..]),
            (Some(wanted), Some(segment)) => wanted == segment && go(&pattern[1..], &path[1..]),
            _ => false,
        }
    }
    go(&template.split('/').collect::<Vec<_>>(), &path.split('/').collect::<Vec<_>>())
}
