// SPDX-License-Identifier: Apache-2.0
//! Who is asking, and may they: authentication by certificate or token, authorization that denies by default.
//!
//! Order of authorizers: `system:masters` may everything; a node (`system:nodes`) what `node` allows; anybody what
//! RBAC objects in the store allow. What none of them allows is forbidden.

mod authenticate;
mod bootstrap;
mod escalation;
mod jwks;
mod node;
mod rbac;
mod review;
mod token;
mod token_request;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};

use crate::pki::{Pki, PkiError};
use crate::status::Refusal;

pub use bootstrap::bootstrap_objects;

/// The audience of tokens for this API server, and the issuer of all tokens.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// An authenticated user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// `kubernetes-admin`, `system:serviceaccount:<namespace>:<name>`, `system:node:<name>`, `system:anonymous`.
    pub name: String,
    /// A ServiceAccount's uid; empty otherwise.
    pub uid: String,
    /// Its groups.
    pub groups: Vec<String>,
    /// What the credential says besides, e.g. `authentication.kubernetes.io/pod-name`.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// Whether it is in the group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// Nobody in particular.
    pub fn anonymous() -> Self {
        Self {
            name: "system:anonymous".into(),
            groups: vec!["system:unauthenticated".into()],
            ..Self::default()
        }
    }

    /// `UserInfo` as reviews and webhooks carry it.
    pub fn to_value(&self) -> Value {
        let mut value = json!({"username": self.name, "groups": self.groups});
        if !self.uid.is_empty() {
            value["uid"] = self.uid.as_str().into();
        }
        if !self.extra.is_empty() {
            value["extra"] = json!(self.extra);
        }
        value
    }
}

/// The live objects that decisions depend on; implemented over the store. The namespace is empty for what is
/// cluster-scoped, the group is empty for the core group.
pub trait Objects: Send + Sync {
    /// One object.
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>>;
    /// All objects of a resource, in one namespace or in all.
    fn list(&self, group: &str, resource: &str, namespace: Option<&str>) -> Vec<Arc<Value>>;
    /// A number that changes whenever an object of the group `rbac.authorization.k8s.io` does; may change more often.
    fn rbac_revision(&self) -> u64;
}

/// What a request wants to do.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; lower-case HTTP method for
    /// paths that are no resource.
    pub verb: &'a str,
    /// With what.
    pub target: Target<'a>,
}

/// The object of a request.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// A resource.
    Resource(ResourceTarget<'a>),
    /// Any other path, e.g. `/healthz`.
    Path(&'a str),
}

/// A resource in a request; empty where the request says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct ResourceTarget<'a> {
    /// API group.
    pub group: &'a str,
    /// Plural.
    pub resource: &'a str,
    /// `status`, `log`, …
    pub subresource: &'a str,
    /// Namespace.
    pub namespace: &'a str,
    /// Name.
    pub name: &'a str,
    /// `fieldSelector` of a list or watch; nodes may only list what is theirs.
    pub field_selector: &'a str,
}

/// What an authorizer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Allowed, and by what.
    Allowed(String),
    /// No authorizer allows it; the text says why where there is more to say than that.
    Denied(String),
}

/// Authentication, authorization, and the APIs that ask for them.
pub struct Auth {
    objects: Arc<dyn Objects>,
    tokens: token::Tokens,
    rbac: rbac::Cache,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth").finish_non_exhaustive()
    }
}

impl Auth {
    /// Judges by the given objects and keys.
    ///
    /// # Errors
    /// The token key cannot be used.
    pub fn new(objects: Arc<dyn Objects>, pki: &Pki) -> Result<Self, PkiError> {
        let tokens = token::Tokens::new(pki.token_key_pem(), pki.token_public_pem())?;
        Ok(Self { objects, tokens, rbac: rbac::Cache::default() })
    }

    /// Who sends a request: bearer token before certificate, anonymous without either; then impersonation headers.
    ///
    /// # Errors
    /// 401 when a credential is given and wrong, 403 when the user may not impersonate.
    pub fn authenticate(&self, headers: &HeaderMap, peer: Option<&User>) -> Result<User, Refusal> {
        authenticate::authenticate(self, headers, peer)
    }

    /// Refuses what the user may not do.
    ///
    /// # Errors
    /// 403 in the words of Kubernetes.
    pub fn authorize(&self, user: &User, attributes: &Attributes<'_>) -> Result<(), Refusal> {
        match self.judge(user, attributes) {
            Verdict::Allowed(_) => Ok(()),
            Verdict::Denied(reason) => Err(forbidden(user, attributes, &reason)),
        }
    }

    /// Asks the authorizers in order.
    pub fn judge(&self, user: &User, attributes: &Attributes<'_>) -> Verdict {
        let attributes = &normalised(*attributes);
        if user.is_in("system:masters") {
            return Verdict::Allowed("the group system:masters may do everything".into());
        }
        let mut why_not = String::new();
        if user.is_in("system:nodes") {
            match node::judge(&*self.objects, user, attributes) {
                Verdict::Denied(reason) => why_not = reason,
                allowed @ Verdict::Allowed(_) => return allowed,
            }
        }
        match self.rbac.get(&*self.objects).judge(user, attributes) {
            Some(by) => Verdict::Allowed(by),
            None => Verdict::Denied(why_not),
        }
    }

    /// What a node may write can depend on the object itself; call it with the decoded object before storing, and
    /// with the stored one (`old`) on an update.
    ///
    /// # Errors
    /// 403 when a node writes what is not its own.
    pub fn admit_node(
        &self,
        user: &User,
        attributes: &Attributes<'_>,
        object: &Value,
        old: Option<&Value>,
    ) -> Result<(), Refusal> {
        if user.is_in("system:nodes") && !user.is_in("system:masters") {
            node::admit(&*self.objects, user, attributes, object, old)
                .map_err(|denial| forbidden(user, attributes, &denial.to_string()))?;
        }
        Ok(())
    }

    /// Nobody may hand out, by writing a role or binding, what they may not do themselves; call it for writes to the
    /// group `rbac.authorization.k8s.io` with the object as it would be stored, and as it is stored (`old`). `name` is
    /// the one that the request names, empty for a POST: rights that are limited to names do not reach further.
    ///
    /// # Errors
    /// 403 naming what the user lacks.
    pub fn admit_rbac(
        &self,
        user: &User,
        resource: &str,
        name: &str,
        object: &Value,
        old: Option<&Value>,
    ) -> Result<(), Refusal> {
        escalation::admit(self, user, (resource, name), object, old)
    }

    /// Aggregated ClusterRoles whose `rules` are not those that they gather, with the right ones.
    pub fn outdated_aggregates(&self) -> Vec<Value> {
        rbac::outdated_aggregates(&*self.objects)
    }

    /// Answers a POST of a review: `tokenreviews`, `selfsubjectreviews` (authentication.k8s.io) and the four of
    /// authorization.k8s.io. `None` when the resource is none of them.
    ///
    /// # Errors
    /// 400 when the body is not what the resource wants.
    pub fn review(
        &self,
        user: &User,
        group: &str,
        resource: &str,
        namespace: &str,
        body: &Value,
    ) -> Option<Result<Value, Refusal>> {
        review::review(self, user, (group, resource, namespace), body)
    }

    /// Answers a POST to `serviceaccounts/<name>/token`; the caller has authorized it.
    ///
    /// # Errors
    /// 400, 404, 409 or 422 as Kubernetes gives them.
    pub fn create_token(
        &self,
        user: &User,
        namespace: &str,
        name: &str,
        body: &Value,
    ) -> Result<Value, Refusal> {
        token_request::create(self, user, (namespace, name), body, now())
    }

    /// `/.well-known/openid-configuration`.
    pub fn openid_configuration(&self) -> Value {
        jwks::configuration()
    }

    /// `/openid/v1/jwks`.
    pub fn openid_keys(&self) -> Value {
        jwks::keys(&self.tokens)
    }
}

/// The user that a verified client certificate names: CN and O.
pub fn peer_user(chain: &[CertificateDer<'_>]) -> Option<User> {
    authenticate::peer_user(chain)
}

/// Seconds since the epoch.
fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

/// A namespace is in itself: a request for `namespaces/x` is judged in the namespace x.
fn normalised(mut attributes: Attributes<'_>) -> Attributes<'_> {
    if let Target::Resource(target) = &mut attributes.target
        && target.group.is_empty()
        && target.resource == "namespaces"
        && target.namespace.is_empty()
    {
        target.namespace = target.name;
    }
    attributes
}

/// 403 in the words of Kubernetes.
fn forbidden(user: &User, attributes: &Attributes<'_>, reason: &str) -> Refusal {
    let attributes = normalised(*attributes);
    let (name, verb) = (&user.name, attributes.verb);
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    let target = match attributes.target {
        Target::Path(path) => {
            return Refusal::forbidden(format!(
                "forbidden: User {name:?} cannot {verb} path {path:?}{reason}"
            ));
        }
        Target::Resource(target) => target,
    };
    let ResourceTarget { group, resource, subresource, namespace, .. } = target;
    let full = if subresource.is_empty() { resource.to_owned() } else { format!("{resource}/{subresource}") };
    let place = if namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {namespace:?}")
    };
    let qualified = if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") };
    let subject = if target.name.is_empty() { qualified } else { format!("{qualified} {:?}", target.name) };
    let mut refusal = Refusal::forbidden(format!(
        "{subject} is forbidden: User {name:?} cannot {verb} resource {full:?} in API group {group:?} {place}{reason}"
    ));
    refusal.details = Some(json!({"name": target.name, "group": group, "kind": resource}));
    refusal
}

#[cfg(test)]
mod tests;
