// SPDX-License-Identifier: Apache-2.0
//! RequestAuthentications: where they apply, and which claims are lists by what they say.

use std::collections::BTreeSet;
use std::sync::Arc;

use meltemi_model::{NamespacedName, l7};
use meltemi_translate::security::Reference;
use meltemi_translate::security::attachment;
use meltemi_translate::security::request::Tokens;

use super::World;

impl World {
    /// What a Gateway looks at tokens by: for requests that are addressed to a Service; without one, for all others that
    /// pass it. A RequestAuthentication without rules asks for nothing.
    pub fn tokens_at(&self, gateway: &NamespacedName, service: Option<&NamespacedName>) -> Vec<&Tokens> {
        let addressed = service.map(|s| l7::Target::Service(self.mesh.service_key(&s.namespace, &s.name)));
        self.looking(gateway, service, addressed.as_ref())
    }

    /// The same for what a waypoint forwards to Pods of a closed Service and was addressed to another one.
    pub fn tokens_at_backend(&self, gateway: &NamespacedName, closed: &NamespacedName) -> Vec<&Tokens> {
        let forwarded = l7::Target::Backend(self.mesh.service_key(&closed.namespace, &closed.name));
        self.looking(gateway, Some(closed), Some(&forwarded))
    }

    fn looking(
        &self,
        gateway: &NamespacedName,
        service: Option<&NamespacedName>,
        to: Option<&l7::Target>,
    ) -> Vec<&Tokens> {
        let applies = |tokens: &&Tokens| {
            let policy = attachment::Policy {
                kind: "RequestAuthentication",
                name: &tokens.name,
                selector: tokens.selector.as_ref(),
                targets: &tokens.targets,
            };
            !tokens.rules.is_empty() && self.is_attached(policy, gateway, service, to)
        };
        self.tokens.values().filter(applies).collect()
    }

    /// Services that a RequestAuthentication names.
    pub fn token_targets(&self) -> BTreeSet<NamespacedName> {
        let of = |tokens: &Tokens| -> Vec<NamespacedName> {
            let named = tokens.targets.iter().filter_map(|target| match target {
                Reference::Service(name) => Some(name.as_str()),
                _ => None,
            });
            named.map(|name| NamespacedName::new(tokens.name.namespace.clone(), name)).collect()
        };
        self.tokens.values().flat_map(of).collect()
    }

    pub(super) fn has_tokens(&self, service: &NamespacedName) -> bool {
        self.token_targets().contains(service)
    }
}

/// Claims of a token that hold several texts with spaces between them, by the rules for its issuer; of a token whose issuer
/// is not known, by all rules.
pub(crate) fn space_delimited(looking: &[&Tokens], issuer: Option<&str>) -> BTreeSet<Arc<str>> {
    let rules = looking.iter().flat_map(|tokens| &tokens.rules);
    let fits = rules.filter(|rule| match (&rule.issuer, issuer) {
        (Some(wanted), Some(issuer)) => **wanted == *issuer,
        _ => true,
    });
    fits.flat_map(|rule| rule.space_delimited_claims.iter().cloned()).collect()
}
