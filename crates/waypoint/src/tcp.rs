// SPDX-License-Identifier: Apache-2.0
//! TCP: a port of a Service that is declared to speak no HTTP, or declares nothing and a client that does not speak it.
//! Connections are judged without a request: what a policy says of HTTP is not fulfilled where it allows, and is where it
//! denies.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, StatusCode};
use meltemi_model::l7::Target;
use meltemi_tunnel::{Connect, TunnelIo};
use meltemi_view::access_log::{Direction, L4Record, Side};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::authorize::{Forwarded, Subject, authorize};
use crate::balance::choose_endpoint;
use crate::context::Context;
use crate::detect::{Speech, detect_late};
use crate::facts::RequestFacts;
use crate::forward::{Unreached, Way, endpoint, host, patience, reach};
use crate::headers::Changes;
use crate::retry::{ATTEMPTS, pause};
use crate::served::{BackendRef, Peer};

/// The client's side of a connection.
pub(crate) enum Client {
    /// A tunnel asks for it and has no answer yet: a refusal is a status.
    Asked(Connect),
    /// It was opened, to see by `first` what it speaks. A refusal resets it.
    Begun { io: TunnelIo, first: Vec<u8> },
}

impl Client {
    /// Why it is TCP, when nothing declares it.
    fn detected(&self) -> Option<&'static str> {
        match self {
            Self::Asked(_) => None,
            Self::Begun { first, .. } if first.is_empty() => Some("the client says nothing"),
            Self::Begun { .. } => Some("the client's first bytes are not HTTP"),
        }
    }

    /// Whether nothing is known but that it says nothing.
    fn is_silent(&self) -> bool {
        matches!(self, Self::Begun { first, .. } if first.is_empty())
    }

    fn refuse(self, status: StatusCode) {
        if let Self::Asked(connect) = self {
            connect.refuse(status);
        }
    }

    /// Works for it; none when it has given up before.
    async fn while_waited<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        match self {
            Self::Asked(connect) => connect.while_waited(work).await,
            Self::Begun { .. } => Some(work.await),
        }
    }

    fn open(self) -> Result<(TunnelIo, Vec<u8>), String> {
        match self {
            Self::Asked(connect) => {
                Ok((TunnelIo::new(connect.accept().map_err(|e| e.to_string())?), Vec::new()))
            }
            Self::Begun { io, first } => Ok((io, first)),
        }
    }
}

/// What became of a connection.
pub(crate) enum Ended {
    /// It was carried or refused, and is in the log.
    Served,
    /// A client that had said nothing has begun to speak HTTP, by these bytes: it is one that opens its connection ahead of
    /// its first request.
    IsHttp(TunnelIo, Vec<u8>),
}

/// A connection to `backend`. One whose client says nothing is carried as TCP; if the client then speaks before the server,
/// its first bytes decide after all.
pub(crate) async fn serve(
    context: &Arc<Context>,
    client: Client,
    backend: &BackendRef,
    to: SocketAddr,
    peer: &Peer,
) -> Ended {
    let begun = Instant::now();
    let (service, workload) = match backend {
        BackendRef::Service(service, _) => (Some(service.clone()), None),
        BackendRef::Workload(uid, _) => (None, Some(uid.clone())),
    };
    let hostname = service.as_ref().map(|service| service.hostname.clone()).unwrap_or_default();
    let mut record = L4Record {
        source: Side { addr: Some(peer.address), identity: peer.identity.clone(), ..Side::default() },
        destination: Side { addr: Some(to), service: hostname, ..Side::default() },
        direction: Direction::Inbound,
        bytes_sent: 0,
        bytes_recv: 0,
        duration: Duration::ZERO,
        reports: None,
        error: None,
    };
    let facts = RequestFacts {
        detected: client.detected().is_some(),
        target: service.map(Target::Service),
        workload,
        ..facts(context, peer, to, None)
    };
    let detected = client.detected();
    let ended = carry(context, client, backend, facts, &mut record).await;
    record.error = match (ended, detected) {
        (Ok(Ended::Served), _) => None,
        (Ok(http @ Ended::IsHttp(..)), _) => return http,
        (Err(error), Some(why)) => {
            Some(format!("{error} (judged as TCP: the port declares no protocol, and {why})"))
        }
        (Err(error), None) => Some(error),
    };
    record.duration = begun.elapsed();
    context.log.line(record.line(&crate::log::now(), context.log.format()));
    Ended::Served
}

/// What is known of a connection at a listener, of which no HTTP is read; `sni` is the host that the client has named.
pub(crate) fn facts(context: &Context, peer: &Peer, to: SocketAddr, sni: Option<Arc<str>>) -> RequestFacts {
    RequestFacts {
        source: peer.identity.clone(),
        source_ip: peer.address.ip().to_canonical(),
        to,
        sni,
        http: false,
        detected: false,
        query: String::new(),
        method: String::new(),
        host: String::new(),
        paths: Vec::new(),
        headers: HeaderMap::new(),
        changes: Changes::default(),
        aliases: Vec::new(),
        target: None,
        workload: None,
        gateway: context.config.gateway.clone(),
        room: None,
    }
}

/// A client that may not be carried as TCP and has said nothing: it may still speak HTTP, for as long as a client of HTTP
/// may take for its first byte.
async fn wait_for_http(context: &Context, client: &mut Client) -> bool {
    if !client.is_silent() {
        return false;
    }
    let Client::Begun { io, first } = client else { return false };
    tokio::select! {
        said = tokio::time::timeout(context.limits.head, detect_late(io, first, &context.limits)) => {
            matches!(said, Ok(Ok(Speech::Http)))
        }
        () = context.drained() => false,
    }
}

async fn carry(
    context: &Arc<Context>,
    mut client: Client,
    backend: &BackendRef,
    facts: RequestFacts,
    record: &mut L4Record,
) -> Result<Ended, String> {
    let subject = Subject::new(facts.clone());
    let (permit, _guard) = match authorize(context, &subject) {
        Ok(permitted) => permitted,
        Err(denied) => {
            if wait_for_http(context, &mut client).await
                && let Client::Begun { io, first } = client
            {
                return Ok(Ended::IsHttp(io, first));
            }
            client.refuse(StatusCode::FORBIDDEN);
            return Err(crate::log::reason(&denied));
        }
    };
    record.reports = subject.reported(&context.view.mesh());
    let (mut way, upstream) = match client.while_waited(open(context, &subject, backend, &facts)).await {
        None => return Err("the client has given up".into()),
        Some(Ok(opened)) => opened,
        Some(Err((status, reason))) => {
            client.refuse(status);
            return Err(reason);
        }
    };
    record.destination.hbone_addr = Some(upstream);
    let is_silent = client.is_silent();
    let (mut client, mut first) = client.open()?;
    let mut drain = context.tasks.drain();
    let copy = async {
        let mut answer = Vec::new();
        if is_silent {
            let said = tokio::select! {
                read = way.read_buf(&mut answer) => read.map(|_| Speech::Tcp),
                said = detect_late(&mut client, &mut first, &context.limits) => said,
            };
            if said? == Speech::Http {
                return Ok(None);
            }
        }
        way.write_all(&first).await?;
        client.write_all(&answer).await?;
        let (sent, received) = tokio::io::copy_bidirectional(&mut client, &mut way).await?;
        Ok::<_, std::io::Error>(Some((sent + first.len() as u64, received + answer.len() as u64)))
    };
    let copied = tokio::select! {
        copied = copy => copied.map_err(|e| e.to_string()),
        reason = permit.revoked() => Err(reason.to_string()),
        () = drain.forced() => Err("the proxy ends".into()),
    };
    if let (Err(_), Way::Right(tcp)) = (&copied, &way) {
        // The server sees a reset, as through a tunnel: it must not take what was cut off for whole.
        meltemi_tunnel::copy::reset(tcp);
    }
    let Some((sent, received)) = copied? else { return Ok(Ended::IsHttp(client, first)) };
    (record.bytes_sent, record.bytes_recv) = (sent, received);
    Ok(Ended::Served)
}

/// Opens a connection to an endpoint, and where that fails to another one: nothing was sent yet.
pub(crate) async fn open(
    context: &Context,
    subject: &Subject,
    backend: &BackendRef,
    facts: &RequestFacts,
) -> Result<(Way, SocketAddr), (StatusCode, String)> {
    let (waiting, mut tried, mut _retry) = (context.budgets.enter(backend), Vec::new(), None);
    loop {
        let unavailable = |unreached: Unreached| (StatusCode::SERVICE_UNAVAILABLE, unreached.reason);
        let route = choose_endpoint(context, backend, None, &tried).map_err(unavailable)?;
        if let Some((workload, port)) = endpoint(&route) {
            let forwarded = Forwarded { workload, port, facts: Some(facts.clone()) };
            let denied = |denied| (StatusCode::FORBIDDEN, crate::log::reason(&denied));
            subject.forward(context, forwarded).map_err(denied)?;
        }
        let host = host(&route);
        let patience = patience(&route, tried.is_empty());
        let reached = reach(context, route, patience).await;
        context.report_endpoint(host, reached.is_ok());
        let unreached = match reached {
            Ok(reached) => return Ok(reached),
            Err(unreached) => unreached,
        };
        tried.push(host);
        _retry = None;
        _retry = waiting.retry();
        let attempts = u32::try_from(tried.len()).unwrap_or(ATTEMPTS);
        if attempts >= ATTEMPTS || _retry.is_none() {
            return Err(unavailable(unreached));
        }
        context.metrics.retried();
        tokio::time::sleep(pause(attempts)).await;
    }
}
