// SPDX-License-Identifier: Apache-2.0
//! A request for a resource, with all that is known of it before its verb is served.

use std::sync::Arc;

use http::{HeaderMap, header};

use crate::api::Api;
use crate::auth::{self, Attributes, ResourceTarget, User};
use crate::document::Duplicate;
use crate::options::Options;
use crate::path::{Target, Verb};
use crate::registry::ResourceInfo;
use crate::status::Refusal;
use crate::store::StoreError;
use crate::warnings::Warnings;

/// Everything that is known of a request for a resource.
#[derive(Clone, Debug)]
pub struct Call {
    /// The API.
    pub api: Api,
    /// Who asks.
    pub user: Arc<User>,
    /// What for.
    pub target: Target,
    /// The resource.
    pub info: Arc<ResourceInfo>,
    /// Query parameters.
    pub options: Options,
    /// Headers.
    pub headers: HeaderMap,
    /// Fields that stand twice in the body.
    pub duplicates: Vec<Duplicate>,
    /// What the client is to be warned of.
    pub warnings: Warnings,
}

impl Call {
    /// Whether path and resource agree: an object of a namespaced resource is named below its namespace, one of a
    /// cluster-scoped resource never is.
    pub fn is_served(&self) -> bool {
        match (self.info.namespaced, self.target.namespace.is_some()) {
            (true, within) => within || self.target.name.is_none(),
            (false, within) => !within,
        }
    }

    /// The namespace, empty for cluster-scoped resources.
    pub fn namespace(&self) -> &str {
        if self.info.namespaced { self.target.namespace.as_deref().unwrap_or_default() } else { "" }
    }

    /// The namespace that a list or watch is limited to; `None` for all.
    pub fn listed_namespace(&self) -> Option<&str> {
        if self.info.namespaced { self.target.namespace.as_deref() } else { None }
    }

    /// The object's name, when the path names one.
    pub fn name(&self) -> &str {
        self.target.name.as_deref().unwrap_or_default()
    }

    /// The subresource, empty for the main one.
    pub fn subresource(&self) -> &str {
        self.target.subresource.as_deref().unwrap_or_default()
    }

    /// What is authorized: exactly what the handlers go on to serve, whatever the path looked like.
    pub fn attributes(&self, verb: Verb) -> Attributes<'_> {
        let selected = || self.options.fields.name().filter(|_| matches!(verb, Verb::List | Verb::Watch));
        let is_namespace = self.info.group.is_empty() && self.info.kind == "Namespace";
        Attributes {
            verb: verb.as_str(),
            target: auth::Target::Resource(ResourceTarget {
                group: &self.info.group,
                resource: &self.info.plural,
                subresource: self.subresource(),
                namespace: if is_namespace { self.name() } else { self.namespace() },
                name: self.target.name.as_deref().or_else(selected).unwrap_or_default(),
                field_selector: self.options.field_selector_text.as_deref().unwrap_or_default(),
            }),
        }
    }

    /// 404 for the object of the path; 500 if it is stored and cannot be read.
    pub fn not_found(&self) -> Refusal {
        if let Some(reason) = self.api.store.unreadable_reason(&self.info.key, self.namespace(), self.name())
        {
            return self.refused(self.name(), StoreError::Unreadable(reason));
        }
        Refusal::not_found(&self.info.qualified(), self.name())
    }

    /// Who is noted as the manager of fields: `fieldManager`, else the program of the User-Agent.
    pub fn manager(&self) -> String {
        if let Some(manager) = &self.options.field_manager {
            return manager.clone();
        }
        let agent = self.headers.get(header::USER_AGENT).and_then(|a| a.to_str().ok()).unwrap_or("unknown");
        agent.split('/').next().unwrap_or("unknown").chars().take(128).collect()
    }

    /// 409: somebody else was faster.
    pub fn modified(&self) -> Refusal {
        Refusal::conflict(
            &self.info.qualified(),
            self.name(),
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// A store's error as the client sees it.
    pub fn refused(&self, name: &str, error: StoreError) -> Refusal {
        match error {
            StoreError::AlreadyExists => Refusal::already_exists(&self.info.qualified(), name),
            StoreError::NotFound => Refusal::not_found(&self.info.qualified(), name),
            StoreError::Conflict => self.modified(),
            StoreError::OverBound(over) => over.into(),
            error @ StoreError::Full(_) => Refusal::insufficient_storage(error.to_string()),
            error @ StoreError::Unreadable(_) => Refusal::internal(format!(
                "{} {name:?}: {error}; deleting it removes the row",
                self.info.qualified()
            )),
            error @ StoreError::Disk(_) => Refusal::internal(error),
        }
    }
}

/// A path that no resource serves, for authorization: whether it exists is for those to know who may ask.
pub fn unserved(target: &Target, verb: Verb) -> Attributes<'_> {
    let target = ResourceTarget {
        group: &target.group,
        resource: &target.resource,
        subresource: target.subresource.as_deref().unwrap_or_default(),
        namespace: target.namespace.as_deref().unwrap_or_default(),
        name: target.name.as_deref().unwrap_or_default(),
        field_selector: "",
    };
    Attributes { verb: verb.as_str(), target: auth::Target::Resource(target) }
}
