// SPDX-License-Identifier: Apache-2.0
//! Layer 4 metrics with Istio's names; labels come from the mesh's own objects, never from what a peer sends.

use std::sync::Arc;

use meltemi_runtime::metrics::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

/// Labels of a connection.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct TcpLabels {
    /// `source` or `destination`.
    pub reporter: &'static str,
    /// Workload of the client.
    pub source_workload: Arc<str>,
    /// Its namespace.
    pub source_workload_namespace: Arc<str>,
    /// Its identity.
    pub source_principal: Arc<str>,
    /// Workload of the server.
    pub destination_workload: Arc<str>,
    /// Its namespace.
    pub destination_workload_namespace: Arc<str>,
    /// The addressed service.
    pub destination_service: Arc<str>,
    /// `-`, `DENY` or `CONNECT`.
    pub response_flags: &'static str,
    /// `mutual_tls` or `unknown`.
    pub connection_security_policy: &'static str,
}

/// Counters of connections.
#[derive(Clone, Debug, Default)]
pub struct TcpMetrics {
    /// Connections opened.
    pub opened: Family<TcpLabels, Counter>,
    /// Connections closed.
    pub closed: Family<TcpLabels, Counter>,
    /// Bytes from clients.
    pub sent: Family<TcpLabels, Counter>,
    /// Bytes to clients.
    pub received: Family<TcpLabels, Counter>,
    /// Connections for which there was no place.
    pub crowded_out: Counter,
}

impl TcpMetrics {
    /// Registers the counters.
    pub fn register(metrics: &Metrics) -> Self {
        let tcp = Self::default();
        metrics.register(|registry| {
            let help = "Connections closed because there was no place for another";
            registry.register("meltemi_crowded_out_connections", help, tcp.crowded_out.clone());
            let registry = registry.sub_registry_with_prefix("istio_tcp");
            registry.register("connections_opened", "Connections opened", tcp.opened.clone());
            registry.register("connections_closed", "Connections closed", tcp.closed.clone());
            registry.register("sent_bytes", "Bytes sent by clients", tcp.sent.clone());
            registry.register("received_bytes", "Bytes received by clients", tcp.received.clone());
        });
        tcp
    }
}
