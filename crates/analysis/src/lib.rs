// SPDX-License-Identifier: Apache-2.0
//! What policies mean: who may do what to a Service, decided by the engine of the proxies, from objects as they are.
//!
//! Pure: objects come in as JSON, from files or from an API; nothing is read here.

pub mod compare;
pub mod explain;
mod proof;
pub mod witness;
mod words;

pub use compare::{Attached, Difference, Differences, Place, Unknown, compare};
pub use proof::{Guard, Layer};
pub use witness::Witness;
pub use explain::{Answer, Request, Verdict, explain};
