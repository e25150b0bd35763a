// SPDX-License-Identifier: Apache-2.0
//! The generated messages. Nothing outside this crate but tests builds them by hand: see [`crate::convert`].

#[expect(missing_docs, reason = "generated; the .proto files say what is what")]
pub mod discovery {
    tonic::include_proto!("envoy.service.discovery.v3");
}

#[expect(missing_docs, clippy::all, reason = "generated; the .proto files say what is what")]
pub mod workload {
    tonic::include_proto!("istio.workload");

    /// Messages between whoever captures traffic and the node proxy.
    pub mod zds {
        tonic::include_proto!("istio.workload.zds");
    }
}

#[expect(missing_docs, reason = "generated; the .proto files say what is what")]
pub mod security {
    tonic::include_proto!("istio.security");
}

#[expect(missing_docs, reason = "generated; the .proto files say what is what")]
pub mod ca {
    tonic::include_proto!("istio.v1.auth");
}
