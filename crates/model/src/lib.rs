// SPDX-License-Identifier: Apache-2.0
//! Names and nouns of the mesh: identities, addresses, workloads, services and validated policies as values.
//!
//! Everything here is a value: no clock, no I/O, no async. Parsing happens at the border, once; what is held
//! here is valid by construction.

pub mod authz;
pub mod enrolment;
pub mod identity;
pub mod l7;
pub mod names;
pub mod net;
pub mod pattern;
pub mod service;
pub mod workload;

pub use identity::{SpiffeId, TrustDomain};
pub use names::{NamespacedHostname, NamespacedName, WorkloadUid};
pub use net::NetworkAddress;
pub use pattern::Pattern;
pub use service::Service;
pub use workload::Workload;
