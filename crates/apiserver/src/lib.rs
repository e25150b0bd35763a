// SPDX-License-Identifier: Apache-2.0
//! A Kubernetes-compatible API over an embedded store.
//!
//! It knows no mesh noun: CRDs and webhooks arrive as objects. Requests pass through fixed stations: transport
//! (TLS, client certificate) → authentication → authorization → decoding and field validation → admission → the
//! store, whose single writer gives every change the next revision and hands it to the watches.

pub mod auth;
pub mod pki;
pub mod status;
