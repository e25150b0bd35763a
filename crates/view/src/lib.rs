// SPDX-License-Identifier: Apache-2.0
//! What every proxy has: xDS into snapshots, the registry of open connections, access log and metric labels.

pub mod access_log;
pub mod judge;
pub mod metrics;
pub mod registry;
pub mod view;

pub use judge::{Denied, L4Request};
pub use registry::{Guard, Registry};
pub use view::{Config, Mesh, View};
