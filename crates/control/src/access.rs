// SPDX-License-Identifier: Apache-2.0
//! Who may have what: whose certificate a caller gets, and which part of the mesh it sees.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use meltemi_model::{NamespacedName, SpiffeId, TrustDomain};

use crate::auth::{BoundPod, Caller};
use crate::pods::Directory;

/// How long the CA waits for a Pod that the API knows and we do not yet.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why a caller does not get what it asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Its own names are not part of a SPIFFE id.
    #[error("caller has no identity: {0}")]
    NoIdentity(String),
    /// It asks for another's identity and is no node proxy.
    #[error("{0} may not ask for the identity of others")]
    NotANodeProxy(String),
    /// The identity asked for is none of this mesh.
    #[error("identity {0:?} is not one of this mesh")]
    ForeignIdentity(String),
    /// Its token is not bound to a Pod that runs.
    #[error("the token is not bound to a running Pod of the node proxy")]
    NotBound,
    /// No Pod of that identity runs on the caller's node.
    #[error("no Pod with identity {identity} runs on node {node}")]
    NotOnNode {
        /// The identity asked for.
        identity: String,
        /// The caller's node.
        node: String,
    },
    /// It is neither a node proxy nor a managed gateway.
    #[error("{0} is neither a node proxy nor the proxy of a Gateway")]
    Stranger(String),
}

/// What a caller may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Workloads, services and policies of layer 4.
    NodeProxy,
    /// Workloads and services, and what concerns this Gateway.
    Gateway(NamespacedName),
}

impl Scope {
    /// What such a proxy is called where people read it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NodeProxy => "ztunnel",
            Self::Gateway(_) => "waypoint",
        }
    }
}

/// ServiceAccounts of the proxies of managed Gateways, written by the engine; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct GatewayAccounts(Arc<RwLock<HashMap<NamespacedName, Arc<str>>>>);

impl GatewayAccounts {
    /// The proxies of a Gateway run as this ServiceAccount of its namespace; none when it is gone.
    pub fn set(&self, gateway: &NamespacedName, account: Option<&str>) {
        let mut accounts = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match account {
            Some(account) => accounts.insert(gateway.clone(), account.into()),
            None => accounts.remove(gateway),
        };
    }

    /// Whether a Gateway has proxies at all.
    pub fn has(&self, gateway: &NamespacedName) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains_key(gateway)
    }

    fn runs_as(&self, gateway: &NamespacedName, account: &str) -> bool {
        let accounts = self.0.read().unwrap_or_else(PoisonError::into_inner);
        accounts.get(gateway).is_some_and(|a| **a == *account)
    }
}

/// The rules, with what they look at.
#[derive(Clone, Debug)]
pub struct Access {
    /// Trust domain of every identity that is signed.
    pub trust_domain: TrustDomain,
    /// Namespace of the control plane and of the node proxies.
    pub namespace: Arc<str>,
    /// The Pods.
    pub pods: Directory,
    /// The Gateways.
    pub gateways: GatewayAccounts,
}

/// ServiceAccount of the node proxies.
const NODE_PROXY: &str = "ztunnel";

impl Access {
    fn is_node_proxy(&self, caller: &Caller) -> bool {
        *caller.namespace == *self.namespace && caller.service_account == NODE_PROXY
    }

    /// The identity that a caller's certificate will carry: its own, or, for a node proxy, one of a Pod on the
    /// node that its token is bound to.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn identity(&self, caller: &Caller, impersonated: Option<&str>) -> Result<SpiffeId, Refused> {
        let own = SpiffeId::new(&self.trust_domain, &caller.namespace, &caller.service_account)
            .map_err(|e| Refused::NoIdentity(e.to_string()))?;
        let Some(wanted) = impersonated.filter(|w| !w.is_empty()) else { return Ok(own) };
        if !self.is_node_proxy(caller) {
            return Err(Refused::NotANodeProxy(own.to_string()));
        }
        let wanted = SpiffeId::parse(wanted).map_err(|_| Refused::ForeignIdentity(wanted.to_owned()))?;
        if wanted.trust_domain() != self.trust_domain.as_str() {
            return Err(Refused::ForeignIdentity(wanted.to_string()));
        }
        let pod = caller.pod.as_ref().ok_or(Refused::NotBound)?;
        let node = self.node(caller, pod).await?;
        let runs = |d: &Directory| d.runs(&node, wanted.namespace(), wanted.service_account()).then_some(());
        match self.pods.wait(PATIENCE, runs).await {
            Some(()) => Ok(wanted),
            None => Err(Refused::NotOnNode { identity: wanted.to_string(), node: node.to_string() }),
        }
    }

    /// The node of the caller's Pod, as its object says it; what its token says must agree.
    async fn node(&self, caller: &Caller, pod: &BoundPod) -> Result<Arc<str>, Refused> {
        let name = NamespacedName::new(caller.namespace.as_str(), pod.name.as_str());
        let find = |d: &Directory| d.node_of(&name, &pod.uid, &caller.service_account);
        let node = self.pods.wait(PATIENCE, find).await.ok_or(Refused::NotBound)?;
        match &pod.node {
            Some(said) if **said != *node => Err(Refused::NotBound),
            _ => Ok(node),
        }
    }

    /// Whether a caller may still see what it was let in to see.
    pub async fn still(&self, caller: &Caller, scope: &Scope) -> bool {
        let bound = match &caller.pod {
            None => true,
            Some(pod) => {
                let name = NamespacedName::new(caller.namespace.as_str(), pod.name.as_str());
                self.pods.node_of(&name, &pod.uid, &caller.service_account).is_some()
            }
        };
        bound && self.scope(caller).await.as_ref() == Ok(scope)
    }

    /// What a caller may see.
    ///
    /// # Errors
    /// [`Refused::Stranger`] or [`Refused::NotBound`].
    pub async fn scope(&self, caller: &Caller) -> Result<Scope, Refused> {
        let who = || format!("{}/{}", caller.namespace, caller.service_account);
        if self.is_node_proxy(caller) {
            // It sees the whole mesh: an account's token that no Pod stands behind would outlive every node.
            let pod = caller.pod.as_ref().ok_or(Refused::NotBound)?;
            self.node(caller, pod).await?;
            return Ok(Scope::NodeProxy);
        }
        let pod = caller.pod.as_ref().ok_or_else(|| Refused::Stranger(who()))?;
        let name = NamespacedName::new(caller.namespace.as_str(), pod.name.as_str());
        let find = |d: &Directory| {
            // Known and a proxy, or known and none: both are answers.
            d.node_of(&name, &pod.uid, &caller.service_account)?;
            Some(d.gateway_of(&name, &pod.uid, &caller.service_account))
        };
        let gateway =
            self.pods.wait(PATIENCE, find).await.flatten().ok_or_else(|| Refused::Stranger(who()))?;
        let gateway = NamespacedName::new(caller.namespace.as_str(), gateway);
        if !self.gateways.runs_as(&gateway, &caller.service_account) {
            return Err(Refused::Stranger(who()));
        }
        Ok(Scope::Gateway(gateway))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use meltemi_translate::facts::PodFacts;

    /// A node proxy `zt-1` and its node's Pods; a waypoint `way` of a Gateway.
    pub(crate) fn access() -> Access {
        let access = Access {
            trust_domain: TrustDomain::default(),
            namespace: "istio-system".into(),
            pods: Directory::default(),
            gateways: GatewayAccounts::default(),
        };
        let add = |namespace: &str, name: &str, account: &str, node: &str, gateway: Option<&str>| {
            let mut pod = PodFacts::read(&k8s_openapi::api::core::v1::Pod::default());
            pod.name = NamespacedName::new(namespace, name);
            pod.uid = format!("uid-{name}").into();
            pod.service_account = account.into();
            pod.node = node.into();
            pod.alive = true;
            if let Some(gateway) = gateway {
                pod.labels.insert("gateway.networking.k8s.io/gateway-name".into(), gateway.into());
            }
            access.pods.set(&pod.name.clone(), Some(&pod));
        };
        add("istio-system", "zt-1", "ztunnel", "node-1", None);
        add("default", "curl", "curl", "node-1", None);
        add("default", "far", "reviews", "node-2", None);
        add("default", "way", "waypoint", "node-1", Some("waypoint"));
        add("default", "fake", "curl", "node-1", Some("waypoint"));
        access.gateways.set(&NamespacedName::new("default", "waypoint"), Some("waypoint"));
        access
    }

    fn caller(namespace: &str, account: &str, pod: Option<(&str, Option<&str>)>) -> Caller {
        let bound = |(name, node): (&str, Option<&str>)| BoundPod {
            name: name.into(),
            uid: format!("uid-{name}"),
            node: node.map(str::to_owned),
        };
        Caller { namespace: namespace.into(), service_account: account.into(), pod: pod.map(bound) }
    }

    #[tokio::test(start_paused = true)]
    async fn whose_certificate_a_caller_gets() {
        let access = access();
        let zt = caller("istio-system", "ztunnel", Some(("zt-1", Some("node-1"))));
        let id = |account: &str| format!("spiffe://cluster.local/ns/default/sa/{account}");
        type Case = (&'static str, Caller, Option<String>, Result<String, ()>);
        let cases: Vec<Case> = vec![
            ("own", caller("default", "curl", None), None, Ok(id("curl"))),
            ("a Pod on the node", zt.clone(), Some(id("curl")), Ok(id("curl"))),
            ("a Pod on another node", zt.clone(), Some(id("reviews")), Err(())),
            ("a Pod that is nowhere", zt.clone(), Some(id("nobody")), Err(())),
            ("another trust domain", zt.clone(), Some("spiffe://other/ns/default/sa/curl".into()), Err(())),
            ("no identity", zt.clone(), Some("curl".into()), Err(())),
            (
                "not a node proxy",
                caller("default", "curl", Some(("curl", None))),
                Some(id("reviews")),
                Err(()),
            ),
            ("even its own by impersonation", caller("default", "curl", None), Some(id("curl")), Err(())),
            ("unbound", caller("istio-system", "ztunnel", None), Some(id("curl")), Err(())),
            (
                "bound to a Pod that is gone",
                caller("istio-system", "ztunnel", Some(("zt-0", None))),
                Some(id("curl")),
                Err(()),
            ),
            (
                "token and object disagree",
                caller("istio-system", "ztunnel", Some(("zt-1", Some("node-2")))),
                Some(id("reviews")),
                Err(()),
            ),
            (
                "ztunnel of another namespace",
                caller("default", "ztunnel", Some(("curl", None))),
                Some(id("curl")),
                Err(()),
            ),
        ];
        for (what, caller, wanted, expected) in cases {
            let got = access.identity(&caller, wanted.as_deref()).await;
            assert_eq!(got.as_ref().map(ToString::to_string).map_err(|_| ()), expected, "{what}: {got:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_caller_sees_ends_with_what_it_was_let_in_for() {
        let access = access();
        let waypoint = caller("default", "waypoint", Some(("way", None)));
        let node_proxy = caller("istio-system", "ztunnel", Some(("zt-1", None)));
        let scopes = [access.scope(&waypoint).await.unwrap(), access.scope(&node_proxy).await.unwrap()];
        assert!(access.still(&waypoint, &scopes[0]).await && access.still(&node_proxy, &scopes[1]).await);
        // The Gateway is gone; then the Pods are.
        access.gateways.set(&NamespacedName::new("default", "waypoint"), None);
        assert!(!access.still(&waypoint, &scopes[0]).await);
        access.gateways.set(&NamespacedName::new("default", "waypoint"), Some("waypoint"));
        assert!(access.still(&waypoint, &scopes[0]).await);
        access.pods.set(&NamespacedName::new("default", "way"), None);
        access.pods.set(&NamespacedName::new("istio-system", "zt-1"), None);
        assert!(!access.still(&waypoint, &scopes[0]).await && !access.still(&node_proxy, &scopes[1]).await);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_caller_sees() {
        let access = access();
        let gateway = Scope::Gateway(NamespacedName::new("default", "waypoint"));
        let cases = [
            ("node proxy", caller("istio-system", "ztunnel", Some(("zt-1", None))), Some(Scope::NodeProxy)),
            ("a node proxy's account without its Pod", caller("istio-system", "ztunnel", None), None),
            ("bound to a Pod that is gone", caller("istio-system", "ztunnel", Some(("zt-0", None))), None),
            (
                "bound to another node",
                caller("istio-system", "ztunnel", Some(("zt-1", Some("node-2")))),
                None,
            ),
            ("waypoint", caller("default", "waypoint", Some(("way", None))), Some(gateway)),
            ("an ordinary Pod", caller("default", "curl", Some(("curl", None))), None),
            ("a Pod with a waypoint's label", caller("default", "curl", Some(("fake", None))), None),
            ("a waypoint's account without its Pod", caller("default", "waypoint", None), None),
        ];
        for (what, caller, expected) in cases {
            assert_eq!(access.scope(&caller).await.ok(), expected, "{what}");
        }
    }
}
