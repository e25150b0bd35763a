// SPDX-License-Identifier: Apache-2.0
//! Patterns of schemas, each compiled once. They are matched in linear time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use regex_automata::meta::Regex;

/// Patterns that are kept compiled.
const MAX_PATTERNS: usize = 1024;

/// A pattern of a schema, compiled once; `None` if it cannot be.
pub(super) fn compiled(pattern: &str) -> Option<Arc<Regex>> {
    static PATTERNS: Mutex<BTreeMap<String, Option<Arc<Regex>>>> = Mutex::new(BTreeMap::new());
    let mut patterns = PATTERNS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = patterns.get(pattern) {
        return known.clone();
    }
    let regex = Regex::new(pattern).ok().map(Arc::new);
    if patterns.len() >= MAX_PATTERNS {
        patterns.clear();
    }
    patterns.insert(pattern.to_owned(), regex.clone());
    regex
}
