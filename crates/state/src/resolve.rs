// SPDX-License-Identifier: Apache-2.0
//! Where a connection goes: the order of look-ups, waypoints, load balancing.

use std::net::SocketAddr;
use std::sync::Arc;

use meltemi_model::net::ports;
use meltemi_model::service::{LoadBalancingMode, LocalityScope};
use meltemi_model::workload::{GatewayAddress, GatewayDestination, Health, TunnelProtocol};
use meltemi_model::{NamespacedHostname, Service, SpiffeId, Workload};

use crate::snapshot::Snapshot;

/// Whom a connection is for, for telemetry.
#[derive(Clone, Debug, Default)]
pub struct Destination {
    /// The service that was addressed.
    pub service: Option<NamespacedHostname>,
    /// The workload that was chosen, or the waypoint's.
    pub workload: Option<Arc<Workload>>,
    /// It goes to a waypoint first.
    pub waypoint: bool,
    /// Another endpoint of the same service could take the connection as well.
    pub has_alternative: bool,
}

/// A tunnel to open.
#[derive(Clone, Debug)]
pub struct Hop {
    /// Where to dial, e.g. a Pod's 15008.
    pub dial: SocketAddr,
    /// What to ask the tunnel for: the real destination.
    pub authority: SocketAddr,
    /// Who the peer may be, exactly.
    pub expected: Vec<SpiffeId>,
}

/// Where a connection goes.
#[derive(Clone, Debug)]
pub enum Route {
    /// Through a tunnel.
    Hbone(Hop, Destination),
    /// In the clear, to an endpoint that is not in the mesh, or to what the mesh does not know.
    Plain(SocketAddr, Destination),
}

/// Why a connection goes nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A known service without a usable endpoint.
    #[error("no healthy upstream")]
    NoEndpoint {
        /// The service.
        service: NamespacedHostname,
    },
    /// A waypoint that is bound but cannot be used: the policies behind it would not be enforced.
    #[error("waypoint {0} has no healthy endpoint")]
    NoWaypoint(String),
    /// The destination's identity cannot be formed.
    #[error("destination has no identity: {0}")]
    NoIdentity(String),
}

impl Snapshot {
    /// Resolves a captured connection. `random(n)` gives a number below `n`.
    ///
    /// # Errors
    /// The destination is known and cannot be reached.
    pub fn resolve(
        &self,
        to: SocketAddr,
        source: &Workload,
        random: &mut dyn FnMut(u32) -> u32,
    ) -> Result<Route, Refused> {
        let ip = to.ip().to_canonical();
        if let Some(workload) = self.workload_at(&source.network, ip) {
            return self.to_workload(to, workload, source, random);
        }
        let Some(service) = self.service_at(&source.network, ip, &source.namespace) else {
            return Ok(Route::Plain(to, Destination::default()));
        };
        if let Some(waypoint) = waypoint_of(service, random) {
            let authority = SocketAddr::new(ip, to.port());
            return self.through(waypoint, authority, Some(service.key.clone()), source, random);
        }
        self.to_endpoint(service, to.port(), source, random)
    }

    /// The endpoint of a service for a port, after its waypoint: what a waypoint or gateway asks for.
    ///
    /// # Errors
    /// No healthy endpoint.
    pub fn to_endpoint(
        &self,
        service: &Arc<Service>,
        port: u16,
        source: &Workload,
        random: &mut dyn FnMut(u32) -> u32,
    ) -> Result<Route, Refused> {
        let refused = || Refused::NoEndpoint { service: service.key.clone() };
        let chosen = self.choose(service, port, source, random).ok_or_else(refused)?;
        let destination = Destination {
            service: Some(service.key.clone()),
            workload: Some(chosen.workload.clone()),
            waypoint: false,
            has_alternative: chosen.has_alternative,
        };
        direct(&chosen.workload, chosen.address, Some(service), destination)
    }

    fn to_workload(
        &self,
        to: SocketAddr,
        workload: &Arc<Workload>,
        source: &Workload,
        random: &mut dyn FnMut(u32) -> u32,
    ) -> Result<Route, Refused> {
        if let Some(waypoint) = &workload.waypoint
            && !self.is_instance(waypoint, source)
        {
            return self.through(waypoint, to, None, source, random);
        }
        self.directly(workload, to)
    }

    /// To a workload at one of its addresses, past its waypoint: what the waypoint asks for.
    ///
    /// # Errors
    /// Its identity cannot be formed.
    pub fn directly(&self, workload: &Arc<Workload>, to: SocketAddr) -> Result<Route, Refused> {
        let destination = Destination { workload: Some(workload.clone()), ..Destination::default() };
        direct(workload, to, None, destination)
    }

    /// Through a waypoint, with the original destination as the tunnel's authority.
    ///
    /// # Errors
    /// The waypoint has no healthy endpoint.
    pub fn through(
        &self,
        waypoint: &GatewayAddress,
        authority: SocketAddr,
        service: Option<NamespacedHostname>,
        source: &Workload,
        random: &mut dyn FnMut(u32) -> u32,
    ) -> Result<Route, Refused> {
        let name = || match &waypoint.destination {
            GatewayDestination::Hostname(name) => name.to_string(),
            GatewayDestination::Address(address) => address.to_string(),
        };
        let refused = || Refused::NoWaypoint(name());
        let found = self.gateway_service(waypoint, source).ok_or_else(refused)?;
        let chosen = self.choose(found, waypoint.hbone_port, source, random).ok_or_else(refused)?;
        let expected = identities(&chosen.workload, Some(found))?;
        let has_alternative = chosen.has_alternative;
        let destination =
            Destination { service, workload: Some(chosen.workload), waypoint: true, has_alternative };
        Ok(Route::Hbone(Hop { dial: chosen.address, authority, expected }, destination))
    }

    fn gateway_service(&self, gateway: &GatewayAddress, source: &Workload) -> Option<&Arc<Service>> {
        match &gateway.destination {
            GatewayDestination::Hostname(key) => self.service(key),
            GatewayDestination::Address(address) => {
                self.service_at(&address.network, address.ip, &source.namespace)
            }
        }
    }

    /// Whether a workload is an instance of a waypoint: by the endpoints of its service.
    pub fn is_instance(&self, gateway: &GatewayAddress, workload: &Workload) -> bool {
        self.gateway_service(gateway, workload)
            .is_some_and(|service| self.endpoints(&service.key).any(|endpoint| endpoint.uid == workload.uid))
    }

    /// Healthy endpoints that serve the port, the best locality first, then weighted by capacity.
    fn choose(
        &self,
        service: &Arc<Service>,
        port: u16,
        source: &Workload,
        random: &mut dyn FnMut(u32) -> u32,
    ) -> Option<Chosen> {
        let balancing = &service.load_balancing;
        let usable = |w: &&Arc<Workload>| {
            (w.health == Health::Healthy || balancing.allow_unhealthy)
                && !w.addresses.is_empty()
                && w.network == source.network
        };
        let mut candidates: Vec<_> = self
            .endpoints(&service.key)
            .filter(usable)
            .filter_map(|w| {
                Some((w, target_port(w, service, port)?, rank(w, source, &balancing.routing_preference)))
            })
            .collect();
        match balancing.mode {
            LoadBalancingMode::Strict => candidates.retain(|c| c.2 == balancing.routing_preference.len()),
            LoadBalancingMode::Failover => {
                let best = candidates.iter().map(|c| c.2).max()?;
                candidates.retain(|c| c.2 == best);
            }
            LoadBalancingMode::Unspecified | LoadBalancingMode::Passthrough => {}
        }
        let total: u32 = candidates.iter().map(|c| c.0.capacity).fold(0, u32::saturating_add);
        if total == 0 {
            return None;
        }
        let mut at = random(total);
        let chosen = candidates.iter().find(|(w, _, _)| {
            let here = at < w.capacity;
            at = at.saturating_sub(w.capacity);
            here
        })?;
        Some(Chosen {
            workload: chosen.0.clone(),
            address: SocketAddr::new(*chosen.0.addresses.first()?, chosen.1),
            has_alternative: candidates.iter().any(|(w, ..)| w.capacity > 0 && w.uid != chosen.0.uid),
        })
    }
}

/// One endpoint of a service.
struct Chosen {
    workload: Arc<Workload>,
    address: SocketAddr,
    /// It was drawn from several.
    has_alternative: bool,
}

/// The waypoint of a service; of several by weight, for each connection anew.
fn waypoint_of<'a>(service: &'a Service, random: &mut dyn FnMut(u32) -> u32) -> Option<&'a GatewayAddress> {
    let total: u32 = service.weighted_waypoints.iter().map(|w| w.weight).sum();
    if total == 0 {
        return service.waypoint.as_ref();
    }
    let mut at = random(total);
    for weighted in &service.weighted_waypoints {
        if at < weighted.weight {
            return Some(&weighted.destination);
        }
        at -= weighted.weight;
    }
    service.waypoint.as_ref()
}

/// The workload's port for a port of the service.
fn target_port(workload: &Workload, service: &Service, port: u16) -> Option<u16> {
    let own = workload.services.get(&service.key).into_iter().flatten().find(|p| p.service_port == port);
    let declared = service.ports.iter().find(|p| p.service_port == port)?;
    // The workload's own mapping first: a named port is resolved for each workload.
    own.map(|p| p.target_port).filter(|p| *p != 0).or(Some(declared.target_port).filter(|p| *p != 0))
}

/// How many scopes of the preference match, from the first on.
fn rank(workload: &Workload, source: &Workload, preference: &[LocalityScope]) -> usize {
    let same = |scope: &LocalityScope| match scope {
        LocalityScope::Region => workload.locality.region == source.locality.region,
        LocalityScope::Zone => workload.locality.zone == source.locality.zone,
        LocalityScope::Subzone => workload.locality.subzone == source.locality.subzone,
        LocalityScope::Node => workload.node == source.node,
        LocalityScope::Cluster => workload.cluster_id == source.cluster_id,
        LocalityScope::Network => workload.network == source.network,
    };
    preference.iter().take_while(|scope| same(scope)).count()
}

fn direct(
    workload: &Arc<Workload>,
    to: SocketAddr,
    service: Option<&Arc<Service>>,
    destination: Destination,
) -> Result<Route, Refused> {
    if workload.tunnel_protocol != TunnelProtocol::Hbone {
        return Ok(Route::Plain(to, destination));
    }
    let expected = identities(workload, service)?;
    let hop = Hop { dial: SocketAddr::new(to.ip(), ports::HBONE), authority: to, expected };
    Ok(Route::Hbone(hop, destination))
}

/// Who may answer: the workload's identity, and what its service declares.
fn identities(workload: &Workload, service: Option<&Arc<Service>>) -> Result<Vec<SpiffeId>, Refused> {
    let own = workload.identity().map_err(|e| Refused::NoIdentity(e.to_string()))?;
    let declared =
        service.into_iter().flat_map(|s| &s.subject_alt_names).filter_map(|name| SpiffeId::parse(name).ok());
    Ok([own].into_iter().chain(declared).collect())
}

#[cfg(test)]
mod tests;
