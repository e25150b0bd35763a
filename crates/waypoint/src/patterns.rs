// SPDX-License-Identifier: Apache-2.0
//! Patterns: regular expressions of routes, compiled once. Linear in time, bounded in size, over the whole value.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use regex_automata::meta::Regex;
use regex_automata::util::syntax;

use crate::limits::{MAX_REGEX, MAX_REGEX_BYTES, MAX_REGEXES};

/// Compiled patterns by their text; none for one that is not a regular expression, or too large.
#[derive(Debug, Default)]
pub(crate) struct Patterns(Mutex<HashMap<Arc<str>, Option<Regex>>>);

impl Patterns {
    /// Whether the whole value matches. A pattern that cannot be used matches nothing, and the log says so once.
    pub(crate) fn matches(&self, pattern: &str, value: &[u8]) -> bool {
        let regex = {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match known.get(pattern) {
                Some(regex) => regex.clone(),
                None => {
                    // Patterns of routes that are gone: all are compiled again when they are met again.
                    if known.len() >= MAX_REGEXES {
                        known.clear();
                    }
                    let regex = compile(pattern)
                        .inspect_err(|reason| tracing::error!(%reason, "a route's condition matches nothing"))
                        .ok();
                    known.insert(pattern.into(), regex.clone());
                    regex
                }
            }
        };
        regex.is_some_and(|regex| regex.is_match(value))
    }
}

fn compile(pattern: &str) -> Result<Regex, String> {
    if pattern.len() > MAX_REGEX {
        return Err(format!("a regular expression of {} bytes; {MAX_REGEX} are taken", pattern.len()));
    }
    // Parsed alone first: `a)|(b` must not escape from the group.
    let syntax = syntax::Config::new().utf8(false);
    syntax::parse_with(pattern, &syntax).map_err(|e| format!("regular expression {pattern:?}: {e}"))?;
    Regex::builder()
        .configure(
            Regex::config()
                .nfa_size_limit(Some(MAX_REGEX_BYTES))
                .onepass_size_limit(Some(MAX_REGEX_BYTES))
                .hybrid_cache_capacity(MAX_REGEX_BYTES)
                .utf8_empty(false),
        )
        .syntax(syntax)
        .build(&format!("^(?:{pattern})$"))
        .map_err(|e| format!("regular expression {pattern:?}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_value_matches_and_bombs_do_not_go_off() {
        let patterns = Patterns::default();
        for (pattern, value, expected) in [
            ("/v[0-9]+", "/v12", true),
            ("/v[0-9]+", "/v12/admin", false),
            ("/a|/b", "/ax", false),
            ("(a+)+$", &format!("{}b", "a".repeat(50_000)), false),
            ("a)|(b", "b", false),
            ("(", "(", false),
            ("((((a{100}){100}){100}){100})", "a", false),
            (&"a".repeat(MAX_REGEX + 1), &"a".repeat(MAX_REGEX + 1), false),
        ] {
            let begun = std::time::Instant::now();
            assert_eq!(patterns.matches(pattern, value.as_bytes()), expected, "{pattern:.40} {value:.40}");
            assert!(begun.elapsed() < std::time::Duration::from_secs(2), "{pattern:.40}");
        }
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let patterns = Patterns::default();
        for n in 0..MAX_REGEXES + 10 {
            assert!(patterns.matches(&format!("{n}"), n.to_string().as_bytes()));
        }
        assert!(patterns.0.lock().unwrap().len() <= MAX_REGEXES);
    }
}
