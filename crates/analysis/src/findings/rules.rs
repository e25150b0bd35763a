// SPDX-License-Identifier: Apache-2.0
//! Rules that never match, rules that change nothing beside others, and DENY rules that plaintext escapes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meltemi_model::NamespacedName;
use meltemi_model::authz::{Action, Attribute, Clause, Policy, Predicate, Rule};

use super::{Finding, Level, NEVER, PLAINTEXT, SHADOWED, UNDECIDED, exempt};
use crate::proof::{
    Answer, Builder, Form, Guard, Hints, Layer, Need, Question, Space, Subject, rule, unreadable,
};
use crate::side::{Attached, Item, Side, any, draft, side};
use crate::words;
use crate::world::World;

/// Questions of one place, before the rest is taken as having an effect.
const BUDGET: usize = 20_000;

type Key = (NamespacedName, usize);

/// What is known of rules after all places.
#[derive(Default)]
struct Seen {
    /// Rules that have an effect somewhere.
    effective: BTreeSet<Key>,
    /// Why the others have none.
    idle: BTreeMap<Key, (bool, String)>,
}

pub(super) fn find(world: &World, go_on: &dyn Fn() -> bool, out: &mut Vec<Finding>) {
    let mut seen = Seen::default();
    for Place { attached, layer, .. } in in_turn(places(world)) {
        if go_on() {
            place(&attached, layer, go_on, &mut seen, out);
        } else {
            seen.effective.extend(attached.iter().flat_map(rules));
        }
    }
    let policies: BTreeMap<&NamespacedName, &Policy> =
        world.policies.iter().map(|(name, p)| (name, &*p.policy)).collect();
    for (key, (never, why)) in seen.idle {
        let Some(policy) = policies.get(&key.0).filter(|_| !seen.effective.contains(&key)) else { continue };
        let rule = words::rule(&policy.rules[key.1]);
        let begins = format!("rule[{}] can never match", key.1);
        // What a proxy does not see is a finding of its own already, with the better reason.
        if never && out.iter().any(|f| f.name == key.0 && f.message.starts_with(&begins)) {
            continue;
        }
        let (code, message, fix) = if never {
            (
                NEVER,
                format!("rule[{}] can never match: {why} ({rule})", key.1),
                "correct the rule, or delete it",
            )
        } else {
            (
                SHADOWED,
                format!("rule[{}] changes nothing: {why} ({rule})", key.1),
                "delete the rule, or narrow the other",
            )
        };
        out.push(Finding::policy(code, &key.0, message, fix));
    }
}

/// Where policies apply together.
struct Place {
    /// Whose it is; the mesh's without a name.
    namespace: Arc<str>,
    attached: Vec<Attached>,
    layer: Layer,
}

/// The easy ones first, and namespaces by turns: whose policies are hard takes nobody else's time.
fn in_turn(mut places: Vec<Place>) -> Vec<Place> {
    let values = |p: &Predicate| p.values.len() + p.not_values.len();
    places.sort_by_cached_key(|place| {
        let rules: Vec<&Rule> = place.attached.iter().flat_map(|a| &a.policy.rules).collect();
        let matches = rules.iter().flat_map(|r| &r.clauses).flat_map(|c| &c.matches);
        rules.len() * matches.flat_map(|m| &m.predicates).map(values).sum::<usize>()
    });
    let mut turns: BTreeMap<Arc<str>, usize> = BTreeMap::new();
    let mut in_turn: Vec<(usize, Place)> = Vec::new();
    for place in places {
        let turn = turns.entry(place.namespace.clone()).or_default();
        *turn += 1;
        in_turn.push((*turn, place));
    }
    in_turn.sort_by_key(|(turn, _)| *turn);
    in_turn.into_iter().map(|(_, place)| place).collect()
}

/// Every place with the policies as their authors wrote them.
fn places(world: &World) -> Vec<Place> {
    let place = |namespace: &str, attached, layer| Place { namespace: namespace.into(), attached, layer };
    let mut out = Vec::new();
    let policies = world.policies.values();
    let namespaces: BTreeSet<&str> = policies
        .filter(|p| p.targets.is_empty() && p.policy.name.namespace != world.mesh.root_namespace)
        .map(|p| &*p.policy.name.namespace)
        .chain([""])
        .collect();
    for namespace in namespaces {
        // Not as node proxies are told, for there the rules have other numbers; what they cannot see is the same.
        let whole =
            world.at_node_proxy(namespace).into_iter().map(|a| match world.policies.get(&a.policy.name) {
                Some(original) => Attached { policy: original.policy.clone(), ..a },
                None => a,
            });
        out.push(place(namespace, whole.collect(), Layer::Connection));
    }
    for service in world.targeted() {
        if let Some(gateway) = world.waypoint_of(&service).gateway() {
            let attached = world.at_waypoint(gateway, Some(&service));
            out.push(place(&service.namespace, attached, Layer::Request));
        }
    }
    // Policies of the Gateway itself judge what is addressed only, so that beside them less may be without effect.
    for closed in world.services.keys().flat_map(|service| world.closed_beside(service)) {
        let attached = world.at_backend(&closed.waypoint, &closed.closed);
        out.push(place(&closed.closed.namespace, attached, Layer::Request));
    }
    for gateway in world.named_gateways() {
        out.push(place(&gateway.namespace, world.at_waypoint(&gateway, None), Layer::Request));
    }
    out.push(place("", world.at_waypoint(&NamespacedName::new("", ""), None), Layer::Request));
    out
}

fn place(
    attached: &[Attached],
    layer: Layer,
    go_on: &dyn Fn() -> bool,
    seen: &mut Seen,
    out: &mut Vec<Finding>,
) {
    let mut builder = Builder::default();
    let drafts = draft(&mut builder, attached, layer);
    let escapes: Vec<_> = deny_by_identity(attached, layer)
        .filter_map(|(policy, index, rest)| {
            let raw = rule(&mut builder, &attached[policy].guard, &rest, true, layer)?;
            Some((policy, index, raw))
        })
        .collect();
    let exemptions = exempt::draft(&mut builder, attached, layer);
    let presence = [meltemi_model::authz::ValueMatch::String(meltemi_model::authz::StringMatch::Presence)];
    builder.predicate(Subject::Attribute(&Attribute::SourcePrincipal), &presence, &[]);
    let mut space = match builder.finish(&Hints::default()) {
        Ok(space) => space,
        Err(over) => return undecided(attached, &over.to_string(), seen, out),
    };
    let side = side(&mut space, attached, drafts);
    if space.over {
        return undecided(attached, "too many rules overlap", seen, out);
    }
    let matching: BTreeSet<(usize, usize)> =
        [&side.allow, &side.deny, &side.custom].into_iter().flatten().filter_map(|i| i.by).collect();
    for (policy, one) in attached.iter().enumerate() {
        for (index, rule) in one.policy.rules.iter().enumerate() {
            let unseen = unseen(rule, layer);
            if unseen && one.policy.action == Action::Allow {
                // It allows nothing here; what it does elsewhere counts.
                continue;
            }
            let skip = one.policy.only_reports() || unseen || ambiguous(rule);
            if skip {
                seen.effective.insert((one.policy.name.clone(), index));
            } else if !matching.contains(&(policy, index)) {
                seen.idle.insert((one.policy.name.clone(), index), (true, why_never(rule, layer)));
            }
        }
    }
    if go_on() {
        exempt::find(&mut space, &side, exemptions, out);
    }
    shadows(&space, &side, go_on, seen);
    for (policy, index, raw) in escapes {
        let Some(form) = space.form(&raw) else { continue };
        escape(&mut space, &side, (policy, index), &form, out);
    }
}

fn rules(attached: &Attached) -> Vec<Key> {
    (0..attached.policy.rules.len()).map(|index| (attached.policy.name.clone(), index)).collect()
}

/// Nothing can be said of the rules of this place: each of them may have an effect.
fn undecided(attached: &[Attached], why: &str, seen: &mut Seen, out: &mut Vec<Finding>) {
    seen.effective.extend(attached.iter().flat_map(rules));
    let Some(first) = attached.first() else { return };
    let beside = match attached.len() - 1 {
        0 => String::new(),
        1 => " and another that applies beside it".to_owned(),
        more => format!(" and {more} others that apply beside it"),
    };
    let message =
        format!("which rules of this policy{beside} can never match or change nothing is not known: {why}");
    let fix = "nothing has to be done; fewer different patterns in one attribute would make it decidable";
    out.push(Finding::policy(UNDECIDED, &first.policy.name, message, fix));
}

/// It asks for what is not seen here: said elsewhere.
fn unseen(rule: &Rule, layer: Layer) -> bool {
    let predicates = rule.clauses.iter().flat_map(|c| &c.matches).flat_map(|m| &m.predicates);
    predicates.into_iter().any(|p| {
        matches!(p.attribute, Attribute::Unsupported(_))
            || (layer == Layer::Connection && p.attribute.needs_l7())
    })
}

/// It names a path or a header that programs read in several ways: no proof is about it.
fn ambiguous(rule: &Rule) -> bool {
    let mut predicates = rule.clauses.iter().flat_map(|c| &c.matches).flat_map(|m| &m.predicates);
    predicates.any(|p| p.values.iter().any(|value| unreadable(&p.attribute, value)))
}

/// The first clause that nothing fulfils on its own, else that they exclude each other.
fn why_never(whole: &Rule, layer: Layer) -> String {
    for clause in &whole.clauses {
        let alone = Rule { clauses: vec![clause.clone()] };
        if possible(&alone, layer) {
            continue;
        }
        for predicate in clause.matches.iter().flat_map(|m| &m.predicates) {
            let one = meltemi_model::authz::Match { predicates: vec![predicate.clone()] };
            let alone = Rule { clauses: vec![Clause { origin: clause.origin, matches: vec![one] }] };
            if !possible(&alone, layer) {
                return nothing_is(predicate);
            }
        }
        return format!("nothing is {}", words::clause(clause));
    }
    "its parts exclude each other".to_owned()
}

fn nothing_is(predicate: &Predicate) -> String {
    let text = words::predicate(predicate);
    match predicate.attribute {
        Attribute::Method => format!("methods are upper case, and nothing is {text}"),
        Attribute::Header(ref name) if meltemi_policy::http::is_never_seen(name) => {
            format!(
                "{name} is a header for the proxy itself, which policies do not see, and nothing is {text}"
            )
        }
        _ => format!("nothing is {text}"),
    }
}

fn possible(one: &Rule, layer: Layer) -> bool {
    let mut builder = Builder::default();
    let Some(raw) = rule(&mut builder, &Guard::new(), one, false, layer) else { return false };
    builder.finish(&Hints::default()).map_or(true, |mut space| space.form(&raw).is_some())
}

fn shadows(space: &Space, side: &Side<'_>, go_on: &dyn Fn() -> bool, seen: &mut Seen) {
    let mut budget = BUDGET;
    for (list, denies) in [(&side.allow, false), (&side.deny, true)] {
        for (at, item) in list.iter().enumerate() {
            let Some((policy, index)) = item.by else { continue };
            let key = (side.policies[policy].policy.name.clone(), index);
            match (budget > 0 && go_on())
                .then(|| shadow(space, side, (list, at), denies, &mut budget))
                .flatten()
            {
                Some(why) => {
                    seen.idle.insert(key, (false, why));
                }
                None => {
                    seen.effective.insert(key);
                }
            }
        }
    }
}

/// Why a rule changes nothing; none when it does.
fn shadow(
    space: &Space,
    side: &Side<'_>,
    (list, at): (&[Item], usize),
    denies: bool,
    budget: &mut usize,
) -> Option<String> {
    let item = &list[at];
    // Of rules that are the same, the first counts.
    let others = list.iter().enumerate().filter(|(i, o)| *i != at && (o.form != item.form || *i < at));
    let others: Vec<&Item> = others.map(|(_, o)| o).filter(|o| o.by.is_some()).collect();
    let deny: &[Item] = if denies { &[] } else { &side.deny };
    let mut ask = |never: Vec<&Form>| {
        *budget = budget.saturating_sub(1);
        let mut question = Question { needs: vec![Need::Form(&item.form)], never };
        question.forget(space, &item.form);
        (question.answer(space) == Answer::No, question.never.len())
    };
    let (covered, _) = ask(others.iter().copied().chain(deny).map(|i| &i.form).collect());
    if !covered {
        return None;
    }
    let name = |item: &Item| {
        item.by
            .map(|(policy, rule)| format!("{} rule[{rule}]", side.policies[policy].policy.name))
            .unwrap_or_default()
    };
    if let Some(one) = deny.iter().find(|d| ask(vec![&d.form]).0) {
        return Some(format!("{} denies all that it matches", name(one)));
    }
    let word = if denies { "denies" } else { "allows" };
    if let Some(one) = others.iter().find(|o| ask(vec![&o.form]).0) {
        return Some(format!("{} {word} all that it matches", name(one)));
    }
    Some(format!("other rules together already decide all that it matches; {word} nothing more"))
}

/// DENY rules that only match who has an identity, without their conditions on it.
fn deny_by_identity(attached: &[Attached], layer: Layer) -> impl Iterator<Item = (usize, usize, Rule)> {
    let positive = |p: &Predicate| {
        !p.values.is_empty()
            && matches!(
                p.attribute,
                Attribute::SourcePrincipal
                    | Attribute::SourceNamespace
                    | Attribute::SourceServiceAccount
                    | Attribute::SourceTrustDomain
            )
    };
    let denies = move |a: &&Attached| {
        // Clients without an identity do not come through a waypoint.
        layer == Layer::Connection && a.policy.action == Action::Deny && !a.policy.dry_run
    };
    let all = attached.iter().enumerate().filter(move |(_, a)| denies(a));
    all.flat_map(move |(policy, a)| {
        a.policy.rules.iter().enumerate().filter_map(move |(index, rule)| {
            let asks = |c: &Clause| {
                !c.matches.is_empty() && c.matches.iter().all(|m| m.predicates.iter().any(positive))
            };
            if !rule.clauses.iter().any(asks) {
                return None;
            }
            let mut rest = rule.clone();
            for one in rest.clauses.iter_mut().flat_map(|c| &mut c.matches) {
                one.predicates.retain(|p| !positive(p));
            }
            Some((policy, index, rest))
        })
    })
}

fn escape(
    space: &mut Space,
    side: &Side<'_>,
    (policy, index): (usize, usize),
    rest: &Form,
    out: &mut Vec<Finding>,
) {
    let Some(nobody) = space.absent(Subject::Attribute(&Attribute::SourcePrincipal)) else { return };
    let cell = [nobody];
    let needs = vec![Need::Cell(&cell), Need::Form(rest), any(&side.allow)];
    let question = Question { needs, never: side.deny.iter().map(|i| &i.form).collect() };
    if question.answer(space) == Answer::No {
        return;
    }
    let policy = &side.policies[policy].policy;
    let message = format!(
        "rule[{index}] denies by identity ({}): a client without one, plaintext from the same workload included, is let through",
        words::rule(&policy.rules[index])
    );
    let fix = "refuse plaintext with a PeerAuthentication of mode STRICT, or deny notPrincipals: [\"*\"]";
    out.push(Finding::policy(PLAINTEXT, &policy.name, message, fix).at(Level::Warning));
}
