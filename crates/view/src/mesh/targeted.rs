// SPDX-License-Identifier: Apache-2.0
//! Documents by name and by what they are attached to: a request looks at those of its own Service and Gateway only,
//! however many others there are.

use std::collections::BTreeMap;
use std::sync::Arc;

use meltemi_model::NamespacedName;
use meltemi_model::l7::{Route, Target};
use meltemi_state::SharedMap;
use rpds::RedBlackTreeMapSync;

/// A document that is attached to Services and Gateways.
pub trait Attached {
    /// What it is attached to; one may come twice.
    fn targets(&self) -> impl Iterator<Item = &Target>;

    /// Whether it only reports what it would do.
    fn only_reports(&self) -> bool {
        false
    }

    /// Whether it asks an external authorizer.
    fn asks(&self) -> bool {
        false
    }
}

impl Attached for Route {
    fn targets(&self) -> impl Iterator<Item = &Target> {
        self.parents.iter().map(|parent| &parent.target)
    }
}

type ByName<T> = RedBlackTreeMapSync<String, Arc<T>>;

/// Documents by name, in the order of names, and by target. A clone shares what does not change.
#[derive(Clone, Debug)]
pub struct Targeted<T> {
    by_name: ByName<T>,
    by_target: SharedMap<Target, ByName<T>>,
    /// Of the targets, how many are a [`Target::Backend`].
    backends: usize,
    /// Documents that only report.
    reports: usize,
    /// Documents that ask an external authorizer.
    asking: usize,
}

impl<T> Default for Targeted<T> {
    fn default() -> Self {
        Self {
            by_name: RedBlackTreeMapSync::new_sync(),
            by_target: SharedMap::default(),
            backends: 0,
            reports: 0,
            asking: 0,
        }
    }
}

impl<T> Targeted<T> {
    /// The document of a name.
    pub fn get(&self, name: &str) -> Option<&Arc<T>> {
        self.by_name.get(name)
    }

    /// All documents, by name.
    pub fn values(&self) -> impl Iterator<Item = &Arc<T>> {
        self.by_name.values()
    }

    /// All names.
    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.by_name.keys()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_name.size()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Everything that some document is attached to.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        self.by_target.keys()
    }

    /// Whether a document is attached to a target.
    pub fn is_attached_to(&self, target: &Target) -> bool {
        self.by_target.contains_key(target)
    }

    /// Whether a document is attached to what is forwarded to the Pods of some Service.
    pub fn has_backends(&self) -> bool {
        self.backends > 0
    }

    /// Whether a document only reports.
    pub fn has_reports(&self) -> bool {
        self.reports > 0
    }

    /// Whether a document asks an external authorizer.
    pub fn has_asking(&self) -> bool {
        self.asking > 0
    }

    /// What is attached to a target, by name.
    pub fn attached_to(&self, target: &Target) -> impl Iterator<Item = (&String, &Arc<T>)> {
        self.by_target.get(target).into_iter().flat_map(RedBlackTreeMapSync::iter)
    }
}

impl<T: Attached> Targeted<T> {
    /// Puts a document in the place of the one of its name.
    pub fn insert(&mut self, name: String, document: Arc<T>) {
        self.remove(&name);
        for target in document.targets() {
            if !self.by_target.contains_key(target) {
                self.by_target.insert_mut(target.clone(), RedBlackTreeMapSync::new_sync());
                self.backends += usize::from(matches!(target, Target::Backend(_)));
            }
            if let Some(attached) = self.by_target.get_mut(target) {
                attached.insert_mut(name.clone(), document.clone());
            }
        }
        self.reports += usize::from(document.only_reports());
        self.asking += usize::from(document.asks());
        self.by_name.insert_mut(name, document);
    }

    /// Takes a document out.
    pub fn remove(&mut self, name: &str) {
        let Some(old) = self.by_name.get(name).cloned() else { return };
        for target in old.targets() {
            let Some(attached) = self.by_target.get_mut(target) else { continue };
            attached.remove_mut(name);
            if attached.is_empty() {
                self.by_target.remove_mut(target);
                self.backends -= usize::from(matches!(target, Target::Backend(_)));
            }
        }
        self.reports -= usize::from(old.only_reports());
        self.asking -= usize::from(old.asks());
        self.by_name.remove_mut(name);
    }

    /// What applies to a request that passes a Gateway, each once: see [`Target::applies`].
    pub fn applying(
        &self,
        to: Option<&Target>,
        gateway: &NamespacedName,
    ) -> impl Iterator<Item = (&String, &Arc<T>)> {
        // A Gateway judges what is addressed, and nothing again when it is forwarded.
        let of_gateway = Target::Gateway(gateway.clone());
        let covers = of_gateway.applies(to, gateway);
        let own: Vec<_> = covers.then(|| self.attached_to(&of_gateway)).into_iter().flatten().collect();
        let is_own = move |document: &T| covers && document.targets().any(|target| *target == of_gateway);
        let others = to.into_iter().flat_map(|to| self.attached_to(to).collect::<Vec<_>>());
        own.into_iter().chain(others.filter(move |(_, document)| !is_own(document)))
    }
}

/// Where documents of one type are kept.
pub(crate) trait Documents<T> {
    /// Keeps one under its name.
    fn put(&mut self, name: String, document: Arc<T>);
    /// Forgets one.
    fn forget(&mut self, name: &str);
}

impl<T: Attached> Documents<T> for Targeted<T> {
    fn put(&mut self, name: String, document: Arc<T>) {
        self.insert(name, document);
    }

    fn forget(&mut self, name: &str) {
        self.remove(name);
    }
}

impl<T> Documents<T> for BTreeMap<String, Arc<T>> {
    fn put(&mut self, name: String, document: Arc<T>) {
        self.insert(name, document);
    }

    fn forget(&mut self, name: &str) {
        self.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use meltemi_model::NamespacedHostname;
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, PartialEq)]
    struct Document {
        name: NamespacedName,
        targets: Vec<Target>,
    }

    impl Attached for Document {
        fn targets(&self) -> impl Iterator<Item = &Target> {
            self.targets.iter()
        }
    }

    const NAMES: u8 = 3;

    fn gateway(n: u8) -> NamespacedName {
        NamespacedName::new("ns", format!("g{n}"))
    }

    /// Two Gateways, two Services addressed, the same two forwarded to.
    fn target(n: u8) -> Target {
        let service = |n| NamespacedHostname::new("ns", format!("s{n}"));
        match n % 6 {
            n @ 0..2 => Target::Gateway(gateway(n)),
            n @ 2..4 => Target::Service(service(n % 2)),
            n => Target::Backend(service(n % 2)),
        }
    }

    fn document(name: u8, targets: &[u8]) -> Document {
        let targets = targets.iter().map(|n| target(*n)).collect();
        Document { name: NamespacedName::new("ns", format!("{name}")), targets }
    }

    proptest! {
        /// The index finds what a walk over all documents finds, whatever came and went.
        #[test]
        fn what_is_found_is_what_applies(
            changes in prop::collection::vec((0..NAMES, prop::option::of(prop::collection::vec(0..6u8, 0..4))), 1..30),
        ) {
            let mut kept: Targeted<Document> = Targeted::default();
            let mut all: BTreeMap<String, Document> = BTreeMap::new();
            for (name, targets) in changes {
                let key = format!("ns/{name}");
                match targets {
                    Some(targets) => {
                        kept.insert(key.clone(), Arc::new(document(name, &targets)));
                        all.insert(key, document(name, &targets));
                    }
                    None => {
                        kept.remove(&key);
                        all.remove(&key);
                    }
                }
                prop_assert_eq!(kept.values().map(|one| &**one).collect::<Vec<_>>(), all.values().collect::<Vec<_>>());
                prop_assert_eq!((kept.len(), kept.is_empty()), (all.len(), all.is_empty()));
                let asked = (0..6).map(target).filter(|t| !matches!(t, Target::Gateway(_))).map(Some).chain([None]);
                for to in asked {
                    for gateway in [gateway(0), gateway(1)] {
                        let mut found: Vec<&String> =
                            kept.applying(to.as_ref(), &gateway).map(|(name, _)| name).collect();
                        found.sort();
                        let applies = |one: &Document| one.targets.iter().any(|t| t.applies(to.as_ref(), &gateway));
                        let wanted: Vec<&String> =
                            all.iter().filter(|(_, one)| applies(one)).map(|(name, _)| name).collect();
                        prop_assert_eq!(found, wanted, "to {:?} by {}", to, gateway);
                    }
                }
                let mut targets: Vec<Target> = kept.targets().cloned().collect();
                targets.sort();
                let mut wanted: Vec<Target> = all.values().flat_map(|one| one.targets.clone()).collect();
                wanted.sort();
                wanted.dedup();
                let has_backends = wanted.iter().any(|target| matches!(target, Target::Backend(_)));
                prop_assert_eq!((targets, kept.has_backends()), (wanted, has_backends));
            }
        }
    }
}
