// SPDX-License-Identifier: Apache-2.0
//! ValidatingAdmissionPolicies: rules in CEL that are judged here, without a webhook.

mod compiled;
mod params;

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use self::compiled::{Binding, Policy};
use super::request::Request;
use crate::api::Api;
use crate::registry::ResourceInfo;
use crate::stack;
use crate::status::Refusal;

const POLICIES: &str = "admissionregistration.k8s.io/validatingadmissionpolicies";
const BINDINGS: &str = "admissionregistration.k8s.io/validatingadmissionpolicybindings";
/// Longest message that an expression may make, in bytes, as in Kubernetes.
const MAX_MESSAGE: usize = 5 * 1024;

/// The policies as they were when one of them or of their bindings was last changed; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Policies(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// Revisions of the last changes of policies and bindings.
    revisions: Option<(u64, u64)>,
    policies: Arc<[Policy]>,
}

impl Policies {
    /// The policies that are in force now: a write that was acknowledged before this call is judged by.
    fn current(&self, api: &Api) -> Result<Arc<[Policy]>, Refusal> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Read before the objects: what changes in between is read again at the next call.
        let revisions = Some((api.store.last_change(POLICIES), api.store.last_change(BINDINGS)));
        if known.revisions != revisions {
            let list = |key: &str| api.store.list(key, None, None).0.into_iter().map(|stored| stored.value);
            let bindings: Vec<Arc<Value>> = list(BINDINGS).collect();
            let policies: Vec<Arc<Value>> = list(POLICIES).collect();
            let read = || policies.iter().map(|policy| Policy::of(policy, &bindings)).collect();
            known.policies = if policies.is_empty() {
                Arc::default()
            } else {
                stack::with_room(read).ok_or_else(no_room)?
            };
            known.revisions = revisions;
        }
        Ok(known.policies.clone())
    }
}

/// Why a policy does not let a request through.
#[derive(Debug)]
struct Fault {
    message: String,
    /// `Invalid`, `Forbidden`, …
    reason: String,
}

/// Judges a request by every policy that a binding puts in force for it.
///
/// # Errors
/// The first denial, with the code of its reason.
pub(super) fn check(request: &Request<'_>) -> Result<(), Refusal> {
    let policies = request.call.api.policies.current(&request.call.api)?;
    let mut concerned = Vec::new();
    for policy in policies.iter() {
        let Some(matched) = matched(request, &policy.constraints) else { continue };
        let binds = |binding: &&Binding| {
            binding.resources.is_null() || self::matched(request, &binding.resources).is_some()
        };
        concerned
            .extend(policy.bindings.iter().filter(binds).map(|binding| (policy, matched.clone(), binding)));
    }
    if concerned.is_empty() {
        return Ok(());
    }
    let denial = stack::with_room(|| {
        let mut denial = None;
        for (policy, matched, binding) in concerned {
            for fault in judge(request, &matched, policy, binding) {
                let refusal = report(request, policy, binding, &fault);
                denial = denial.or(refusal);
            }
        }
        denial
    });
    denial.ok_or_else(no_room)?.map_or(Ok(()), Err)
}

fn no_room() -> Refusal {
    Refusal::internal("admission policies cannot be evaluated now")
}

/// The resource in the version that `MatchResources` names; `None` if they do not match the request.
fn matched(request: &Request<'_>, resources: &Value) -> Option<Arc<ResourceInfo>> {
    let any = json!([{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"]}]);
    // A binding may leave its rules out.
    let rules = if resources["resourceRules"].is_array() { &resources["resourceRules"] } else { &any };
    let found = request.matched(rules, &resources["excludeResourceRules"], &resources["matchPolicy"]);
    found.filter(|_| request.is_selected(resources))
}

/// The faults that a policy finds, for each object of parameters.
fn judge(request: &Request<'_>, matched: &ResourceInfo, policy: &Policy, binding: &Binding) -> Vec<Fault> {
    let failed = |why: String| {
        // A policy that cannot be evaluated denies, unless its owner chose to go on without it.
        if policy.fails_open {
            tracing::warn!(policy = policy.name, why, "policy not evaluated; its failurePolicy is to go on");
            Vec::new()
        } else {
            vec![Fault { message: why, reason: "Invalid".to_owned() }]
        }
    };
    let params = match params::of(request, policy, binding) {
        Ok(params) => params,
        Err(why) => return failed(why),
    };
    let mut faults = Vec::new();
    for one in params {
        let mut facts = request.facts(matched, one.as_deref());
        match policy.applies(&mut facts) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(why) => {
                faults.extend(failed(why.to_string()));
                continue;
            }
        }
        for (name, expression) in &policy.variables {
            facts.define(name, expression);
        }
        for validation in &policy.validations {
            let holds = match &validation.expression {
                Ok(expression) => facts
                    .is_true(expression)
                    .map_err(|why| format!("expression '{}' resulted in error: {why}", expression.text())),
                Err(why) => Err(why.to_string()),
            };
            match holds {
                Ok(true) => {}
                Ok(false) => {
                    let message = validation.message(&mut facts);
                    faults.push(Fault { message, reason: validation.reason.clone() });
                }
                Err(why) => faults.extend(failed(why)),
            }
        }
    }
    faults
}

/// Does what the binding wants to be done about a fault; a refusal if that is to deny.
fn report(request: &Request<'_>, policy: &Policy, binding: &Binding, fault: &Fault) -> Option<Refusal> {
    let (name, of) = (&policy.name, &binding.name);
    let mut denial = None;
    for action in &binding.actions {
        match action.as_str() {
            "Warn" => request.call.warnings.add(format!(
                "Validation failed for ValidatingAdmissionPolicy '{name}' with binding '{of}': {}",
                fault.message
            )),
            "Audit" => {
                let (user, resource) = (&request.call.user.name, request.call.info.qualified());
                let (namespace, object) = (request.call.namespace(), request.name());
                let (operation, message) = (request.operation.as_str(), &fault.message);
                tracing::info!(
                    policy = name,
                    binding = of,
                    user,
                    operation,
                    resource,
                    namespace,
                    object,
                    message,
                    "validation failed"
                );
            }
            // Unknown actions are refused when they are written: nothing that came past that is let through.
            _ => denial = Some(refusal(request, name, of, fault)),
        }
    }
    denial
}

fn refusal(request: &Request<'_>, policy: &str, binding: &str, fault: &Fault) -> Refusal {
    let why = format!(
        "ValidatingAdmissionPolicy '{policy}' with binding '{binding}' denied request: {}",
        fault.message
    );
    let (resource, name) = (request.call.info.qualified(), request.name());
    let mut refusal = Refusal::forbidden(format!("{resource} \"{name}\" is forbidden: {why}"));
    (refusal.code, refusal.reason) = match fault.reason.as_str() {
        "Unauthorized" => (401, "Unauthorized"),
        "Forbidden" => (403, "Forbidden"),
        "RequestEntityTooLarge" => (413, "RequestEntityTooLarge"),
        _ => (422, "Invalid"),
    };
    let info = &request.call.info;
    refusal.details =
        Some(json!({"name": name, "group": info.group, "kind": info.plural, "causes": [{"message": why}]}));
    refusal
}
