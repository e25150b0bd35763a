// SPDX-License-Identifier: Apache-2.0
//! Tokens that a key set has verified: the whole token is the key, so that a hit is the same token.

use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::HashMap;

use crate::claims::Verified;

/// Bytes that the tokens of one key set take at most, with their claims.
const BYTES: usize = 4 * 1024 * 1024;
/// Tokens of one key set at most.
const TOKENS: usize = 4096;
/// What an entry takes beside its token and claims.
const ENTRY: usize = 128;

/// Two generations: when the younger is full it becomes the older one, and what nobody has used since is forgotten.
#[derive(Default)]
pub(crate) struct Cache(Mutex<Generations>);

#[derive(Default)]
struct Generations {
    young: HashMap<Box<str>, Arc<Verified>>,
    old: HashMap<Box<str>, Arc<Verified>>,
    /// Bytes of the younger one.
    bytes: usize,
}

impl Cache {
    pub(crate) fn get(&self, token: &str) -> Option<Arc<Verified>> {
        let mut generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = generations.young.get(token) {
            return Some(known.clone());
        }
        let (token, known) = generations.old.remove_entry(token)?;
        generations.put(token, known.clone());
        Some(known)
    }

    pub(crate) fn put(&self, token: &str, verified: Arc<Verified>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).put(token.into(), verified);
    }

    #[cfg(test)]
    fn held(&self) -> (usize, usize) {
        let generations = self.0.lock().unwrap();
        let all = || generations.young.iter().chain(&generations.old);
        (all().count(), all().map(|(token, verified)| token.len() + verified.size() + ENTRY).sum())
    }
}

impl Generations {
    fn put(&mut self, token: Box<str>, verified: Arc<Verified>) {
        let size = token.len() + verified.size() + ENTRY;
        if self.young.len() >= TOKENS / 2 || self.bytes + size > BYTES / 2 {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
        if self.young.insert(token, verified).is_none() {
            self.bytes += size;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::Token;

    /// A token with so many bytes of payload; its signature does not matter here.
    fn token(number: usize, bytes: usize) -> String {
        use base64::Engine;
        let text = |json: String| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json);
        let payload = text(format!("{{\"n\":{number},\"x\":\"{}\"}}", "x".repeat(bytes)));
        format!("{}.{payload}.", text("{\"alg\":\"HS256\"}".to_owned()))
    }

    fn put(cache: &Cache, token: &str) {
        cache.put(token, Arc::new(Verified::new(Token::read(token).unwrap())));
    }

    #[test]
    fn tokens_are_kept_within_bounds_and_what_is_used_stays() {
        for bytes in [10, 8_000] {
            let cache = Cache::default();
            let used = token(0, bytes);
            put(&cache, &used);
            for number in 1..5_000 {
                put(&cache, &token(number, bytes));
                if number % 10 == 0 {
                    assert!(cache.get(&used).is_some(), "{number}");
                }
                if number % 100 == 0 {
                    let (tokens, held) = cache.held();
                    assert!(tokens <= TOKENS && held <= BYTES, "{tokens} tokens of {held} bytes");
                }
            }
            assert!(cache.get(&token(1, bytes)).is_none(), "what nobody uses is forgotten");
            assert!(cache.get(&token(4_999, bytes)).is_some());
        }
    }
}
