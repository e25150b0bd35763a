// SPDX-License-Identifier: Apache-2.0
//! Connections that are older than their Pod's enrolment: no proxy carries them, yet the policies hold for them too. They
//! are judged as plaintext, listed as `legacy`, and ended by the kernel when a policy forbids them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use meltemi_capture::{PROBE_SOURCE_V4, PROBE_SOURCE_V6};
use meltemi_linux::diag::{self, TcpConnection};
use meltemi_linux::netns::NetNs;
use meltemi_view::L4Request;
use tokio_util::sync::CancellationToken;

use crate::pod::{Served, is_ours};
use crate::record::{Recording, policy_rejection};

/// Interval between two looks at the kernel for connections that have ended by themselves.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Inbound connections of a Pod that no proxy carries. To be called before the Pod's listeners are open, when nothing that
/// is captured can have been accepted yet.
///
/// # Errors
/// The kernel's.
pub(crate) fn inbound(netns: &NetNs) -> io::Result<Vec<TcpConnection>> {
    let sockets = netns.run(diag::tcp_sockets)?;
    let ports: BTreeSet<u16> = sockets.listening.iter().map(SocketAddr::port).collect();
    let ends: BTreeSet<_> = sockets.established.iter().map(|c| (c.local, c.remote)).collect();
    let probes = [IpAddr::from(PROBE_SOURCE_V4), IpAddr::from(PROBE_SOURCE_V6)];
    let legacy = |c: &TcpConnection| {
        ports.contains(&c.local.port())
            && !is_ours(c.local.port())
            && !probes.contains(&c.remote.ip())
            // With both ends in the Pod it is the Pod talking to itself, or carried by a proxy that is leaving.
            && !ends.contains(&(c.remote, c.local))
    };
    Ok(sockets.established.into_iter().filter(legacy).collect())
}

impl Served {
    /// Keeps the Pod's legacy connections judged until the last has ended.
    pub(crate) async fn legacy(self: Arc<Self>) -> io::Result<()> {
        let mut open: BTreeMap<(SocketAddr, SocketAddr), CancellationToken> = BTreeMap::new();
        for connection in self.pod.legacy.clone() {
            let ended = CancellationToken::new();
            open.insert((connection.local, connection.remote), ended.clone());
            let served = self.clone();
            self.context.tasks.spawn_job("legacy connection", async move {
                tokio::select! {
                    () = served.keep_judged(connection, &ended) => {}
                    () = served.pod.closed.cancelled() => {}
                    () = served.context.closing.cancelled() => {}
                }
                Ok::<(), std::convert::Infallible>(())
            });
        }
        while !open.is_empty() {
            tokio::select! {
                () = tokio::time::sleep(SWEEP_INTERVAL) => {}
                () = self.pod.closed.cancelled() => return Ok(()),
                // The next process finds them again.
                () = self.context.closing.cancelled() => return Ok(()),
            }
            let there: BTreeSet<_> =
                inbound(&self.pod.netns)?.into_iter().map(|c| (c.local, c.remote)).collect();
            open.retain(|ends, ended| {
                let stays = there.contains(ends);
                if !stays {
                    ended.cancel();
                }
                stays
            });
        }
        Ok(())
    }

    /// Waits until a policy forbids the connection, and ends it. While nothing is known of the Pod there is no verdict, and
    /// what was open before the mesh stays open.
    async fn keep_judged(&self, connection: TcpConnection, ended: &CancellationToken) {
        let own = loop {
            match self.own().await {
                Some(own) => break own,
                None if ended.is_cancelled() => return,
                None => {}
            }
        };
        let (from, to) = (connection.remote, connection.local);
        let mut recording = self.inbound(from, None, &own, to, None);
        let request = L4Request { source: None, from, to, workload: self.pod.workload.clone() };
        let reason = match self.context.admit(request).await {
            Ok((permit, _guard)) => {
                recording.opened_as(&self.pod.workload, "legacy");
                tokio::select! {
                    reason = permit.revoked() => reason.to_string(),
                    () = ended.cancelled() => return recording.ended(0, 0, None),
                }
            }
            Err(denied) => policy_rejection(&denied),
        };
        self.end(&connection, recording, reason);
    }

    fn end(&self, connection: &TcpConnection, recording: Recording<'_>, reason: String) {
        match self.pod.netns.run(|| diag::destroy(connection)) {
            Ok(()) => recording.ended(0, 0, Some(reason)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => recording.ended(0, 0, None),
            Err(error) => {
                tracing::error!(pod = %self.pod.workload, from = %connection.remote, %error,
                    "a connection that is older than the enrolment is forbidden now and could not be ended: restart the Pod");
                recording.ended(0, 0, Some(format!("{reason}; it could not be ended: {error}")));
            }
        }
    }
}
