// SPDX-License-Identifier: Apache-2.0
//! The policy engine: compiles validated policies, decides and explains.
//!
//! Pure: no clock, no I/O, no async. The control plane, the node proxy, the waypoint and the command line all call
//! [`decide`]. What cannot be evaluated never widens: in an ALLOW it does not match, in a DENY it does.

pub mod check;
pub mod decide;
pub mod explain;
pub mod facts;
pub mod http;
mod index;
mod matching;
pub mod permit;
pub mod set;
mod stage;

pub use check::{InvalidPolicy, ValidPolicy};
pub use decide::{Decision, Rule, decide, reports, resume};
pub use explain::{Explanation, explain, explain_decision};
pub use facts::{Claims, Facts, Headers, HttpFacts};
pub use permit::{Permit, Revoker, admit};
pub use set::PolicySet;
