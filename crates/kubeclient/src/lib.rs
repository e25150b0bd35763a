// SPDX-License-Identifier: Apache-2.0
//! Access to a Kubernetes API that recovers within seconds of an outage: connections that notice a dead peer, watches
//! that reconnect without long pauses, and a record of which watches are behind.
//!
//! The defaults of `kube` are made for large clusters: a watch that fails pauses for up to 30 s, and a connection whose
//! peer vanished is noticed after minutes. Whatever waits for such a watch is deaf for as long.

mod client;
mod events;
mod watch;

pub use client::client;
pub use events::Events;
pub use watch::{BEHIND, WATCHES, WatchBackoff, Watches};
