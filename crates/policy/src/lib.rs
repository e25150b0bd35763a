// SPDX-License-Identifier: Apache-2.0
//! The policy engine: compiles validated policies, decides and explains.
//!
//! Pure: no clock, no I/O, no async. The control plane, the node proxy, the waypoint and the command line all call
//! [`decide()`]. What cannot be evaluated never widens: in an ALLOW it does not match, in a DENY it does.
//!
//! A policy is checked once ([`ValidPolicy`]). Those that apply at one place become a [`PolicySet`]: rules are cut into
//! conjunctions (rows), each attribute into a field that says, for a value, which rows it fulfils (`index`); a decision
//! looks up each field once and takes the first row that is in all of the answers. How long that takes depends on the
//! request and on how many different attributes the rules look at, not on how many rules there are. A changed policy is
//! put beside the index, which is built again only after many changes (`stage`).

pub mod check;
pub mod decide;
pub mod explain;
pub mod facts;
pub mod http;
mod index;
mod matching;
mod path;
pub mod permit;
mod reading;
mod rule;
pub mod set;
mod stage;

pub use check::{InvalidPolicy, ValidPolicy};
pub use decide::{Decision, Rule, decide, reports, resume};
pub use explain::{Explanation, explain, explain_decision};
pub use facts::{Claims, Facts, Headers, HttpFacts};
pub use permit::{Permit, Revocation, Revoker, admit, admit_after};
pub use set::PolicySet;
