// SPDX-License-Identifier: Apache-2.0
//! SPIFFE certificates: keys and CSRs, the CA core, rotation by one owner, rustls configurations.
//!
//! A private key is made in memory and never leaves it. A certificate is trusted when its chain leads to the mesh's
//! roots, it may be used for the side it is on, and it has exactly one URI SAN that is a SPIFFE id of the mesh's shape.

pub mod ca;
pub mod channel;
pub mod manager;
pub mod svid;
pub mod tls;

pub use ca::{CaCore, CaError, CaMaterial};
pub use manager::{CertManager, Fetcher, Issued};
pub use svid::Svid;
