// SPDX-License-Identifier: Apache-2.0
//! Objects of `security.istio.io`: what they mean at layer 7, what of it a node proxy is told, and what their status
//! says.

pub mod aliases;
pub mod attachment;
pub mod authorization;
pub mod bypass;
pub mod captured;
pub mod layer4;
pub mod notes;
pub mod peer;
pub mod request;
pub mod stand_in;

pub use authorization::{Authorization, Reference};
