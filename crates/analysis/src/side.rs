// SPDX-License-Identifier: Apache-2.0
//! The policies that decide at one place, as sets of classes.
//!
//! Allowed is: no DENY rule matches, and an ALLOW rule matches or no ALLOW policy applies. "No ALLOW policy applies" is
//! taken as one more ALLOW rule, so that every side has the same shape.

use std::collections::BTreeMap;

use meltemi_model::authz::Action;
use meltemi_policy::{PolicySet, ValidPolicy};

use crate::proof::{Builder, Form, Guard, Layer, Need, Raw, Space, none_of, rule};

/// A policy and the workloads of the place that it applies to.
#[derive(Clone, Debug)]
pub struct Attached {
    /// The policy, as the proxy has it.
    pub policy: ValidPolicy,
    /// The workloads; none means all of them.
    pub guard: Guard,
}

impl Attached {
    /// The same policy for every workload of the place.
    pub(crate) fn to_all(&self) -> Self {
        Self { policy: self.policy.clone(), guard: Guard::new() }
    }
}

/// Compiles policies for the engine, whatever workloads they are for.
pub(crate) fn compile<'a>(attached: impl IntoIterator<Item = &'a Attached>) -> PolicySet {
    PolicySet::new(attached.into_iter().map(|a| a.policy.clone()).collect(), Vec::new())
}

/// Whether a guard holds for labels.
pub(crate) fn applies(guard: &Guard, labels: &BTreeMap<String, String>) -> bool {
    guard.iter().all(|any| any.iter().any(|(k, v, equal)| (labels.get(k) == Some(v)) == *equal))
}

/// What decides, in a form that can be compared; in any order.
pub(crate) fn decides(list: &[Attached]) -> Vec<String> {
    let some = list.iter().filter(|a| !a.policy.only_reports());
    let mut all: Vec<String> =
        some.map(|a| format!("{:?}", (&a.policy.action, &a.policy.rules, &a.guard))).collect();
    all.sort();
    all
}

/// A rule on one side.
#[derive(Debug)]
pub(crate) struct Item {
    /// Policy and rule; none for "no ALLOW policy applies".
    pub(crate) by: Option<(usize, usize)>,
    pub(crate) form: Form,
}

/// Everything that decides on one side.
#[derive(Debug)]
pub(crate) struct Side<'a> {
    pub(crate) policies: &'a [Attached],
    pub(crate) allow: Vec<Item>,
    pub(crate) deny: Vec<Item>,
    pub(crate) custom: Vec<Item>,
}

pub(crate) type Drafts = [Vec<(Option<(usize, usize)>, Raw)>; 3];

pub(crate) fn draft(builder: &mut Builder, policies: &[Attached], layer: Layer) -> Drafts {
    let (mut allow, mut deny, mut custom, mut guards) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (index, attached) in policies.iter().enumerate().filter(|(_, a)| !a.policy.dry_run) {
        let (list, denies) = match attached.policy.action {
            Action::Allow => {
                guards.push(attached.guard.clone());
                (&mut allow, false)
            }
            Action::Deny => (&mut deny, true),
            Action::Custom { .. } => (&mut custom, true),
            Action::Audit => continue,
        };
        for (number, one) in attached.policy.rules.iter().enumerate() {
            let raw = rule(builder, &attached.guard, one, denies, layer);
            list.extend(raw.map(|raw| (Some((index, number)), raw)));
        }
    }
    allow.extend(none_of(builder, &guards).map(|raw| (None, raw)));
    [allow, deny, custom]
}

pub(crate) fn side<'a>(space: &mut Space, policies: &'a [Attached], drafts: Drafts) -> Side<'a> {
    let [allow, deny, custom] = drafts.map(|list| {
        let items = list.into_iter().filter_map(|(by, raw)| Some(Item { by, form: space.form(&raw)? }));
        items.collect::<Vec<_>>()
    });
    Side { policies, allow, deny, custom }
}

/// Holds where at least one of the rules matches.
pub(crate) fn any(items: &[Item]) -> Need<'_> {
    Need::Any(items.iter().map(|i| &i.form).collect())
}
