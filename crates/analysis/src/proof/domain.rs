// SPDX-License-Identifier: Apache-2.0
//! Which texts an attribute can have at all: the canonical requests over which proofs are made.
//!
//! A proxy judges every reading of an ambiguous request (`policy::http::readings`) against the sender. Proofs are
//! over requests with one reading: paths that normalisation leaves as they are, headers that occur once. Each domain is
//! a small automaton over characters.

/// A domain of texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Domain {
    /// `<trust domain>/ns/<namespace>/sa/<service account>`
    Identity,
    /// A method that a waypoint forwards: upper case.
    Method,
    /// A path with one reading.
    Path,
    /// A host in lower case, with or without a port.
    Host,
    /// A header's value: no blanks around it, and no list.
    Header,
    /// `<issuer>/<subject>`
    RequestPrincipal,
    /// Any text.
    Text,
    /// A text without spaces: an element of a claim that is a list in one string.
    Word,
}

/// State of a domain's automaton.
pub(crate) type At = u8;

const WORD: &str = "xyzwvutsrqponmlkjihgfedcba0123456789-_";
const UPPER: &str = "XYZWVUTSRQPONMLKJIHGFEDCBA0123456789-_.!#$&'*+^`|~%";
const NOT_HEX: &str = "xyzwvutsrqponmlkjihg-_GHIJKLMNOPQRSTUVWXYZ~!$&'()*+,=:@.";

impl Domain {
    pub(crate) const START: At = 0;

    /// The state after a character; none when no text of the domain goes on so.
    pub(crate) fn step(self, at: At, c: char) -> Option<At> {
        match self {
            Self::Identity => identity(at, c),
            Self::Method => UPPER.contains(c).then_some(1),
            Self::Path => path(at, c),
            Self::Host => host(at, c),
            Self::Header => match (at, c) {
                (_, ',') | (0, ' ' | '\t') => None,
                (_, ' ' | '\t') => Some(2),
                _ => (!c.is_control()).then_some(1),
            },
            Self::RequestPrincipal => match (at, c) {
                (0, '/') => None,
                (_, '/') => Some(2),
                // What follows the last `/` is the subject.
                (2 | 3, _) => Some(3),
                _ => Some(1),
            },
            Self::Text => Some(0),
            // An element is not empty.
            Self::Word => (c != ' ').then_some(1),
        }
    }

    /// Whether a text may end here.
    pub(crate) fn ends(self, at: At) -> bool {
        match self {
            Self::Identity => matches!(at, 15 | 16),
            Self::Method => at == 1,
            Self::Path => matches!(at, 1 | 4..=6),
            Self::Host => at != 4,
            Self::Header => at != 2,
            Self::RequestPrincipal => at == 3,
            Self::Text => true,
            Self::Word => at == 1,
        }
    }

    /// Groups of characters that are the same to the automaton, and to every pattern that does not name one of them. One of
    /// each group is enough to try. What a member of another group can stand for is left out.
    pub(crate) fn groups(self, at: At) -> &'static [&'static str] {
        match self {
            Self::Identity => match at {
                0 => &["xyzwvutsrqponmlkjihgfedcba0123456789-_."],
                1 => &["xyzwvutsrqponmlkjihgfedcba0123456789-_.", "/"],
                2 => &["n"],
                3 => &["s"],
                4 | 11 => &["/"],
                9 => &["s"],
                10 => &["a"],
                8 => &["xyzwvutsrqponmlkjihgfedcba0123456789-_ABCDEFGHIJKLMNOPQRSTUVWXYZ.", "/"],
                _ => &["xyzwvutsrqponmlkjihgfedcba0123456789-_ABCDEFGHIJKLMNOPQRSTUVWXYZ."],
            },
            Self::Method => &[UPPER],
            Self::Path => match at {
                0 => &["/"],
                4 => &["xyzwvutsrqponmlkjihgfedcba0123456789-_ABCDEFGHIJKLMNOPQRSTUVWXYZ~!$&'()*+,=:@.", "/"],
                5 => &[NOT_HEX, "/", "%"],
                6 => &[NOT_HEX, "/", "%"],
                _ => &["xyzwvutsrqponmlkjihgfedcba0123456789-_ABCDEFGHIJKLMNOPQRSTUVWXYZ~!$&'()*+,=:@."],
            },
            Self::Host => match at {
                0 | 1 => &["xyzwvutsrqponmlkjihgfedcba0123456789-_~."],
                2 | 3 => &["8901234567"],
                4 => &["123456789abcdef0", "]"],
                _ => &[],
            },
            Self::RequestPrincipal => {
                &["xyzwvutsrqponmlkjihgfedcba0123456789-_.:@ABCDEFGHIJKLMNOPQRSTUVWXYZ", "/"]
            }
            Self::Header | Self::Text | Self::Word => {
                &["xyzwvutsrqponmlkjihgfedcba0123456789-_.:@ABCDEFGHIJKLMNOPQRSTUVWXYZ/;=~!$&'()*+"]
            }
        }
    }

    /// Whether a text is of the domain.
    pub(crate) fn has(self, text: &str) -> bool {
        text.chars().try_fold(Self::START, |at, c| self.step(at, c)).is_some_and(|at| self.ends(at))
    }
}

/// 0, 1: trust domain; 2 to 4: `/ns/`; 5 to 8: namespace; 9 to 11: `sa/`; 12 to 16: service account.
fn identity(at: At, c: char) -> Option<At> {
    let segment = c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    // A segment that is only one or two dots is none.
    let within = |from: At| match (at - from, c) {
        (0, '.') => Some(from + 1),
        (1, '.') => Some(from + 2),
        _ => segment.then_some(from + 3),
    };
    match (at, c) {
        (0 | 1, _) if WORD.contains(c) || c == '.' => Some(1),
        (1, '/') => Some(2),
        (2, 'n') => Some(3),
        (3, 's') => Some(4),
        (4, '/') => Some(5),
        (8, '/') => Some(9),
        (5..=8, _) => within(5),
        (9, 's') => Some(10),
        (10, 'a') => Some(11),
        (11, '/') => Some(12),
        (12..=15, _) => within(12),
        _ => None,
    }
}

/// 0: before the first `/`; 1: at the start of a segment; 2, 3: a segment of one or two dots; 4: within one; 5: after `%`;
/// 6: after `%` and one digit. Every escape has a second reading, so that none is part of it; a `%` that begins none is.
fn path(at: At, c: char) -> Option<At> {
    match (at, c) {
        (0, '/') => Some(1),
        (0, _) => None,
        (5, _) if c.is_ascii_hexdigit() => Some(6),
        (6, _) if c.is_ascii_hexdigit() => None,
        (4..=6, '/') => Some(1),
        (_, '/') => None,
        (1, '.') => Some(2),
        (2, '.') => Some(3),
        (_, '%') => Some(5),
        (_, '\\' | ';' | '?' | '#' | ' ') => None,
        _ => (c.is_ascii() && !c.is_control()).then_some(4),
    }
}

/// 0: nothing yet; 1: name; 2, 3: port; 4, 5: an IPv6 literal.
fn host(at: At, c: char) -> Option<At> {
    match (at, c) {
        (0, '[') => Some(4),
        (4, ']') => Some(5),
        (4, _) => (c == ':' || c == '.' || c.is_ascii_hexdigit()).then_some(4),
        (1 | 5, ':') => Some(2),
        (2 | 3, '0'..='9') => Some(3),
        (0 | 1, _) => {
            let name = c.is_ascii_lowercase() || c.is_ascii_digit() || "-._~%!$&'()*+,;=".contains(c);
            name.then_some(1)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use meltemi_model::SpiffeId;
    use meltemi_policy::http::{Normalization, method_is_clean, normalize, readings};

    use super::*;

    #[test]
    fn identities_are_those_that_can_be_parsed() {
        for text in [
            "a/ns/b/sa/c",
            "a.b/ns/..c/sa/...",
            "a/ns/./sa/c",
            "a/ns/b/sa/..",
            "A/ns/b/sa/c",
            "a/ns/b/sa/c/d",
        ] {
            let parsed = SpiffeId::parse(&format!("spiffe://{text}")).is_ok();
            assert_eq!(Domain::Identity.has(text), parsed, "{text}");
        }
    }

    #[test]
    fn paths_are_those_with_one_reading() {
        let escapes = (0..=255u16).flat_map(|b| [format!("/a%{b:02x}b"), format!("/%{b:02X}")]);
        let plain = [
            "/", "/a", "/a/", "/a//b", "/a/./b", "/a/..", "/a/...", "/.a", "/a;b", "/a\\b", "/..a/b",
            "/a%2fb/c", "/a%", "/a%/", "/a%2", "/a%2/b", "/a%%20", "/a%zz", "/a%2g", "/%", "//a", "/..%",
        ];
        for path in escapes.chain(plain.into_iter().map(str::to_owned)) {
            let normal = normalize(&path, Normalization::Base);
            let one = normal.is_ok_and(|n| n == path && readings(&n).len() == 1);
            assert_eq!(Domain::Path.has(&path), one, "{path}");
        }
        assert!(!Domain::Path.has("") && !Domain::Path.has("a"));
    }

    #[test]
    fn methods_are_the_clean_ones() {
        for c in (0..128u8).map(char::from) {
            assert_eq!(Domain::Method.has(&c.to_string()), method_is_clean(&c.to_string()), "{c:?}");
        }
    }
}
