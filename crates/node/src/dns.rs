// SPDX-License-Identifier: Apache-2.0
//! Names for a Pod's DNS: what the snapshot knows as seen from the Pod's namespace; the rest goes to the Pod's own resolver.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use meltemi_capture::PROXY_MARK;
use meltemi_dns::{Answer, Forward, Names, server::UdpForward};
use meltemi_linux::sockopt;
use meltemi_model::workload::Health;
use tokio::net::{TcpListener, UdpSocket};

use crate::context::Context;
use crate::pod::Pod;
use crate::sockets::Dns;

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
            // Of each family the first: the cluster address. Others are those of load balancers.
            let mut answer: Vec<std::net::IpAddr> = Vec::new();
            for address in service.addresses.iter().filter(|a| own(&a.network)) {
                if answer.iter().all(|known| known.is_ipv4() != address.ip.is_ipv4()) {
                    answer.push(address.ip);
                }
            }
            return Answer::Addresses(answer);
        }
        let usable = |health: Health| health == Health::Healthy || service.load_balancing.allow_unhealthy;
        let endpoints = snapshot.endpoints(&service.key).filter(|w| own(&w.network) && usable(w.health));
        let addresses: Vec<_> = endpoints.flat_map(|w| w.addresses.iter().copied()).collect();
        // Names that are known only for their ports: somebody else has the address.
        if addresses.is_empty() { Answer::Forward } else { Answer::Addresses(addresses) }
    }
}

/// Serves the Pod's DNS sockets.
pub(crate) fn start(context: &Arc<Context>, pod: &Arc<Pod>, sockets: Dns) -> io::Result<()> {
    let udp = UdpSocket::from_std(sockets.udp)?;
    let tcp = TcpListener::from_std(sockets.tcp)?;
    let (asking, resolver) = (pod.clone(), context.resolver);
    let upstream: Arc<dyn Forward> = Arc::new(UdpForward(move || {
        let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        let socket = asking.netns.bind_udp(any, |socket| sockopt::set_mark(socket, PROXY_MARK))?;
        socket.connect(resolver)?;
        Ok(socket)
    }));
    let names = Arc::new(View { context: context.clone(), pod: pod.clone() });
    let (serving, closed, closing) = (context.tasks.clone(), pod.closed.clone(), context.closing.clone());
    context.tasks.spawn_job("dns", async move {
        tokio::select! {
            served = meltemi_dns::serve(udp, tcp, names, upstream, serving) => served,
            () = closed.cancelled() => Ok(()),
            () = closing.cancelled() => Ok(()),
        }
    });
    Ok(())
}
