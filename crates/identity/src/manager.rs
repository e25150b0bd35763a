// SPDX-License-Identifier: Apache-2.0
//! The owner of certificates: one task fetches and renews them all; everybody else reads.
//!
//! Invariants: at most one fetch for an identity is under way; a valid certificate is kept until a newer one is there; an
//! expired one is never handed out. Renewal follows the wall clock, looked at at least every second, so that a machine
//! that slept renews as soon as it wakes.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use meltemi_model::SpiffeId;
use meltemi_runtime::Tasks;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::channel::ControlPlane;
use crate::svid::{Svid, key_and_csr};

/// Interval between two comparisons of validity with the wall clock, which may jump.
const LOOK: Duration = Duration::from_secs(1);
/// First pause after a failed fetch; doubled each time.
const MIN_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause: a Pod is without its identity for so long after the CA is back.
const MAX_PAUSE: Duration = Duration::from_secs(3);
/// Identities waited for at once.
const QUEUE: usize = 1024;

/// The state of an identity's certificate.
#[derive(Clone, Debug)]
pub enum Issued {
    /// Not there yet; the last error, if there was an attempt.
    Pending(Option<String>),
    /// Usable.
    Ready(Arc<Svid>),
}

/// Gets a certificate chain for a CSR.
pub trait Fetcher: Send + Sync + 'static {
    /// Asks the CA for the identity. Leaf first, roots last.
    fn fetch<'a>(&'a self, identity: &'a SpiffeId, csr: String) -> Fetch<'a>;
}

/// What a fetch resolves to.
pub type Fetch<'a> = Pin<Box<dyn Future<Output = Result<Vec<String>, String>> + Send + 'a>>;

/// Asks the mesh's CA over the control plane's channel.
#[derive(Clone, Debug)]
pub struct CaFetcher {
    /// Where and how.
    pub control: ControlPlane,
    /// Lifetime to ask for.
    pub ttl: Duration,
    /// A node proxy names the identity that it asks for; everybody else gets its own.
    pub impersonate: bool,
    /// Cluster that the token is from.
    pub cluster_id: String,
}

impl Fetcher for CaFetcher {
    fn fetch<'a>(&'a self, identity: &'a SpiffeId, csr: String) -> Fetch<'a> {
        Box::pin(async move {
            let channel = self.control.connect().await.map_err(|e| e.to_string())?;
            let named = self.impersonate.then(|| identity.as_str());
            let mut request = tonic::Request::new(meltemi_wire::ca::request(csr, self.ttl, named));
            let token = self.control.read_token().ok_or("no token to present")?;
            let header = format!("Bearer {token}").parse().map_err(|_| "the token is not a header value")?;
            request.metadata_mut().insert("authorization", header);
            if let Ok(cluster) = self.cluster_id.parse() {
                request.metadata_mut().insert("clusterid", cluster);
            }
            let answer = meltemi_wire::ca::CaClient::new(channel).create_certificate(request).await;
            answer.map(|a| a.into_inner().cert_chain).map_err(|status| status.message().to_owned())
        })
    }
}

type States = Arc<Mutex<HashMap<SpiffeId, watch::Sender<Issued>>>>;

/// Hands out certificates; clones share the owner.
#[derive(Clone, Debug)]
pub struct CertManager {
    states: States,
    wanted: mpsc::Sender<SpiffeId>,
}

impl CertManager {
    /// Starts the owner.
    pub fn start(fetcher: impl Fetcher, tasks: &Tasks) -> Self {
        let (wanted, requests) = mpsc::channel(QUEUE);
        let states = States::default();
        let owner = Owner {
            states: states.clone(),
            fetcher: Arc::new(fetcher),
            tasks: tasks.clone(),
            due: HashMap::new(),
        };
        tasks.spawn("certificates", owner.run(requests));
        Self { states, wanted }
    }

    fn entry(&self, identity: &SpiffeId) -> (watch::Receiver<Issued>, bool) {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let new = !states.contains_key(identity);
        let sender =
            states.entry(identity.clone()).or_insert_with(|| watch::channel(Issued::Pending(None)).0);
        (sender.subscribe(), new)
    }

    /// Asks for a certificate without waiting for it.
    pub fn prefetch(&self, identity: &SpiffeId) {
        let (_, new) = self.entry(identity);
        if new {
            let _ = self.wanted.try_send(identity.clone());
        }
    }

    /// A valid certificate; waits until there is one, for at most `limit`.
    ///
    /// # Errors
    /// None within the limit: the last error of the CA.
    pub async fn get(&self, identity: &SpiffeId, limit: Duration) -> Result<Arc<Svid>, String> {
        let (mut state, new) = self.entry(identity);
        if new && self.wanted.send(identity.clone()).await.is_err() {
            return Err("the owner of certificates has ended".into());
        }
        let usable =
            |issued: &Issued| matches!(issued, Issued::Ready(svid) if svid.is_valid(SystemTime::now()));
        match tokio::time::timeout(limit, state.wait_for(usable))
            .await
            .map(|r| r.map(|issued| issued.clone()))
        {
            Ok(Ok(Issued::Ready(svid))) => return Ok(svid),
            Ok(Err(_)) => return Err("the certificate is no longer needed".into()),
            Ok(Ok(Issued::Pending(_))) | Err(_) => {}
        }
        let last = match &*state.borrow() {
            Issued::Pending(Some(error)) => error.clone(),
            Issued::Pending(None) => "the CA has not answered yet".into(),
            Issued::Ready(_) => "the certificate has expired".into(),
        };
        Err(format!("no certificate for {identity}: {last}"))
    }

    /// Whether there is a valid certificate now.
    pub fn is_ready(&self, identity: &SpiffeId) -> bool {
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let state = states.get(identity).map(|state| state.borrow().clone());
        matches!(state, Some(Issued::Ready(svid)) if svid.is_valid(SystemTime::now()))
    }

    /// Forgets an identity that nobody uses any more.
    pub fn forget(&self, identity: &SpiffeId) {
        self.states.lock().unwrap_or_else(PoisonError::into_inner).remove(identity);
    }

    /// Every identity with its state, sorted.
    pub fn all(&self) -> Vec<(SpiffeId, Issued)> {
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = states.iter().map(|(id, state)| (id.clone(), state.borrow().clone())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }
}

struct Due {
    /// When what is there is to be renewed, by the wall clock; what is not valid is fetched anew whatever this says.
    at: SystemTime,
    /// Not sooner, whatever the wall clock does.
    rest: Instant,
    pause: Duration,
    under_way: bool,
}

impl Due {
    /// A pause before the next attempt, longer each time.
    fn rest(&mut self) {
        self.rest = Instant::now() + self.pause.mul_f64(1.0 + rand::random::<f64>() * 0.2);
        self.pause = (self.pause * 2).min(MAX_PAUSE);
    }
}

struct Owner<F> {
    states: States,
    fetcher: Arc<F>,
    tasks: Tasks,
    due: HashMap<SpiffeId, Due>,
}

type Done = (SpiffeId, Result<Svid, String>);

impl<F: Fetcher> Owner<F> {
    async fn run(mut self, mut requests: mpsc::Receiver<SpiffeId>) -> Result<(), std::convert::Infallible> {
        let mut drain = self.tasks.drain();
        let (done, mut results) = mpsc::channel::<Done>(QUEUE);
        let mut look = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                () = drain.started() => return Ok(()),
                Some(identity) = requests.recv() => {
                    let now = SystemTime::now();
                    let due = Due { at: now, rest: Instant::now(), pause: MIN_PAUSE, under_way: false };
                    self.due.entry(identity).or_insert(due);
                }
                Some((identity, result)) = results.recv() => self.finished(&identity, result),
                _ = look.tick() => {}
                () = self.next_due() => {}
            }
            self.fetch_due(&done);
        }
    }

    /// Resolves when the earliest fetch is due; the wall clock decides, the timer only wakes.
    async fn next_due(&self) {
        let now = SystemTime::now();
        let wait = |(identity, due): (&SpiffeId, &Due)| {
            let renewal = due.at.duration_since(now).unwrap_or(Duration::ZERO);
            let wait = if self.holds_valid(identity, now) { renewal } else { Duration::ZERO };
            wait.max(due.rest.saturating_duration_since(Instant::now()))
        };
        let earliest = self.due.iter().filter(|(_, due)| !due.under_way).map(wait).min();
        tokio::time::sleep(earliest.unwrap_or(LOOK).max(Duration::from_millis(1))).await;
    }

    /// Whether what is there may be used. A clock that was put back leaves what is valid only later.
    fn holds_valid(&self, identity: &SpiffeId, now: SystemTime) -> bool {
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let valid = |issued: &Issued| matches!(issued, Issued::Ready(svid) if svid.is_valid(now));
        states.get(identity).is_some_and(|state| valid(&state.borrow()))
    }

    fn fetch_due(&mut self, done: &mpsc::Sender<Done>) {
        let now = SystemTime::now();
        let known = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        self.due.retain(|identity, _| known.contains_key(identity));
        drop(known);
        let waits = |(identity, due): (&SpiffeId, &Due)| {
            let ready = !due.under_way && due.rest <= Instant::now();
            (ready && (due.at <= now || !self.holds_valid(identity, now))).then(|| identity.clone())
        };
        for identity in self.due.iter().filter_map(waits).collect::<Vec<_>>() {
            let Some(due) = self.due.get_mut(&identity) else { continue };
            due.under_way = true;
            let (fetcher, done) = (self.fetcher.clone(), done.clone());
            self.tasks.spawn_job("fetch", async move {
                let result = fetch(&*fetcher, &identity).await;
                let _ = done.send((identity, result)).await;
                Ok::<(), std::convert::Infallible>(())
            });
        }
    }

    fn finished(&mut self, identity: &SpiffeId, result: Result<Svid, String>) {
        let Some(due) = self.due.get_mut(identity) else { return };
        due.under_way = false;
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(state) = states.get(identity) else { return };
        match result {
            Ok(svid) => {
                due.at = svid.renew_at();
                if svid.is_valid(SystemTime::now()) {
                    due.pause = MIN_PAUSE;
                } else {
                    // The CA's clock and ours differ.
                    due.rest();
                }
                tracing::info!(%identity, serial = %svid.serial, "certificate issued");
                state.send_replace(Issued::Ready(Arc::new(svid)));
            }
            Err(error) => {
                tracing::warn!(%identity, %error, "certificate could not be fetched");
                due.rest();
                // A valid one is kept; what is there says more than an error.
                state.send_if_modified(|issued| {
                    let keep = matches!(issued, Issued::Ready(svid) if svid.is_valid(SystemTime::now()));
                    if !keep {
                        *issued = Issued::Pending(Some(error));
                    }
                    !keep
                });
            }
        }
    }
}

async fn fetch(fetcher: &impl Fetcher, identity: &SpiffeId) -> Result<Svid, String> {
    let (key, csr) = key_and_csr(identity).map_err(|e| e.to_string())?;
    let chain = fetcher.fetch(identity, csr).await?;
    Svid::new(&chain, &key, identity).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use meltemi_runtime::drain;

    use super::*;
    use crate::ca::{CaCore, CaMaterial};

    struct Fake {
        ca: CaCore,
        failures: AtomicUsize,
        /// Of certificates that are made while the clock is two days ahead.
        ahead: AtomicUsize,
    }

    impl Fetcher for Fake {
        fn fetch<'a>(&'a self, identity: &'a SpiffeId, csr: String) -> Fetch<'a> {
            Box::pin(async move {
                if self
                    .failures
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
                    .is_ok()
                {
                    return Err("not now".into());
                }
                let ahead = self.ahead.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
                let days = if ahead.is_ok() { 2 } else { 0 };
                let now = SystemTime::now() + Duration::from_secs(days * 24 * 3600);
                self.ca.sign(&csr, identity, None, now).map_err(|e| e.to_string())
            })
        }
    }

    fn manager(failures: usize, ahead: usize) -> (CertManager, drain::DrainTrigger) {
        let ca = CaCore::new(&CaMaterial::generate("cluster.local", SystemTime::now()).unwrap()).unwrap();
        let (trigger, watch) = drain::channel();
        let (tasks, _supervisor) = Tasks::new("test", watch);
        (CertManager::start(Fake { ca, failures: failures.into(), ahead: ahead.into() }, &tasks), trigger)
    }

    #[tokio::test]
    async fn a_certificate_comes_and_is_shared() {
        let (manager, _trigger) = manager(0, 0);
        let id = SpiffeId::parse("spiffe://cluster.local/ns/a/sa/b").unwrap();
        let limit = Duration::from_secs(5);
        let (one, two) = tokio::join!(manager.get(&id, limit), manager.get(&id, limit));
        assert_eq!(one.unwrap().serial, two.unwrap().serial);
    }

    #[tokio::test]
    async fn a_failure_is_told_and_tried_again() {
        // Five failures take longer than the first limit, however fast the machine is.
        let (manager, _trigger) = manager(5, 0);
        let id = SpiffeId::parse("spiffe://cluster.local/ns/a/sa/b").unwrap();
        let error = manager.get(&id, Duration::from_secs(1)).await.unwrap_err();
        assert!(error.contains("not now"), "{error}");
        assert!(manager.get(&id, Duration::from_secs(60)).await.is_ok());
    }

    #[tokio::test]
    async fn a_clock_that_is_put_back_leaves_nobody_without_a_certificate() {
        let (manager, _trigger) = manager(0, 2);
        let id = SpiffeId::parse("spiffe://cluster.local/ns/a/sa/b").unwrap();
        let one = manager.get(&id, Duration::from_secs(10)).await.unwrap();
        assert!(one.is_valid(SystemTime::now()));
    }
}
