// SPDX-License-Identifier: Apache-2.0
//! Whether a policy is enforced: how many of the proxies that have to know it have said that it is in use.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meltemi_model::NamespacedName;
use meltemi_translate::condition::Condition;
use meltemi_translate::security::captured;
use meltemi_wire::xds::types;

use crate::access::Scope;
use crate::xds::Proxy;

/// Type of the condition.
pub const ENFORCED: &str = "meltemi.dev/Enforced";

/// Why nobody enforces a policy that attaches well: the usual cause is a namespace that was never enrolled.
const NOBODY: &str = "no proxy has to enforce it: it applies to no Pod, waypoint or gateway of the mesh; Pods come into it by the \
                      label istio.io/dataplane-mode=ambient of their namespace";

/// Proxies that have to know a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Where {
    /// The node proxies of these nodes.
    pub nodes: BTreeSet<Arc<str>>,
    /// The proxies of these Gateways, and the generation that brought it to them.
    pub gateways: BTreeMap<NamespacedName, u64>,
    /// The type by which gateways are told of it.
    pub told: Option<&'static str>,
    /// Gateways that have to stop serving a Service that it is for, and the generation that tells them.
    pub leaving: BTreeMap<NamespacedName, u64>,
}

/// What has to be acknowledged: the generations in which it was last published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Generations {
    /// The policy for node proxies.
    pub layer4: u64,
    /// The workloads that name it, when they changed with it.
    pub addresses: u64,
}

/// Reason of a policy that selects Pods whose traffic passes no node proxy.
pub const NOT_CAPTURED: &str = "NotCaptured";

/// The condition of a policy. `names` are those under which it is sent: its own, or those made of it. `open` are Pods that
/// it selects and that no node proxy stands before.
pub fn condition(
    names: &[String],
    at: &Where,
    since: Generations,
    proxies: &[Proxy],
    open: &[String],
) -> Condition {
    let (wanted, reached) = count(names, at, since, proxies);
    if wanted == 0 && open.is_empty() {
        return Condition::no(ENFORCED, "NoTarget", NOBODY);
    }
    let message = format!("{reached}/{wanted} proxies");
    if !open.is_empty() {
        let message = format!("{message}; it is not enforced for Pods {}", captured::listed(open));
        return Condition::no(ENFORCED, NOT_CAPTURED, message);
    }
    if reached == wanted {
        Condition::yes(ENFORCED, "Enforced", message)
    } else {
        Condition::no(ENFORCED, "Pending", message)
    }
}

fn count(names: &[String], at: &Where, since: Generations, proxies: &[Proxy]) -> (usize, usize) {
    let has = |node: &&Arc<str>| {
        proxies.iter().any(|p| {
            p.scope == Scope::NodeProxy
                && p.node.as_deref() == Some(&***node)
                && holds(p, types::AUTHORIZATION, since.layer4, names)
                && holds(p, types::ADDRESS, since.addresses, names)
        })
    };
    let (mut wanted, mut reached) = (at.nodes.len(), at.nodes.iter().filter(has).count());
    for (gateway, since) in &at.gateways {
        let of = |p: &&Proxy| matches!(&p.scope, Scope::Gateway(g) if g == gateway);
        let all: Vec<&Proxy> = proxies.iter().filter(of).collect();
        // A Gateway without a proxy has to get one first.
        wanted += all.len().max(1);
        let told = at.told.unwrap_or(types::HTTP_POLICY);
        reached += all.iter().filter(|p| holds(p, told, *since, names)).count();
    }
    for (gateway, since) in &at.leaving {
        let of = |p: &&Proxy| matches!(&p.scope, Scope::Gateway(g) if g == gateway);
        let all: Vec<&Proxy> = proxies.iter().filter(of).collect();
        wanted += all.len();
        reached += all.iter().filter(|p| holds(p, types::ADDRESS, *since, &[])).count();
    }
    (wanted, reached)
}

/// Whether a proxy has everything of a type up to a generation in use, and refuses none of these names.
pub(super) fn holds(proxy: &Proxy, type_url: &'static str, since: u64, names: &[String]) -> bool {
    match proxy.types.get(type_url) {
        Some((acked, error)) => *acked >= since && !error.as_deref().is_some_and(|e| refuses(e, names)),
        None => since == 0,
    }
}

/// Refusals are told as `<name>: <reason>`, with `; ` between them.
fn refuses(error: &str, names: &[String]) -> bool {
    error
        .split("; ")
        .any(|one| names.iter().any(|n| one.strip_prefix(n.as_str()).is_some_and(|r| r.starts_with(':'))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(scope: Scope, node: &str, acked: u64, error: Option<&str>) -> Proxy {
        let state = (acked, error.map(str::to_owned));
        Proxy {
            name: "p".into(),
            scope,
            node: Some(node.into()),
            metadata: BTreeMap::new(),
            types: [types::AUTHORIZATION, types::HTTP_POLICY].map(|t| (t, state.clone())).into(),
        }
    }

    #[test]
    fn counts_the_proxies_that_have_said_so() {
        let names = ["default/p".to_owned()];
        let nodes =
            |all: &[&str]| Where { nodes: all.iter().map(|n| (*n).into()).collect(), ..Where::default() };
        let since = Generations { layer4: 5, ..Generations::default() };
        let on = |node, acked, error| proxy(Scope::NodeProxy, node, acked, error);
        let cases = [
            ("nobody has to", nodes(&[]), vec![], NOBODY, false),
            (
                "one has, one not",
                nodes(&["a", "b"]),
                vec![on("a", 5, None), on("b", 4, None)],
                "1/2 proxies",
                false,
            ),
            ("both", nodes(&["a", "b"]), vec![on("a", 5, None), on("b", 9, None)], "2/2 proxies", true),
            ("another node's does not count", nodes(&["a"]), vec![on("b", 5, None)], "0/1 proxies", false),
            ("refused", nodes(&["a"]), vec![on("a", 5, Some("default/p: bad"))], "0/1 proxies", false),
            (
                "others are refused",
                nodes(&["a"]),
                vec![on("a", 5, Some("default/q: bad; default/p2: bad; x-default/p: bad"))],
                "1/1 proxies",
                true,
            ),
            (
                "refused with others",
                nodes(&["a"]),
                vec![on("a", 5, Some("default/q: bad; default/p: bad"))],
                "0/1 proxies",
                false,
            ),
        ];
        for (what, at, proxies, message, holds) in cases {
            let got = condition(&names, &at, since, &proxies, &[]);
            assert_eq!((got.message.as_str(), got.status), (message, holds), "{what}");
        }
    }

    #[test]
    fn a_pod_that_is_not_captured_is_named() {
        let names = ["default/p".to_owned()];
        let at = Where { nodes: ["a".into()].into(), ..Where::default() };
        let proxies = [proxy(Scope::NodeProxy, "a", 1, None)];
        let open = ["default/x (label istio.io/dataplane-mode=none)".to_owned()];
        let got = condition(&names, &at, Generations::default(), &proxies, &open);
        assert_eq!((got.status, got.reason.as_str()), (false, NOT_CAPTURED));
        let expected =
            "1/1 proxies; it is not enforced for Pods default/x (label istio.io/dataplane-mode=none)";
        assert_eq!(got.message, expected);
        let nowhere = condition(&names, &Where::default(), Generations::default(), &[], &open);
        assert_eq!(nowhere.reason, NOT_CAPTURED);
    }

    #[test]
    fn a_gateway_counts_each_of_its_proxies_and_at_least_one() {
        let names = ["default/p".to_owned()];
        let gateway = NamespacedName::new("default", "waypoint");
        let at = Where { gateways: [(gateway.clone(), 2)].into(), ..Where::default() };
        let since = Generations::default();
        assert_eq!(condition(&names, &at, since, &[], &[]).message, "0/1 proxies");
        let of = |acked| proxy(Scope::Gateway(gateway.clone()), "a", acked, None);
        assert_eq!(condition(&names, &at, since, &[of(2), of(1)], &[]).message, "1/2 proxies");
        assert!(condition(&names, &at, since, &[of(2), of(3)], &[]).status);
    }

    #[test]
    fn a_waypoint_that_a_service_has_left_has_to_know_it() {
        let names = ["default/p".to_owned()];
        let (old, new) = (NamespacedName::new("default", "old"), NamespacedName::new("default", "new"));
        let at = Where {
            gateways: [(new.clone(), 3)].into(),
            leaving: [(old.clone(), 3)].into(),
            ..Where::default()
        };
        let of = |gateway: &NamespacedName, acked| {
            let mut one = proxy(Scope::Gateway(gateway.clone()), "a", acked, None);
            one.types.insert(types::ADDRESS, (acked, None));
            one
        };
        let said = |old_acked| {
            condition(&names, &at, Generations::default(), &[of(&new, 3), of(&old, old_acked)], &[]).message
        };
        assert_eq!((said(2), said(3)), ("1/2 proxies".into(), "2/2 proxies".into()));
        // One that is not there holds no connections.
        assert!(condition(&names, &at, Generations::default(), &[of(&new, 3)], &[]).status);
    }

    #[test]
    fn nodes_and_gateways_are_counted_together() {
        let names = ["default/p".to_owned()];
        let gateway = NamespacedName::new("default", "gw");
        let at =
            Where { nodes: ["a".into()].into(), gateways: [(gateway.clone(), 2)].into(), ..Where::default() };
        let since = Generations { layer4: 1, addresses: 0 };
        let all = [proxy(Scope::NodeProxy, "a", 1, None), proxy(Scope::Gateway(gateway), "a", 1, None)];
        assert_eq!(condition(&names, &at, since, &all, &[]).message, "1/2 proxies");
    }
}
