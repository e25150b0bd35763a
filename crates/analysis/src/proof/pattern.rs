// SPDX-License-Identifier: Apache-2.0
//! What a value of a policy says of the text of its attribute, as patterns. It must say what `policy::decide` does; the
//! property tests hold the two against each other.

use meltemi_model::authz::{Attribute, StringMatch, ValueMatch};
use meltemi_policy::http::host_name;

use super::domain::Domain;
use super::text::{Automaton, Free, Pattern, Piece};

/// How a value is compared with a request that has several readings (`policy::reading`): of a host, with or without a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Manner {
    /// With the text as it is: values of an ALLOW, not-values of a DENY, and what is given of a request.
    Narrow,
    /// With every form of it: values of a DENY, not-values of an ALLOW.
    Wide,
}

impl Manner {
    /// The manner for an attribute: where both are the same, the narrow one.
    pub(crate) fn of(self, attribute: &Attribute) -> Self {
        if is_host(attribute) { self } else { Self::Narrow }
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
        (_, ValueMatch::String(text)) if is_host(attribute) => match manner {
            Manner::Wide => host(text),
            Manner::Narrow => host_as_written(attribute, text),
        },
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

/// The host as it is, in lower case. A header with the host in it is compared with case: only what the domain has matches.
fn host_as_written(attribute: &Attribute, text: &StringMatch) -> Vec<Pattern> {
    let folds = *attribute == Attribute::Host;
    let fold = |t: &str| if folds { t.to_ascii_lowercase().into() } else { t.into() };
    match text {
        StringMatch::Exact(t) => vec![plain(&StringMatch::Exact(fold(t)), Free::Any)],
        StringMatch::Prefix(t) => vec![plain(&StringMatch::Prefix(fold(t)), Free::Any)],
        StringMatch::Suffix(t) => vec![plain(&StringMatch::Suffix(fold(t)), Free::Any)],
        StringMatch::Presence => vec![vec![Piece::Many(Free::Any)]],
    }
}

/// Every form of a host: as it is, without its port, without a dot at the end of its name, without both; in lower case. The
/// value is compared without such a dot as well.
fn host(text: &StringMatch) -> Vec<Pattern> {
    let lower = |t: &str| t.to_ascii_lowercase();
    let rest = [Piece::Many(Free::Any)];
    let written = |t: String, before: Option<Free>| {
        let lead = |free: Free| before.map(|_| Piece::Many(free)).into_iter().collect::<Vec<Piece>>();
        let mut all = vec![[lead(Free::Any), vec![is(&t)]].concat()];
        let (name, port) = (host_name(&t), &t[host_name(&t).len()..]);
        if port.is_empty() && (before.is_none() || t.ends_with(']')) {
            all.push([lead(Free::Any), vec![is(&format!("{t}:"))], rest.to_vec()].concat());
        }
        if t.starts_with('[') || t.ends_with(']') {
            return all;
        }
        if port.is_empty() {
            all.push([lead(Free::NotColon), vec![is(&format!("{t}:"))], rest.to_vec()].concat());
            all.push([lead(Free::NotColon), vec![is(&format!("{t}."))]].concat());
            all.push([lead(Free::NotColon), vec![is(&format!("{t}.:"))], rest.to_vec()].concat());
        } else {
            // The name ends before the port, and may have a dot there.
            all.push([lead(Free::NotColon), vec![is(&format!("{name}.{port}"))]].concat());
        }
        all
    };
    match text {
        StringMatch::Exact(t) => dotless(&lower(t)).into_iter().flat_map(|t| written(t, None)).collect(),
        StringMatch::Suffix(t) => {
            dotless(&lower(t)).into_iter().flat_map(|t| written(t, Some(Free::Any))).collect()
        }
        // What the other forms leave out is at the end.
        StringMatch::Prefix(t) => {
            let texts = dotless(&lower(t)).into_iter();
            texts.map(|t| plain(&StringMatch::Prefix(t.into()), Free::Any)).collect()
        }
        StringMatch::Presence => vec![vec![Piece::Many(Free::Any)]],
    }
}

/// The text of a host, and the same without a dot at the end of its name.
fn dotless(text: &str) -> Vec<String> {
    let name = host_name(text);
    let left = name.strip_suffix('.').filter(|left| !left.is_empty());
    let other = left.map(|left| format!("{left}{}", &text[name.len()..]));
    std::iter::once(text.to_owned()).chain(other).collect()
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
        Attribute::Header(_) => text.contains(','),
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
