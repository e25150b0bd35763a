// SPDX-License-Identifier: Apache-2.0
//! From PeerAuthentications to the DENY policies that a node proxy enforces them by.
//!
//! Modes are inherited from the mesh to the namespace to the workload; of several objects at one level the oldest
//! wins. A node proxy never disables HBONE: DISABLE is PERMISSIVE.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meltemi_model::NamespacedName;
use meltemi_model::authz::{
    Action, Attribute, Clause, ClauseOrigin, Match, Policy, Predicate, Rule, Scope, StringMatch, ValueMatch,
};
use meltemi_resources::policies::{MtlsMode, PeerAuthenticationSpec};

use super::layer4::ZTUNNEL_ACCEPTED;
use crate::condition::Condition;
use crate::facts::{Labels, selects};
use crate::mesh::MeshConfig;

/// Name of the policy that denies plaintext, in the root namespace.
const STRICT: &str = "istio_converted_static_strict";
/// Prefix of the policies of single workloads.
const PREFIX: &str = "converted_peer_authentication_";

/// A PeerAuthentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: NamespacedName,
    /// Creation time, RFC 3339.
    pub created: String,
    /// Its spec.
    pub spec: PeerAuthenticationSpec,
}

impl Peer {
    fn selector(&self) -> Option<&Labels> {
        self.spec.selector.as_ref()?.match_labels.as_ref().filter(|l| !l.is_empty())
    }

    fn mode(&self) -> MtlsMode {
        self.spec.mtls.as_ref().map(|m| m.mode).unwrap_or_default()
    }
}

/// The PeerAuthentications of a mesh, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers(Vec<Peer>);

impl Peers {
    /// From objects in any order.
    pub fn new(mut peers: Vec<Peer>) -> Self {
        peers.sort_by(|a, b| (&a.created, &a.name).cmp(&(&b.created, &b.name)));
        Self(peers)
    }

    /// Namespaces whose workloads are treated otherwise than by `before`; none means all of them.
    pub fn differs(&self, before: &Self, mesh: &MeshConfig) -> Option<BTreeSet<Arc<str>>> {
        let changed: Vec<&Peer> = self
            .0
            .iter()
            .filter(|p| !before.0.contains(p))
            .chain(before.0.iter().filter(|p| !self.0.contains(p)))
            .collect();
        if changed.iter().any(|p| p.name.namespace == mesh.root_namespace) {
            return None;
        }
        Some(changed.into_iter().map(|p| p.name.namespace.clone()).collect())
    }

    fn level(&self, namespace: &str) -> MtlsMode {
        let mut all = self.0.iter().filter(|p| *p.name.namespace == *namespace && p.selector().is_none());
        all.next().map(Peer::mode).unwrap_or_default()
    }

    /// The mode of a namespace, with what it inherits.
    fn of_namespace(&self, namespace: &str, mesh: &MeshConfig) -> MtlsMode {
        let of_mesh = resolve(self.level(&mesh.root_namespace), MtlsMode::Permissive);
        if *namespace == *mesh.root_namespace { of_mesh } else { resolve(self.level(namespace), of_mesh) }
    }

    /// Every policy that some workload may name; all of them apply by name only.
    pub fn policies(&self, mesh: &MeshConfig) -> BTreeMap<NamespacedName, Arc<Policy>> {
        let mut out = BTreeMap::new();
        if self.0.is_empty() {
            return out;
        }
        let plain = strict(static_strict(mesh), &[], &[]);
        out.insert(plain.name.clone(), Arc::new(plain));
        for peer in
            self.0.iter().filter(|p| p.selector().is_some() && p.name.namespace != mesh.root_namespace)
        {
            let above = self.of_namespace(&peer.name.namespace, mesh);
            if let Some(policy) = own_policy(peer, above) {
                out.insert(policy.name.clone(), Arc::new(policy));
            }
        }
        out
    }

    /// The policy that a workload names, if plaintext to it is refused anywhere.
    pub fn name_for(&self, namespace: &str, labels: &Labels, mesh: &MeshConfig) -> Option<NamespacedName> {
        if self.0.is_empty() {
            return None;
        }
        let above = self.of_namespace(namespace, mesh);
        // In the root namespace a selector has no effect on workloads, as in Istio.
        let own =
            self.0.iter().filter(|p| *p.name.namespace == *namespace && *namespace != *mesh.root_namespace);
        let own =
            own.filter_map(|p| Some((p, p.selector()?))).find(|(_, selector)| selects(selector, labels));
        let Some((peer, _)) = own else { return (above == MtlsMode::Strict).then(|| static_strict(mesh)) };
        match own_policy(peer, above) {
            Some(policy) => Some(policy.name),
            None => (resolve(peer.mode(), above) == MtlsMode::Strict).then(|| static_strict(mesh)),
        }
    }
}

impl Peers {
    /// Whether a workload takes plaintext on some port.
    pub fn take_plaintext(&self, namespace: &str, labels: &Labels, mesh: &MeshConfig) -> bool {
        self.name_for(namespace, labels, mesh) != Some(static_strict(mesh))
    }

    /// `ZtunnelAccepted` of one of them; none when it is not among them.
    pub fn condition(&self, name: &NamespacedName, mesh: &MeshConfig) -> Option<Condition> {
        let peer = self.0.iter().find(|p| p.name == *name)?;
        if peer.selector().is_some() {
            if name.namespace == mesh.root_namespace {
                let message = "a selector in the root namespace selects no workload in ambient mode";
                return Some(Condition::no(ZTUNNEL_ACCEPTED, "UnsupportedValue", message));
            }
        } else {
            let level = self.0.iter().find(|p| p.name.namespace == name.namespace && p.selector().is_none());
            if let Some(older) = level.filter(|older| older.name != *name) {
                let message = format!("{} is older and takes precedence", older.name);
                return Some(Condition::no(ZTUNNEL_ACCEPTED, "Conflicted", message));
            }
        }
        let modes = peer.spec.mtls.iter().chain(peer.spec.port_level_mtls.iter().flat_map(|p| p.values()));
        if modes.into_iter().any(|m| m.mode == MtlsMode::Disable) {
            let message =
                "attached to ztunnel; DISABLE is taken as PERMISSIVE: ztunnel never disables mutual TLS";
            return Some(Condition::yes(ZTUNNEL_ACCEPTED, "UnsupportedValue", message));
        }
        Some(Condition::yes(ZTUNNEL_ACCEPTED, "Accepted", "attached to ztunnel"))
    }

    /// Labels that one of them selects workloads by; none when it is for its whole namespace.
    pub fn selector_of(&self, name: &NamespacedName) -> Option<&Labels> {
        self.0.iter().find(|p| p.name == *name)?.selector()
    }

    /// Policies by which node proxies enforce one of them, if they need any.
    pub fn made_of(name: &NamespacedName, mesh: &MeshConfig) -> [NamespacedName; 2] {
        [static_strict(mesh), own_name(name)]
    }
}

fn own_name(peer: &NamespacedName) -> NamespacedName {
    NamespacedName::new(peer.namespace.clone(), format!("{PREFIX}{}", peer.name))
}

fn static_strict(mesh: &MeshConfig) -> NamespacedName {
    NamespacedName::new(mesh.root_namespace.clone(), STRICT)
}

fn resolve(mode: MtlsMode, above: MtlsMode) -> MtlsMode {
    match mode {
        MtlsMode::Unset => above,
        MtlsMode::Disable => MtlsMode::Permissive,
        other => other,
    }
}

/// The policy of an object that says something of single ports.
fn own_policy(peer: &Peer, above: MtlsMode) -> Option<Policy> {
    let own = resolve(peer.mode(), above);
    let ports: Vec<(u16, MtlsMode)> = peer
        .spec
        .port_level_mtls
        .iter()
        .flatten()
        .filter_map(|(port, m)| Some((port.parse().ok()?, resolve(m.mode, own))))
        .collect();
    let of = |strict: bool| -> Vec<u16> {
        ports.iter().filter(|(_, m)| (*m == MtlsMode::Strict) == strict).map(|(p, _)| *p).collect()
    };
    let name = own_name(&peer.name);
    if own == MtlsMode::Strict {
        let exempt = of(false);
        (!exempt.is_empty()).then(|| strict(name, &exempt, &[]))
    } else {
        let only = of(true);
        (!only.is_empty()).then(|| strict(name, &[], &only))
    }
}

/// Denies peers without an identity: on all ports but the exempt ones, or on the given ones only.
fn strict(name: NamespacedName, exempt: &[u16], only: &[u16]) -> Policy {
    let nobody = Predicate {
        attribute: Attribute::SourcePrincipal,
        values: Vec::new(),
        not_values: vec![ValueMatch::String(StringMatch::Presence)],
    };
    let clause = |predicate| Clause {
        origin: ClauseOrigin::Unknown,
        matches: vec![Match { predicates: vec![predicate] }],
    };
    let port = |values: Vec<ValueMatch>, not_values: Vec<ValueMatch>| Predicate {
        attribute: Attribute::DestinationPort,
        values,
        not_values,
    };
    let rules = if only.is_empty() {
        let mut clauses = vec![clause(nobody)];
        clauses.extend(exempt.iter().map(|p| clause(port(Vec::new(), vec![ValueMatch::Port(*p)]))));
        vec![Rule { clauses }]
    } else {
        only.iter()
            .map(|p| Rule {
                clauses: vec![clause(nobody.clone()), clause(port(vec![ValueMatch::Port(*p)], Vec::new()))],
            })
            .collect()
    };
    Policy { name, scope: Scope::WorkloadSelector, action: Action::Deny, dry_run: false, rules }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(namespace: &str, name: &str, created: &str, yaml: &str) -> Peer {
        Peer {
            name: NamespacedName::new(namespace, name),
            created: created.into(),
            spec: serde_yaml_ng::from_str(yaml).unwrap(),
        }
    }

    fn named(peers: &[Peer], namespace: &str) -> String {
        let mesh = MeshConfig::default();
        let labels = Labels::from([("a".to_owned(), "b".to_owned())]);
        let peers = Peers::new(peers.to_vec());
        let name = peers.name_for(namespace, &labels, &mesh);
        if let Some(name) = &name {
            assert!(peers.policies(&mesh).contains_key(name), "what is named is sent");
        }
        name.map(|n| n.to_string()).unwrap_or_default()
    }

    const STATIC: &str = "istio-system/istio_converted_static_strict";

    #[test]
    fn modes_are_inherited() {
        let mesh = peer("istio-system", "default", "1", "{mtls: {mode: STRICT}}");
        let soft = peer("legacy", "default", "1", "{mtls: {mode: PERMISSIVE}}");
        let unset = peer("shop", "default", "1", "{mtls: {mode: UNSET}}");
        let strict = peer("shop", "default", "1", "{mtls: {mode: STRICT}}");
        let cases = [
            (vec![], "shop", ""),
            (vec![mesh.clone()], "shop", STATIC),
            (vec![mesh.clone(), soft.clone()], "legacy", ""),
            (vec![mesh.clone(), soft], "shop", STATIC),
            (vec![mesh, unset], "shop", STATIC),
            (vec![strict.clone()], "shop", STATIC),
            (vec![strict], "other", ""),
        ];
        for (peers, namespace, expected) in cases {
            assert_eq!(named(&peers, namespace), expected, "{peers:?} {namespace}");
        }
    }

    #[test]
    fn the_oldest_of_a_level_wins() {
        let old = peer("shop", "a", "1", "{mtls: {mode: PERMISSIVE}}");
        let new = peer("shop", "b", "2", "{mtls: {mode: STRICT}}");
        assert_eq!(named(&[new, old], "shop"), "");
    }

    #[test]
    fn ports_are_exempt_or_strict_on_their_own() {
        let labels = "selector: {matchLabels: {a: b}}";
        let mesh = MeshConfig::default();
        let of = |rest: &str| peer("shop", "w", "1", &format!("{{{labels}, {rest}}}"));
        let exempt = of("mtls: {mode: STRICT}, portLevelMtls: {'80': {mode: DISABLE}}");
        let own = "shop/converted_peer_authentication_w";
        assert_eq!(named(std::slice::from_ref(&exempt), "shop"), own);
        let all = Peers::new(vec![exempt]).policies(&mesh);
        assert_eq!(all[&own.parse().unwrap()].rules[0].clauses.len(), 2, "no identity, and another port");
        let strict = of("portLevelMtls: {'80': {mode: STRICT}, '81': {mode: STRICT}}");
        assert_eq!(named(std::slice::from_ref(&strict), "shop"), own);
        let all = Peers::new(vec![strict]).policies(&mesh);
        assert_eq!(all[&own.parse().unwrap()].rules.len(), 2, "one of them is enough");
        assert_eq!(named(&[of("mtls: {mode: STRICT}")], "shop"), STATIC);
        let mesh_strict = peer("istio-system", "default", "0", "{mtls: {mode: STRICT}}");
        assert_eq!(named(&[mesh_strict, of("mtls: {mode: PERMISSIVE}")], "shop"), "");
    }

    /// What is denied: plaintext to these ports, by what a workload of `shop` with label `a=b` names.
    fn refused(peers: &[Peer], ports: &[u16]) -> Vec<u16> {
        let mesh = MeshConfig::default();
        let peers = Peers::new(peers.to_vec());
        let labels = Labels::from([("a".to_owned(), "b".to_owned())]);
        let Some(name) = peers.name_for("shop", &labels, &mesh) else { return Vec::new() };
        let policy = peers.policies(&mesh)[&name].clone();
        let set = meltemi_policy::PolicySet::compile([policy]).unwrap();
        let denied = |port: u16| {
            let nowhere = std::net::IpAddr::from([0, 0, 0, 0]);
            let facts = meltemi_policy::Facts {
                source: None,
                source_ip: nowhere,
                destination_ip: nowhere,
                destination_port: port,
                sni: None,
                http: None,
            };
            !meltemi_policy::decide(&set, &facts).is_allow()
        };
        ports.iter().copied().filter(|port| denied(*port)).collect()
    }

    /// Modes at each level and for two ports, and which of the ports 80, 81 and 82 refuse plaintext.
    #[test]
    fn plaintext_is_refused_where_the_nearest_level_says_so() {
        let mode =
            |mode: &str| if mode.is_empty() { String::new() } else { format!("mtls: {{mode: {mode}}}") };
        // Modes of the mesh, the namespace, the workload, port 80, port 81; ports that refuse.
        type Case = ([&'static str; 5], &'static [u16]);
        let cases: [Case; 20] = [
            (["", "", "", "", ""], &[]),
            (["STRICT", "", "", "", ""], &[80, 81, 82]),
            (["STRICT", "PERMISSIVE", "", "", ""], &[]),
            (["STRICT", "DISABLE", "", "", ""], &[]),
            (["STRICT", "UNSET", "UNSET", "", ""], &[80, 81, 82]),
            (["PERMISSIVE", "STRICT", "", "", ""], &[80, 81, 82]),
            (["PERMISSIVE", "STRICT", "PERMISSIVE", "", ""], &[]),
            (["", "", "STRICT", "", ""], &[80, 81, 82]),
            (["", "", "STRICT", "PERMISSIVE", ""], &[81, 82]),
            (["", "", "STRICT", "DISABLE", "PERMISSIVE"], &[82]),
            (["", "", "STRICT", "STRICT", ""], &[80, 81, 82]),
            (["", "", "STRICT", "UNSET", ""], &[80, 81, 82]),
            (["", "", "PERMISSIVE", "STRICT", ""], &[80]),
            (["", "", "PERMISSIVE", "STRICT", "STRICT"], &[80, 81]),
            (["STRICT", "", "PERMISSIVE", "STRICT", "PERMISSIVE"], &[80]),
            (["STRICT", "", "UNSET", "PERMISSIVE", ""], &[81, 82]),
            (["STRICT", "PERMISSIVE", "UNSET", "STRICT", ""], &[80]),
            (["PERMISSIVE", "STRICT", "UNSET", "DISABLE", "STRICT"], &[81, 82]),
            (["", "", "UNSET", "STRICT", "DISABLE"], &[80]),
            (["STRICT", "STRICT", "DISABLE", "PERMISSIVE", ""], &[]),
        ];
        for ([mesh, namespace, workload, first, second], expected) in cases {
            let mut peers = Vec::new();
            if !mesh.is_empty() {
                peers.push(peer("istio-system", "default", "1", &format!("{{{}}}", mode(mesh))));
            }
            if !namespace.is_empty() {
                peers.push(peer("shop", "default", "1", &format!("{{{}}}", mode(namespace))));
            }
            if !workload.is_empty() {
                let ports: Vec<String> = [("80", first), ("81", second)]
                    .into_iter()
                    .filter(|(_, mode)| !mode.is_empty())
                    .map(|(port, mode)| format!("'{port}': {{mode: {mode}}}"))
                    .collect();
                let ports = if ports.is_empty() {
                    String::new()
                } else {
                    format!(", portLevelMtls: {{{}}}", ports.join(", "))
                };
                let yaml = format!("{{selector: {{matchLabels: {{a: b}}}}, {}{ports}}}", mode(workload));
                peers.push(peer("shop", "w", "1", &yaml));
            }
            let what = format!("{mesh:?} {namespace:?} {workload:?} {first:?} {second:?}");
            assert_eq!(refused(&peers, &[80, 81, 82]), expected, "{what}");
        }
    }

    #[test]
    fn a_selector_in_the_root_namespace_has_no_effect_on_workloads() {
        let labels = Labels::from([("a".to_owned(), "b".to_owned())]);
        let mesh = MeshConfig::default();
        let root = peer("istio-system", "w", "1", "{selector: {matchLabels: {a: b}}, mtls: {mode: STRICT}}");
        let peers = Peers::new(vec![root]);
        for namespace in ["shop", "istio-system"] {
            assert_eq!(peers.name_for(namespace, &labels, &mesh), None, "{namespace}");
        }
    }

    #[test]
    fn each_says_what_became_of_it() {
        let all = Peers::new(vec![
            peer("shop", "old", "1", "{mtls: {mode: STRICT}}"),
            peer("shop", "new", "2", "{mtls: {mode: PERMISSIVE}}"),
            peer("shop", "w", "3", "{selector: {matchLabels: {a: b}}, mtls: {mode: DISABLE}}"),
            peer("istio-system", "w", "1", "{selector: {matchLabels: {a: b}}}"),
        ]);
        let cases = [
            ("shop/old", true, "Accepted", "attached to ztunnel"),
            ("shop/new", false, "Conflicted", "shop/old is older and takes precedence"),
            (
                "shop/w",
                true,
                "UnsupportedValue",
                "attached to ztunnel; DISABLE is taken as PERMISSIVE: ztunnel never disables mutual TLS",
            ),
            (
                "istio-system/w",
                false,
                "UnsupportedValue",
                "a selector in the root namespace selects no workload in ambient mode",
            ),
        ];
        for (name, status, reason, message) in cases {
            let got = all.condition(&name.parse().unwrap(), &MeshConfig::default()).unwrap();
            assert_eq!(
                (got.status, got.reason.as_str(), got.message.as_str()),
                (status, reason, message),
                "{name}"
            );
        }
        assert_eq!(all.condition(&"shop/nothing".parse().unwrap(), &MeshConfig::default()), None);
    }
}
