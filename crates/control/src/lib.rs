// SPDX-License-Identifier: Apache-2.0
//! The control plane: watches objects, translates them, publishes xDS, signs certificates, keeps status, runs gateways.

pub mod access;
pub mod auth;
pub mod error;
pub mod gateways;
pub mod leader;
pub mod namespaces;
pub mod pods;
pub mod source;
pub mod status;
pub mod tls;
pub mod webhook;

pub use error::Error;
