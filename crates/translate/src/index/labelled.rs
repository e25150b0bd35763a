// SPDX-License-Identifier: Apache-2.0
//! Two small indexes over labels, so that a selector or a set of labels finds its counterparts without a scan.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::facts::Labels;

type Pair = (String, String);

/// Names by each of their labels: finds what a selector may select.
#[derive(Debug, Default)]
pub(super) struct Labelled(HashMap<Pair, BTreeSet<Arc<str>>>);

impl Labelled {
    pub(super) fn insert(&mut self, name: &Arc<str>, labels: &Labels) {
        for (key, value) in labels {
            self.0.entry((key.clone(), value.clone())).or_default().insert(name.clone());
        }
    }

    pub(super) fn remove(&mut self, name: &Arc<str>, labels: &Labels) {
        for (key, value) in labels {
            let pair = (key.clone(), value.clone());
            if let Some(names) = self.0.get_mut(&pair) {
                names.remove(name);
                if names.is_empty() {
                    self.0.remove(&pair);
                }
            }
        }
    }

    /// Names that have the rarest pair of the selector; none when the selector is empty, for then all may match.
    pub(super) fn candidates(&self, selector: &Labels) -> Option<Vec<Arc<str>>> {
        selector
            .iter()
            .map(|(k, v)| self.0.get(&(k.clone(), v.clone())))
            .min_by_key(|names| names.map_or(0, BTreeSet::len))
            .map(|names| names.into_iter().flatten().cloned().collect())
    }
}

/// Names of selectors by one of their pairs: finds what may select a set of labels.
#[derive(Debug, Default)]
pub(super) struct Selectors {
    by_pair: HashMap<Pair, BTreeSet<Arc<str>>>,
    /// Selectors without a pair: they select everything.
    all: BTreeSet<Arc<str>>,
}

impl Selectors {
    pub(super) fn insert(&mut self, name: &Arc<str>, selector: &Labels) {
        match selector.iter().next() {
            Some((k, v)) => self.by_pair.entry((k.clone(), v.clone())).or_default().insert(name.clone()),
            None => self.all.insert(name.clone()),
        };
    }

    pub(super) fn remove(&mut self, name: &Arc<str>, selector: &Labels) {
        let Some((k, v)) = selector.iter().next() else {
            self.all.remove(name);
            return;
        };
        let pair = (k.clone(), v.clone());
        if let Some(names) = self.by_pair.get_mut(&pair) {
            names.remove(name);
            if names.is_empty() {
                self.by_pair.remove(&pair);
            }
        }
    }

    pub(super) fn candidates(&self, labels: &Labels) -> BTreeSet<Arc<str>> {
        let mut out = self.all.clone();
        for (k, v) in labels {
            out.extend(self.by_pair.get(&(k.clone(), v.clone())).into_iter().flatten().cloned());
        }
        out
    }
}
