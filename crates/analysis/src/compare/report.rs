// SPDX-License-Identifier: Apache-2.0
//! What a comparison finds, as it is printed.

use meltemi_model::authz::Rule;
use serde::Serialize;

use crate::witness::Witness;

/// What changes for some requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// What is reached.
    pub target: String,
    /// Where it is decided.
    pub enforced_at: String,
    /// The policy whose rule makes the difference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Index of the rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<u32>,
    /// A sentence.
    pub because: String,
    /// Which requests, in the policies' own terms.
    pub condition: String,
    /// Which of them not, as the other rules say.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<String>,
    /// Clients without an identity are among them.
    pub plaintext: bool,
    /// The condition as a rule; none when it is any request.
    #[serde(skip)]
    pub within: Option<Rule>,
    /// One of them.
    pub witness: Witness,
    /// The command that explains it, given the policies; none when it cannot be asked so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explain: Option<String>,
}

/// What cannot be known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Unknown {
    /// What is reached.
    pub target: String,
    /// Where it is decided.
    pub enforced_at: String,
    /// The policy, where it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Why.
    pub reason: String,
}

/// All differences; nothing in any list is a proof that there are none at the places that were compared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Differences {
    /// Allowed by the new policies only.
    pub newly_allowed: Vec<Difference>,
    /// Denied by the new policies only.
    pub newly_denied: Vec<Difference>,
    /// What cannot be known.
    pub unknown: Vec<Unknown>,
    /// Places that were compared: nothing in the lists is a proof for these.
    pub places: Vec<Compared>,
}

/// A place that was compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Compared {
    /// What is reached.
    pub target: String,
    /// Where it is decided.
    pub enforced_at: String,
}

impl Differences {
    /// Whether nothing differs and everything is known.
    pub fn is_same(&self) -> bool {
        self.newly_allowed.is_empty() && self.newly_denied.is_empty() && self.unknown.is_empty()
    }
}
