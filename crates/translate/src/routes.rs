// SPDX-License-Identifier: Apache-2.0
//! HTTPRoutes: where they attach, what their references mean, and what their status says.

pub mod attach;
pub mod backends;

pub use attach::{Attached, Parent, attach};
