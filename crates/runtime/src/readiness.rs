// SPDX-License-Identifier: Apache-2.0
//! Readiness: a component is ready when every registered part has said so; a part dropped unsaid never counts.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;

/// What is still pending, shared by the parts and the `/healthz/ready` endpoint.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<watch::Sender<BTreeSet<String>>>);

/// A part's obligation to say that it is ready.
#[derive(Debug)]
#[must_use = "dropping this unsaid leaves the component unready for ever"]
pub struct Ready {
    name: String,
    owner: Readiness,
}

impl Readiness {
    /// Nothing registered: ready at once.
    pub fn new() -> Self {
        Self(Arc::new(watch::channel(BTreeSet::new()).0))
    }

    /// Registers a part; the component is unready until [`Ready::done`].
    pub fn register(&self, name: &str) -> Ready {
        self.0.send_modify(|pending| {
            pending.insert(name.to_owned());
        });
        Ready { name: name.to_owned(), owner: self.clone() }
    }

    /// Names of the parts that are not ready yet, sorted.
    pub fn pending(&self) -> Vec<String> {
        self.0.borrow().iter().cloned().collect()
    }

    /// Resolves when every part is ready.
    pub async fn wait(&self) {
        let mut rx = self.0.subscribe();
        let _ = rx.wait_for(BTreeSet::is_empty).await;
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Ready {
    /// Says that this part is ready.
    pub fn done(self) {
        self.owner.0.send_modify(|pending| {
            pending.remove(&self.name);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_is_said_not_implied() {
        let readiness = Readiness::new();
        let (a, b) = (readiness.register("xds"), readiness.register("zds"));
        a.done();
        drop(b);
        assert_eq!(readiness.pending(), ["zds"]);
    }
}
