// SPDX-License-Identifier: Apache-2.0
//! What policies mean: who may do what to a Service, decided by the engine of the proxies, from objects as they are.
//!
//! Pure: objects come in as JSON, from files or from an API; nothing is read here.

mod ask;
pub mod compare;
pub mod diff;
mod error;
pub mod explain;
pub mod findings;
mod proof;
pub mod replay;
mod side;
pub mod table;
pub mod who_can;
pub mod witness;
mod words;
pub mod world;

pub use compare::{Compared, Difference, Differences, Place, Reach, Unknown, compare};
pub use diff::diff;
pub use error::{QueryError, ReplayError};
pub use explain::{Answer, At, Client, Half, Request, To, Token, Verdict, explain};
pub use findings::{Finding, Level, analyze, suspicious};
pub use proof::{Guard, Layer};
pub use side::Attached;
pub use who_can::{WhoCan, who_can};
pub use witness::Witness;
pub use world::World;
