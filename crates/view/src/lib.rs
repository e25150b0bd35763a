// SPDX-License-Identifier: Apache-2.0
//! What every proxy has: xDS into snapshots, the registry of open connections, access log and metric labels.

pub mod access_log;
pub mod denial;
pub mod judge;
pub mod mesh;
pub mod metrics;
pub mod registry;
pub mod view;

pub use denial::Denial;
pub use judge::L4Request;
pub use mesh::Mesh;
pub use registry::{Guard, Registry};
pub use view::{Config, View};
