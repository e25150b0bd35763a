// SPDX-License-Identifier: Apache-2.0
//! What one client wants of one type, what it has been sent, and what it has acknowledged.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::super::store::{Item, Store, TypeUrl};
use super::View;

/// Name that stands for everything.
const WILDCARD: &str = "*";

/// A subscription to one type.
#[derive(Debug)]
pub(super) struct Subscription {
    type_url: TypeUrl,
    wildcard: bool,
    /// Names (or aliases) that were asked for one by one.
    names: BTreeSet<String>,
    /// Versions that were sent, whether acknowledged or not.
    pub(super) sent: HashMap<Arc<str>, Arc<str>>,
}

/// What to send.
#[derive(Debug, Default)]
pub(super) struct Difference {
    pub(super) upserts: Vec<Arc<Item>>,
    pub(super) removals: Vec<Arc<str>>,
}

impl Subscription {
    /// From the first request of a type.
    pub(super) fn new(
        type_url: TypeUrl,
        subscribe: &[String],
        unsubscribe: &[String],
        held: BTreeMap<String, String>,
    ) -> Self {
        // Without names it means everything; `*` subscribed and unsubscribed at once means on demand.
        let wildcard = subscribe.is_empty() || subscribe.iter().any(|s| s == WILDCARD);
        let mut out = Self {
            type_url,
            wildcard: wildcard && !unsubscribe.iter().any(|u| u == WILDCARD),
            names: BTreeSet::new(),
            sent: held.into_iter().map(|(name, version)| (name.into(), version.into())).collect(),
        };
        out.names.extend(subscribe.iter().filter(|s| *s != WILDCARD).cloned());
        out
    }

    /// A later request; returns the names that are new.
    pub(super) fn change(&mut self, subscribe: &[String], unsubscribe: &[String]) -> Vec<String> {
        for name in unsubscribe {
            if name == WILDCARD {
                self.wildcard = false;
            } else {
                self.names.remove(name);
            }
        }
        let mut new = Vec::new();
        for name in subscribe {
            if name == WILDCARD {
                self.wildcard = true;
            } else {
                self.names.insert(name.clone());
                new.push(name.clone());
            }
        }
        new
    }

    /// Everything that the client should hold and does not, and what it holds and should not.
    pub(super) fn compare(&mut self, store: &Store, view: &View) -> Difference {
        let mut out = Difference::default();
        let wanted: Vec<Arc<Item>> = if self.wildcard {
            store.all(self.type_url)
        } else {
            self.names.iter().flat_map(|name| find(store, self.type_url, name)).collect()
        };
        let mut there = BTreeSet::new();
        for item in wanted {
            if visible(&item, view) {
                there.insert(item.name.clone());
                self.offer(item, &mut out);
            }
        }
        let gone: Vec<_> = self.sent.keys().filter(|name| !there.contains(*name)).cloned().collect();
        for name in gone {
            self.sent.remove(&name);
            out.removals.push(name);
        }
        out
    }

    /// Looks at these names only.
    pub(super) fn look_at(&mut self, names: &BTreeSet<Arc<str>>, store: &Store, view: &View) -> Difference {
        let mut out = Difference::default();
        for name in names {
            match store.get(self.type_url, name).filter(|item| visible(item, view)) {
                Some(item) if self.wants(&item) => self.offer(item, &mut out),
                Some(_) => {}
                None => {
                    if self.sent.remove(name).is_some() {
                        out.removals.push(name.clone());
                    }
                }
            }
        }
        out
    }

    /// Answers a request for names: what there is, and what there is not.
    pub(super) fn answer(&mut self, names: &[String], store: &Store, view: &View) -> Difference {
        let mut out = Difference::default();
        for name in names {
            let found: Vec<_> =
                find(store, self.type_url, name).into_iter().filter(|item| visible(item, view)).collect();
            if found.is_empty() {
                out.removals.push(name.as_str().into());
            }
            for item in found {
                self.sent.insert(item.name.clone(), item.version.clone());
                out.upserts.push(item);
            }
        }
        out
    }

    fn wants(&self, item: &Item) -> bool {
        self.wildcard || self.names.contains(&*item.name) || item.aliases.iter().any(|a| self.names.contains(a))
    }

    fn offer(&mut self, item: Arc<Item>, out: &mut Difference) {
        if self.sent.get(&item.name) != Some(&item.version) {
            self.sent.insert(item.name.clone(), item.version.clone());
            out.upserts.push(item);
        }
    }
}

fn visible(item: &Item, view: &View) -> bool {
    item.tags.is_empty() || item.tags.iter().any(|tag| view.tags.contains(tag))
}

fn find(store: &Store, type_url: TypeUrl, name: &str) -> Vec<Arc<Item>> {
    match store.get(type_url, name) {
        Some(item) => vec![item],
        None => store.by_alias(type_url, name),
    }
}
