// SPDX-License-Identifier: Apache-2.0
//! Who writes: one replica at a time holds a Lease; every replica serves.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use meltemi_runtime::{DrainWatch, Tasks};
use tokio::sync::watch;
use tokio::time::Instant;

/// Name of the Lease.
const LEASE: &str = "istio-leader";
/// A holder that has not renewed for so long is gone.
const DURATION: Duration = Duration::from_secs(10);
/// How often it is renewed, or asked for.
const PERIOD: Duration = Duration::from_secs(2);

/// Whether this replica writes; cheap to clone.
#[derive(Clone, Debug)]
pub struct Leadership(watch::Receiver<bool>);

impl Leadership {
    /// Whether this replica writes now.
    pub fn held(&self) -> bool {
        *self.0.borrow()
    }

    /// Resolves when this replica writes.
    pub async fn acquired(&mut self) {
        if self.0.wait_for(|held| *held).await.is_err() {
            // The election has ended, and with it the process: never pretend to lead.
            std::future::pending::<()>().await;
        }
    }

    /// For parts that run without an election (tests).
    pub fn always() -> Self {
        Self(watch::channel(true).1)
    }
}

/// Starts the election.
pub fn elect(client: Client, tasks: &Tasks, namespace: &str, identity: &str) -> Leadership {
    let (tx, rx) = watch::channel(false);
    let election = Election {
        leases: Api::namespaced(client, namespace),
        identity: identity.to_owned(),
        seen: None,
        held: tx,
    };
    let drain = tasks.drain();
    tasks.spawn("leader election", election.run(drain));
    Leadership(rx)
}

struct Election {
    leases: Api<Lease>,
    identity: String,
    /// The renewal that was last seen of another holder, and when: clocks of other machines are not compared.
    seen: Option<(String, Instant)>,
    held: watch::Sender<bool>,
}

impl Election {
    async fn run(mut self, mut drain: DrainWatch) -> Result<(), std::convert::Infallible> {
        let mut last_held = Instant::now();
        loop {
            match self.attempt().await {
                Ok(true) => {
                    last_held = Instant::now();
                    if !self.held.send_replace(true) {
                        tracing::info!(identity = %self.identity, "this replica writes");
                    }
                }
                Ok(false) => {
                    self.held.send_replace(false);
                }
                Err(error) => {
                    tracing::debug!(%error, "lease");
                    if last_held.elapsed() > DURATION {
                        self.held.send_replace(false);
                    }
                }
            }
            tokio::select! {
                () = drain.started() => break,
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
        self.release().await;
        Ok(())
    }

    /// Takes or renews the lease; true when it is held.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let Some(mut lease) = self.leases.get_opt(LEASE).await? else {
            let mut lease = Lease::default();
            lease.metadata.name = Some(LEASE.to_owned());
            lease.spec = Some(self.spec(0));
            return match self.leases.create(&PostParams::default(), &lease).await {
                Ok(_) => Ok(true),
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
                Err(error) => Err(error),
            };
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        if holder != self.identity && !holder.is_empty() && !self.expired(&lease) {
            return Ok(false);
        }
        let transitions = spec.lease_transitions.unwrap_or(0) + i32::from(holder != self.identity);
        lease.spec = Some(self.spec(transitions));
        // The resourceVersion that was read makes this a compare-and-swap.
        match self.leases.replace(LEASE, &PostParams::default(), &lease).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn expired(&mut self, lease: &Lease) -> bool {
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        match &self.seen {
            Some((seen, at)) if *seen == version => at.elapsed() > DURATION,
            _ => {
                self.seen = Some((version, Instant::now()));
                false
            }
        }
    }

    fn spec(&self, transitions: i32) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(DURATION.as_secs()).unwrap_or(i32::MAX)),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    /// Gives the lease back, so that the next replica need not wait for it to run out.
    async fn release(&self) {
        if !self.held.send_replace(false) {
            return;
        }
        if let Ok(Some(mut lease)) = self.leases.get_opt(LEASE).await
            && let Some(spec) = &mut lease.spec
            && spec.holder_identity.as_deref() == Some(self.identity.as_str())
        {
            spec.holder_identity = Some(String::new());
            let _ = self.leases.replace(LEASE, &PostParams::default(), &lease).await;
        }
    }
}
