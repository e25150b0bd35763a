// SPDX-License-Identifier: Apache-2.0
//! Connections to backends, kept and used again: one pool for each endpoint and protocol.
//!
//! HTTP/1.1 connections carry one request at a time and are kept while idle; HTTP/2 connections are shared by up to
//! [`MAX_STREAMS`] requests. Opening a connection for each request would leave a port in TIME_WAIT for each of them, until
//! the node has no ports left.

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use meltemi_model::SpiffeId;
use meltemi_runtime::Tasks;
use meltemi_runtime::drain::DrainWatch;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::body::Body;
use crate::forward::{Unreached, Way};
use crate::limits::{
    CONNECTION_WINDOW, Limits, MAX_BUFFER, MAX_HEAD_BYTES, MAX_HEADERS, MAX_SEND_BUFFER, MAX_STREAMS,
    PING_EVERY, PING_LIMIT, STREAM_WINDOW, UPSTREAM_IDLE, UPSTREAM_LIFETIME,
};
use crate::metrics::ResponseFlag;
use crate::upstream::{Upstream, Writing};

/// Interval at which idle connections are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// The HTTP version that a backend is spoken to in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum HttpVersion {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}

/// An endpoint of a Service as it is reached: connections of equal endpoints are interchangeable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Endpoint {
    /// The application's address.
    pub(crate) address: SocketAddr,
    /// The tunnel's address and the identities that it may have; `None` for plain TCP.
    pub(crate) tunnel: Option<(SocketAddr, Vec<SpiffeId>)>,
    /// The HTTP version on the connection.
    pub(crate) version: HttpVersion,
}

/// An idle HTTP/1.1 connection.
struct Idle {
    sender: http1::SendRequest<Body>,
    writing: Arc<Writing>,
    opened: Instant,
    since: Instant,
}

/// An HTTP/2 connection; `requests` has one more reference for each request on it.
struct Shared {
    sender: http2::SendRequest<Body>,
    opened: Instant,
    used: Instant,
    requests: Arc<()>,
}

impl Shared {
    fn open_requests(&self) -> usize {
        Arc::strong_count(&self.requests) - 1
    }
}

/// The connections of one endpoint.
struct EndpointPool {
    idle: Mutex<Vec<Idle>>,
    shared: Mutex<Vec<Shared>>,
    /// Held while an HTTP/2 connection is opened, so that a burst opens one and not one for each request.
    opening: tokio::sync::Mutex<()>,
    slots: Arc<Semaphore>,
    waiting: AtomicUsize,
    limits: Limits,
    closed: Arc<AtomicBool>,
}

/// All connections to backends; clones share them.
#[derive(Clone)]
pub(crate) struct Upstreams {
    pools: Arc<Mutex<HashMap<Endpoint, Arc<EndpointPool>>>>,
    closed: Arc<AtomicBool>,
    limits: Limits,
    tasks: Tasks,
}

/// A connection that is this request's alone (HTTP/1.1) or a share of one (HTTP/2), until it is dropped.
pub(crate) struct Lease {
    connection: Connection,
    pool: Weak<EndpointPool>,
    /// Whether the connection has carried another request before: its backend may have closed it meanwhile.
    pub(crate) is_reused: bool,
    _slot: OwnedSemaphorePermit,
}

enum Connection {
    Http1 { sender: http1::SendRequest<Body>, writing: Arc<Writing>, opened: Instant },
    Http2 { sender: http2::SendRequest<Body>, _request: Arc<()> },
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Upstreams {
    pub(crate) fn new(limits: Limits, tasks: Tasks) -> Self {
        Self { pools: Arc::default(), closed: Arc::default(), limits, tasks }
    }

    /// Closes idle connections when their time has come, and all of them when the proxy drains.
    pub(crate) async fn sweep(self, mut drain: DrainWatch) -> std::io::Result<()> {
        let mut interval = tokio::time::interval(SWEEP_INTERVAL);
        loop {
            tokio::select! {
                _ = interval.tick() => self.close_idle(Instant::now()),
                () = drain.started() => break,
            }
        }
        self.closed.store(true, Ordering::SeqCst);
        let pools: Vec<_> = lock(&self.pools).values().cloned().collect();
        for pool in pools {
            lock(&pool.idle).clear();
            lock(&pool.shared).clear();
        }
        Ok(())
    }

    fn close_idle(&self, now: Instant) {
        lock(&self.pools).retain(|_, pool| {
            let fresh = |opened: Instant, used: Instant| {
                now.duration_since(used) < UPSTREAM_IDLE && now.duration_since(opened) < UPSTREAM_LIFETIME
            };
            let mut idle = lock(&pool.idle);
            idle.retain(|c| !c.sender.is_closed() && fresh(c.opened, c.since));
            let mut shared = lock(&pool.shared);
            // A connection with requests on it goes on; it is not chosen any more once its lifetime is over.
            shared.retain(|c| !c.sender.is_closed() && (c.open_requests() > 0 || fresh(c.opened, c.used)));
            !idle.is_empty() || !shared.is_empty() || Arc::strong_count(pool) > 1
        });
    }

    /// Requests that are under way to an endpoint.
    pub(crate) fn load(&self, endpoint: &Endpoint) -> usize {
        let free = |pool: &Arc<EndpointPool>| pool.slots.available_permits();
        lock(&self.pools).get(endpoint).map_or(0, |pool| self.limits.upstream_requests - free(pool))
    }

    fn pool(&self, endpoint: &Endpoint) -> Arc<EndpointPool> {
        let mut pools = lock(&self.pools);
        if let Some(pool) = pools.get(endpoint) {
            return pool.clone();
        }
        let pool = Arc::new(EndpointPool {
            idle: Mutex::default(),
            shared: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            slots: Arc::new(Semaphore::new(self.limits.upstream_requests)),
            waiting: AtomicUsize::new(0),
            limits: self.limits,
            closed: self.closed.clone(),
        });
        pools.insert(endpoint.clone(), pool.clone());
        pool
    }

    /// Takes a kept connection to `endpoint`, or opens one with `connect`; never a kept one if `only_new`.
    ///
    /// # Errors
    /// `UO` when [`Limits::upstream_requests`] are under way and [`Limits::upstream_waiting`] wait, or when this one has
    /// waited for [`Limits::upstream_wait`]; what `connect` returns; `UF` when the HTTP/2 preface cannot be sent.
    pub(crate) async fn lease<F>(
        &self,
        endpoint: &Endpoint,
        only_new: bool,
        connect: F,
    ) -> Result<Lease, Unreached>
    where
        F: Future<Output = Result<Way, Unreached>>,
    {
        let pool = self.pool(endpoint);
        let slot = pool.slot().await?;
        let (connection, is_reused) = match endpoint.version {
            HttpVersion::Http1 => match if only_new { None } else { pool.take_idle().await } {
                Some(kept) => (kept, true),
                None => (self.open_http1(connect.await?).await?, false),
            },
            HttpVersion::Http2 => match if only_new { None } else { pool.share() } {
                Some(shared) => (shared, true),
                None => self.open_http2(&pool, only_new, connect).await?,
            },
        };
        Ok(Lease { connection, pool: Arc::downgrade(&pool), is_reused, _slot: slot })
    }

    async fn open_http1(&self, way: Way) -> Result<Connection, Unreached> {
        let mut builder = http1::Builder::new();
        builder.max_headers(MAX_HEADERS).max_buf_size(MAX_BUFFER);
        let writing = Arc::new(Writing::default());
        let io = TokioIo::new(Upstream::new(way, writing.clone()));
        let (sender, connection) = builder.handshake(io).await.map_err(Unreached::failed)?;
        self.tasks.spawn_job("upstream", connection.with_upgrades());
        Ok(Connection::Http1 { sender, writing, opened: Instant::now() })
    }

    async fn open_http2<F>(
        &self,
        pool: &EndpointPool,
        only_new: bool,
        connect: F,
    ) -> Result<(Connection, bool), Unreached>
    where
        F: Future<Output = Result<Way, Unreached>>,
    {
        let _one_at_a_time = pool.opening.lock().await;
        if !only_new && let Some(shared) = pool.share() {
            return Ok((shared, true));
        }
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX))
            .max_send_buf_size(MAX_SEND_BUFFER)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_LIMIT);
        let handshake = builder.handshake(TokioIo::new(connect.await?));
        let (sender, connection) = handshake.await.map_err(Unreached::failed)?;
        self.tasks.spawn_job("upstream", connection);
        let (now, requests) = (Instant::now(), Arc::new(()));
        let connection = Connection::Http2 { sender: sender.clone(), _request: requests.clone() };
        let mut shared = lock(&pool.shared);
        // Asked under the lock: `sweep` says so first and empties the list after.
        if !pool.closed.load(Ordering::SeqCst) {
            shared.push(Shared { sender, opened: now, used: now, requests });
        }
        drop(shared);
        Ok((connection, false))
    }
}

impl EndpointPool {
    async fn slot(&self) -> Result<OwnedSemaphorePermit, Unreached> {
        if let Ok(slot) = self.slots.clone().try_acquire_owned() {
            return Ok(slot);
        }
        let overflow = || Unreached {
            flag: ResponseFlag::UpstreamOverflow,
            reason: "too many requests to this endpoint".into(),
        };
        let _waiting = Waiting::enter(&self.waiting, self.limits.upstream_waiting).ok_or_else(overflow)?;
        let slot = tokio::time::timeout(self.limits.upstream_wait, self.slots.clone().acquire_owned()).await;
        slot.ok().and_then(Result::ok).ok_or_else(overflow)
    }

    /// The connection that was used last: the others grow old and are closed.
    async fn take_idle(&self) -> Option<Connection> {
        loop {
            let Idle { mut sender, writing, opened, .. } = lock(&self.idle).pop()?;
            // Its last response has just ended, so that its task may still have to notice.
            if opened.elapsed() < UPSTREAM_LIFETIME && sender.ready().await.is_ok() {
                return Some(Connection::Http1 { sender, writing, opened });
            }
        }
    }

    fn share(&self) -> Option<Connection> {
        let now = Instant::now();
        let mut shared = lock(&self.shared);
        shared.retain(|c| !c.sender.is_closed());
        let usable = shared.iter_mut().find(|c| {
            c.open_requests() < MAX_STREAMS as usize && now.duration_since(c.opened) < UPSTREAM_LIFETIME
        })?;
        usable.used = now;
        Some(Connection::Http2 { sender: usable.sender.clone(), _request: usable.requests.clone() })
    }
}

/// A place in the queue of requests that wait for an endpoint.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(count: &'a AtomicUsize, limit: usize) -> Option<Self> {
        let entered = Self(count);
        (count.fetch_add(1, Ordering::Relaxed) < limit).then_some(entered)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lease {
    /// Sends a request. What was not sent at all comes back with the error.
    pub(crate) async fn send(
        &mut self,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Body>>> {
        match &mut self.connection {
            Connection::Http1 { sender, writing, .. } => {
                let response = sender.try_send_request(request).await?;
                if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    writing.report_failures();
                }
                Ok(response)
            }
            Connection::Http2 { sender, .. } => sender.try_send_request(request).await,
        }
    }

    /// Keeps the connection for the next request, after request and response have ended. A connection whose lease is
    /// dropped without this is closed (HTTP/1.1), since bytes of this exchange may still be on it.
    pub(crate) fn keep(self) {
        let Connection::Http1 { sender, writing, opened } = self.connection else { return };
        let Some(pool) = self.pool.upgrade() else { return };
        let mut idle = lock(&pool.idle);
        // Asked under the lock: `sweep` says so first and empties the list after.
        if !sender.is_closed() && !writing.has_failed() && !pool.closed.load(Ordering::SeqCst) {
            idle.push(Idle { sender, writing, opened, since: Instant::now() });
        }
    }
}

#[cfg(test)]
mod tests {
    use meltemi_runtime::drain;
    use tokio::net::{TcpListener, TcpStream};
    use tokio_util::either::Either;

    use super::*;

    /// A backend that keeps its connections.
    async fn backend() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        #[expect(clippy::disallowed_methods, reason = "a test has no owner for tasks but itself")]
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                held.push(stream);
            }
        });
        address
    }

    #[tokio::test]
    async fn a_kept_connection_is_closed_when_it_is_idle_and_when_it_is_old() {
        let address = backend().await;
        let (_trigger, watch) = drain::channel();
        let (tasks, _supervisor) = Tasks::new("test", watch);
        let upstreams = Upstreams::new(Limits::default(), tasks);
        let endpoint = Endpoint { address, tunnel: None, version: HttpVersion::Http1 };
        let lease = async || {
            let connect = async { Ok(Either::Right(TcpStream::connect(address).await.unwrap())) };
            upstreams.lease(&endpoint, false, connect).await.map_err(|_| "not reached").unwrap()
        };
        let first = lease().await;
        assert!(!first.is_reused);
        first.keep();
        let almost = |limit: Duration| Instant::now() + limit - Duration::from_secs(1);
        upstreams.close_idle(almost(UPSTREAM_IDLE));
        let again = lease().await;
        assert!(again.is_reused, "it is kept for a while");
        again.keep();
        upstreams.close_idle(Instant::now() + UPSTREAM_IDLE);
        let new = lease().await;
        assert!(!new.is_reused, "it was idle");
        new.keep();
        // Used all the time, until its lifetime is over.
        tokio::time::pause();
        tokio::time::advance(UPSTREAM_LIFETIME - Duration::from_secs(1)).await;
        let old = lease().await;
        assert!(old.is_reused);
        old.keep();
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!lease().await.is_reused, "it was old");
    }
}
