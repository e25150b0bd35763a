// SPDX-License-Identifier: Apache-2.0
//! What policies mean: who may do what to a Service, decided by the engine of the proxies, from objects as they are.
//!
//! Pure: objects come in as JSON, from files or from an API; nothing is read here.

pub mod explain;

pub use explain::{Answer, Request, Verdict, explain};
