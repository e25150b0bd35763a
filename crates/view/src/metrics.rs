// SPDX-License-Identifier: Apache-2.0
//! Layer 4 metrics with Istio's names; labels come from the mesh's own objects, never from what a peer sends.

use std::sync::Arc;

use meltemi_runtime::metrics::Metrics;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

/// Values of a label, each with its text.
macro_rules! label_values {
    ($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $value:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
        pub enum $name {
            $($(#[$of])* $value),+
        }

        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
                EncodeLabelValue::encode(&match self { $(Self::$value => $text),+ }, encoder)
            }
        }
    };
}

label_values! {
    /// The end of a connection whose proxy reports it.
    Reporter {
        /// The client's.
        Source = "source",
        /// The server's.
        Destination = "destination",
    }
}

label_values! {
    /// How a connection between proxies is protected.
    SecurityPolicy {
        /// By mutual TLS.
        MutualTls = "mutual_tls",
        /// By nothing that the proxy knows of.
        Unknown = "unknown",
    }
}

label_values! {
    /// Why a connection was not carried to its end; the texts are those of Istio's node proxy.
    ResponseFlags {
        /// It was, or failed for a reason that has no flag.
        None = "-",
        /// A policy denied it.
        Deny = "DENY",
        /// The destination did not accept it.
        Connect = "CONNECT",
        /// The TLS handshake failed.
        TlsFailure = "TLS_FAILURE",
        /// The peer did not speak HTTP/2.
        H2HandshakeFailure = "H2_HANDSHAKE_FAILURE",
        /// There was no certificate for the Pod's identity.
        IdentityError = "IDENTITY_ERROR",
    }
}

/// Labels of a connection.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct TcpLabels {
    /// The end that reports.
    pub reporter: Reporter,
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
    /// Why it failed.
    pub response_flags: ResponseFlags,
    /// How it is protected.
    pub connection_security_policy: SecurityPolicy,
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
