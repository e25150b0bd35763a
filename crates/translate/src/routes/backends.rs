// SPDX-License-Identifier: Apache-2.0
//! What the backend references of a route mean.

use gateway_api::experimental::httproutes::{HttpRoute, HttpRouteRulesBackendRefs};
use meltemi_model::NamespacedName;

use super::filters;
use super::kind::{Referrer, RouteKind};
use super::world::World;
use crate::condition::Condition;
use crate::facts::name_of;

/// A backend reference that leads nowhere: the share of requests that it has is answered with 500.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unresolved {
    /// One word, as the condition has it.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

/// Resolves one reference to a Service and its port.
///
/// # Errors
/// [`Unresolved`].
pub fn resolve(
    from: Referrer<'_>,
    group: Option<&str>,
    kind: Option<&str>,
    (name, of_namespace, port): (&str, Option<&str>, Option<i32>),
    world: &dyn World,
) -> Result<(NamespacedName, u16), Unresolved> {
    let fail = |reason, message: String| Err(Unresolved { reason, message });
    let (group, kind) = (group.unwrap_or_default(), kind.unwrap_or("Service"));
    if !matches!((group, kind), ("" | "core", "Service")) {
        return fail("InvalidKind", format!("backend kind {group}/{kind} is not supported"));
    }
    let target = NamespacedName::new(of_namespace.unwrap_or(from.namespace), name);
    if *target.namespace != *from.namespace && !world.granted(from, &target) {
        let message = format!(
            "backendRef {target} not accessible to a route in namespace {:?} (missing a ReferenceGrant?)",
            from.namespace
        );
        return fail("RefNotPermitted", message);
    }
    let Some(ports) = world.service_ports(&target) else {
        return fail("BackendNotFound", format!("backend {target} not found"));
    };
    match port.and_then(|p| u16::try_from(p).ok()) {
        Some(port) if ports.contains(&port) => Ok((target, port)),
        Some(port) => fail("BackendNotFound", format!("backend {target} has no port {port}")),
        None => fail("UnsupportedValue", format!("backend {target} needs a port")),
    }
}

/// Resolves a backend of a rule.
///
/// # Errors
/// [`Unresolved`].
pub fn of_rule(
    from: Referrer<'_>,
    backend: &HttpRouteRulesBackendRefs,
    world: &dyn World,
) -> Result<(NamespacedName, u16), Unresolved> {
    let target = (backend.name.as_str(), backend.namespace.as_deref(), backend.port);
    resolve(from, backend.group.as_deref(), backend.kind.as_deref(), target, world)
}

/// Resolves the service that a filter sends copies to.
///
/// # Errors
/// [`Unresolved`].
pub(super) fn of_mirror(
    from: Referrer<'_>,
    reference: filters::Reference<'_>,
    world: &dyn World,
) -> Result<(NamespacedName, u16), Unresolved> {
    let target = (reference.name.as_str(), reference.namespace.as_deref(), reference.port);
    resolve(from, reference.group.as_deref(), reference.kind.as_deref(), target, world)
}

/// The ResolvedRefs condition of a route: the first reference that leads nowhere.
pub(super) fn resolved(route: &HttpRoute, kind: RouteKind, world: &dyn World) -> Condition {
    let namespace = name_of(&route.metadata).namespace;
    let from = Referrer { kind, namespace: &namespace };
    for rule in route.spec.rules.iter().flatten() {
        let backends = rule.backend_refs.iter().flatten().map(|backend| of_rule(from, backend, world));
        let mirrors = filters::mirrors(rule);
        let mirrors = mirrors.iter().map(|reference| of_mirror(from, reference, world));
        if let Some(unresolved) = backends.chain(mirrors).find_map(Result::err) {
            return Condition::no("ResolvedRefs", unresolved.reason, unresolved.message);
        }
    }
    Condition::yes("ResolvedRefs", "ResolvedRefs", "All references resolved")
}
