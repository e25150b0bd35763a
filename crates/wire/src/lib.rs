// SPDX-License-Identifier: Apache-2.0
//! Protobuf from and to the model; delta xDS client and server generic over the resource; CA and ZDS messages.
//!
//! Reading is strict: an enumeration value, an unset `oneof` or an address that is not understood is an error that
//! names the field. It makes a NACK, never a wider policy.

pub mod ca;
pub mod convert;
pub mod xds;
pub mod zds;

/// Generated code; field names and numbers are Istio's and Envoy's.
#[expect(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
pub mod proto {
    pub mod workload {
        tonic::include_proto!("istio.workload");
        pub mod zds {
            tonic::include_proto!("istio.workload.zds");
        }
    }
    pub mod security {
        tonic::include_proto!("istio.security");
    }
    pub mod auth {
        tonic::include_proto!("istio.v1.auth");
    }
    pub mod ext_authz {
        tonic::include_proto!("envoy.service.auth.v3");
    }
    pub mod discovery {
        tonic::include_proto!("envoy.service.discovery.v3");
    }
    pub mod meltemi {
        tonic::include_proto!("meltemi.v1");
    }
}
