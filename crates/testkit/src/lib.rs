// SPDX-License-Identifier: Apache-2.0
//! What tests share: namespaces of their own, a CA of their own, HTTP/2 by hand, an issuer of tokens. Used from `tests/` folders only.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

pub mod ca;
pub mod h2;
pub mod issuer;
pub mod namespaces;
