// SPDX-License-Identifier: Apache-2.0
//! The immutable mesh snapshot: delta apply, resolution of destinations, load balancing.
//!
//! One writer applies deltas to its own copy and hands out clones; readers hold an `Arc<Snapshot>`. Pure: randomness comes
//! in as a parameter.

mod policies;
pub mod resolve;
pub mod snapshot;

pub use resolve::{Destination, Hop, Refused, Route};
pub use snapshot::{Delta, Snapshot};

/// A hash map whose clones share what does not change later. Its hash function is the fast one, since each connection and
/// request looks several things up; keys come from the control plane alone.
pub type SharedMap<K, V> = rpds::HashTrieMap<K, V, archery::ArcTK, hashbrown::DefaultHashBuilder>;
