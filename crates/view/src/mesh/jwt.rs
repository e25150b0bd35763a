// SPDX-License-Identifier: Apache-2.0
//! A RequestAuthentication after its check, with its keys read.

use std::sync::Arc;

use meltemi_model::NamespacedName;
use meltemi_model::l7::{Jwt, Target, check_header_name};
use meltemi_tokens::Rule;

use crate::mesh::targeted::Attached;

/// A [`Jwt`] whose keys were read once, when the control plane sent it. A rule without keys that can be used takes no token.
#[derive(Clone, Debug)]
pub struct ValidJwt {
    /// The RequestAuthentication.
    pub name: NamespacedName,
    /// The traffic that it applies to.
    pub targets: Vec<Target>,
    /// Its rules.
    pub rules: Vec<Arc<Rule>>,
}

/// A rule would write a header that it may not write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("header {name} of a token's claims: {reason}")]
pub struct InvalidJwt {
    name: Arc<str>,
    reason: &'static str,
}

impl TryFrom<Jwt> for ValidJwt {
    type Error = InvalidJwt;

    fn try_from(document: Jwt) -> Result<Self, InvalidJwt> {
        for rule in &document.rules {
            let claims = rule.claim_headers.iter().map(|(header, _)| header);
            for name in rule.payload_header.iter().chain(claims) {
                check_header_name(name).map_err(|reason| InvalidJwt { name: name.clone(), reason })?;
            }
        }
        let rules = document.rules.into_iter().map(|rule| Arc::new(Rule::new(rule))).collect();
        Ok(Self { name: document.name, targets: document.targets, rules })
    }
}

impl Attached for ValidJwt {
    fn targets(&self) -> impl Iterator<Item = &Target> {
        self.targets.iter()
    }
}
