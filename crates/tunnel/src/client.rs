// SPDX-License-Identifier: Apache-2.0
//! The dialling side: tunnels are pooled by who asks, whom it expects and where it dials.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

use http::{HeaderMap, StatusCode};
use meltemi_identity::{Svid, tls};
use meltemi_model::SpiffeId;
use meltemi_runtime::Tasks;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::{Mutex, oneshot};
use tokio_rustls::TlsConnector;

use crate::STREAMS_PER_TUNNEL;
use crate::framing::Broken;
use crate::framing::conn::{Role, Shared, lock};
use crate::framing::driver::{Driver, User};
use crate::framing::stream::Stream;
use crate::liveness::{Liveness, SUSPECT};
use crate::tls::Tls;

/// A tunnel that nobody used for this long is closed.
const IDLE: Duration = Duration::from_secs(300);
/// How often idle tunnels are looked for.
const SWEEP: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(10);
/// How long a peer may take to answer a request: to learn of its workload and of a policy, and to reach the application.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a connection waits for others that open a tunnel to the same destination.
const TURN: Duration = Duration::from_secs(25);
/// How long a caller that has another peer waits for a tunnel to this one, or for a sign that it is there.
const SHORT: Duration = Duration::from_secs(1);
/// Attempts after the first one to open a stream, when tunnels turn out to be broken.
const RETRIES: u32 = 2;

/// Why a destination could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No TCP connection.
    #[error("{address}: {source}")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The peer is not who it must be, or refuses us.
    #[error("TLS with {address}: {source}")]
    Tls {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The tunnel failed.
    #[error("tunnel to {address}: {reason}")]
    Tunnel {
        /// Where.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
    /// The peer of a tunnel has stopped answering.
    #[error("tunnel to {address}: the peer does not answer")]
    Silent {
        /// Where.
        address: SocketAddr,
    },
    /// The peer answered, and not with 200.
    #[error("http status: {0}")]
    Status(StatusCode),
}

impl DialError {
    /// Whether the peer's process ended while the tunnel was being opened, as in a restart: the next one may take it.
    fn is_interrupted(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        match self {
            Self::Connect { source, .. } | Self::Tls { source, .. } => {
                matches!(source.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
            }
            Self::Tunnel { .. } => true,
            Self::Silent { .. } | Self::Status(_) => false,
        }
    }
}

/// How long to wait for a peer that does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// As long as a busy peer may need: there is no other.
    Full,
    /// One second: the caller has another peer to go to.
    Short,
}

/// A destination through a tunnel.
#[derive(Clone, Debug)]
pub struct Dial {
    /// Our certificate.
    pub svid: Arc<Svid>,
    /// Where to dial.
    pub address: SocketAddr,
    /// Who the peer may be, exactly.
    pub expected: Vec<SpiffeId>,
    /// What to ask for.
    pub authority: String,
    /// Headers of the request (`forwarded`, `baggage`, `traceparent`).
    pub headers: HeaderMap,
    /// How long to wait for a peer that does not answer.
    pub patience: Patience,
}

/// Opens the TCP connection of a tunnel: in the right network namespace, with the right mark.
pub type Connector =
    Arc<dyn Fn(SocketAddr) -> Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>> + Send + Sync>;

type Key = (String, SocketAddr, Vec<SpiffeId>);

/// An open tunnel.
#[derive(Clone)]
struct Tunnel {
    user: Arc<User>,
    liveness: Arc<Liveness>,
}

impl Tunnel {
    fn shared(&self) -> &Shared {
        &self.user.0
    }
}

struct Pooled {
    tunnel: Tunnel,
    open: Arc<()>,
    used: Instant,
}

/// The tunnels of one key. Locked while connecting, so that one destination opens one tunnel and not a hundred.
type Tunnels = Arc<Mutex<Vec<Pooled>>>;
type Keyed = std::sync::Mutex<HashMap<Key, Tunnels>>;

/// Tunnels of one network namespace; clones share them.
#[derive(Clone)]
pub struct Pool {
    connector: Connector,
    tunnels: Arc<Keyed>,
    tasks: Tasks,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

/// A stream that keeps its tunnel from being seen as idle.
#[derive(Debug)]
pub struct Dialled {
    /// The stream.
    pub stream: Stream,
    /// Dropped when the stream has ended.
    pub lease: Arc<()>,
}

impl Pool {
    /// An empty pool.
    pub fn new(connector: Connector, tasks: Tasks) -> Self {
        Self { connector, tunnels: Arc::default(), tasks }
    }

    /// Opens a stream to a destination, on a tunnel that is open already or on a new one.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn dial(&self, dial: &Dial) -> Result<Dialled, DialError> {
        let mut retries = RETRIES;
        loop {
            let error = match self.tunnel_in_time(dial).await {
                Ok((tunnel, lease, fresh)) => match request(tunnel, dial).await {
                    Ok(stream) => return Ok(Dialled { stream, lease }),
                    // The peer may close a tunnel at the moment it is used: that says nothing about the destination, which
                    // no byte of the client has reached yet. Two new tunnels in a row do.
                    Err(error @ DialError::Tunnel { .. }) => {
                        self.forget(dial).await;
                        retries = if fresh { retries.min(1) } else { retries };
                        error
                    }
                    Err(error @ DialError::Silent { .. }) if dial.patience == Patience::Full => error,
                    Err(error) => return Err(error),
                },
                Err(error) if error.is_interrupted() => error,
                Err(error) => return Err(error),
            };
            retries = retries.checked_sub(1).ok_or(error)?;
        }
    }

    async fn forget(&self, dial: &Dial) {
        self.of(dial).lock().await.clear();
    }

    fn of(&self, dial: &Dial) -> Tunnels {
        let mut tunnels = self.tunnels.lock().unwrap_or_else(PoisonError::into_inner);
        tunnels.entry(key(dial)).or_default().clone()
    }

    /// A tunnel, as soon as the caller's patience asks for it.
    async fn tunnel_in_time(&self, dial: &Dial) -> Result<(Tunnel, Arc<()>, bool), DialError> {
        match dial.patience {
            Patience::Full => self.tunnel(dial).await,
            Patience::Short => tokio::time::timeout(SHORT, self.tunnel(dial))
                .await
                .unwrap_or(Err(DialError::Silent { address: dial.address })),
        }
    }

    async fn tunnel(&self, dial: &Dial) -> Result<(Tunnel, Arc<()>, bool), DialError> {
        let tunnels = self.of(dial);
        // Another task may hold the lock while it dials a peer that does not respond; do not queue behind it for ever.
        let turn = tokio::time::timeout(TURN, tunnels.lock()).await;
        let mut list = turn.map_err(|_| slow(dial.address))?;
        let now = Instant::now();
        list.retain(|pooled| !lock(pooled.tunnel.shared()).is_over());
        for pooled in list.iter_mut() {
            let has_room = Arc::strong_count(&pooled.open) <= STREAMS_PER_TUNNEL as usize;
            if has_room && !pooled.tunnel.liveness.is_suspect() {
                pooled.used = now;
                return Ok((pooled.tunnel.clone(), pooled.open.clone(), false));
            }
        }
        if dial.patience == Patience::Short && list.iter().any(|pooled| pooled.tunnel.liveness.is_suspect()) {
            // A new tunnel to a peer that does not answer would have to wait for it as well.
            return Err(DialError::Silent { address: dial.address });
        }
        let tunnel = self.connect(dial).await?;
        let open = Arc::new(());
        list.push(Pooled { tunnel: tunnel.clone(), open: open.clone(), used: now });
        Ok((tunnel, open, true))
    }

    async fn connect(&self, dial: &Dial) -> Result<Tunnel, DialError> {
        let address = dial.address;
        let timeout = || {
            io::Error::new(
                io::ErrorKind::TimedOut,
                "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008",
            )
        };
        let tcp = tokio::time::timeout(CONNECT, (self.connector)(address))
            .await
            .unwrap_or_else(|_| Err(timeout()))
            .map_err(|source| DialError::Connect { address, source })?;
        let tunnel = |reason: String| DialError::Tunnel { address, reason };
        tcp.set_nodelay(true).map_err(|source| DialError::Connect { address, source })?;
        let config = tls::client(&dial.svid, dial.expected.clone()).map_err(|e| tunnel(e.to_string()))?;
        let name = ServerName::IpAddress(address.ip().into());
        let handshake = TlsConnector::from(Arc::new(config)).connect(name, tcp);
        let tls = tokio::time::timeout(CONNECT, handshake)
            .await
            .unwrap_or_else(|_| Err(timeout()))
            .map_err(|source| DialError::Tls { address, source })?;
        let (tcp, tls) = tls.into_inner();
        let driver = Driver::new(Role::Client, Tls::new(tcp, tls));
        let user = Arc::new(User(driver.shared.clone()));
        let liveness = Arc::new(Liveness::default());
        self.drive(driver, liveness.clone());
        Ok(Tunnel { user, liveness })
    }

    /// Drives a tunnel, and beside that looks after it: what is seldom must not be asked for with every packet.
    fn drive(&self, mut driver: Driver, liveness: Arc<Liveness>) {
        let (shared, tunnels) = (driver.shared.clone(), Arc::downgrade(&self.tunnels));
        let mut drain = self.tasks.drain();
        let (ended, mut over) = oneshot::channel::<()>();
        self.tasks.spawn_job("tunnel", async move {
            let _ended = ended;
            std::future::poll_fn(|cx| driver.poll(cx)).await
        });
        self.tasks.spawn_job("tunnel watch", async move {
            let mut sweep = tokio::time::interval(SWEEP);
            let alive = liveness.watch(&shared);
            tokio::pin!(alive);
            let mut draining = false;
            loop {
                tokio::select! {
                    _ = &mut over => return Ok(()),
                    // A tunnel that nobody uses must not keep the process.
                    () = drain.started(), if !draining => {
                        draining = true;
                        let_go(&tunnels);
                    }
                    error = &mut alive => {
                        let text = error.to_string();
                        lock(&shared).fail(error);
                        return Err(text);
                    }
                    _ = sweep.tick() => sweep_idle(&tunnels),
                }
            }
        });
    }
}

/// Drops tunnels that were idle for [`IDLE`]; dropping the last handle closes the connection.
fn sweep_idle(tunnels: &Weak<Keyed>) {
    let Some(tunnels) = tunnels.upgrade() else { return };
    let now = Instant::now();
    tunnels.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, list| {
        // Locked: somebody is connecting, so it is in use.
        let Ok(mut held) = list.try_lock() else { return true };
        held.retain(|t| Arc::strong_count(&t.open) > 1 || now.duration_since(t.used) < IDLE);
        !held.is_empty()
    });
}

/// Lets go of all of them: a tunnel ends with its last stream.
fn let_go(tunnels: &Weak<Keyed>) {
    let Some(tunnels) = tunnels.upgrade() else { return };
    tunnels.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

fn key(dial: &Dial) -> Key {
    // The serial: a renewed certificate gets tunnels of its own.
    (format!("{}#{}", dial.svid.identity, dial.svid.serial), dial.address, dial.expected.clone())
}

fn slow(address: SocketAddr) -> DialError {
    DialError::Connect {
        address,
        source: io::Error::new(io::ErrorKind::TimedOut, "the peer does not answer"),
    }
}

/// A tunnel that failed. With TLS 1.3 the client is done before the server has judged its certificate, so that a refusal
/// arrives as an error of the first read: it is one of TLS, and another attempt would change nothing.
fn broken(address: SocketAddr, broken: Broken) -> DialError {
    // What rustls reports, alerts of the peer among it, has this kind; no error of a socket has.
    let source = io::Error::from(broken);
    match source.kind() {
        io::ErrorKind::InvalidData => DialError::Tls { address, source },
        _ => DialError::Tunnel { address, reason: source.to_string() },
    }
}

async fn request(to: Tunnel, dial: &Dial) -> Result<Stream, DialError> {
    let broken = |error| broken(dial.address, error);
    let stream = Stream::connect(to.shared(), &dial.authority, &dial.headers).await.map_err(broken)?;
    let status = tokio::select! {
        answered = tokio::time::timeout(ANSWER, stream.status()) => answered.map_err(|_| slow(dial.address))?,
        () = to.liveness.lost(match dial.patience { Patience::Full => SUSPECT, Patience::Short => SHORT }) => return Err(DialError::Silent { address: dial.address }),
    };
    match StatusCode::from_u16(status.map_err(broken)?) {
        Ok(StatusCode::OK) => Ok(stream),
        other => Err(DialError::Status(other.unwrap_or_default())),
    }
}

#[cfg(test)]
mod tests {
    use meltemi_runtime::drain;
    use meltemi_testkit::ca::{authority, identity, issue};
    use tokio::time::Instant as Clock;

    use super::*;
    use crate::framing::probe::Probe;

    fn dial() -> Dial {
        let svid = Arc::new(issue(&authority(), &identity("client")).0);
        Dial {
            svid,
            address: "10.0.0.2:15008".parse().unwrap(),
            expected: vec![identity("server")],
            authority: "10.0.0.1:80".to_owned(),
            headers: HeaderMap::new(),
            patience: Patience::Full,
        }
    }

    fn is_slow(error: &DialError) -> bool {
        matches!(error, DialError::Connect { source, .. } if source.kind() == io::ErrorKind::TimedOut)
    }

    /// Whoever opens the tunnel waits for a network that does not answer; those behind it do not wait for ever.
    #[tokio::test(start_paused = true)]
    async fn a_turn_is_waited_for_with_a_limit_and_other_destinations_need_none() {
        let (_trigger, watch) = drain::channel();
        let (tasks, _supervisor) = Tasks::new("test", watch);
        let refused = |_| Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) }) as _;
        let (pool, dial) = (Pool::new(Arc::new(refused), tasks), dial());
        let tunnels = pool.of(&dial);
        let turn = tunnels.lock().await;
        let begun = Clock::now();
        let waited = pool.dial(&dial).await.unwrap_err();
        assert!(is_slow(&waited), "{waited}");
        assert_eq!(begun.elapsed().as_secs(), TURN.as_secs());
        let begun = Clock::now();
        let other = Dial { address: "10.0.0.3:15008".parse().unwrap(), ..dial.clone() };
        let error = pool.dial(&other).await.unwrap_err();
        assert!(matches!(error, DialError::Connect { .. }) && !is_slow(&error), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        drop(turn);
        assert!(!is_slow(&pool.dial(&dial).await.unwrap_err()), "its turn has come");
    }

    /// The peer is there, and its application does not answer.
    #[tokio::test(start_paused = true)]
    async fn an_answer_is_waited_for_with_a_limit() {
        let (probe, dial) = (Probe::new(Role::Client), dial());
        let liveness = Arc::new(Liveness::default());
        let tunnel = || Tunnel { user: Arc::new(User(probe.shared.clone())), liveness: liveness.clone() };
        let begun = Clock::now();
        let heard = async {
            loop {
                liveness.hear();
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let error = tokio::select! {
            asked = request(tunnel(), &dial) => asked.map(|_| ()).unwrap_err(),
            () = heard => unreachable!("it never ends"),
        };
        assert!(is_slow(&error), "{error}");
        assert_eq!(begun.elapsed().as_secs(), ANSWER.as_secs());
    }
}
