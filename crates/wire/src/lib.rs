// SPDX-License-Identifier: Apache-2.0
//! Protobuf from and to the model; delta xDS client and server generic over the resource; CA and ZDS messages.

pub mod convert;
pub mod proto;
pub mod xds;
