// SPDX-License-Identifier: Apache-2.0
//! Readings: the texts that a server may take for the value of an attribute, and how a policy is compared with them.
//!
//! Every attribute of a request that is a text goes through [`each`]. A DENY matches when one reading fulfils it; an
//! ALLOW needs every reading to fulfil it; `not_values` are mirrored, since a match there works the other way round.
//! So each value of a policy is compared in one of two manners: *widely* where a missed match would let a request
//! through (values of a DENY, not-values of an ALLOW), and *narrowly* where a mistaken match would (the other two).

use meltemi_model::authz::{Attribute, StringMatch, ValueMatch};
use smallvec::SmallVec;

use crate::facts::HttpFacts;
use crate::http::{header_value, host_name, list_elements, template_matches};
use crate::matching::Sense;
use crate::path::{self, canonical_escapes};

/// One reading of an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading<'a> {
    /// The value as a whole. It has to fulfil all of a predicate.
    Whole(&'a str),
    /// A part of it (an element of a list) or another form of it (a host without its port). It is only looked at where
    /// a match is wide.
    Part(&'a str),
    /// Nothing: some server does not see the attribute, or the request does not have it.
    Absent,
}

/// Whether the attribute is a text of the request with readings.
pub(crate) fn has_readings(attribute: &Attribute) -> bool {
    matches!(attribute, Attribute::Method | Attribute::Path | Attribute::Host | Attribute::Header(_))
}

/// Whether the attribute is the host of the request: `hosts`, or one of the headers that HTTP/2 and HTTP/1.1 have for it.
pub(crate) fn is_host(attribute: &Attribute) -> bool {
    match attribute {
        Attribute::Host => true,
        Attribute::Header(name) => is_host_header(name),
        _ => false,
    }
}

fn is_host_header(name: &str) -> bool {
    matches!(name, "host" | ":authority")
}

/// Whether `*` matches an empty value as well: of a header, it asks whether the header is there.
pub(crate) fn presence_of_empty(attribute: &Attribute) -> bool {
    matches!(attribute, Attribute::Method | Attribute::Host | Attribute::Header(_))
}

/// Calls `with` for every reading of an attribute that [`has_readings`]; at least once.
pub(crate) fn each(attribute: &Attribute, http: &HttpFacts<'_>, with: &mut dyn FnMut(Reading<'_>)) {
    match attribute {
        Attribute::Method => with(Reading::Whole(http.method)),
        Attribute::Path if !http.paths.is_empty() => {
            http.paths.iter().for_each(|path| with(Reading::Whole(path)));
        }
        Attribute::Header(name) if !is_host_header(name) => each_header(name, http, with),
        Attribute::Host | Attribute::Header(_) => each_host(http.host, with),
        _ => with(Reading::Absent),
    }
}

fn each_header(name: &str, http: &HttpFacts<'_>, with: &mut dyn FnMut(Reading<'_>)) {
    let mut absent = true;
    http.headers.each(name, &mut |value| {
        absent = false;
        let text = header_value(value);
        with(Reading::Whole(text));
        if text.len() < value.len() {
            // HTTP/2 does not take blanks off, nor do all servers.
            with(Reading::Whole(value));
        }
        list_elements(text).for_each(|element| with(Reading::Part(element)));
    });
    if absent || http.headers.may_lack(name) {
        with(Reading::Absent);
    }
}

/// The host as written; then without its port, and without the dot at the end of its name, with the port and without.
fn each_host(host: &str, with: &mut dyn FnMut(Reading<'_>)) {
    with(Reading::Whole(host));
    let name = host_name(host);
    if name.len() < host.len() {
        with(Reading::Part(name));
    }
    if let Some(dotless) = name.strip_suffix('.') {
        with(Reading::Part(dotless));
        if name.len() < host.len() {
            let mut both: SmallVec<[u8; 256]> = SmallVec::from_slice(dotless.as_bytes());
            both.extend_from_slice(&host.as_bytes()[name.len()..]);
            // Cut before ASCII characters: the text stays one.
            with(Reading::Part(std::str::from_utf8(&both).unwrap_or(dotless)));
        }
    }
}

/// The forms of a policy's value that readings are compared with where a match is wide: as written, and what else its
/// author may have meant by it.
pub(crate) fn wide_forms(attribute: &Attribute, value: &ValueMatch) -> SmallVec<[ValueMatch; 2]> {
    let mut all = SmallVec::from_iter([value.clone()]);
    let mut add = |form: Option<ValueMatch>| {
        if let Some(form) = form.filter(|form| !all.contains(form)) {
            all.push(form);
        }
    };
    match attribute {
        Attribute::Path if is_literal(value) => {
            add(map_text(value, |text| Some(canonical_escapes(text).into_owned())));
            add(map_text(value, path::decoded_but_slashes));
        }
        _ if is_host(attribute) => add(map_text(value, |text| {
            let name = host_name(text);
            let dotless = name.strip_suffix('.').filter(|left| !left.is_empty())?;
            Some(format!("{dotless}{}", &text[name.len()..]))
        })),
        _ => {}
    }
    all
}

/// The value with another text in the same form; `None` where there is no such text, or it would mean something else.
fn map_text(value: &ValueMatch, change: impl Fn(&str) -> Option<String>) -> Option<ValueMatch> {
    let changed = |text: &str| change(text).map(Into::into);
    Some(match value {
        ValueMatch::String(StringMatch::Exact(text)) => {
            ValueMatch::String(StringMatch::Exact(changed(text)?))
        }
        ValueMatch::String(StringMatch::Prefix(text)) => {
            ValueMatch::String(StringMatch::Prefix(changed(text)?))
        }
        ValueMatch::String(StringMatch::Suffix(text)) => {
            ValueMatch::String(StringMatch::Suffix(changed(text)?))
        }
        ValueMatch::PathTemplate(template) => {
            let text = change(&template.0)?;
            // An escaped brace is a character, a brace is an operator.
            let braces = |text: &str| text.matches(['{', '}']).count();
            if braces(&text) != braces(&template.0) {
                return None;
            }
            ValueMatch::PathTemplate(meltemi_model::authz::PathTemplate(text.into()))
        }
        _ => return None,
    })
}

/// Whether a value holds what paths are read in several ways for (escapes, `;`, `\`, `//`). Where a match is narrow, it
/// then matches the path as it is forwarded, and only if each way to read paths gives a path within the pattern that the
/// same way gives for the value ([`literal_holds`]).
pub(crate) fn is_literal(value: &ValueMatch) -> bool {
    value.text().is_some_and(|text| text.contains(['%', ';', '\\']) || text.contains("//"))
}

/// Whether a literal value matches narrowly. `/api;v=1/*` holds of `/api;v=1/x`, which some servers read as `/api/x`; it
/// does not hold of `/api;v=1/..%2fadmin`, which some read as `/admin`.
pub(crate) fn literal_holds(value: &ValueMatch, paths: &[String]) -> bool {
    let Some(forwarded) = paths.first() else { return false };
    // Escapes are forwarded in one notation; Istio compares them as they were sent.
    let sent = paths.iter().find(|path| *path != forwarded && canonical_escapes(path) == *forwarded);
    let canonical = canonical_escapes(forwarded);
    text_matches(&Attribute::Path, value, sent.unwrap_or(forwarded))
        && path::WAYS.iter().all(|way| {
            let own = map_text(value, |text| Some(way.of_pattern(&canonical_escapes(text))));
            own.is_some_and(|own| text_matches(&Attribute::Path, &own, &way.of_path(&canonical)))
        })
}

/// Whether a value has to be compared with the request itself where a match is narrow: an index, which looks up texts,
/// cannot tell.
pub(crate) fn needs_request(attribute: &Attribute, value: &ValueMatch) -> bool {
    match attribute {
        Attribute::Path => is_literal(value),
        // Compared with case there, and looked up without.
        Attribute::Header(name) => is_host_header(name),
        _ => false,
    }
}

/// Whether a value matches a reading, where a missed match would let a request through.
fn matches_widely(attribute: &Attribute, value: &ValueMatch, text: &str) -> bool {
    if is_host(attribute) {
        let host = &Attribute::Host;
        return wide_forms(attribute, value).iter().any(|form| text_matches(host, form, text));
    }
    match attribute {
        Attribute::Path if is_literal(value) => {
            wide_forms(attribute, value).iter().any(|form| text_matches(attribute, form, text))
        }
        _ => text_matches(attribute, value, text),
    }
}

/// Whether a value matches a reading, where a mistaken match would let a request through.
fn matches_narrowly(attribute: &Attribute, value: &ValueMatch, text: &str, http: &HttpFacts<'_>) -> bool {
    match attribute {
        Attribute::Path if is_literal(value) => literal_holds(value, http.paths),
        _ => text_matches(attribute, value, text),
    }
}

/// Whether the readings of an attribute fulfil a predicate.
pub(crate) fn fulfil(
    attribute: &Attribute,
    (values, not_values): (&[ValueMatch], &[ValueMatch]),
    http: &HttpFacts<'_>,
    sense: Sense,
) -> bool {
    let wide = |value: &ValueMatch, text: &str| matches_widely(attribute, value, text);
    let narrow = |value: &ValueMatch, text: &str| matches_narrowly(attribute, value, text, http);
    let (mut any, mut all) = (false, true);
    each(attribute, http, &mut |reading| match (reading, sense) {
        (Reading::Whole(text), Sense::Allow) => {
            all &= (values.is_empty() || values.iter().any(|v| narrow(v, text)))
                && !not_values.iter().any(|v| wide(v, text));
        }
        (Reading::Whole(text), Sense::Deny) => {
            any |= (values.is_empty() || values.iter().any(|v| wide(v, text)))
                && !not_values.iter().any(|v| narrow(v, text));
        }
        (Reading::Part(text), Sense::Allow) => all &= !not_values.iter().any(|v| wide(v, text)),
        // What a DENY looks for may be a part; it does not look for what is none.
        (Reading::Part(text), Sense::Deny) => {
            any |= values.iter().any(|v| wide(v, text)) && !not_values.iter().any(|v| narrow(v, text));
        }
        // No value matches what is not there.
        (Reading::Absent, _) => {
            any |= values.is_empty();
            all &= values.is_empty();
        }
    });
    match sense {
        Sense::Allow => all,
        Sense::Deny => any,
    }
}

/// Whether a value matches a text, without a look at other readings.
pub(crate) fn text_matches(attribute: &Attribute, wanted: &ValueMatch, value: &str) -> bool {
    match wanted {
        ValueMatch::String(StringMatch::Presence) => presence_of_empty(attribute) || !value.is_empty(),
        ValueMatch::String(text) if *attribute == Attribute::Host => without_case(text, value),
        ValueMatch::String(text) => text.matches(value),
        ValueMatch::PathTemplate(template) => template_matches(&template.0, value),
        _ => false,
    }
}

fn without_case(wanted: &StringMatch, value: &str) -> bool {
    let (bytes, fold) = (value.as_bytes(), |a: &[u8], b: &[u8]| a.eq_ignore_ascii_case(b));
    match wanted {
        StringMatch::Exact(text) => fold(bytes, text.as_bytes()),
        StringMatch::Prefix(text) => bytes.len() >= text.len() && fold(&bytes[..text.len()], text.as_bytes()),
        StringMatch::Suffix(text) => {
            bytes.len() >= text.len() && fold(&bytes[bytes.len() - text.len()..], text.as_bytes())
        }
        StringMatch::Presence => true,
    }
}
