// SPDX-License-Identifier: Apache-2.0
//! Two sets of policies at one place: what the new one lets through that the old one did not, and the reverse; exact, by
//! rule, each with a request that the engine confirms.
//!
//! Allowed is: no DENY rule matches, and an ALLOW rule matches or no ALLOW policy applies. "No ALLOW policy applies" is
//! taken as one more ALLOW rule, so that both sides have the same shape.

mod condition;
mod reach;
mod report;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};

use meltemi_model::authz::{Action, Attribute, Policy, ValueMatch};
use meltemi_policy::{Decision, PolicySet};

use crate::error::QueryError;
use crate::proof::{
    Answer, Builder, Cell, Form, Hints, Layer, Need, PredicateId, Question, Space, Subject, TooComplex,
};
use crate::side::{Attached, Item, Side, any, applies, compile as compile_policies, decides, draft, side};
use crate::witness::Witness;
use crate::words;

pub use reach::Reach;
pub use report::{Compared, Difference, Differences, Unknown};

/// Questions that make conditions narrower than the rule, in one comparison.
const REFINEMENTS: usize = 4_000;
/// Looks at forms in one comparison, before the rest of it is given up as too hard.
const EFFORT: usize = 50_000_000;
/// Rules that are looked at as exceptions of conditions, in one comparison.
const CANDIDATES: usize = 200_000;
/// Rules that are named as exceptions of a condition.
const EXCEPTIONS: usize = 6;

/// Where a comparison is made.
#[derive(Clone, Debug)]
pub struct Place {
    /// `Service default/web`, `workloads of namespace default`.
    pub target: String,
    /// `node proxy`, `waypoint default/waypoint`.
    pub enforced_at: String,
    /// What is judged there.
    pub layer: Layer,
    /// Port of a witness that no policy cares about.
    pub port: u16,
    /// Host of a witness that no policy cares about.
    pub host: String,
    /// Principals to show first.
    pub identities: Vec<String>,
    /// What `authz explain` has to be asked for it; none when it has no name.
    pub reach: Option<Reach>,
    /// The only ports that there are; any when there are none.
    pub ports: Vec<u16>,
    /// Ports that are judged at another place.
    pub other_ports: Vec<u16>,
}

/// Compares.
pub fn compare(place: &Place, old: &[Attached], new: &[Attached]) -> Differences {
    let mut out = Differences::default();
    if decides(old) == decides(new) {
        return out;
    }
    let mut builder = Builder::default();
    let drafts = [old, new].map(|p| draft(&mut builder, p, place.layer));
    let ports = place.restricted(&mut builder);
    let hints = Hints {
        identities: place.identities.clone(),
        ports: vec![place.port],
        hosts: vec![place.host.clone()],
    };
    let mut space = match builder.finish(&hints) {
        Ok(space) => space,
        Err(why) => {
            out.unknown.push(place.unknown(None, why.to_string()));
            return out;
        }
    };
    let [before, after] = drafts;
    let before = side(&mut space, old, before);
    let after = side(&mut space, new, after);
    if space.over {
        out.unknown.push(place.unknown(None, TooComplex("claims".to_owned()).to_string()));
        return out;
    }
    let within = ports.map(|ports| space.predicate(ports)).into_iter().flatten().flatten().collect();
    let (budget, candidates, effort) = (REFINEMENTS, CANDIDATES, EFFORT);
    let (unknown, sets) = (Vec::new(), BTreeMap::new());
    let mut work = Work { place, space, within, budget, candidates, effort, unknown, sets };
    out.newly_allowed = work.newly(&before, &after, true);
    out.newly_denied = work.newly(&after, &before, false);
    work.custom(&before, &after);
    out.unknown = work.unknown;
    out
}

impl Place {
    /// The ports that there are, as a predicate.
    fn restricted(&self, builder: &mut Builder) -> Option<PredicateId> {
        let values = |ports: &[u16]| ports.iter().map(|p| ValueMatch::Port(*p)).collect::<Vec<_>>();
        let some = !self.ports.is_empty() || !self.other_ports.is_empty();
        some.then(|| {
            let subject = Subject::Attribute(&Attribute::DestinationPort);
            builder.predicate(subject, &values(&self.ports), &values(&self.other_ports))
        })
    }

    fn unknown(&self, policy: Option<String>, reason: String) -> Unknown {
        Unknown { target: self.target.clone(), enforced_at: self.enforced_at.clone(), policy, reason }
    }
}

struct Work<'a> {
    place: &'a Place,
    space: Space,
    /// The requests that are possible here.
    within: Cell,
    budget: usize,
    /// What is left of [`CANDIDATES`].
    candidates: usize,
    /// What is left of [`EFFORT`].
    effort: usize,
    unknown: Vec<Unknown>,
    /// Compiled sets by side and by the policies that apply.
    sets: BTreeMap<(bool, Vec<usize>), PolicySet>,
}

impl Work<'_> {
    /// What `after` allows and `before` does not. `forward`: `after` is the new side.
    fn newly(&mut self, before: &Side<'_>, after: &Side<'_>, forward: bool) -> Vec<Difference> {
        let mut out = Vec::new();
        let within = self.within.clone();
        let covered: HashSet<&Form> = before.allow.iter().map(|i| &i.form).collect();
        let mut asked = HashSet::new();
        for item in after.allow.iter().filter(|i| !covered.contains(&i.form)) {
            if asked.insert(&item.form) {
                let never = before.allow.iter().chain(&after.deny).map(|i| &i.form).collect();
                let question = Question { needs: vec![Need::Cell(&within), Need::Form(&item.form)], never };
                out.extend(self.difference(item, question, (before, after), (forward, false)));
            }
        }
        let kept: HashSet<&Form> = after.deny.iter().map(|i| &i.form).collect();
        let mut asked = HashSet::new();
        for item in before.deny.iter().filter(|i| !kept.contains(&i.form)) {
            if asked.insert(&item.form) {
                let needs =
                    vec![Need::Cell(&within), Need::Form(&item.form), any(&before.allow), any(&after.allow)];
                let question = Question { needs, never: after.deny.iter().map(|i| &i.form).collect() };
                out.extend(self.difference(item, question, (before, after), (forward, true)));
            }
        }
        out
    }

    fn difference(
        &mut self,
        item: &Item,
        mut question: Question<'_>,
        (before, after): (&Side<'_>, &Side<'_>),
        (forward, by_deny): (bool, bool),
    ) -> Option<Difference> {
        question.forget(&self.space, &item.form);
        let owner = if by_deny { before } else { after };
        let named = item.by.map(|(policy, rule)| (&owner.policies[policy].policy, rule));
        let classes = match question.answer_within(&self.space, &mut self.effort) {
            Answer::No => return None,
            Answer::GaveUp => {
                let policy = named.map(|(p, _)| p.name.to_string());
                let reason = "too many rules overlap for an answer".to_owned();
                self.unknown.push(self.place.unknown(policy, reason));
                return None;
            }
            Answer::Yes(classes) => classes,
        };
        let place = self.place;
        let witness = Witness::of(&self.space, &classes, place.layer, place.port, &place.host);
        if let Err(reason) = self.confirm(&witness, (before, after), forward) {
            self.unknown.push(place.unknown(named.map(|(p, _)| p.name.to_string()), reason.to_string()));
            return None;
        }
        let within = named.map(|(policy, rule)| self.narrowed(&policy.rules[rule], by_deny, &question));
        let condition = within.as_ref().map_or_else(|| "any request".to_owned(), words::rule);
        let within_of = within.as_ref().map(|rule| (rule, by_deny));
        let except = self.exceptions(&question, within_of, before, after);
        let plaintext = match self.space.absent(Subject::Attribute(&Attribute::SourcePrincipal)) {
            Some(nobody) => {
                question.with(&[nobody]).answer_within(&self.space, &mut self.effort) != Answer::No
            }
            None => true,
        };
        Some(Difference {
            target: place.target_of(owner, item),
            enforced_at: place.enforced_at.clone(),
            policy: named.map(|(p, _)| p.name.to_string()),
            rule: named.and_then(|(_, rule)| u32::try_from(rule).ok()),
            because: because(named.map(|(p, r)| (&**p, r)), forward, by_deny),
            condition,
            except,
            plaintext,
            within,
            explain: place.reach.as_ref().and_then(|reach| witness.command(&reach.options(&witness))),
            witness,
        })
    }

    /// The engine says the same of the witness on both sides.
    fn confirm(
        &mut self,
        witness: &Witness,
        sides: (&Side<'_>, &Side<'_>),
        forward: bool,
    ) -> Result<(), QueryError> {
        for (side, after) in [(sides.0, false), (sides.1, true)] {
            // CUSTOM is taken as allowed: what its provider says is the same on both sides, or named as unknown.
            let custom = |a: &Attached| matches!(a.policy.action, Action::Custom { .. });
            let list = side.policies.iter().enumerate();
            let indices: Vec<usize> = list
                .filter(|(_, a)| applies(&a.guard, &witness.labels) && !custom(a))
                .map(|(i, _)| i)
                .collect();
            let set = match self.sets.entry((after == forward, indices)) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => {
                    let set = compile_policies(new.key().1.iter().map(|i| &side.policies[*i]));
                    new.insert(set)
                }
            };
            let decision = witness.decide(set)?;
            let expected = match decision {
                Decision::Allow { .. } => after,
                Decision::Deny { .. } => !after,
                Decision::Ask { .. } | Decision::Undecided { .. } => false,
            };
            if !expected {
                return Err(QueryError::NotConfirmed(Box::new(witness.clone())));
            }
        }
        Ok(())
    }

    /// A CUSTOM policy that is only on one side: what its provider says is not known.
    fn custom(&mut self, before: &Side<'_>, after: &Side<'_>) {
        for (one, other, word) in
            [(before, after, "only the old policies"), (after, before, "only the new policies")]
        {
            let provider = |side: &Side<'_>, item: &Item| {
                item.by.map(|(policy, _)| side.policies[policy].policy.action.clone())
            };
            for item in &one.custom {
                let there = |o: &Item| o.form == item.form && provider(other, o) == provider(one, item);
                if other.custom.iter().any(there) {
                    continue;
                }
                let never = before.deny.iter().filter(|d| after.deny.iter().any(|o| o.form == d.form));
                let question = Question {
                    needs: vec![Need::Cell(&self.within), Need::Form(&item.form), any(&one.allow)],
                    never: never.map(|i| &i.form).collect(),
                };
                if question.answer_within(&self.space, &mut self.effort) != Answer::No
                    && let Some((policy, rule)) = item.by
                {
                    let policy = &one.policies[policy].policy;
                    let Action::Custom { provider } = &policy.action else { continue };
                    let reason =
                        format!("{word} ask provider {provider} about {}", words::rule(&policy.rules[rule]));
                    self.unknown.push(self.place.unknown(Some(policy.name.to_string()), reason));
                }
            }
        }
    }
}

impl Place {
    /// The workloads that a policy selects, where it selects some.
    fn target_of(&self, owner: &Side<'_>, item: &Item) -> String {
        let Some((policy, _)) = item.by else {
            let allow =
                owner.policies.iter().filter(|a| a.policy.action == Action::Allow && !a.policy.dry_run);
            let names: Vec<String> = allow.map(|a| a.policy.name.to_string()).collect();
            return match &*names {
                [] => self.target.clone(),
                names => format!("{} that {} does not select", self.target, names.join(" or ")),
            };
        };
        let guard = &owner.policies[policy].guard;
        let labels: Vec<String> = guard
            .iter()
            .map(|any| {
                let texts =
                    any.iter().map(|(k, v, equal)| format!("{k}{}{v}", if *equal { "=" } else { "!=" }));
                texts.collect::<Vec<_>>().join(" or ")
            })
            .collect();
        if labels.is_empty() {
            self.target.clone()
        } else {
            format!("{} with {}", self.target, labels.join(","))
        }
    }
}

fn because(named: Option<(&Policy, usize)>, forward: bool, by_deny: bool) -> String {
    let (side, other) = if forward { ("new", "old") } else { ("old", "new") };
    match (named, by_deny) {
        (Some((policy, rule)), false) => {
            format!(
                "{} rule[{rule}] of the {side} policies allows it, nothing of the {other} ones does",
                policy.name
            )
        }
        (Some((policy, rule)), true) => {
            format!(
                "{} rule[{rule}] of the {other} policies denies it, nothing of the {side} ones does",
                policy.name
            )
        }
        (None, _) => format!(
            "no ALLOW policy of the {side} policies applies; of the {other} ones some do, and none allows it"
        ),
    }
}
