// SPDX-License-Identifier: Apache-2.0
//! The objects of parameters that a binding refers to.

use std::sync::Arc;

use serde_json::Value;

use super::compiled::{Binding, Policy};
use crate::admission::request::Request;
use crate::registry::ResourceInfo;
use crate::selector::Labels;

/// The parameters with which a policy is evaluated, once for each; `None` for a policy without.
///
/// # Errors
/// They cannot be found, and the binding does not say that the request goes on then.
pub(super) fn of(
    request: &Request<'_>,
    policy: &Policy,
    binding: &Binding,
) -> Result<Vec<Option<Arc<Value>>>, String> {
    let Some((api_version, kind)) = policy.param_kind.as_ref().filter(|_| binding.param.is_object()) else {
        return Ok(vec![None]);
    };
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let info = request.call.api.registry.find_kind(group, version, kind);
    let info =
        info.ok_or_else(|| format!("failed to configure policy: no kind {kind} in {api_version} is served"))?;
    let namespace = namespace(request, binding, &info)?;
    let found = find(request, binding, &info, &namespace);
    if !found.is_empty() {
        return Ok(found.into_iter().map(Some).collect());
    }
    if binding.param["parameterNotFoundAction"] == "Allow" {
        return Ok(Vec::new());
    }
    Err("failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"
        .into())
}

/// The namespace of the parameters: the one that the binding names, else that of the request.
fn namespace(request: &Request<'_>, binding: &Binding, info: &ResourceInfo) -> Result<String, String> {
    let given = binding.param["namespace"].as_str().unwrap_or_default();
    let wrong = |why: &str| Err(format!("failed to configure binding: {why}"));
    match (info.namespaced, given.is_empty()) {
        (false, true) => Ok(String::new()),
        (false, false) => wrong("paramRef.namespace must not be set for a kind without namespaces"),
        (true, false) => Ok(given.to_owned()),
        (true, true) if request.call.info.namespaced => Ok(request.call.namespace().to_owned()),
        (true, true) => {
            wrong("paramRef.namespace must be set where requests without a namespace are matched")
        }
    }
}

fn find(request: &Request<'_>, binding: &Binding, info: &ResourceInfo, namespace: &str) -> Vec<Arc<Value>> {
    let store = &request.call.api.store;
    if let Some(name) = binding.param["name"].as_str().filter(|name| !name.is_empty()) {
        return store.get(&info.key, namespace, name).map(|stored| stored.value).into_iter().collect();
    }
    let selector = Labels::from_object(&binding.param["selector"]);
    let within = info.namespaced.then_some(namespace);
    let all = store.list(&info.key, within, None).0.into_iter().map(|stored| stored.value);
    all.filter(|object| selector.matches(object)).collect()
}
