// SPDX-License-Identifier: Apache-2.0
//! HTTPRoutes and GRPCRoutes that share a listener and a hostname: exactly one of the kinds has it there (Gateway API,
//! GRPCRoute `spec.hostnames`).

use std::collections::HashMap;

use gateway_api::experimental::httproutes::HttpRoute;
use meltemi_model::NamespacedName;

use super::attach::{Attached, Parent, common_host};
use super::kind::RouteName;
use super::world::World;
use crate::condition::Condition;

/// A listener: its Gateway and its name.
type Place = (NamespacedName, String);

/// A route, and what its references to parents came to.
#[derive(Debug)]
pub(super) struct Placed<'a> {
    /// Its name.
    pub(super) name: &'a RouteName,
    /// The route.
    pub(super) route: &'a HttpRoute,
    /// One for each reference that is ours.
    pub(super) attached: Vec<Attached>,
}

/// A route that has a listener, with the host names that it has there; `None` is every host.
#[derive(Debug)]
struct Holder {
    route: RouteName,
    hosts: Option<Vec<String>>,
}

/// Refuses each parent of a route at which an older route of the other kind has one of its hostnames. Routes of one age are
/// in the order of their namespaces and names.
pub(super) fn refuse(routes: &mut [Placed<'_>], world: &dyn World) {
    let mut order: Vec<usize> = (0..routes.len()).collect();
    order.sort_by_cached_key(|at| {
        let Placed { name, route, .. } = &routes[*at];
        let created = route.metadata.creation_timestamp.as_ref().map(|time| time.0);
        // One without a time is about to be made.
        (created.is_none(), created, name.name.to_string(), name.kind)
    });
    let mut taken: HashMap<Place, Vec<Holder>> = HashMap::new();
    for at in order {
        let Placed { name, route, attached } = &mut routes[at];
        for one in attached {
            let places: Vec<(Place, Option<Vec<String>>)> =
                one.parents.iter().filter_map(|parent| place(parent, route, world)).collect();
            let conflict = places.iter().find_map(|(place, hosts)| {
                let holders = taken.get(place).into_iter().flatten();
                let other = holders.filter(|held| held.route.kind != name.kind);
                other.map(|held| (held, common(&held.hosts, hosts))).find(|(_, host)| host.is_some())
            });
            if let Some((held, Some(host))) = conflict {
                one.parents.clear();
                refuse_parent(one, &held.route, &host);
                continue;
            }
            for (place, hosts) in places {
                taken.entry(place).or_default().push(Holder { route: name.clone(), hosts });
            }
        }
    }
}

fn refuse_parent(attached: &mut Attached, other: &RouteName, host: &str) {
    let kind = other.kind.name();
    let message = format!(
        "{kind} {} is older and has {host} at a listener of this parent, where a hostname is for routes of one kind",
        other.name
    );
    for condition in attached.conditions.iter_mut().filter(|condition| condition.kind == "Accepted") {
        *condition = Condition::no("Accepted", "HostnameConflict", message.clone());
    }
}

fn place(parent: &Parent, route: &HttpRoute, world: &dyn World) -> Option<(Place, Option<Vec<String>>)> {
    let Parent::Listener { gateway, listener, .. } = parent else { return None };
    let known = world.gateway(gateway)?.spec.listeners.iter().find(|known| known.name == *listener)?;
    let own = known.hostname.as_deref().filter(|host| !host.is_empty());
    let written = route.spec.hostnames.as_deref().unwrap_or_default();
    let hosts = match (own, written) {
        (own, []) => own.map(|host| vec![host.to_owned()]),
        (None, written) => Some(written.to_vec()),
        (Some(own), written) => Some(written.iter().filter_map(|host| common_host(own, host)).collect()),
    };
    Some(((gateway.clone(), listener.clone()), hosts))
}

/// A host that both have.
fn common(one: &Option<Vec<String>>, other: &Option<Vec<String>>) -> Option<String> {
    match (one, other) {
        (None, None) => Some("every hostname".to_owned()),
        (Some(hosts), None) | (None, Some(hosts)) => hosts.first().cloned(),
        (Some(one), Some(other)) => one.iter().find_map(|a| other.iter().find_map(|b| common_host(a, b))),
    }
}

#[cfg(test)]
mod tests;
