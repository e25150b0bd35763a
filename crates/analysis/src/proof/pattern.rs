// SPDX-License-Identifier: Apache-2.0
//! What a value of a policy says of the text of its attribute, as patterns. It must say what `policy::decide` does; the
//! property tests hold the two against each other.

use meltemi_model::authz::{Attribute, Predicate, StringMatch, ValueMatch};
use meltemi_policy::http::is_of_framing;

use super::domain::Domain;
use super::host::{self, Reading};
use super::text::{Automaton, Free, Pattern, Piece};

/// How a value is compared with a request that has several readings (`policy::reading`): of a host, with or without a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Manner {
    /// With the text as it is: values of an ALLOW, not-values of a DENY, and what is given of a request.
    Narrow,
    /// With every form of it: not-values of an ALLOW, and values of a DENY that excludes no hosts.
    Wide,
    /// Widely with one reading.
    WideAt(Reading),
    /// Narrowly with one reading.
    NarrowAt(Reading),
}

impl Manner {
    /// How values and not-values of a predicate are compared: the pairs of which one has to hold.
    ///
    /// One reading has to fulfil a DENY as a whole: `hosts: [a.com]` with `notHosts: [a.com:80]` denies `a.com:80`, since
    /// it is `a.com` to a server that leaves out the port. Without values only the host as written is looked at.
    pub(crate) fn pairs(predicate: &Predicate, denies: bool) -> Vec<(Self, Self)> {
        let (values, not_values) = (!predicate.values.is_empty(), !predicate.not_values.is_empty());
        match (denies, values, not_values) {
            _ if !is_host(&predicate.attribute) => vec![(Self::Narrow, Self::Narrow)],
            (false, ..) => vec![(Self::Narrow, Self::Wide)],
            (true, true, false) => vec![(Self::Wide, Self::Narrow)],
            (true, false, _) => vec![(Self::Narrow, Self::Narrow)],
            (true, true, true) => Reading::ALL.map(|r| (Self::WideAt(r), Self::NarrowAt(r))).to_vec(),
        }
    }
}

/// Whether an attribute is the host of the request.
pub(crate) fn is_host(attribute: &Attribute) -> bool {
    match attribute {
        Attribute::Host => true,
        Attribute::Header(name) => matches!(&**name, "host" | ":authority"),
        _ => false,
    }
}

/// The domain of an attribute's text; none for addresses and ports.
pub(crate) fn domain(attribute: &Attribute) -> Option<Domain> {
    Some(match attribute {
        Attribute::SourcePrincipal
        | Attribute::SourceNamespace
        | Attribute::SourceServiceAccount
        | Attribute::SourceTrustDomain => Domain::Identity,
        Attribute::Method => Domain::Method,
        Attribute::Path => Domain::Path,
        _ if is_host(attribute) => Domain::Host,
        Attribute::Host | Attribute::Header(_) => Domain::Header,
        Attribute::RequestPrincipal => Domain::RequestPrincipal,
        Attribute::RequestAuthClaim(path) => claim(path),
        Attribute::ConnectionSni | Attribute::RequestAuthAudiences | Attribute::RequestAuthPresenter => {
            Domain::Text
        }
        Attribute::SourceIp
        | Attribute::RemoteIp
        | Attribute::DestinationIp
        | Attribute::DestinationPort
        | Attribute::Unsupported(_) => return None,
    })
}

/// The domain of a claim's texts.
pub(crate) fn claim(path: &[std::sync::Arc<str>]) -> Domain {
    if meltemi_policy::facts::is_space_delimited(path) { Domain::Word } else { Domain::Text }
}

fn is(text: &str) -> Piece {
    Piece::Is(text.to_owned())
}

/// The patterns of a value, any of which is a match; none when it never matches.
pub(crate) fn patterns(attribute: &Attribute, value: &ValueMatch, manner: Manner) -> Vec<Pattern> {
    match (attribute, value) {
        (Attribute::SourceServiceAccount, ValueMatch::ServiceAccount { namespace, name }) => {
            if namespace.contains('/') || name.contains('/') {
                return Vec::new();
            }
            vec![vec![
                Piece::One(Free::NotSlash),
                Piece::Many(Free::NotSlash),
                is(&format!("/ns/{namespace}/sa/{name}")),
            ]]
        }
        (Attribute::SourceServiceAccount, _) => Vec::new(),
        (Attribute::SourceNamespace, ValueMatch::String(text)) => {
            let Some(mut inner) = segment(text) else { return Vec::new() };
            let mut pattern = vec![Piece::One(Free::NotSlash), Piece::Many(Free::NotSlash), is("/ns/")];
            pattern.append(&mut inner);
            pattern.extend([is("/sa/"), Piece::Many(Free::NotSlash)]);
            vec![pattern]
        }
        (Attribute::SourceTrustDomain, ValueMatch::String(text)) => {
            let Some(mut pattern) = segment(text) else { return Vec::new() };
            pattern.extend([is("/ns/"), Piece::Many(Free::Any)]);
            vec![pattern]
        }
        (_, ValueMatch::String(text)) if is_host(attribute) => host(attribute, text, manner),
        (Attribute::Method | Attribute::Header(_), ValueMatch::String(StringMatch::Presence)) => {
            vec![vec![Piece::Many(Free::Any)]]
        }
        (Attribute::RequestPrincipal, ValueMatch::String(text)) => request_principal(text),
        (_, ValueMatch::String(text)) => vec![plain(text, Free::Any)],
        (_, ValueMatch::PathTemplate(template)) => vec![path_template(&template.0)],
        _ => Vec::new(),
    }
}

fn plain(text: &StringMatch, free: Free) -> Pattern {
    match text {
        StringMatch::Exact(text) => vec![is(text)],
        StringMatch::Prefix(text) => vec![is(text), Piece::Many(free)],
        StringMatch::Suffix(text) => vec![Piece::Many(free), is(text)],
        StringMatch::Presence => vec![Piece::One(free), Piece::Many(free)],
    }
}

/// A form of one segment of an identity; none when a segment cannot be so.
fn segment(text: &StringMatch) -> Option<Pattern> {
    let slash = match text {
        StringMatch::Exact(t) | StringMatch::Prefix(t) | StringMatch::Suffix(t) => t.contains('/'),
        StringMatch::Presence => false,
    };
    (!slash).then(|| plain(text, Free::NotSlash))
}

/// Issuer and subject are matched apart, and a pattern is split at its last `/`.
fn request_principal(text: &StringMatch) -> Vec<Pattern> {
    match text {
        StringMatch::Exact(t) if !t.contains('/') => Vec::new(),
        StringMatch::Prefix(t) if t.contains('/') => vec![vec![is(t), Piece::Many(Free::NotSlash)]],
        other => vec![plain(other, Free::Any)],
    }
}

/// Hosts that a value matches. A header with the host in it is compared with case where the match is narrow: only what the
/// domain has matches.
fn host(attribute: &Attribute, text: &StringMatch, manner: Manner) -> Vec<Pattern> {
    let (wide, readings) = match manner {
        Manner::Narrow => (false, &[Reading::Whole][..]),
        Manner::Wide => (true, &Reading::ALL[..]),
        Manner::WideAt(ref reading) => (true, std::slice::from_ref(reading)),
        Manner::NarrowAt(ref reading) => (false, std::slice::from_ref(reading)),
    };
    let folds = wide || *attribute == Attribute::Host;
    let mut forms = vec![mapped(text, |t| if folds { t.to_ascii_lowercase() } else { t.to_owned() })];
    if wide {
        let other = mapped(&forms[0], |t| host::dotless(t).unwrap_or_else(|| t.to_owned()));
        forms.extend((other != forms[0]).then_some(other));
    }
    let all = readings.iter().flat_map(|reading| forms.iter().map(|form| host::matching(form, *reading)));
    all.flatten().collect()
}

/// The same match of another text.
fn mapped(text: &StringMatch, change: impl Fn(&str) -> String) -> StringMatch {
    match text {
        StringMatch::Exact(t) => StringMatch::Exact(change(t).into()),
        StringMatch::Prefix(t) => StringMatch::Prefix(change(t).into()),
        StringMatch::Suffix(t) => StringMatch::Suffix(change(t).into()),
        StringMatch::Presence => StringMatch::Presence,
    }
}

/// `{*}` is one segment; `{**}` any number of characters, at least one where no segment border follows it.
fn path_template(template: &str) -> Pattern {
    let mut out = Vec::new();
    let mut rest = template;
    while let Some(open) = rest.find('{') {
        let (literal, operator) = rest.split_at(open);
        if !literal.is_empty() {
            out.push(is(literal));
        }
        if let Some(tail) = operator.strip_prefix("{**}") {
            if !tail.is_empty() && !tail.starts_with('/') {
                out.push(Piece::One(Free::Any));
            }
            out.push(Piece::Many(Free::Any));
            rest = tail;
            // The last operator: what follows is literal.
            break;
        }
        let Some(tail) = operator.strip_prefix("{*}") else { break };
        out.extend([Piece::One(Free::NotSlash), Piece::Many(Free::NotSlash)]);
        rest = tail;
    }
    if !rest.is_empty() {
        out.push(is(rest));
    }
    out
}

/// Whether proofs say nothing of a value: no request with one reading matches it, and one with several may.
pub(crate) fn unreadable(attribute: &Attribute, value: &ValueMatch) -> bool {
    let text = value.text().unwrap_or_default();
    match attribute {
        Attribute::Path => {
            let automaton =
                Automaton::new(Domain::Path, &[patterns(&Attribute::Path, value, Manner::Narrow)]);
            automaton.classes(1 << 16).is_ok_and(|classes| classes.iter().all(|c| c.atoms.is_empty()))
        }
        // Proofs are over hosts in lower case.
        Attribute::Header(_) if is_host(attribute) => text.bytes().any(|b| b.is_ascii_uppercase()),
        Attribute::Header(name) => text.contains(',') || is_of_framing(name),
        _ => false,
    }
}

/// Texts worth showing for a value before others: readable ones that may match it.
pub(crate) fn examples(attribute: &Attribute, value: &ValueMatch) -> Vec<String> {
    match (attribute, value) {
        (Attribute::SourceServiceAccount, ValueMatch::ServiceAccount { namespace, name }) => {
            vec![format!("cluster.local/ns/{namespace}/sa/{name}")]
        }
        (Attribute::SourceNamespace, ValueMatch::String(text)) => match text {
            StringMatch::Exact(t) => vec![format!("cluster.local/ns/{t}/sa/anyone")],
            StringMatch::Prefix(t) => vec![format!("cluster.local/ns/{t}x/sa/anyone")],
            StringMatch::Suffix(t) => vec![format!("cluster.local/ns/x{t}/sa/anyone")],
            StringMatch::Presence => Vec::new(),
        },
        (Attribute::SourceTrustDomain, ValueMatch::String(StringMatch::Exact(t))) => {
            vec![format!("{t}/ns/other/sa/anyone")]
        }
        (Attribute::SourcePrincipal, ValueMatch::String(StringMatch::Prefix(t))) => {
            vec![format!("{t}anyone"), format!("{t}other/sa/anyone"), format!("{t}/sa/anyone")]
        }
        (Attribute::SourcePrincipal, ValueMatch::String(StringMatch::Suffix(t))) => {
            vec![format!("cluster.local/ns/other{t}"), format!("cluster.local/ns/other/sa/x{t}")]
        }
        (Attribute::Path, ValueMatch::String(StringMatch::Prefix(t))) => vec![t.to_string(), format!("{t}x")],
        (Attribute::Header(_), ValueMatch::String(StringMatch::Prefix(t))) => vec![format!("{t}x")],
        _ => Vec::new(),
    }
}

/// Readable texts of a domain, best first.
pub(crate) fn usual(domain: Domain) -> &'static [&'static str] {
    match domain {
        Domain::Identity => &["cluster.local/ns/other/sa/anyone"],
        Domain::Method => &["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"],
        Domain::Path => &["/", "/other", "/other/path"],
        Domain::Host => &["other.example"],
        Domain::RequestPrincipal => &["https://issuer.example/somebody"],
        Domain::Header | Domain::Text | Domain::Word => &["other"],
    }
}

#[cfg(test)]
mod tests {
    use meltemi_policy::http::template_matches;

    use super::*;

    #[test]
    fn templates_match_what_the_engine_matches() {
        let templates = ["/{**}", "/a/{**}", "/f/{*}/b/{**}", "/s/{**}/c", "/{*}", "/{*}/c", "/a{**}b", "/x"];
        let paths = [
            "/",
            "/a",
            "/a/",
            "/a/b",
            "/f/x/b/",
            "/f/x/b/y/z",
            "/f/b/y",
            "/s/c",
            "/s/x/c",
            "/s/x/y/c",
            "/x",
            "/x/c",
            "/ab",
            "/axb",
            "/a/b/b",
        ];
        for template in templates {
            let automaton = Automaton::new(Domain::Path, &[vec![path_template(template)]]);
            for path in paths {
                let ours = automaton.matched(path) == Some(vec![0]);
                assert_eq!(ours, template_matches(template, path), "{template} {path}");
            }
        }
    }
}
