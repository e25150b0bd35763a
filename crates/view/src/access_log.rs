// SPDX-License-Identifier: Apache-2.0
//! The access log: one line for each closed connection on standard output, never waited for.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use meltemi_model::SpiffeId;

/// Lines that may wait to be written; more are dropped and counted.
const QUEUE: usize = 16_384;

/// Where lines go.
#[derive(Clone, Debug)]
pub struct AccessLog {
    lines: SyncSender<String>,
    dropped: Arc<AtomicU64>,
}

impl AccessLog {
    /// Starts the writer to standard output.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start() -> std::io::Result<Self> {
        Self::to(std::io::stdout())
    }

    /// Starts a writer to somewhere else.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn to(out: impl std::io::Write + Send + 'static) -> std::io::Result<Self> {
        let mut out = std::io::BufWriter::new(out);
        let (sender, lines) = sync_channel::<String>(QUEUE);
        std::thread::Builder::new().name("access-log".into()).spawn(move || {
            while let Ok(first) = lines.recv() {
                // Whatever waits goes out with one flush.
                for line in std::iter::once(first).chain(lines.try_iter().take(1000)) {
                    let _ = writeln!(out, "{line}");
                }
                let _ = out.flush();
            }
        })?;
        Ok(Self { lines: sender, dropped: Arc::default() })
    }

    /// Writes a line, or drops it when the reader cannot follow.
    pub fn line(&self, line: String) {
        if let Err(TrySendError::Full(_)) = self.lines.try_send(line) {
            // Told at 1, 2, 4, 8, …: who floods one log must not flood the other.
            let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            if dropped.is_power_of_two() {
                tracing::warn!(dropped, "access log: lines were dropped");
            }
        }
    }
}

/// One side of a connection.
#[derive(Clone, Debug, Default)]
pub struct Side {
    /// Address.
    pub addr: Option<SocketAddr>,
    /// Workload.
    pub workload: String,
    /// Namespace.
    pub namespace: String,
    /// Proven identity.
    pub identity: Option<SpiffeId>,
    /// Service, as `<host>`.
    pub service: String,
    /// Address of the tunnel.
    pub hbone_addr: Option<SocketAddr>,
}

/// A layer 4 connection that has ended.
#[derive(Clone, Debug)]
pub struct L4Record {
    /// Client.
    pub source: Side,
    /// Server.
    pub destination: Side,
    /// `inbound` or `outbound`.
    pub direction: &'static str,
    /// From client to server, in bytes.
    pub bytes_sent: u64,
    /// From server to client, in bytes.
    pub bytes_recv: u64,
    /// How long it lasted.
    pub duration: Duration,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

impl L4Record {
    /// The line, at a time given as RFC 3339.
    pub fn text(&self, time: &str) -> String {
        let level = if self.error.is_some() { "error" } else { "info" };
        let mut line = format!("{time}\t{level}\taccess\tconnection complete\t");
        let mut field = |name: &str, value: &str, quoted: bool| {
            if !value.is_empty() {
                let _ =
                    if quoted { write!(line, "{name}={value:?} ") } else { write!(line, "{name}={value} ") };
            }
        };
        let address = |a: Option<SocketAddr>| a.map(|a| a.to_string()).unwrap_or_default();
        let identity = |i: &Option<SpiffeId>| i.as_ref().map(ToString::to_string).unwrap_or_default();
        field("src.addr", &address(self.source.addr), false);
        field("src.workload", &self.source.workload, true);
        field("src.namespace", &self.source.namespace, true);
        field("src.identity", &identity(&self.source.identity), true);
        field("dst.addr", &address(self.destination.addr), false);
        field("dst.hbone_addr", &address(self.destination.hbone_addr), false);
        field("dst.service", &self.destination.service, true);
        field("dst.workload", &self.destination.workload, true);
        field("dst.namespace", &self.destination.namespace, true);
        field("dst.identity", &identity(&self.destination.identity), true);
        field("direction", self.direction, true);
        field("bytes_sent", &self.bytes_sent.to_string(), false);
        field("bytes_recv", &self.bytes_recv.to_string(), false);
        field("duration", &format!("{}ms", self.duration.as_millis()), true);
        field("error", self.error.as_deref().unwrap_or_default(), true);
        line.truncate(line.trim_end().len());
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_as_istios_tools_read_it() {
        let source = Side {
            addr: "10.0.0.1:4".parse().ok(),
            workload: "curl-1".into(),
            namespace: "default".into(),
            identity: SpiffeId::parse("spiffe://cluster.local/ns/default/sa/curl").ok(),
            ..Side::default()
        };
        let record = L4Record {
            source,
            destination: Side { addr: "10.0.0.2:9080".parse().ok(), ..Side::default() },
            direction: "inbound",
            bytes_sent: 0,
            bytes_recv: 0,
            duration: Duration::from_millis(12),
            error: Some("denied \"x\"\nforged".into()),
        };
        assert_eq!(
            record.text("T"),
            "T\terror\taccess\tconnection complete\tsrc.addr=10.0.0.1:4 src.workload=\"curl-1\" src.namespace=\"default\" \
             src.identity=\"spiffe://cluster.local/ns/default/sa/curl\" dst.addr=10.0.0.2:9080 direction=\"inbound\" \
             bytes_sent=0 bytes_recv=0 duration=\"12ms\" error=\"denied \\\"x\\\"\\nforged\""
        );
    }
}
