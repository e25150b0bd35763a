// SPDX-License-Identifier: Apache-2.0
//! HTTPRoutes, GRPCRoutes and TLSRoutes: where they attach, what their references mean, what is sent of them, and what their status says.

pub mod attach;
pub mod backends;
mod conflicts;
pub mod convert;
mod filters;
pub mod grpc;
mod kind;
pub mod offline;
pub mod table;
pub mod tls;
pub mod world;

pub use attach::{Attached, Parent, attach};
pub use kind::{Referrer, RouteKind, RouteName};
pub use table::{Routed, Table};
