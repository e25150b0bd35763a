// SPDX-License-Identifier: Apache-2.0
//! Who may reach a Service: every identity, those that exist, those that policies name, and all others.

use std::collections::{BTreeMap, BTreeSet};

use meltemi_model::NamespacedName;
use meltemi_model::authz::{Action, Attribute, StringMatch, ValueMatch};
use meltemi_translate::facts::Labels;
use serde::Serialize;

use crate::ask::{Given, Judge, exactly, ports};
use crate::error::QueryError;
use crate::proof::{Answer, Hints, Layer, Value};
use crate::side::{Attached, Item, applies, compile};
use crate::witness::{PLAINTEXT, Witness};
use crate::words;
use crate::world::{Known, World};

/// Identities that neither exist nor are named.
const OTHERS: &str = "any other identity";

/// Port and host of a witness that no policy cares about.
const PORT: u16 = 80;
const HOST: &str = "other";

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// The Service: namespace and name.
    pub to: NamespacedName,
    /// Port of the Service; any that it has when none.
    pub port: Option<u16>,
    /// HTTP method; any when none.
    pub method: Option<String>,
    /// HTTP path; any when none.
    pub path: Option<String>,
}

/// Those whom one rule lets through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Grant {
    /// The policy; none when no ALLOW policy applies.
    pub policy: Option<String>,
    /// Index of the rule.
    pub rule: Option<u32>,
    /// The rule in its own words.
    pub condition: String,
    /// Principals, and in words what has no single one.
    pub identities: Vec<String>,
    /// Who with an identity may not, where all but these may.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<String>,
    /// Every identity is among them.
    pub any_identity: bool,
    /// Clients without an identity are among them.
    pub plaintext: bool,
    /// A request of each kind of client that is let through; the engine has confirmed it.
    #[serde(skip)]
    pub witnesses: Vec<Witness>,
}

/// What one enforcement point lets through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Door {
    /// `node proxy` or `waypoint <ns>/<name>`.
    pub enforced_at: String,
    /// How one gets there.
    pub way: String,
    /// Anyone may, plaintext included.
    pub anyone: bool,
    /// By rule.
    pub grants: Vec<Grant>,
    /// What cannot be known.
    pub unknown: Vec<String>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WhoCan {
    /// `Service <ns>/<name>`.
    pub target: String,
    /// The ways to it.
    pub doors: Vec<Door>,
    /// Whether the node proxy lets the Service's waypoint through; none when it has no waypoint.
    pub waypoint_admitted: Option<bool>,
    /// What the objects lack and was assumed.
    pub assumed: Vec<String>,
}

/// Finds who may.
///
/// # Errors
/// The Service or its port does not exist, or its policies are too many to tell.
pub fn who_can(world: &World, question: &Question) -> Result<WhoCan, QueryError> {
    let to = &question.to;
    let mut out = WhoCan {
        target: format!("Service {to}"),
        doors: Vec::new(),
        waypoint_admitted: None,
        assumed: Vec::new(),
    };
    match world.knows_service(to) {
        Known::Yes => {}
        Known::Assumed => {
            out.assumed.push(format!("Service {to} exists and selects Pods labelled app={}", to.name));
        }
        Known::No if world.complete => return Err(QueryError::NoService(to.clone())),
        Known::No => {
            return Err(QueryError::ServiceNotGiven(to.clone()));
        }
    }
    let all = world.ports(to);
    let known: Vec<(u16, Option<u16>)> =
        all.iter().copied().filter(|(port, _)| question.port.is_none_or(|p| p == *port)).collect();
    if let Some(port) = question.port.filter(|_| known.is_empty() && !all.is_empty()) {
        let all: Vec<String> = all.iter().map(|(port, _)| port.to_string()).collect();
        return Err(QueryError::NoPort { service: to.clone(), port, known: all.join(", ") });
    }
    let binding = world.waypoint_of(to);
    let gateway = binding.gateway();
    if let Some(gateway) = gateway {
        if matches!(binding, crate::world::Binding::Assumed(_)) {
            out.assumed.push(format!("Service {to} uses the waypoint {gateway}"));
        }
        out.doors.extend(at_waypoint(world, question, gateway, &known)?);
    }
    let targets: Option<Vec<u16>> = known.iter().map(|(_, target)| *target).collect();
    let targets = match (targets, question.port) {
        (Some(all), Some(port)) if all.is_empty() => vec![port],
        (Some(all), _) => all,
        (None, _) => {
            out.assumed.push("the Pods' ports may be any: some have a name that is not known".to_owned());
            Vec::new()
        }
    };
    let (doors, admitted) = at_pods(world, to, gateway, &some_ports(targets))?;
    out.doors.extend(doors);
    out.waypoint_admitted = gateway.map(|_| admitted);
    Ok(out)
}

/// The ways through a waypoint: requests, and connections to ports without any.
fn at_waypoint(
    world: &World,
    question: &Question,
    gateway: &NamespacedName,
    known: &[(u16, Option<u16>)],
) -> Result<Vec<Door>, QueryError> {
    let streams = world.services.get(&question.to).map(|s| &s.streams);
    // Of a Service that is not known, and of a port that it has not, the number is all that there is.
    let all = known.iter().map(|(port, _)| *port).chain(question.port.filter(|_| known.is_empty()));
    let (streams, http): (Vec<u16>, Vec<u16>) =
        all.partition(|port| streams.is_some_and(|s| s.contains(port)));
    let policies = world.at_waypoint(gateway, Some(&question.to));
    let place = format!("waypoint {gateway}");
    let mut doors = Vec::new();
    let beside = world.closed_beside(&question.to).into_iter().filter(|b| b.waypoint == *gateway);
    let beside = beside.filter(|b| !world.at_backend(gateway, &b.closed).is_empty());
    let further: Vec<String> = beside
        .map(|b| format!("what the policies of Service {} say of Pods that are of it too", b.closed))
        .collect();
    if !http.is_empty() || streams.is_empty() {
        let mut given: Vec<Given> = some_ports(http);
        given.extend(question.method.as_ref().map(|m| exactly(Attribute::Method, m)));
        given.extend(question.path.as_ref().map(|p| exactly(Attribute::Path, p)));
        let way = "requests of mesh clients to the Service".to_owned();
        doors.push(door(world, &policies, Layer::Request, &given, (place.clone(), way))?);
    }
    if !streams.is_empty() {
        let way = "connections of mesh clients to ports of the Service that are TCP or TLS".to_owned();
        let given = some_ports(streams);
        doors.push(door(world, &policies, Layer::Connection, &given, (place, way))?);
    }
    doors.iter_mut().for_each(|door| door.unknown.extend(further.iter().cloned()));
    Ok(doors)
}

/// The ways straight to the Pods, and whether all of them let the waypoint in.
fn at_pods(
    world: &World,
    to: &NamespacedName,
    gateway: Option<&NamespacedName>,
    given: &[Given],
) -> Result<(Vec<Door>, bool), QueryError> {
    let (mut doors, mut admitted) = (Vec::new(), true);
    for (labels, policies) in pods(world, to) {
        let place = if labels.is_empty() {
            "node proxy".to_owned()
        } else {
            format!("node proxy of Pods with {labels}")
        };
        let way = match gateway {
            Some(_) => "connections straight to a Pod, around the waypoint",
            None => "connections to the Service or a Pod",
        };
        if let Some(gateway) = gateway {
            let mut from = given.to_vec();
            from.push(exactly(Attribute::SourcePrincipal, &world.waypoint_identity(gateway)));
            let judge = Judge::new(&policies, Layer::Connection, &from, &Hints::default())?;
            admitted &= judge.allowed(&[]) != Answer::No;
        }
        doors.push(door(world, &policies, Layer::Connection, given, (place, way.to_owned()))?);
    }
    let labels = world.pod_labels(to);
    if let Some(waypoint) = labels.iter().find_map(|labels| world.waypoint_of_pods(&to.namespace, labels)) {
        let what = format!("what waypoint {waypoint} says of connections to the addresses of Pods");
        doors.iter_mut().for_each(|door| door.unknown.push(what.clone()));
    }
    Ok((doors, admitted))
}

/// One of some ports; nothing when it may be any.
fn some_ports(all: Vec<u16>) -> Vec<Given> {
    if all.is_empty() { Vec::new() } else { vec![ports(all)] }
}

/// The Service's Pods by the policies that apply to them; with labels where they differ.
fn pods(world: &World, to: &NamespacedName) -> Vec<(String, Vec<Attached>)> {
    let policies = world.at_node_proxy(&to.namespace);
    let mut all = world.pod_labels(to);
    if all.is_empty() {
        all.push(Labels::from([("app".to_owned(), to.name.to_string())]));
    }
    let mut groups: BTreeMap<Vec<usize>, Labels> = BTreeMap::new();
    for labels in all {
        let near = policies.iter().enumerate().filter(|(_, a)| applies(&a.guard, &labels));
        groups.entry(near.map(|(i, _)| i).collect()).or_insert(labels);
    }
    let several = groups.len() > 1;
    let near = |indices: Vec<usize>| indices.into_iter().map(|i| policies[i].to_all()).collect();
    let text = |labels: Labels| {
        let pairs: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        if several { pairs.join(",") } else { String::new() }
    };
    groups.into_iter().map(|(indices, labels)| (text(labels), near(indices))).collect()
}

fn door(
    world: &World,
    policies: &[Attached],
    layer: Layer,
    given: &[Given],
    (enforced_at, way): (String, String),
) -> Result<Door, QueryError> {
    let known = world.identities();
    let hints = Hints { identities: known.clone(), ..Hints::default() };
    let mut judge = Judge::with_known(policies, layer, given, &hints, &known)?;
    let mut unknown: Vec<String> = Vec::new();
    if let Some((policy, rule)) = judge.asked() {
        let policy = &policies[policy].policy;
        unknown.push(format!(
            "what the provider says that {} rule[{rule}] asks: {}",
            policy.name,
            words::rule(&policy.rules[rule])
        ));
    }
    let place = judge.space.identity();
    let classes: Vec<(usize, Value)> = match place {
        Some(place) => judge.space.dims[place].values.iter().cloned().enumerate().collect(),
        None => Vec::new(),
    };
    // CUSTOM is taken as allowed: what its provider says is named as unknown.
    let decides = policies.iter().filter(|a| !matches!(a.policy.action, Action::Custom { .. }));
    let set = compile(decides);
    let mut grants = Vec::new();
    let mut reached = BTreeSet::new();
    for item in 0..judge.side.allow.len() {
        let (mut inside, mut witnesses) = (BTreeSet::new(), Vec::new());
        for (class, _) in &classes {
            let Some(place) = place.filter(|_| judge.may(item, place, *class)) else { continue };
            let only = judge.space.only(place, *class);
            match judge.allowed_by(item, &[only]) {
                Answer::No => {}
                Answer::Yes(found) => {
                    let witness = Witness::of(&judge.space, &found, layer, PORT, HOST);
                    if !witness.decide(&set)?.is_allow() {
                        unknown.push(format!("the engine does not confirm what was found, for {witness}"));
                    }
                    inside.insert(*class);
                    witnesses.push(witness);
                }
                Answer::GaveUp => unknown.push("too many rules overlap for an answer".to_owned()),
            }
        }
        reached.extend(inside.iter().copied());
        let grant = grant(&judge, &judge.side.allow[item], place, &classes, &inside);
        grants.push(Grant { witnesses, ..grant });
    }
    grants.retain(|g| g.plaintext || g.any_identity || !g.identities.is_empty());
    unknown.dedup();
    Ok(Door { enforced_at, way, anyone: reached.len() == classes.len(), grants, unknown })
}

fn grant(
    judge: &Judge<'_>,
    item: &Item,
    place: Option<usize>,
    classes: &[(usize, Value)],
    inside: &BTreeSet<usize>,
) -> Grant {
    let named = item.by.map(|(policy, rule)| (&judge.side.policies[policy].policy, rule));
    let nobody = classes.iter().find(|(_, v)| *v == Value::Absent).map(|(class, _)| *class);
    let plaintext = nobody.is_some_and(|n| inside.contains(&n));
    let any_identity = classes.iter().all(|(class, _)| Some(*class) == nobody || inside.contains(class));
    let mut identities: Vec<String> = Vec::new();
    for class in inside.iter().filter(|c| Some(**c) != nobody && !any_identity) {
        let Some(place) = place else { continue };
        identities.push(in_words(judge, place, *class));
    }
    identities.sort();
    identities.dedup();
    let rest = |class: &&(usize, Value)| Some(class.0) != nobody && !inside.contains(&class.0);
    let named_all = |class: usize| place.map(|p| in_words(judge, p, class)).unwrap_or_default();
    let mut except: Vec<String> = Vec::new();
    if identities.iter().any(|i| i == OTHERS) {
        except = classes.iter().filter(rest).map(|(class, _)| named_all(*class)).collect();
        except = except.iter().map(|e| e.replace("any other identity with", "identities with")).collect();
        except.sort();
    }
    Grant {
        policy: named.map(|(p, _)| p.name.to_string()),
        rule: named.and_then(|(_, rule)| u32::try_from(rule).ok()),
        condition: named
            .map_or_else(|| "no ALLOW policy applies".to_owned(), |(p, r)| words::rule(&p.rules[r])),
        identities,
        except,
        any_identity,
        plaintext,
        witnesses: Vec::new(),
    }
}

/// A class of identities: its only principal, or what they have in common.
fn in_words(judge: &Judge<'_>, place: usize, class: usize) -> String {
    let atoms = judge.space.atoms(place, class);
    for (attribute, value) in &atoms {
        if let (Attribute::SourcePrincipal, ValueMatch::String(StringMatch::Exact(text))) = (attribute, value)
        {
            return text.to_string();
        }
    }
    let account = atoms.iter().find(|(a, _)| *a == Attribute::SourceServiceAccount);
    let mut narrow: Vec<String> = account
        .into_iter()
        .chain(atoms.iter().filter(|(a, _)| *a != Attribute::SourceServiceAccount))
        .map(|(attribute, value)| format!("{}=[{}]", words::field(attribute), words::value(value)))
        .collect();
    narrow.dedup();
    if narrow.is_empty() {
        OTHERS.to_owned()
    } else {
        format!("any other identity with {}", narrow.join(" "))
    }
}

impl Door {
    /// A line for each grant.
    pub fn lines(&self) -> Vec<String> {
        let mut out = Vec::new();
        for grant in &self.grants {
            let by = match (&grant.policy, grant.rule) {
                (Some(policy), Some(rule)) => format!("{policy} rule[{rule}]: {}", grant.condition),
                _ => grant.condition.clone(),
            };
            let mut who: Vec<String> = grant.identities.clone();
            if !grant.except.is_empty() && !grant.any_identity {
                who = vec![format!("anyone with an identity but {}", grant.except.join(", "))];
            }
            match (grant.any_identity, grant.plaintext) {
                (true, true) => who = vec![format!("anyone, {PLAINTEXT} included")],
                (true, false) => who = vec!["anyone with an identity".to_owned()],
                (false, true) => who.push(format!("{PLAINTEXT} (no identity)")),
                (false, false) => {}
            }
            out.extend(who.into_iter().map(|who| format!("{who}  by {by}")));
        }
        if out.is_empty() {
            out.push("nobody".to_owned());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use meltemi_translate::MeshConfig;
    use serde_json::{Value, json};

    use super::*;

    fn ask(objects: &[Value], method: Option<&str>) -> WhoCan {
        let world = World::read(objects, MeshConfig::default()).whole().unwrap();
        let question = Question {
            to: NamespacedName::new("default", "web"),
            port: None,
            method: method.map(str::to_owned),
            path: None,
        };
        who_can(&world, &question).unwrap()
    }

    fn policy(name: &str, spec: Value) -> Value {
        json!({"kind": "AuthorizationPolicy", "metadata": {"name": name, "namespace": "default"}, "spec": spec})
    }

    fn lines(of: &WhoCan, door: usize) -> Vec<String> {
        of.doors[door].lines()
    }

    #[test]
    fn without_policies_anyone_may() {
        let open = ask(&[], None);
        assert!(open.doors.len() == 1 && open.doors[0].anyone);
        assert_eq!(lines(&open, 0), ["anyone, plaintext included  by no ALLOW policy applies"]);
    }

    #[test]
    fn those_that_exist_those_that_are_named_and_all_others() {
        let account =
            |name: &str| json!({"kind": "ServiceAccount", "metadata": {"name": name, "namespace": "a"}});
        let spec = json!({"selector": {"matchLabels": {"app": "web"}}, "rules": [
            {"from": [{"source": {"principals": ["cluster.local/ns/b/sa/*"]}}]},
            {"from": [{"source": {"namespaces": ["a"]}}], "to": [{"operation": {"ports": ["80"]}}]},
        ]});
        let deny = json!({"action": "DENY", "rules": [
            {"from": [{"source": {"principals": ["cluster.local/ns/a/sa/bad"]}}]}]});
        let got = ask(&[account("good"), account("bad"), policy("p", spec), policy("d", deny)], None);
        let all = lines(&got, 0);
        assert_eq!(all.len(), 3, "{all:#?}");
        assert!(
            all[0].starts_with("any other identity with principals=[cluster.local/ns/b/sa/*]"),
            "{all:#?}"
        );
        assert!(all[1].starts_with("any other identity with namespaces=[a]"), "{all:#?}");
        assert!(all[2].starts_with("cluster.local/ns/a/sa/good  by default/p rule[1]"), "{all:#?}");
        assert!(!got.doors[0].anyone && !got.doors[0].grants.iter().any(|g| g.plaintext));
    }

    #[test]
    fn all_but_some_are_told_by_those() {
        let deny = json!({"action": "DENY", "rules": [{"from": [{"source": {"namespaces": ["a"]}}]}]});
        let got = ask(&[policy("d", deny)], None);
        let all = lines(&got, 0);
        assert_eq!(
            all,
            [
                "anyone with an identity but identities with namespaces=[a]  by no ALLOW policy applies",
                "plaintext (no identity)  by no ALLOW policy applies"
            ]
        );
    }

    #[test]
    fn both_halves_and_the_method() {
        let l7 = json!({"targetRefs": [{"kind": "Service", "group": "", "name": "web"}], "rules": [
            {"from": [{"source": {"principals": ["cluster.local/ns/default/sa/curl"]}}],
             "to": [{"operation": {"methods": ["GET"]}}]}]});
        let l4 = json!({"selector": {"matchLabels": {"app": "web"}}, "rules": [
            {"from": [{"source": {"principals": ["cluster.local/ns/default/sa/gw"]}}]}]});
        let objects = [policy("l7", l7), policy("l4", l4)];
        let get = ask(&objects, Some("GET"));
        assert_eq!(get.doors.len(), 2);
        assert!(lines(&get, 0)[0].starts_with("cluster.local/ns/default/sa/curl  by default/l7"));
        assert_eq!(get.waypoint_admitted, Some(false), "the policy of layer 4 forgets the waypoint");
        assert!(lines(&get, 1)[0].starts_with("cluster.local/ns/default/sa/gw  by default/l4"));
        assert_eq!(lines(&ask(&objects, Some("DELETE")), 0), ["nobody"]);
    }
}
