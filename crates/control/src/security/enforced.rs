// SPDX-License-Identifier: Apache-2.0
//! Whether a policy is enforced: how many of the proxies that have to know it have said that it is in use.

use std::collections::BTreeSet;
use std::sync::Arc;

use meltemi_model::NamespacedName;
use meltemi_translate::condition::Condition;
use meltemi_wire::xds::types;

use crate::access::Scope;
use crate::xds::Proxy;

/// Type of the condition.
pub const ENFORCED: &str = "meltemi.dev/Enforced";

/// Proxies that have to know a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Where {
    /// The node proxies of these nodes.
    Nodes(BTreeSet<Arc<str>>),
    /// The proxies of these Gateways.
    Gateways(BTreeSet<NamespacedName>),
}

/// What has to be acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Generations {
    /// The policy itself.
    pub policy: u64,
    /// The workloads that name it, when they changed with it.
    pub addresses: u64,
}

/// The condition of a policy of that name.
pub fn condition(name: &NamespacedName, at: &Where, since: Generations, proxies: &[Proxy]) -> Condition {
    let (wanted, reached) = count(name, at, since, proxies);
    if wanted == 0 {
        return Condition::no(ENFORCED, "NoTarget", "no proxy has to enforce it");
    }
    let message = format!("{reached}/{wanted} proxies");
    if reached == wanted {
        Condition::yes(ENFORCED, "Enforced", message)
    } else {
        Condition::no(ENFORCED, "Pending", message)
    }
}

fn count(name: &NamespacedName, at: &Where, since: Generations, proxies: &[Proxy]) -> (usize, usize) {
    let name = name.to_string();
    match at {
        Where::Nodes(nodes) => {
            let has = |node: &Arc<str>| {
                proxies.iter().any(|p| {
                    p.scope == Scope::NodeProxy
                        && p.node.as_deref() == Some(node)
                        && holds(p, types::AUTHORIZATION, since.policy, &name)
                        && holds(p, types::ADDRESS, since.addresses, &name)
                })
            };
            (nodes.len(), nodes.iter().filter(|n| has(n)).count())
        }
        Where::Gateways(gateways) => {
            let (mut wanted, mut reached) = (0, 0);
            for gateway in gateways {
                let of = |p: &&Proxy| matches!(&p.scope, Scope::Gateway(g) if g == gateway);
                let all: Vec<&Proxy> = proxies.iter().filter(of).collect();
                // A Gateway without a proxy has to get one first.
                wanted += all.len().max(1);
                reached += all.iter().filter(|p| holds(p, types::HTTP_POLICY, since.policy, &name)).count();
            }
            (wanted, reached)
        }
    }
}

fn holds(proxy: &Proxy, type_url: &'static str, since: u64, name: &str) -> bool {
    match proxy.types.get(type_url) {
        Some((acked, error)) => *acked >= since && !error.as_ref().is_some_and(|e| e.contains(name)),
        None => since == 0,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

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
        let name = NamespacedName::new("default", "p");
        let nodes = |all: &[&str]| Where::Nodes(all.iter().map(|n| (*n).into()).collect());
        let since = Generations { policy: 5, addresses: 0 };
        let on = |node, acked, error| proxy(Scope::NodeProxy, node, acked, error);
        let cases = [
            ("nobody has to", nodes(&[]), vec![], "no proxy has to enforce it", false),
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
                "another is refused",
                nodes(&["a"]),
                vec![on("a", 5, Some("default/q: bad"))],
                "1/1 proxies",
                true,
            ),
        ];
        for (what, at, proxies, message, holds) in cases {
            let got = condition(&name, &at, since, &proxies);
            assert_eq!((got.message.as_str(), got.status), (message, holds), "{what}");
        }
    }

    #[test]
    fn a_gateway_counts_each_of_its_proxies_and_at_least_one() {
        let name = NamespacedName::new("default", "p");
        let gateway = NamespacedName::new("default", "waypoint");
        let at = Where::Gateways([gateway.clone()].into());
        let since = Generations { policy: 2, addresses: 0 };
        assert_eq!(condition(&name, &at, since, &[]).message, "0/1 proxies");
        let of = |acked| proxy(Scope::Gateway(gateway.clone()), "a", acked, None);
        assert_eq!(condition(&name, &at, since, &[of(2), of(1)]).message, "1/2 proxies");
        assert!(condition(&name, &at, since, &[of(2), of(3)]).status);
    }
}
