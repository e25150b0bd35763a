// SPDX-License-Identifier: Apache-2.0
//! Documents that Gateways were sent, and when one may be taken away from a Gateway again.
//!
//! A Service that moves to another waypoint takes its policies along. The waypoint that it leaves keeps them until its
//! proxies have acknowledged that they serve the Service no longer: whatever order messages arrive in, and whatever a proxy
//! refuses, no proxy serves a Service without its policies.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use meltemi_model::NamespacedName;
use meltemi_translate::routes::table::For;
use meltemi_wire::xds::types;

use super::enforced::holds;
use crate::access::Scope;
use crate::xds::Proxy;

/// Gateways that keep a document although it is no longer for them: until they have acknowledged the services of this
/// generation. `None` until the step that takes the Service away from them is published.
pub(super) type Leaving = BTreeMap<NamespacedName, Option<u64>>;

/// The documents of one type, by the name of their object.
#[derive(Debug)]
pub(super) struct Sent<T> {
    all: HashMap<NamespacedName, Held<T>>,
    leaving: BTreeMap<NamespacedName, Leaving>,
    /// Documents that go out with the next step.
    unpublished: Vec<NamespacedName>,
}

#[derive(Debug)]
struct Held<T> {
    sent: For<T>,
    /// The generation that brought the document, as it is now, to each Gateway; `None` until it is published. A Gateway is
    /// not sent a document again because others receive it as well or no longer.
    since: BTreeMap<NamespacedName, Option<u64>>,
}

impl<T> Default for Sent<T> {
    fn default() -> Self {
        Self { all: HashMap::new(), leaving: BTreeMap::new(), unpublished: Vec::new() }
    }
}

/// What is to be published for one document.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Difference<T> {
    /// Nothing.
    Same,
    /// It is new, changed, or for other Gateways.
    Changed(For<T>),
    /// It is for nobody any more.
    Removed,
}

/// Whether every proxy of a Gateway has acknowledged the services of a generation and refuses none of `services`. A
/// Gateway without a connected proxy has not: one may hold connections and only be cut off.
pub(super) fn has_acknowledged(
    gateway: &NamespacedName,
    since: u64,
    services: &[String],
    proxies: &[Proxy],
) -> bool {
    let mut of = proxies.iter().filter(|p| matches!(&p.scope, Scope::Gateway(g) if g == gateway)).peekable();
    of.peek().is_some() && of.all(|p| holds(p, types::ADDRESS, since, services))
}

impl<T: Clone + PartialEq> Sent<T> {
    /// Whether some Gateway still holds a document that is no longer for it.
    pub(super) fn is_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Documents that some Gateway may lose now, as far as its acknowledgements tell.
    pub(super) fn all_left(&self, proxies: &[Proxy]) -> Vec<NamespacedName> {
        let left = |(gateway, since): (&NamespacedName, &Option<u64>)| {
            since.is_some_and(|since| has_acknowledged(gateway, since, &[], proxies))
        };
        let documents = self.leaving.iter().filter(|(_, leaving)| leaving.iter().any(left));
        documents.map(|(name, _)| name.clone()).collect()
    }

    /// Gateways that still hold a document although it is no longer for them.
    pub(super) fn leaving(&self, name: &NamespacedName) -> Option<&Leaving> {
        self.leaving.get(name)
    }

    /// Takes what is to be sent now; without Gateways it is for nobody, `None` when its object is gone.
    /// `moved`: a Service that it is for changes with this step. `left` says that a Gateway has acknowledged a generation.
    pub(super) fn put(
        &mut self,
        name: &NamespacedName,
        wanted: Option<For<T>>,
        moved: bool,
        left: impl Fn(&NamespacedName, u64) -> bool,
    ) -> Difference<T> {
        let Some(mut wanted) = wanted else {
            self.leaving.remove(name);
            return self.all.remove(name).map_or(Difference::Same, |_| Difference::Removed);
        };
        let before = self.leaving.remove(name).unwrap_or_default();
        let held = self.all.get(name);
        let had = held.map_or_else(BTreeSet::new, |held| held.sent.gateways.clone());
        let leaving: Leaving = had
            .difference(&wanted.gateways)
            .filter_map(|gateway| match before.get(gateway) {
                Some(Some(since)) if left(gateway, *since) => None,
                Some(since) => Some((gateway.clone(), *since)),
                None => moved.then(|| (gateway.clone(), None)),
            })
            .collect();
        wanted.gateways.extend(leaving.keys().cloned());
        if !leaving.is_empty() {
            self.leaving.insert(name.clone(), leaving);
        }
        if wanted.gateways.is_empty() {
            return self.all.remove(name).map_or(Difference::Same, |_| Difference::Removed);
        }
        if held.is_some_and(|held| held.sent == wanted) {
            return Difference::Same;
        }
        let same = held.filter(|held| held.sent.what == wanted.what);
        let since_of =
            |gateway: &NamespacedName| same.and_then(|held| held.since.get(gateway).copied().flatten());
        let since = wanted.gateways.iter().map(|g| (g.clone(), since_of(g))).collect();
        self.all.insert(name.clone(), Held { sent: wanted.clone(), since });
        self.unpublished.push(name.clone());
        Difference::Changed(wanted)
    }

    /// The step became a generation.
    pub(super) fn published(&mut self, generation: u64) {
        let leaving = self.leaving.values_mut().flat_map(BTreeMap::values_mut);
        for since in leaving {
            since.get_or_insert(generation);
        }
        for name in std::mem::take(&mut self.unpublished) {
            for since in self.all.get_mut(&name).into_iter().flat_map(|held| held.since.values_mut()) {
                since.get_or_insert(generation);
            }
        }
    }

    /// The generation that Gateways have to acknowledge, of those in `gateways`; [`u64::MAX`] for what is not published.
    pub(super) fn since(
        &self,
        name: &NamespacedName,
        gateways: &BTreeSet<NamespacedName>,
    ) -> BTreeMap<NamespacedName, u64> {
        let held = self.all.get(name);
        let since_of = |gateway: &NamespacedName| held.and_then(|h| h.since.get(gateway).copied().flatten());
        gateways.iter().map(|g| (g.clone(), since_of(g).unwrap_or(u64::MAX))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateways(names: &[&str]) -> BTreeSet<NamespacedName> {
        names.iter().map(|name| NamespacedName::new("a", *name)).collect()
    }

    #[test]
    fn a_document_stays_with_a_gateway_until_it_has_said_that_it_serves_the_service_no_longer() {
        let name = NamespacedName::new("a", "policy");
        let for_gateways = |names: &[&str]| For { what: 1, gateways: gateways(names) };
        let changed = |names: &[&str]| Difference::Changed(for_gateways(names));
        let never = |_: &NamespacedName, _| false;
        let mut sent = Sent::default();
        assert_eq!(sent.put(&name, Some(for_gateways(&["w1"])), false, never), changed(&["w1"]));
        // The Service moves: both have the policy until the first one has acknowledged.
        assert_eq!(sent.put(&name, Some(for_gateways(&["w2"])), true, never), changed(&["w1", "w2"]));
        sent.published(7);
        assert_eq!(
            sent.put(&name, Some(for_gateways(&["w2"])), false, |_, since| since < 7),
            Difference::Same
        );
        assert_eq!(
            sent.put(&name, Some(for_gateways(&["w2"])), false, |_, since| since <= 7),
            changed(&["w2"])
        );
        assert!(!sent.is_leaving());
        // It moves on, back and on again before anybody has acknowledged anything.
        assert_eq!(sent.put(&name, Some(for_gateways(&["w3"])), true, never), changed(&["w2", "w3"]));
        sent.published(8);
        assert_eq!(sent.put(&name, Some(for_gateways(&["w2"])), true, never), Difference::Same);
        sent.published(9);
        assert_eq!(sent.put(&name, Some(for_gateways(&["w3"])), true, never), Difference::Same);
        sent.published(10);
        let acknowledged_8 = |_: &NamespacedName, since| since <= 8;
        assert_eq!(sent.put(&name, Some(for_gateways(&["w3"])), false, acknowledged_8), Difference::Same);
        // No waypoint serves it any more.
        assert_eq!(sent.put(&name, Some(for_gateways(&[])), true, never), Difference::Same);
        sent.published(11);
        let all = |_: &NamespacedName, _| true;
        assert_eq!(sent.put(&name, Some(for_gateways(&[])), false, all), Difference::Removed);
        assert_eq!(sent.put(&name, Some(for_gateways(&[])), false, all), Difference::Same);
    }

    #[test]
    fn a_gateway_has_to_acknowledge_what_was_sent_to_it_and_not_what_others_were_sent() {
        let name = NamespacedName::new("a", "policy");
        let never = |_: &NamespacedName, _| false;
        let mut sent = Sent::default();
        let mut step = |what: u32, names: &[&str], generation| {
            sent.put(&name, Some(For { what, gateways: gateways(names) }), false, never);
            sent.published(generation);
            sent.since(&name, &gateways(names)).into_values().collect::<Vec<_>>()
        };
        assert_eq!(step(1, &["w1"], 1), [1]);
        assert_eq!(step(1, &["w1", "w2"], 2), [1, 2]);
        assert_eq!(step(1, &["w2"], 3), [2]);
        assert_eq!(step(1, &["w2"], 4), [2]);
        assert_eq!(step(2, &["w1", "w2"], 5), [5, 5]);
        assert_eq!(sent.since(&name, &gateways(&["w3"])).into_values().collect::<Vec<_>>(), [u64::MAX]);
    }

    #[test]
    fn what_its_author_takes_back_is_taken_back_at_once() {
        let name = NamespacedName::new("a", "policy");
        let mut sent = Sent::default();
        let never = |_: &NamespacedName, _| false;
        sent.put(&name, Some(For { what: 1, gateways: gateways(&["w1", "w2"]) }), false, never);
        let fewer = For { what: 1, gateways: gateways(&["w2"]) };
        assert_eq!(sent.put(&name, Some(fewer.clone()), false, never), Difference::Changed(fewer));
        assert_eq!(sent.put(&name, None, true, never), Difference::Removed);
    }
}
