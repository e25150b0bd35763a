// SPDX-License-Identifier: Apache-2.0
//! A Kubernetes-compatible API over an embedded store.
//!
//! It knows no mesh noun: CRDs and webhooks arrive as objects. Requests pass through fixed stations: transport
//! (TLS, client certificate) → authentication → authorization → decoding and field validation → admission → the
//! store, whose single writer gives every change the next revision and hands it to the watches.

pub mod admission;
pub mod answer;
pub mod api;
pub mod apply;
pub mod auth;
mod bootstrap;
pub mod bounds;
pub mod call;
pub mod defaults;
pub mod discovery;
mod disruption;
pub mod document;
pub mod events;
mod expression;
pub mod limits;
pub mod metrics;
pub mod openapi;
pub mod options;
pub mod patch;
pub mod path;
pub mod pki;
pub mod protobuf;
pub mod registry;
pub mod rest;
pub mod schema;
pub mod selector;
pub mod server;
mod stack;
pub mod status;
pub mod store;
pub mod streaming;
pub mod table;
pub mod validate;
pub mod warnings;

pub use api::Inert;
pub use server::{Config, ServerError, start};
