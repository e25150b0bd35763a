// SPDX-License-Identifier: Apache-2.0
//! What is reached at a place, as `authz explain` is asked for it.

use meltemi_model::NamespacedName;

use crate::witness::{Witness, quoted};

/// What is reached, as `authz explain` takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// A Service, at its waypoint.
    Service(NamespacedName),
    /// A Gateway, for everything that passes it.
    Gateway(NamespacedName),
    /// Pods of a namespace, at their node proxy.
    Pods(String),
}

impl Reach {
    /// The options that say it, for a witness.
    pub(super) fn options(&self, witness: &Witness) -> String {
        match self {
            Self::Service(to) => format!("--at waypoint --to {}.{}", to.name, to.namespace),
            Self::Gateway(to) => format!("--to-gateway {}.{}", to.name, to.namespace),
            Self::Pods(namespace) => {
                let labels: Vec<String> = witness.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
                let text = format!("{namespace}/{}", labels.join(","));
                format!("--to-pod {}", quoted(text.trim_end_matches('/')))
            }
        }
    }
}
