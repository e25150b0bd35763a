// SPDX-License-Identifier: Apache-2.0
//! What is fed with noise: every parser of what comes from outside. Reading it ends, and ends with an answer; what is read
//! can be written and read again; what is not valid lets nothing more through.

mod peers;
mod policies;
mod requests;
mod wire;

pub use peers::{certificate, csr, target, tunnel};
pub use policies::{mesh_config, policy};
pub use requests::{identity, path, template};
pub use wire::{address, authorization, document, zds};
