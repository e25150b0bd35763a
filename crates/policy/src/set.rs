// SPDX-License-Identifier: Apache-2.0
//! The policies of one workload or target, sorted by what they do and indexed.

use std::sync::Arc;

use meltemi_model::NamespacedName;
use meltemi_model::authz::{Action, Policy};

use crate::check::{InvalidPolicy, Kind, ValidPolicy};
use crate::facts::Facts;
use crate::matching::Sense;
use crate::stage::{Placed, Stage};

/// Compiled policies; immutable. The order in which policies are given is the order in which they decide.
#[derive(Clone, Debug)]
pub struct PolicySet {
    policies: Vec<ValidPolicy>,
    missing: Vec<NamespacedName>,
    /// In the order in which policies first name the providers.
    custom: Vec<(Arc<str>, Stage)>,
    deny: Stage,
    allow: Stage,
    /// AUDIT, and dry runs of all but ALLOW.
    audit: Stage,
    /// Dry runs of ALLOW.
    dry_allow: Stage,
}

impl Default for PolicySet {
    fn default() -> Self {
        Self::new(Vec::new(), Vec::new())
    }
}

/// Policies by what becomes of them.
#[derive(Default)]
struct Sorted<'a> {
    custom: Vec<(Arc<str>, Vec<Placed<'a>>)>,
    deny: Vec<Placed<'a>>,
    allow: Vec<Placed<'a>>,
    audit: Vec<Placed<'a>>,
    dry_allow: Vec<Placed<'a>>,
}

fn sort(policies: &[ValidPolicy]) -> Sorted<'_> {
    let mut sorted = Sorted::default();
    for placed in (0..).zip(policies) {
        match placed.1.kind() {
            Kind::Allow => sorted.allow.push(placed),
            Kind::Deny => sorted.deny.push(placed),
            Kind::Audit => sorted.audit.push(placed),
            Kind::DryAllow => sorted.dry_allow.push(placed),
            Kind::Custom => {
                let Action::Custom { provider } = &placed.1.action else { continue };
                match sorted.custom.iter_mut().find(|(name, _)| name == provider) {
                    Some((_, policies)) => policies.push(placed),
                    None => sorted.custom.push((provider.clone(), vec![placed])),
                }
            }
        }
    }
    sorted
}

impl PolicySet {
    /// From policies, which are checked.
    ///
    /// # Errors
    /// The first policy that is not valid; nothing may be allowed by the rest.
    pub fn compile(policies: impl IntoIterator<Item = Arc<Policy>>) -> Result<Self, InvalidPolicy> {
        let valid = policies.into_iter().map(ValidPolicy::new).collect::<Result<Vec<_>, _>>()?;
        Ok(Self::new(valid, Vec::new()))
    }

    /// From valid policies, and the names of those that apply too but are not known (yet): nothing is allowed meanwhile.
    pub fn new(policies: Vec<ValidPolicy>, missing: Vec<NamespacedName>) -> Self {
        let sorted = sort(&policies);
        let stage = Stage::build;
        Self {
            custom: sorted.custom.into_iter().map(|(name, all)| (name, stage(&all, Sense::Deny))).collect(),
            deny: stage(&sorted.deny, Sense::Deny),
            allow: stage(&sorted.allow, Sense::Allow),
            audit: stage(&sorted.audit, Sense::Deny),
            dry_allow: stage(&sorted.dry_allow, Sense::Allow),
            policies,
            missing,
        }
    }

    /// The same as [`PolicySet::new`], made from this set: what both have is not indexed again. Worth it where both have
    /// much in common, in the same order.
    #[must_use]
    pub fn updated(&self, policies: Vec<ValidPolicy>, missing: Vec<NamespacedName>) -> Self {
        let sorted = sort(&policies);
        let custom = |(name, all): (Arc<str>, Vec<Placed<'_>>)| {
            let known = self.custom.iter().find(|(known, _)| *known == name);
            let stage =
                known.map_or_else(|| Stage::build(&all, Sense::Deny), |(_, stage)| stage.updated(&all));
            (name, stage)
        };
        Self {
            custom: sorted.custom.into_iter().map(custom).collect(),
            deny: self.deny.updated(&sorted.deny),
            allow: self.allow.updated(&sorted.allow),
            audit: self.audit.updated(&sorted.audit),
            dry_allow: self.dry_allow.updated(&sorted.dry_allow),
            policies,
            missing,
        }
    }

    /// A policy by its index in a decision.
    pub fn policy(&self, index: u32) -> Option<&Arc<Policy>> {
        self.policies.get(index as usize).map(ValidPolicy::policy)
    }

    /// All policies.
    pub fn policies(&self) -> &[ValidPolicy] {
        &self.policies
    }

    /// Names of policies that are not known.
    pub fn missing(&self) -> &[NamespacedName] {
        &self.missing
    }

    /// Whether nothing restricts: no policy and none missing.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty() && self.missing.is_empty()
    }

    /// CUSTOM policies in force, with their indices.
    pub fn custom(&self) -> impl Iterator<Item = (u32, &Policy)> {
        self.of(|kind| kind == Kind::Custom)
    }

    /// DENY policies in force, with their indices.
    pub fn deny(&self) -> impl Iterator<Item = (u32, &Policy)> {
        self.of(|kind| kind == Kind::Deny)
    }

    /// ALLOW policies in force, with their indices.
    pub fn allow(&self) -> impl Iterator<Item = (u32, &Policy)> {
        self.of(|kind| kind == Kind::Allow)
    }

    /// AUDIT policies and dry runs, with their indices.
    pub fn reported(&self) -> impl Iterator<Item = (u32, &Policy)> {
        (0..).zip(&self.policies).filter(|(_, p)| p.only_reports()).map(|(i, p)| (i, &**p))
    }

    /// Whether there is neither an AUDIT policy nor a dry run. Costs the same with any number of policies.
    pub fn reports_nothing(&self) -> bool {
        self.audit.is_empty() && self.dry_allow.is_empty()
    }

    /// Whether dry runs of ALLOW policies would deny: there are some, and none of their rules matches.
    pub fn would_not_allow(&self, facts: &Facts<'_>) -> bool {
        !self.dry_allow.is_empty() && self.dry_allow.first(facts).is_none()
    }

    fn of(&self, wanted: impl Fn(Kind) -> bool) -> impl Iterator<Item = (u32, &Policy)> {
        (0..)
            .zip(&self.policies)
            .filter(move |(_, policy)| wanted(policy.kind()))
            .map(|(at, policy)| (at, &**policy))
    }

    /// Bytes that the indexes take on the heap; the policies themselves are not counted.
    pub fn index_bytes(&self) -> usize {
        self.stages().map(Stage::heap).sum()
    }

    /// Rows that the indexes hold: a rule has one for each combination of its clauses' matches.
    pub fn index_rows(&self) -> usize {
        self.stages().map(Stage::rows).sum()
    }

    fn stages(&self) -> impl Iterator<Item = &Stage> {
        let custom = self.custom.iter().map(|(_, stage)| stage);
        custom.chain([&self.deny, &self.allow, &self.audit, &self.dry_allow])
    }

    pub(crate) fn asking(&self) -> &[(Arc<str>, Stage)] {
        &self.custom
    }

    pub(crate) fn denying(&self) -> &Stage {
        &self.deny
    }

    pub(crate) fn allowing(&self) -> &Stage {
        &self.allow
    }

    pub(crate) fn auditing(&self) -> [&Stage; 2] {
        [&self.audit, &self.dry_allow]
    }
}
