// SPDX-License-Identifier: Apache-2.0
//! The record of a connection: its labels while it lasts, its line in the access log when it ends.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use meltemi_model::{SpiffeId, Workload, WorkloadUid};
use meltemi_view::Denial;
use meltemi_view::access_log::{Direction, L4Record, Side};
use meltemi_view::metrics::{Reporter, ResponseFlags, SecurityPolicy, TcpLabels};

use crate::connections::{Connection, Open};
use crate::context::Context;

/// A connection that is being recorded.
#[derive(Debug)]
pub(crate) struct Recording<'a> {
    context: &'a Context,
    labels: TcpLabels,
    pub record: L4Record,
    begun: Instant,
    opened: Option<Open>,
}

/// What stands in labels for what is not known.
static UNKNOWN: LazyLock<Arc<str>> = LazyLock::new(|| "unknown".into());

/// A side from what is known of it. Its names are those of the mesh's own objects, shared and not copied: they are kept as long
/// as the connection is open.
pub(crate) fn side(
    addr: Option<SocketAddr>,
    workload: Option<&Workload>,
    identity: Option<&SpiffeId>,
) -> Side {
    Side {
        addr,
        workload: workload.map(|w| w.name.clone()).unwrap_or_default(),
        namespace: workload.map(|w| w.namespace.clone()).unwrap_or_default(),
        identity: identity.cloned(),
        service: Arc::default(),
        hbone_addr: None,
    }
}

/// A denial as the access log has it.
pub(crate) fn policy_rejection(denial: &Denial) -> String {
    format!("connection closed due to policy rejection: {denial}")
}

fn known(text: &Arc<str>) -> Arc<str> {
    if text.is_empty() { UNKNOWN.clone() } else { text.clone() }
}

impl<'a> Recording<'a> {
    pub(crate) fn new(context: &'a Context, direction: Direction, source: Side, destination: Side) -> Self {
        let tls = destination.hbone_addr.is_some();
        let labels = TcpLabels {
            reporter: match direction {
                Direction::Inbound => Reporter::Destination,
                Direction::Outbound => Reporter::Source,
            },
            source_workload: known(&source.workload),
            source_workload_namespace: known(&source.namespace),
            source_principal: source.identity.as_ref().map_or_else(|| UNKNOWN.clone(), SpiffeId::text),
            destination_workload: known(&destination.workload),
            destination_workload_namespace: known(&destination.namespace),
            destination_service: known(&destination.service),
            response_flags: ResponseFlags::None,
            connection_security_policy: if tls { SecurityPolicy::MutualTls } else { SecurityPolicy::Unknown },
        };
        let record = L4Record {
            source,
            destination,
            direction,
            bytes_sent: 0,
            bytes_recv: 0,
            duration: std::time::Duration::ZERO,
            // A node proxy is told of no policy that only reports.
            reports: None,
            error: None,
        };
        Self { context, labels, record, begun: Instant::now(), opened: None }
    }

    /// Bytes may flow.
    pub(crate) fn opened(&mut self, workload: &WorkloadUid) {
        let tunnel = self.record.destination.hbone_addr.is_some();
        self.opened_as(workload, if tunnel { "HBONE" } else { "TCP" });
    }

    /// Bytes may flow, over this protocol.
    pub(crate) fn opened_as(&mut self, workload: &WorkloadUid, protocol: &'static str) {
        let to = &self.record.destination;
        self.opened = Some(self.context.connections.open(Connection {
            workload: workload.clone(),
            direction: self.record.direction,
            src: self.record.source.addr,
            original_dst: to.hbone_addr.or(to.addr),
            actual_dst: to.addr,
            protocol,
        }));
        self.context.metrics.opened.get_or_create(&self.labels).inc();
    }

    /// It has ended.
    pub(crate) fn ended(mut self, bytes_sent: u64, bytes_recv: u64, error: Option<String>) {
        self.record.bytes_sent = bytes_sent;
        self.record.bytes_recv = bytes_recv;
        self.record.error = error;
        self.finish(ResponseFlags::None);
    }

    /// It was never opened.
    pub(crate) fn failed(mut self, flags: ResponseFlags, error: impl ToString) {
        self.record.error = Some(error.to_string());
        self.finish(flags);
    }

    /// A policy denied it before it was opened.
    pub(crate) fn denied(self, denial: &Denial) {
        self.failed(ResponseFlags::Deny, policy_rejection(denial));
    }

    fn finish(mut self, flags: ResponseFlags) {
        self.labels.response_flags = flags;
        self.record.duration = self.begun.elapsed();
        let metrics = &self.context.metrics;
        if self.opened.is_none() {
            metrics.opened.get_or_create(&self.labels).inc();
        }
        metrics.closed.get_or_create(&self.labels).inc();
        metrics.sent.get_or_create(&self.labels).inc_by(self.record.bytes_sent);
        metrics.received.get_or_create(&self.labels).inc_by(self.record.bytes_recv);
        let log = &self.context.log;
        log.line(self.record.line(&jiff::Timestamp::now().to_string(), log.format()));
    }
}
