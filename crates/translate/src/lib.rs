// SPDX-License-Identifier: Apache-2.0
//! From API objects to the mesh: workloads, services, waypoint binding, gateways, routes and status notes.
//!
//! Everything is a function of values: no clock, no I/O. [`index::Index`] keeps what was learnt from the
//! objects and, after a change, computes again what depends on it and nothing else; the command line uses the
//! same functions on files.

pub mod condition;
pub mod facts;
pub mod gateways;
pub mod index;

pub mod labels;
pub mod mesh;
pub mod routes;
pub mod security;
pub mod services;
pub mod waypoints;
pub mod workloads;

pub use index::{Change, Delta, Index};
pub use mesh::MeshConfig;
