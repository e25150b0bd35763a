// SPDX-License-Identifier: Apache-2.0
//! Listeners by name, and by what a request looks for: Gateway, port and host. A request asks as many times as its host has
//! labels, however many listeners there are.

use std::sync::Arc;

use meltemi_model::NamespacedName;
use meltemi_model::l7::Listener;
use meltemi_policy::http::host_forms;
use meltemi_state::SharedMap;
use rpds::RedBlackTreeMapSync;

use crate::mesh::targeted::Documents;

type ByName = RedBlackTreeMapSync<String, Arc<Listener>>;

/// Which host names a listener is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Hosts {
    /// Every one.
    Any,
    /// Those that end so and have more before it: what is behind `*` in lower case.
    Suffix(String),
    /// This one, in lower case.
    Exact(String),
}

impl Hosts {
    fn of(listener: &Listener) -> Self {
        let Some(name) = &listener.hostname else { return Self::Any };
        let name = name.to_ascii_lowercase();
        name.strip_prefix('*')
            .map_or_else(|| Self::Exact(name.clone()), |suffix| Self::Suffix(suffix.to_owned()))
    }
}

type Key = (NamespacedName, u16, Hosts);

/// All listeners. A clone shares what does not change.
#[derive(Clone, Debug)]
pub struct Listeners {
    by_name: ByName,
    by_host: SharedMap<Key, ByName>,
}

impl Default for Listeners {
    fn default() -> Self {
        Self { by_name: ByName::new_sync(), by_host: SharedMap::default() }
    }
}

impl Listeners {
    /// All listeners, by name.
    pub fn values(&self) -> impl Iterator<Item = &Arc<Listener>> {
        self.by_name.values()
    }

    /// Puts a listener in the place of the one of its name.
    pub fn insert(&mut self, name: String, listener: Arc<Listener>) {
        self.remove(&name);
        let key = (listener.gateway.clone(), listener.port, Hosts::of(&listener));
        if !self.by_host.contains_key(&key) {
            self.by_host.insert_mut(key.clone(), ByName::new_sync());
        }
        if let Some(alike) = self.by_host.get_mut(&key) {
            alike.insert_mut(name.clone(), listener.clone());
        }
        self.by_name.insert_mut(name, listener);
    }

    /// Takes a listener out.
    pub fn remove(&mut self, name: &str) {
        let Some(old) = self.by_name.get(name).cloned() else { return };
        let key = (old.gateway.clone(), old.port, Hosts::of(&old));
        if let Some(alike) = self.by_host.get_mut(&key) {
            alike.remove_mut(name);
            if alike.is_empty() {
                self.by_host.remove_mut(&key);
            }
        }
        self.by_name.remove_mut(name);
    }

    /// The listener of a port that a host is for, the most specific one: an exact name before any wildcard, the longer
    /// wildcard before the shorter one.
    pub fn find(&self, gateway: &NamespacedName, port: u16, host: &str) -> Option<&Arc<Listener>> {
        let at = |hosts| {
            let alike = self.by_host.get(&(gateway.clone(), port, hosts))?;
            alike.last().map(|(_, listener)| listener)
        };
        let forms = host_forms(host).map(|form| form.map(str::to_ascii_lowercase));
        // The first form is the longest one.
        let exact = forms.iter().flatten().find_map(|form| at(Hosts::Exact(form.clone())));
        let wildcard = || {
            let ends = forms.iter().flatten().flat_map(|form| {
                let starts = (1..form.len()).filter(|start| form.is_char_boundary(*start));
                starts.filter(|start| form.as_bytes()[*start] == b'.').map(|start| &form[start..])
            });
            let mut ends: Vec<&str> = ends.collect();
            ends.sort_unstable_by_key(|end| std::cmp::Reverse(end.len()));
            ends.into_iter().find_map(|end| at(Hosts::Suffix(end.to_owned())))
        };
        exact.or_else(wildcard).or_else(|| at(Hosts::Any))
    }
}

impl Documents<Listener> for Listeners {
    fn put(&mut self, name: String, document: Arc<Listener>) {
        self.insert(name, document);
    }

    fn forget(&mut self, name: &str) {
        self.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use meltemi_model::l7::Protocol;
    use proptest::prelude::*;

    use super::*;

    const HOSTS: [Option<&str>; 7] = [
        None,
        Some("a.example"),
        Some("A.Example"),
        Some("*.example"),
        Some("*.a.example"),
        Some("b.a.example"),
        Some("a.example:81"),
    ];
    const ASKED: [&str; 11] = [
        "a.example",
        "A.EXAMPLE",
        "a.example:80",
        "a.example:81",
        "a.example.",
        "b.a.example",
        "c.b.a.example",
        ".example",
        "example",
        "other",
        "",
    ];

    fn listener(gateway: u8, port: u8, host: usize) -> Listener {
        Listener {
            gateway: NamespacedName::new("ns", format!("g{gateway}")),
            name: String::new(),
            port: u16::from(port),
            protocol: Protocol::Http,
            hostname: HOSTS[host].map(Into::into),
            secrets: Vec::new(),
        }
    }

    /// As the documentation of Gateway says it, by a walk over all.
    fn rank(wanted: Option<&str>, host: &str) -> Option<usize> {
        let Some(wanted) = wanted else { return Some(0) };
        let matches = host_forms(host).iter().flatten().any(|host| match wanted.strip_prefix('*') {
            Some(suffix) => {
                host.len() > suffix.len() && host.to_ascii_lowercase().ends_with(&suffix.to_ascii_lowercase())
            }
            None => host.eq_ignore_ascii_case(wanted),
        });
        matches.then_some(if wanted.starts_with('*') { wanted.len() } else { 1000 + wanted.len() })
    }

    proptest! {
        /// The index finds what a walk finds, whatever came and went.
        #[test]
        fn the_most_specific_listener_is_found(
            changes in prop::collection::vec((0..4u8, prop::option::of((0..2u8, 0..2u8, 0..HOSTS.len()))), 1..20),
        ) {
            let (mut kept, mut all) = (Listeners::default(), BTreeMap::new());
            for (name, change) in changes {
                let name = format!("l{name}");
                match change {
                    Some((gateway, port, host)) => {
                        let listener = Arc::new(listener(gateway, port, host));
                        kept.insert(name.clone(), listener.clone());
                        all.insert(name, listener);
                    }
                    None => {
                        kept.remove(&name);
                        all.remove(&name);
                    }
                }
                prop_assert_eq!(kept.values().collect::<Vec<_>>(), all.values().collect::<Vec<_>>());
                for (gateway, port) in [(0, 0), (0, 1), (1, 0)] {
                    let gateway = NamespacedName::new("ns", format!("g{gateway}"));
                    for host in ASKED {
                        let own = all.values().filter(|l| l.gateway == gateway && l.port == port);
                        let ranked = own.filter_map(|l| Some((rank(l.hostname.as_deref(), host)?, l)));
                        let wanted = ranked.max_by_key(|(rank, _)| *rank).map(|(_, listener)| listener);
                        prop_assert_eq!(kept.find(&gateway, port, host), wanted, "{} {} {}", &gateway, port, host);
                    }
                }
            }
        }
    }
}
