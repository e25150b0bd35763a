// SPDX-License-Identifier: Apache-2.0
//! Regular expressions of routes: read once, where they come in; linear in time, bounded in size, over the whole value.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use regex_automata::meta::Regex;
use regex_automata::util::syntax;
use serde::{Deserialize, Serialize};

/// Bytes of a pattern's text at most.
pub const MAX_TEXT: usize = 1024;
/// Bytes of a compiled pattern at most, and of the cache of each thread that matches by it.
pub const MAX_COMPILED: usize = 1024 * 1024;

/// A regular expression, compiled; two are equal when their texts are. On the wire it is its text.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern {
    text: Arc<str>,
    regex: Regex,
}

/// Why a text is no [`Pattern`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPattern {
    /// Longer than [`MAX_TEXT`].
    #[error("a regular expression of {0} bytes, {MAX_TEXT} are allowed")]
    Long(usize),
    /// It does not parse, or needs more than [`MAX_COMPILED`].
    #[error("regular expression {text:?}: {reason}")]
    Refused {
        /// The text.
        text: String,
        /// One line.
        reason: String,
    },
}

impl Pattern {
    /// The text as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the whole value matches.
    pub fn matches(&self, value: &[u8]) -> bool {
        self.regex.is_match(value)
    }
}

impl FromStr for Pattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        if text.len() > MAX_TEXT {
            return Err(InvalidPattern::Long(text.len()));
        }
        let refused = |reason: String| InvalidPattern::Refused { text: text.to_owned(), reason };
        // Parsed alone first: `a)|(b` must not escape from the group.
        let syntax = syntax::Config::new().utf8(false);
        syntax::parse_with(text, &syntax).map_err(|e| refused(last_line(&e)))?;
        let regex = Regex::builder()
            .configure(
                Regex::config()
                    .nfa_size_limit(Some(MAX_COMPILED))
                    .onepass_size_limit(Some(MAX_COMPILED))
                    .hybrid_cache_capacity(MAX_COMPILED)
                    .utf8_empty(false),
            )
            .syntax(syntax)
            .build(&format!("^(?:{text})$"))
            .map_err(|e| refused(e.size_limit().map_or_else(|| last_line(&e), |_| "too large".to_owned())))?;
        Ok(Self { text: text.into(), regex })
    }
}

/// Parsers draw a picture of the place first; the reason stands in the last line.
fn last_line(error: &impl fmt::Display) -> String {
    let text = error.to_string();
    text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

impl TryFrom<String> for Pattern {
    type Error = InvalidPattern;

    fn try_from(text: String) -> Result<Self, InvalidPattern> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.text.as_ref().to_owned()
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({:?})", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_value_matches_and_bombs_do_not_go_off() {
        for (pattern, value, expected) in [
            ("/v[0-9]+", "/v12", true),
            ("/v[0-9]+", "/v12/admin", false),
            ("/a|/b", "/ax", false),
            ("", "", true),
            ("(a+)+$", &format!("{}b", "a".repeat(50_000)), false),
        ] {
            let begun = std::time::Instant::now();
            let read: Pattern = pattern.parse().unwrap();
            assert_eq!(read.matches(value.as_bytes()), expected, "{pattern:.40} {value:.40}");
            assert!(begun.elapsed() < std::time::Duration::from_secs(2), "{pattern:.40}");
        }
    }

    #[test]
    fn what_cannot_be_matched_is_refused_with_the_reason() {
        for (pattern, reason) in [
            ("a)|(b", r#"regular expression "a)|(b": unopened group"#),
            ("(", r#"regular expression "(": unclosed group"#),
            ("(?<=a)b", "look-around, including look-ahead and look-behind, is not supported"),
            ("((((a{100}){100}){100}){100})", "too large"),
            (&"a".repeat(MAX_TEXT + 1), "a regular expression of 1025 bytes, 1024 are allowed"),
        ] {
            let error = pattern.parse::<Pattern>().unwrap_err().to_string();
            assert!(error.ends_with(reason), "{error}");
        }
    }
}
