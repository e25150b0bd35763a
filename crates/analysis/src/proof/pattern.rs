// SPDX-License-Identifier: Apache-2.0
//! What a value of a policy says of the text of its attribute, as patterns. It must say what `policy::decide` does; the
//! property tests hold the two against each other.

use meltemi_model::authz::{Attribute, StringMatch, ValueMatch};

use super::domain::Domain;
use super::text::{Automaton, Free, Pattern, Piece};

/// The domain of an attribute's text; none for addresses and ports.
pub(crate) fn domain(attribute: &Attribute) -> Option<Domain> {
    Some(match attribute {
        Attribute::SourcePrincipal
        | Attribute::SourceNamespace
        | Attribute::SourceServiceAccount
        | Attribute::SourceTrustDomain => Domain::Identity,
        Attribute::Method => Domain::Method,
        Attribute::Path => Domain::Path,
        Attribute::Host => Domain::Host,
        Attribute::Header(_) => Domain::Header,
        Attribute::RequestPrincipal => Domain::RequestPrincipal,
        Attribute::ConnectionSni
        | Attribute::RequestAuthAudiences
        | Attribute::RequestAuthPresenter
        | Attribute::RequestAuthClaim(_) => Domain::Text,
        Attribute::SourceIp
        | Attribute::RemoteIp
        | Attribute::DestinationIp
        | Attribute::DestinationPort
        | Attribute::Unsupported(_) => return None,
    })
}

fn is(text: &str) -> Piece {
    Piece::Is(text.to_owned())
}

/// The patterns of a value, any of which is a match; none when it never matches.
pub(crate) fn patterns(attribute: &Attribute, value: &ValueMatch) -> Vec<Pattern> {
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
        (Attribute::Host, ValueMatch::String(text)) => host(text),
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

/// A host matches as it is, without its port, and without a dot at its end; in lower case.
fn host(text: &StringMatch) -> Vec<Pattern> {
    let lower = |t: &str| t.to_ascii_lowercase();
    let rest = [Piece::Many(Free::Any)];
    match text {
        StringMatch::Exact(t) => {
            let t = lower(t);
            let mut all = vec![vec![is(&t)]];
            if !t.contains(':') || t.starts_with('[') {
                all.push([vec![is(&format!("{t}:"))], rest.to_vec()].concat());
            }
            if !t.contains(':') {
                all.push(vec![is(&format!("{t}."))]);
                all.push([vec![is(&format!("{t}.:"))], rest.to_vec()].concat());
            }
            all
        }
        StringMatch::Suffix(t) => {
            let t = lower(t);
            let mut all = vec![vec![Piece::Many(Free::Any), is(&t)]];
            if t.ends_with(']') {
                all.push(vec![Piece::Many(Free::Any), is(&format!("{t}:")), Piece::Many(Free::Any)]);
            }
            if !t.contains(':') {
                let before = |t: String| vec![Piece::Many(Free::NotColon), is(&t)];
                all.push([before(format!("{t}:")), rest.to_vec()].concat());
                all.push(before(format!("{t}.")));
                all.push([before(format!("{t}.:")), rest.to_vec()].concat());
            }
            all
        }
        // What the other forms leave out is at the end.
        StringMatch::Prefix(t) => vec![plain(&StringMatch::Prefix(lower(t).into()), Free::Any)],
        StringMatch::Presence => vec![plain(text, Free::Any)],
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

/// Whether no path with one reading matches a value.
pub(crate) fn unreadable(value: &ValueMatch) -> bool {
    let automaton = Automaton::new(Domain::Path, &[patterns(&Attribute::Path, value)]);
    automaton.classes(1 << 16).is_ok_and(|classes| classes.iter().all(|c| c.atoms.is_empty()))
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
        Domain::Header | Domain::Text => &["other"],
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
