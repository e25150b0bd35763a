// SPDX-License-Identifier: Apache-2.0
//! JSON web tokens: key sets, signatures, and the claims that policies see. Pure: keys are text, the time is an argument.
//!
//! ```text
//! l7::JwtRule ─▶ Rule (issuer, audiences, KeySet) ─▶ accept_token(token, now) ─▶ Accepted (policy::Claims)
//! ```
//! The rules are those of Envoy's `jwt_authn`, and its words for what is wrong. Where two programs could read a token
//! differently (a member that stands twice, another notation of base64url, `crit`) it is refused.

mod algorithm;
mod cache;
mod claims;
mod error;
mod json;
mod keys;
mod rule;
mod token;

pub use claims::{Accepted, Verified};
pub use error::{Invalid, InvalidKeys};
pub use keys::{KeySet, MAX_KEYS, MAX_SET};
pub use rule::{LEEWAY, Rule, accept_token};
pub use token::MAX_TOKEN;
