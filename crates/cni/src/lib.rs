// SPDX-License-Identifier: Apache-2.0
//! The CNI plugin and the agent of a Kubernetes node: a Pod that should be in the mesh starts captured or not at all.
//!
//! [`plugin`] is what the container runtime executes for each Pod. It asks the agent by a unix socket ([`ask`]) and knows
//! nothing of the API; without an answer the Pod does not start. [`agent`] watches the Pods of its node, captures them,
//! hands them to the node proxy, and keeps the plugin in the node's CNI configuration ([`conflist`]).

pub mod agent;
pub mod ask;
pub mod conflist;
pub mod plugin;

/// Name of the plugin: its type in the node's CNI configuration, and its file beside the other plugins.
pub const PLUGIN: &str = "meltemi-cni";
/// Where the agent listens for plugins, on the node and in the agent's container.
pub const SOCKET: &str = "/run/meltemi-cni/agent.sock";
