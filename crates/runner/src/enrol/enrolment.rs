// SPDX-License-Identifier: Apache-2.0
//! What is known of enrolment: the labels of namespaces, the node proxies, and whose turn it is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use crate::lock::lock;
use crate::zds::proxies::Proxies;

/// Who is enrolled, and the labels of namespaces.
#[derive(Debug)]
pub(crate) struct Enrolment {
    pub(super) namespaces: watch::Sender<BTreeMap<String, BTreeMap<String, String>>>,
    pub proxies: Proxies,
    /// One change of one Pod at a time.
    pub(super) gate: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<bool>>>>,
}

impl Default for Enrolment {
    fn default() -> Self {
        Self {
            namespaces: watch::channel(BTreeMap::new()).0,
            proxies: Proxies::default(),
            gate: Mutex::default(),
        }
    }
}

impl Enrolment {
    pub(crate) fn set_namespace(&self, name: &str, labels: Option<BTreeMap<String, String>>) {
        self.namespaces.send_modify(|all| {
            match labels {
                Some(labels) => all.insert(name.to_owned(), labels),
                None => all.remove(name),
            };
        });
    }

    pub(super) fn gate(&self, uid: &str) -> Arc<tokio::sync::Mutex<bool>> {
        lock(&self.gate).entry(uid.to_owned()).or_default().clone()
    }
}
