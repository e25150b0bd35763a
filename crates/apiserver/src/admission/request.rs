// SPDX-License-Identifier: Apache-2.0
//! A change that is judged: which rules match it, and how it is described to policies and webhooks.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::{Value, json};

use super::Operation;
use crate::call::Call;
use crate::expression::Facts;
use crate::registry::ResourceInfo;
use crate::selector::Labels;

/// A change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub(super) call: &'a Call,
    pub(super) operation: Operation,
    /// The object as it will be; `None` for a deletion.
    pub(super) object: Option<&'a Value>,
    /// The object as it is; `None` for a creation.
    pub(super) old: Option<&'a Value>,
}

impl Request<'_> {
    /// What expressions may look at; `params` is the object that a binding refers to.
    pub(super) fn facts(&self, matched: &ResourceInfo, params: Option<&Value>) -> Facts {
        let null = Value::Null;
        let version =
            |object: Option<&Value>| object.map(|object| self.in_version(object, matched).into_owned());
        let described = self.describe(matched);
        let namespace = if self.call.info.namespaced { self.namespace() } else { None };
        Facts::new(&[
            ("object", &version(self.object).unwrap_or_default()),
            ("oldObject", &version(self.old).unwrap_or_default()),
            ("request", &described),
            ("namespaceObject", namespace.as_deref().unwrap_or(&null)),
            ("params", params.unwrap_or(&null)),
        ])
    }

    /// Whether anybody judges it. The configuration of admission itself is exempt: a broken one could never be mended.
    pub(super) fn is_judged(&self) -> bool {
        self.call.info.group != "admissionregistration.k8s.io"
    }

    /// The resource, in the version in which one of the rules names it, unless a rule of `excluded` does, too. With the
    /// policy `Equivalent` (the default) a rule for one version matches requests for all: an older version of a path
    /// must not be a way around.
    pub(super) fn matched(
        &self,
        rules: &Value,
        excluded: &Value,
        policy: &Value,
    ) -> Option<Arc<ResourceInfo>> {
        let mut versions = vec![self.call.info.clone()];
        if policy != "Exact" {
            let own = &self.call.info;
            let others = self.call.api.registry.all().into_iter();
            versions.extend(others.filter(|other| {
                other.key == own.key && other.group == own.group && other.version != own.version
            }));
        }
        let covered = |rules: &Value, info: &ResourceInfo| {
            rules.as_array().is_some_and(|rules| rules.iter().any(|rule| self.is_covered(rule, info)))
        };
        if versions.iter().any(|info| covered(excluded, info)) {
            return None;
        }
        versions.into_iter().find(|info| covered(rules, info))
    }

    fn is_covered(&self, rule: &Value, info: &ResourceInfo) -> bool {
        let lists = |list: &Value, wanted: &str| {
            list.as_array().is_some_and(|list| list.iter().any(|item| item == "*" || item == wanted))
        };
        let (plural, sub) = (info.plural.as_str(), self.call.subresource());
        let names_it = |item: &str| {
            let (of, part) = item.split_once('/').unwrap_or((item, ""));
            (of == "*" || of == plural) && (part == sub || part == "*")
        };
        let resources = rule["resources"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let names = rule["resourceNames"].as_array().filter(|names| !names.is_empty());
        let name = self.name();
        lists(&rule["operations"], self.operation.as_str())
            && lists(&rule["apiGroups"], &info.group)
            && lists(&rule["apiVersions"], &info.version)
            && resources.into_iter().any(names_it)
            && names.is_none_or(|names| names.iter().any(|one| *one == name))
            && match rule["scope"].as_str() {
                Some("Namespaced") => info.namespaced,
                Some("Cluster") => !info.namespaced,
                _ => true,
            }
    }

    /// Whether the selectors for objects and namespaces select it. Both states of an object count.
    pub(super) fn is_selected(&self, selectors: &Value) -> bool {
        let selector = Labels::from_object(&selectors["objectSelector"]);
        let mut states = [self.object, self.old].into_iter().flatten();
        if !selector.is_empty() && !states.any(|object| selector.matches(object)) {
            return false;
        }
        let selector = Labels::from_object(&selectors["namespaceSelector"]);
        selector.is_empty() || self.namespace().is_none_or(|namespace| selector.matches(&namespace))
    }

    /// The namespace that it is in; a namespace is in itself.
    pub(super) fn namespace(&self) -> Option<Cow<'_, Value>> {
        let call = self.call;
        let is_namespace = call.info.group.is_empty() && call.info.kind == "Namespace";
        if is_namespace && call.subresource().is_empty() {
            return self.object.or(self.old).map(Cow::Borrowed);
        }
        let name = if is_namespace { call.name() } else { call.namespace() };
        call.api.get("", "namespaces", "", name).map(|namespace| Cow::Owned((*namespace).clone()))
    }

    /// The object's name, empty if the server has still to choose one.
    pub(super) fn name(&self) -> String {
        let of_path = self.call.name();
        let of_object = || self.object.or(self.old)?["metadata"]["name"].as_str();
        if of_path.is_empty() { of_object().unwrap_or_default().to_owned() } else { of_path.to_owned() }
    }

    /// A state of the object in the version that was matched.
    pub(super) fn in_version<'o>(&self, object: &'o Value, matched: &ResourceInfo) -> Cow<'o, Value> {
        let is_own = matched.version == self.call.info.version || !self.call.subresource().is_empty();
        if is_own || object["apiVersion"] != self.call.info.api_version().as_str() {
            return Cow::Borrowed(object);
        }
        let mut object = object.clone();
        object["apiVersion"] = matched.api_version().into();
        Cow::Owned(object)
    }

    /// `AdmissionReview.request`, without the uid and the objects.
    pub(super) fn describe(&self, matched: &ResourceInfo) -> Value {
        let call = self.call;
        let kind_of = |info: &ResourceInfo| match info.subresource(call.subresource()) {
            Some(sub) => {
                let (group, version) = sub.group_version().unwrap_or((&info.group, &info.version));
                json!({"group": group, "version": version, "kind": sub.kind(info)})
            }
            None => json!({"group": info.group, "version": info.version, "kind": info.kind}),
        };
        let resource_of = |info: &ResourceInfo| json!({"group": info.group, "version": info.version, "resource": info.plural});
        let mut request = json!({
            "kind": kind_of(matched), "resource": resource_of(matched), "requestKind": kind_of(&call.info),
            "requestResource": resource_of(&call.info), "name": self.name(), "operation": self.operation.as_str(),
            "userInfo": call.user.to_value(), "dryRun": call.options.dry_run, "options": null,
        });
        if !call.subresource().is_empty() {
            request["subResource"] = call.subresource().into();
            request["requestSubResource"] = call.subresource().into();
        }
        if call.info.namespaced {
            request["namespace"] = call.namespace().into();
        }
        request
    }
}
