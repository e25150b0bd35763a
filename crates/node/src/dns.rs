// SPDX-License-Identifier: Apache-2.0
//! Names for a Pod's DNS: what the snapshot knows as seen from the Pod's namespace; the rest goes to the Pod's own resolver.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use meltemi_capture::PROXY_MARK;
use meltemi_dns::{Answer, Forward, Names, server::UdpForward};
use meltemi_linux::sockopt;
use meltemi_model::net::ports;
use meltemi_model::workload::Health;
use tokio::net::UdpSocket;

use crate::context::Context;
use crate::pod::Pod;
use crate::sockets;

struct View {
    context: Arc<Context>,
    pod: Arc<Pod>,
}

impl Names for View {
    fn lookup(&self, name: &str) -> Answer {
        let mesh = self.context.view.mesh();
        let snapshot = &mesh.snapshot;
        let network = snapshot.workload(&self.pod.workload).map_or_else(|| "".into(), |w| w.network.clone());
        let Some(service) = snapshot.service_named(name, self.pod.identity.namespace()) else {
            return Answer::Forward;
        };
        let own = |n: &Arc<str>| *n == network;
        if !service.addresses.is_empty() {
            return Answer::Addresses(
                service.addresses.iter().filter(|a| own(&a.network)).map(|a| a.ip).collect(),
            );
        }
        let usable = |health: Health| health == Health::Healthy || service.load_balancing.allow_unhealthy;
        let endpoints = snapshot.endpoints(&service.key).filter(|w| own(&w.network) && usable(w.health));
        let addresses: Vec<_> = endpoints.flat_map(|w| w.addresses.iter().copied()).collect();
        // Names that are known only for their ports: somebody else has the address.
        if addresses.is_empty() { Answer::Forward } else { Answer::Addresses(addresses) }
    }
}

/// Opens the Pod's DNS listeners and serves them.
pub(crate) fn start(context: &Arc<Context>, pod: &Arc<Pod>) -> io::Result<()> {
    let at = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), ports::DNS);
    let udp = pod.netns.bind_udp(at, sockopt::set_reuseport)?;
    let udp = UdpSocket::from_std(udp)?;
    let tcp = sockets::listen_on(&pod.netns, at)?;
    let (asking, resolver) = (pod.clone(), context.resolver);
    let upstream: Arc<dyn Forward> = Arc::new(UdpForward(move || {
        let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        let socket = asking.netns.bind_udp(any, |socket| sockopt::set_mark(socket, PROXY_MARK))?;
        socket.connect(resolver)?;
        Ok(socket)
    }));
    let names = Arc::new(View { context: context.clone(), pod: pod.clone() });
    let (serving, closed) = (context.tasks.clone(), pod.closed.clone());
    context.tasks.spawn_job("dns", async move {
        tokio::select! {
            served = meltemi_dns::serve(udp, tcp, names, upstream, serving) => served,
            () = closed.cancelled() => Ok(()),
        }
    });
    Ok(())
}
