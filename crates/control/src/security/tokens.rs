// SPDX-License-Identifier: Apache-2.0
//! RequestAuthentications: as objects, attached to gateways, and what their status says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kube::api::DynamicObject;
use meltemi_model::{NamespacedName, l7};
use meltemi_resources::policies::validate;
use meltemi_tokens::KeySet;
use meltemi_translate::condition::Condition;
use meltemi_translate::routes::table::For;
use meltemi_translate::security::attachment::{self, Attached};
use meltemi_translate::security::request::{self, Tokens};
use meltemi_translate::security::{layer4, notes};
use meltemi_wire::xds::types;

use super::attach::{Ingress, WithIngress, World};
use super::enforced::{self, Generations, Where};
use super::read::services;
use super::report::{acknowledging, is_pending, key};
use super::sent::{Difference, Sent, has_acknowledged};
use super::{changed_services, is_connected, service_keys};
use crate::jwks::{Found, Keys, Source};
use crate::publish::Step;
use crate::status::{StatusQueue, Wish};
use crate::xds::{Proxies, Proxy};

/// Type of the condition that says whether proxies have the keys of issuers.
const KEYS: &str = "meltemi.dev/KeysAvailable";

/// An object and what became of it.
#[derive(Debug)]
struct Entry {
    generation: Option<i64>,
    tokens: Tokens,
    /// Why the object as it is now is not what is enforced; with `true`, it never was.
    fault: Option<(String, bool)>,
    attached: Attached,
}

/// The objects.
#[derive(Debug)]
pub(super) struct TokenObjects {
    all: BTreeMap<NamespacedName, Entry>,
    keys: Keys,
    unattached: BTreeSet<NamespacedName>,
    sent: Sent<l7::Jwt>,
    unreported: BTreeSet<NamespacedName>,
    pending: BTreeSet<NamespacedName>,
}

impl TokenObjects {
    pub(super) fn new(keys: Keys) -> Self {
        Self {
            all: BTreeMap::new(),
            keys,
            unattached: BTreeSet::new(),
            sent: Sent::default(),
            unreported: BTreeSet::new(),
            pending: BTreeSet::new(),
        }
    }

    /// Keys of an issuer have come, changed or gone.
    pub(super) fn see_keys(&mut self) {
        let fetched = |entry: &&Entry| entry.tokens.rules.iter().any(|rule| Source::of(rule).is_some());
        let touched: Vec<_> =
            self.all.iter().filter(|(_, e)| fetched(e)).map(|(name, _)| name.clone()).collect();
        self.unreported.extend(touched.iter().cloned());
        self.unattached.extend(touched);
    }

    /// Says whose keys are needed: those of what is enforced somewhere.
    fn want_keys(&self) {
        let mut sources: BTreeMap<Source, Option<Duration>> = BTreeMap::new();
        let enforced = self.all.values().filter(|entry| !entry.attached.gateways.is_empty());
        for rule in enforced.flat_map(|entry| &entry.tokens.rules) {
            let Some(source) = Source::of(rule) else { continue };
            let timeout = rule.timeout_ms.map(Duration::from_millis);
            let known = sources.entry(source).or_insert(timeout);
            *known = (*known).max(timeout);
        }
        self.keys.want_sets(sources);
    }

    /// An object is new, changed or gone.
    pub(super) fn set(&mut self, name: &NamespacedName, object: Option<&DynamicObject>) {
        self.unattached.insert(name.clone());
        let Some(object) = object else {
            self.all.remove(name);
            self.pending.remove(name);
            return;
        };
        let spec = object.data.get("spec").cloned().unwrap_or_default();
        let read = validate::spec(&serde_json::json!({ "spec": spec })).and_then(|s| request::read(name, &s));
        let before = self.all.remove(name);
        let (tokens, fault) = match (read, before) {
            (Ok(tokens), _) => (tokens, None),
            (Err(reason), before) => {
                tracing::error!(%name, %reason, "RequestAuthentication is not valid");
                match before.filter(|e| e.fault.as_ref().is_none_or(|(_, never)| !never)) {
                    Some(known) => (known.tokens, Some((reason, false))),
                    None => (request::stand_in(name, &spec), Some((reason, true))),
                }
            }
        };
        let attached = Attached::default();
        let entry = Entry { generation: object.metadata.generation, tokens, fault, attached };
        self.all.insert(name.clone(), entry);
        self.unreported.insert(name.clone());
    }

    /// A Service changed, or its waypoint did.
    pub(super) fn see_service(&mut self, service: &NamespacedName) {
        let touched = self.all.iter().filter(|(name, e)| services(name, &e.tokens.targets).contains(service));
        self.unattached.extend(touched.map(|(name, _)| name.clone()));
    }

    /// Some Gateway changed or is gone.
    pub(super) fn see_gateways(&mut self) {
        self.unattached.extend(self.all.keys().cloned());
    }

    /// Attaches what is to be attached and adds it to a step.
    pub(super) fn flush(&mut self, world: &World<'_>, ingress: &Ingress, proxies: &Proxies, step: &mut Step) {
        let changed = changed_services(step);
        let proxies = if self.sent.is_leaving() { proxies.all() } else { Vec::new() };
        let unattached = std::mem::take(&mut self.unattached);
        if unattached.is_empty() {
            return;
        }
        for name in unattached {
            let wanted = self.all.get_mut(&name).and_then(|entry| {
                let tokens = &entry.tokens;
                let policy = attachment::Policy {
                    kind: "RequestAuthentication",
                    name: &name,
                    selector: tokens.selector.as_ref(),
                    targets: &tokens.targets,
                };
                let attached = attachment::attach(policy, &WithIngress(world, ingress));
                if entry.attached != attached {
                    self.unreported.insert(name.clone());
                    entry.attached = attached;
                }
                let Attached { gateways, targets, .. } = entry.attached.clone();
                let rules = tokens.rules.iter().map(|rule| with_keys(rule, &self.keys)).collect();
                let what = l7::Jwt { name: name.clone(), targets, rules };
                // One without rules asks for nothing.
                (!tokens.rules.is_empty()).then_some(For { what, gateways })
            });
            let services = wanted.as_ref().map_or_else(Vec::new, |w| service_keys(&w.what.targets));
            let moved = services.iter().any(|key| changed.contains(key));
            let left = |gateway: &NamespacedName, since| {
                let gone = !world.gateways.has(gateway);
                has_acknowledged(gateway, since, &services, &proxies)
                    || (gone && !is_connected(gateway, &proxies))
            };
            match self.sent.put(&name, wanted, moved, left) {
                Difference::Same => {}
                Difference::Changed(sent) => step.tokens.push(sent),
                Difference::Removed => step.removed_tokens.push(name),
            }
        }
        self.want_keys();
    }

    /// Whether some Gateway still holds what is no longer for it.
    pub(super) fn is_leaving(&self) -> bool {
        self.sent.is_leaving()
    }

    /// Proxies have acknowledged something: marks what Gateways may lose now. Returns whether there is something.
    pub(super) fn see_acknowledged(&mut self, proxies: &[Proxy]) -> bool {
        self.unattached.extend(self.sent.all_left(proxies));
        !self.unattached.is_empty()
    }

    /// A step became a generation.
    pub(super) fn published(&mut self, generation: u64, step: &Step) {
        self.sent.published(generation);
        self.unreported.extend(step.tokens.iter().map(|sent| sent.what.name.clone()));
    }

    /// Hands on the statuses that may be others now.
    pub(super) fn report(&mut self, proxies: &[Proxy], status: &StatusQueue) {
        let due = std::mem::take(&mut self.unreported);
        self.write(due, proxies, status);
    }

    /// Looks again at what not every proxy had acknowledged.
    pub(super) fn report_pending(&mut self, proxies: &[Proxy], status: &StatusQueue) {
        let due = self.pending.clone();
        self.write(due, proxies, status);
    }

    fn write(&mut self, due: BTreeSet<NamespacedName>, proxies: &[Proxy], status: &StatusQueue) {
        for name in due {
            let Some(entry) = self.all.get(&name) else { continue };
            let conditions = conditions(&name, entry, proxies, &self.sent, &self.keys);
            match is_pending(&conditions) {
                true => self.pending.insert(name.clone()),
                false => self.pending.remove(&name),
            };
            let key = key("RequestAuthentication", "requestauthentications", &name);
            status.set(key, Wish::Conditions { generation: entry.generation, conditions });
        }
    }
}

/// A rule with the keys that were fetched for it.
fn with_keys(rule: &l7::JwtRule, keys: &Keys) -> l7::JwtRule {
    match Source::of(rule) {
        None => rule.clone(),
        Some(source) => l7::JwtRule { jwks: keys.find_set(&source).keys, ..rule.clone() },
    }
}

/// Whether proxies have keys for all rules; `None` when there are no rules.
fn keys_available(tokens: &Tokens, keys: &Keys) -> Option<Condition> {
    let (mut invalid, mut waiting, mut stale) = (Vec::new(), Vec::new(), Vec::new());
    for rule in &tokens.rules {
        let Some(source) = Source::of(rule) else {
            let checked = rule.jwks.as_deref().map(KeySet::parse);
            let issuer = rule.issuer.as_deref().unwrap_or("any issuer");
            match checked {
                Some(Err(reason)) => invalid.push(format!("jwks of {issuer}: {reason}")),
                Some(Ok(_)) => {}
                None => invalid.push(format!("{issuer}: no keys are named")),
            }
            continue;
        };
        match keys.find_set(&source) {
            Found { keys: Some(_), fault: None } => {}
            Found { keys: Some(_), fault: Some(fault) } => stale.push(format!("{source}: {fault}")),
            Found { keys: None, fault: Some(fault) } => invalid.push(format!("{source}: {fault}")),
            Found { keys: None, fault: None } => waiting.push(source.to_string()),
        }
    }
    let refused = "; every token of this issuer is refused (401)";
    Some(match (tokens.rules.is_empty(), &*invalid, &*waiting, &*stale) {
        (true, ..) => return None,
        (_, [_, ..], ..) => Condition::no(KEYS, "NoKeys", format!("{}{refused}", invalid.join("; "))),
        (_, [], [_, ..], _) => {
            Condition::no(KEYS, "Pending", format!("{}: not fetched yet{refused}", waiting.join("; ")))
        }
        (_, [], [], [_, ..]) => {
            let used = "; the keys of the last fetch are used for a day";
            Condition::yes(KEYS, "Stale", format!("{}{used}", stale.join("; ")))
        }
        (_, [], [], []) => Condition::yes(KEYS, "Available", "proxies have the keys of every issuer"),
    })
}

fn conditions(
    name: &NamespacedName,
    entry: &Entry,
    proxies: &[Proxy],
    sent: &Sent<l7::Jwt>,
    keys: &Keys,
) -> Vec<Condition> {
    let mut out = Vec::new();
    let gateways = &entry.attached.gateways;
    match &entry.fault {
        Some((fault, never)) => {
            let instead = match never {
                true => "no token is taken where it applies",
                false => "what was accepted before stays in force",
            };
            let message = format!("{fault}; {instead}");
            out.push(Condition::no(layer4::ZTUNNEL_ACCEPTED, "Invalid", message));
        }
        None if gateways.is_empty() => out.extend(request::at_node_proxies(&entry.tokens)),
        None => {}
    }
    out.extend(entry.attached.condition.clone());
    if !gateways.is_empty() {
        out.extend(request::differs(&entry.tokens));
        out.extend(keys_available(&entry.tokens, keys));
    }
    out.extend(notes::around(&entry.attached.around));
    if !entry.tokens.rules.is_empty() {
        let at = Where {
            gateways: sent.since(name, gateways),
            told: Some(types::JWT),
            leaving: acknowledging(sent.leaving(name)),
            ..Where::default()
        };
        out.push(enforced::condition(&[name.to_string()], &at, Generations::default(), proxies, &[]));
    }
    out
}
