// SPDX-License-Identifier: Apache-2.0
//! The ground of every process: pinned runtimes, supervised tasks, drain, readiness, telemetry and admin HTTP.
//!
//! A component builds everything first and spawns afterwards. Every task has a name, a span and an owner
//! ([`Tasks`]); readiness is said ([`Ready::done`]), never implied by a drop; shutdown is a value
//! ([`DrainWatch`]) that every task receives.

pub mod admin;
pub mod backoff;
pub mod cores;
pub mod drain;
pub mod lock;
pub mod metrics;
pub mod places;
pub mod readiness;
pub mod silence;
pub mod tasks;
pub mod telemetry;

pub use drain::{DrainTrigger, DrainWatch};
pub use readiness::{Readiness, Ready};
pub use tasks::{TaskError, Tasks};
