// SPDX-License-Identifier: Apache-2.0
//! Enums of the model beside those of the wire: each pair is written once and read both ways.

use meltemi_model::service::{AppProtocol, IpFamilies, LoadBalancingMode, LocalityScope, Visibility};
use meltemi_model::workload::{Health, NetworkMode, TunnelProtocol, WorkloadType};

use super::Invalid;
use crate::proto::workload::load_balancing::{Mode, Scope};
use crate::proto::workload::{
    AppProtocol as WireAppProtocol, IpFamilies as WireIpFamilies, NetworkMode as WireNetworkMode,
    TunnelProtocol as WireTunnelProtocol, Visibility as WireVisibility, WorkloadStatus,
    WorkloadType as WireWorkloadType,
};

/// An enum with a number on the wire.
pub(super) trait OnWire: Sized {
    /// Its number.
    fn number(self) -> i32;

    /// Reads a number.
    ///
    /// # Errors
    /// [`Invalid`] with the field's name when it stands for nothing that is known.
    fn read(field: &str, number: i32) -> Result<Self, Invalid>;
}

macro_rules! on_wire {
    ($ours:ident, $wire:ident, { $($variant:ident = $twin:ident),+ $(,)? }) => {
        impl OnWire for $ours {
            fn number(self) -> i32 {
                match self {
                    $(Self::$variant => $wire::$twin.into(),)+
                }
            }

            fn read(field: &str, number: i32) -> Result<Self, Invalid> {
                $(if number == i32::from($wire::$twin) { return Ok(Self::$variant); })+
                Err(Invalid::new(field, format!("unknown value {number}")))
            }
        }
    };
}

on_wire!(AppProtocol, WireAppProtocol, {
    Unknown = Unknown, Http11 = Http11, Http2 = Http2, Grpc = Grpc, Tcp = Tcp, Tls = Tls,
});
on_wire!(TunnelProtocol, WireTunnelProtocol, { None = None, Hbone = Hbone, LegacyIstioMtls = LegacyIstioMtls });
on_wire!(WorkloadType, WireWorkloadType, { Deployment = Deployment, CronJob = Cronjob, Pod = Pod, Job = Job });
on_wire!(Health, WorkloadStatus, { Healthy = Healthy, Unhealthy = Unhealthy });
on_wire!(NetworkMode, WireNetworkMode, { Standard = Standard, HostNetwork = HostNetwork });
on_wire!(IpFamilies, WireIpFamilies, { Automatic = Automatic, V4Only = Ipv4Only, V6Only = Ipv6Only, Dual = Dual });
on_wire!(Visibility, WireVisibility, { Public = Public, Namespace = Namespace });
// A scope that is not specified is none.
on_wire!(LocalityScope, Scope, {
    Region = Region, Zone = Zone, Subzone = Subzone, Node = Node, Cluster = Cluster, Network = Network,
});
on_wire!(LoadBalancingMode, Mode, {
    Unspecified = UnspecifiedMode, Strict = Strict, Failover = Failover, Passthrough = Passthrough,
});
