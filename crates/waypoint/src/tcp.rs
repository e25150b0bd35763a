// SPDX-License-Identifier: Apache-2.0
//! TCP: a port of a Service that is declared to speak no HTTP. Connections are judged without a request: what a policy
//! says of HTTP is not fulfilled where it allows, and is where it denies.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, StatusCode};
use meltemi_model::NamespacedHostname;
use meltemi_model::l7::Target;
use meltemi_tunnel::{Connect, TunnelIo};
use meltemi_view::access_log::{L4Record, Side};

use crate::authorize::{Forwarded, Subject, authorize};
use crate::context::{Context, jiff_text};
use crate::facts::RequestFacts;
use crate::forward::{endpoint, reach, resolve};
use crate::headers::Changes;
use crate::served::Peer;

/// A connection to `service`, asked for by a tunnel.
pub(crate) async fn serve(
    context: &Arc<Context>,
    connect: Connect,
    service: &NamespacedHostname,
    to: std::net::SocketAddr,
    peer: &Peer,
) {
    let begun = Instant::now();
    let mut record = L4Record {
        source: Side { addr: Some(peer.address), identity: peer.identity.clone(), ..Side::default() },
        destination: Side { addr: Some(to), service: service.hostname.to_string(), ..Side::default() },
        direction: "inbound",
        bytes_sent: 0,
        bytes_recv: 0,
        duration: Duration::ZERO,
        error: None,
    };
    let facts = RequestFacts {
        source: peer.identity.clone(),
        source_ip: peer.address.ip().to_canonical(),
        to,
        http: false,
        query: String::new(),
        method: String::new(),
        host: String::new(),
        paths: Vec::new(),
        headers: HeaderMap::new(),
        changes: Changes::default(),
        aliases: Vec::new(),
        target: Some(Target::Service(service.clone())),
        gateway: context.config.gateway.clone(),
        room: None,
    };
    let ended = carry(context, connect, service, facts, &mut record).await;
    record.error = ended.err();
    record.duration = begun.elapsed();
    context.log.line(record.line(&jiff_text(SystemTime::now()), context.log.format()));
}

async fn carry(
    context: &Arc<Context>,
    mut connect: Connect,
    service: &NamespacedHostname,
    facts: RequestFacts,
    record: &mut L4Record,
) -> Result<(), String> {
    let subject = Subject::new(facts.clone());
    let (permit, _guard) = match authorize(context, &subject) {
        Ok(permitted) => permitted,
        Err(denied) => {
            connect.refuse(StatusCode::FORBIDDEN);
            return Err(crate::log::reason(&denied));
        }
    };
    let route = match resolve(context, service, facts.to.port()) {
        Ok(route) => route,
        Err(unreached) => {
            connect.refuse(StatusCode::SERVICE_UNAVAILABLE);
            return Err(unreached.reason);
        }
    };
    if let Some((workload, port)) = endpoint(&route)
        && let Err(denied) = subject.forward(context, Forwarded { workload, port, facts: Some(facts) })
    {
        connect.refuse(StatusCode::FORBIDDEN);
        return Err(crate::log::reason(&denied));
    }
    let (mut way, upstream) = match connect.while_waited(reach(context, route)).await {
        None => return Err("the client has given up".into()),
        Some(Ok(reached)) => reached,
        Some(Err(unreached)) => {
            connect.refuse(StatusCode::SERVICE_UNAVAILABLE);
            return Err(unreached.reason);
        }
    };
    record.destination.hbone_addr = Some(upstream);
    let mut client = TunnelIo::new(connect.accept().map_err(|e| e.to_string())?);
    let mut drain = context.tasks.drain();
    let copied = tokio::select! {
        copied = tokio::io::copy_bidirectional(&mut client, &mut way) => copied.map_err(|e| e.to_string()),
        reason = permit.revoked() => Err(reason.to_string()),
        () = drain.forced() => Err("the proxy ends".into()),
    };
    (record.bytes_sent, record.bytes_recv) = copied?;
    Ok(())
}
