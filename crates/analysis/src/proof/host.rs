// SPDX-License-Identifier: Apache-2.0
//! Hosts as patterns: a value of a policy compared with one reading of a host, written as patterns of the whole host.

use meltemi_model::authz::StringMatch;
use meltemi_policy::http::host_name;

use super::text::{Free, Pattern, Piece};

/// A reading of a host, as `policy::reading` has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Reading {
    /// As written.
    Whole,
    /// Without its port; a host without a port does not have it.
    Name,
    /// Without its port and without the dot at the end of its name; a name without the dot does not have it.
    Dotless,
    /// Without the dot at the end of its name, with its port; only where there are both.
    DotlessPort,
}

impl Reading {
    /// Every reading.
    pub(crate) const ALL: [Self; 4] = [Self::Whole, Self::Name, Self::Dotless, Self::DotlessPort];
}

fn is(text: impl Into<String>) -> Piece {
    Piece::Is(text.into())
}

/// Hosts of which a reading matches a text, compared with case: the domain of hosts is in lower case.
pub(super) fn matching(text: &StringMatch, reading: Reading) -> Vec<Pattern> {
    let value = Value::of(text);
    match reading {
        Reading::Whole => vec![value.between(Free::Any, value.core)],
        Reading::Name => value.name().into_iter().chain(value.literal()).collect(),
        Reading::Dotless => value.dotless(),
        Reading::DotlessPort => value.dotless_port().into_iter().collect(),
    }
}

/// The text of a value without a dot at the end of its name, where it has one: such values match widely without it too.
pub(super) fn dotless(text: &str) -> Option<String> {
    let name = host_name(text);
    let left = name.strip_suffix('.').filter(|left| !left.is_empty())?;
    Some(format!("{left}{}", &text[name.len()..]))
}

/// A value: literal text, and whether any text may be before it or after it.
#[derive(Clone, Copy)]
struct Value<'a> {
    before: bool,
    core: &'a str,
    after: bool,
}

impl<'a> Value<'a> {
    fn of(text: &'a StringMatch) -> Self {
        let (before, core, after) = match text {
            StringMatch::Exact(text) => (false, &**text, false),
            StringMatch::Prefix(text) => (false, &**text, true),
            StringMatch::Suffix(text) => (true, &**text, false),
            StringMatch::Presence => (false, "", true),
        };
        Self { before, core, after }
    }

    /// The value with another literal text.
    fn between(self, free: Free, core: &str) -> Pattern {
        let lead = self.before.then_some(Piece::Many(free));
        let tail = self.after.then_some(Piece::Many(free));
        lead.into_iter().chain([is(core)]).chain(tail).collect()
    }

    /// The value as (a part of) a name that is no address; `None` when it has characters that no name has.
    fn in_name(self) -> Option<Pattern> {
        (!self.core.contains([':', '[', ']'])).then(|| self.between(Free::Name, self.core))
    }

    /// A name before a port.
    fn name(self) -> Option<Pattern> {
        let mut pattern = self.in_name()?;
        pattern.extend([is(":"), Piece::Many(Free::Any)]);
        Some(pattern)
    }

    /// An IPv6 address in brackets before a port. Brackets are at its ends only.
    fn literal(self) -> Vec<Pattern> {
        let (opens, closes) = (self.core.starts_with('['), self.core.ends_with(']'));
        let mut heads: Vec<Pattern> = Vec::new();
        if opens {
            heads.push(vec![is(self.core)]);
        } else if self.before {
            heads.push(vec![is("["), Piece::Many(Free::Any), is(self.core)]);
        } else if self.core.is_empty() {
            heads.push(vec![is("[")]);
        }
        let port = [is(":"), Piece::Many(Free::Any)];
        let tail: Vec<Piece> = match (closes, self.after || self.core.is_empty()) {
            (true, _) => port.to_vec(),
            (false, true) => [&[Piece::Many(Free::Any), is("]")], &port[..]].concat(),
            (false, false) => return Vec::new(),
        };
        heads.into_iter().map(|head| [head, tail.clone()].concat()).collect()
    }

    /// A name before a dot, at the end or before a port.
    fn dotless(self) -> Vec<Pattern> {
        let Some(name) = self.in_name() else { return Vec::new() };
        let port = [is(".:"), Piece::Many(Free::Any)];
        vec![[&*name, &[is(".")]].concat(), [&*name, &port].concat()]
    }

    /// Name and port, with a dot between the two that the value does not have.
    fn dotless_port(self) -> Option<Pattern> {
        let lead = || self.before.then_some(Piece::Many(Free::Name)).into_iter();
        if let Some((name, port)) = self.core.split_once(':') {
            let tail = self.after.then_some(Piece::Many(Free::Any));
            let named = !name.contains(['[', ']']);
            return named.then(|| lead().chain([is(name), is(".:"), is(port)]).chain(tail).collect());
        }
        let dot = [is(".:"), Piece::Many(Free::Any)];
        if self.after {
            return self.in_name().map(|name| [&*name, &dot].concat());
        }
        // Without a colon, what is at the end is of the port.
        self.before.then(|| lead().chain(dot).chain([is(self.core)]).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proof::domain::Domain;
    use crate::proof::text::Automaton;

    /// The reading itself.
    fn read(host: &str, reading: Reading) -> Option<String> {
        let name = host_name(host);
        let port = &host[name.len()..];
        let dotless = name.strip_suffix('.');
        match reading {
            Reading::Whole => Some(host.to_owned()),
            Reading::Name => (!port.is_empty()).then(|| name.to_owned()),
            Reading::Dotless => dotless.map(str::to_owned),
            Reading::DotlessPort => dotless.filter(|_| !port.is_empty()).map(|d| format!("{d}{port}")),
        }
    }

    #[test]
    fn patterns_match_the_hosts_whose_reading_matches() {
        let names = ["", "a", "a.", ".", "a.b", "a.b.", "..", "[ab]", "[a:b]", "[ab:a]", "[::a.1]", "[]"];
        let ports = ["", ":", ":8", ":80", ":08"];
        let hosts: Vec<String> =
            names.iter().flat_map(|n| ports.iter().map(move |p| format!("{n}{p}"))).collect();
        let hosts: Vec<String> = hosts.into_iter().filter(|h| Domain::Host.has(h)).collect();
        assert!(hosts.len() > 50, "{hosts:?}");
        let mut texts: Vec<String> = vec!["A".into(), "]:".into(), "b]:8".into(), "a]:*".into()];
        for host in &hosts {
            let ends = (0..=host.len()).flat_map(|at| [host[..at].to_owned(), host[at..].to_owned()]);
            texts.extend(ends.filter(|t| !t.is_empty()));
        }
        texts.sort();
        texts.dedup();
        let wrap = |t: &String| {
            let text = || (&**t).into();
            [StringMatch::Exact(text()), StringMatch::Prefix(text()), StringMatch::Suffix(text())]
        };
        for value in texts.iter().flat_map(wrap).chain([StringMatch::Presence]) {
            for reading in Reading::ALL {
                let automaton = Automaton::new(Domain::Host, &[matching(&value, reading)]);
                for host in &hosts {
                    let expected = read(host, reading)
                        .is_some_and(|r| value == StringMatch::Presence || value.matches(&r));
                    let ours = automaton.matched(host) == Some(vec![0]);
                    assert_eq!(ours, expected, "{value:?} {reading:?} {host}");
                }
            }
        }
    }
}
