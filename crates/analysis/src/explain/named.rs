// SPDX-License-Identifier: Apache-2.0
//! Names in a question that nothing has: a typing error must not be answered as if it were meant.

use meltemi_model::NamespacedName;

use super::{Client, Request, To};
use crate::world::{Known, World};

/// What of a question's names is not among the objects.
#[derive(Debug, Default)]
pub(super) struct Named {
    /// Nothing has it.
    pub(super) missing: Vec<String>,
    /// It may be there, and is taken as there.
    pub(super) presumed: Vec<String>,
}

impl Named {
    /// Looks for everything that a request names.
    pub(super) fn of(world: &World, request: &Request) -> Self {
        let mut out = Self::default();
        out.reached(world, request);
        match &request.from {
            Client::Account(namespace, name) => {
                let account = NamespacedName::new(namespace.as_str(), name.as_str());
                let what = format!("ServiceAccount {account}");
                out.note(world, world.knows_account(&account), &what, "");
            }
            Client::Principal(principal) => out.principal(world, principal),
            Client::Plaintext => {}
        }
        out
    }

    fn reached(&mut self, world: &World, request: &Request) {
        match &request.to {
            To::Service(name) => {
                let what = format!("Service {name}");
                let meant = format!(" and selects Pods labelled app={}", name.name);
                self.note(world, world.knows_service(name), &what, &meant);
                let ports = world.ports(name);
                let has = |port: u16| ports.is_empty() || ports.iter().any(|(own, _)| *own == port);
                if let Some(port) = request.port.filter(|port| !has(*port)) {
                    let all: Vec<String> = ports.iter().map(|(own, _)| own.to_string()).collect();
                    self.missing.push(format!("{what} has no port {port}, it has {}", all.join(", ")));
                }
            }
            To::Gateway(name) => {
                self.note(world, world.knows_gateway(name), &format!("Gateway {name}"), "");
            }
            To::Pod(namespace, labels) => {
                let known = world.knows_namespace(namespace);
                if labels.is_empty() || known == Known::No {
                    self.note(world, known, &format!("Namespace {namespace}"), "");
                } else {
                    self.note(world, world.knows_pod(namespace, labels), &request.to.to_string(), "");
                }
            }
        }
    }

    /// A principal may be of another mesh, or of an account that is yet to come: it is never missing.
    fn principal(&mut self, world: &World, principal: &str) {
        let parts: Vec<&str> = principal.split('/').collect();
        let [domain, "ns", namespace, "sa", account] = parts.as_slice() else { return };
        if *domain != world.mesh.trust_domain.as_str() {
            return;
        }
        if world.knows_account(&NamespacedName::new(*namespace, *account)) != Known::Yes {
            self.presumed.push(format!("ServiceAccount {namespace}/{account} exists"));
        }
    }

    fn note(&mut self, world: &World, known: Known, what: &str, meant: &str) {
        match known {
            Known::Yes => {}
            Known::Assumed => self.presumed.push(format!("{what} exists{meant}")),
            Known::No if world.complete => self.missing.push(format!("{what} does not exist")),
            Known::No => {
                self.missing
                    .push(format!("{what} is not among the objects, which have others of its namespace"));
            }
        }
    }
}
