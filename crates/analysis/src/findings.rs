// SPDX-License-Identifier: Apache-2.0
//! What is probably not meant: findings over all policies, each with its reason and its fix.

mod attachment;
mod exempt;
mod intent;
mod paths;
mod ports;
mod rules;
mod streams;
mod unseen;
mod waypoint;

use meltemi_model::NamespacedName;
use serde::Serialize;

use crate::world::World;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Level {
    /// Good to know.
    Info,
    /// Probably not meant.
    Warning,
    /// Does not do what it says.
    Error,
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

/// A kind of finding: its code and how bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// As it is printed; `IST…` where Istio has the same.
    pub code: &'static str,
    /// How bad it is, usually.
    pub level: Level,
    /// What it is about.
    pub about: &'static str,
}

const fn code(code: &'static str, level: Level, about: &'static str) -> Code {
    Code { code, level, about }
}

/// An object is invalid.
pub const INVALID: Code = code("IST0106", Level::Error, "an object is not valid");
/// A rule never matches.
pub const NEVER: Code = code("MLT0101", Level::Warning, "a rule can never match");
/// A rule has no effect beside others.
pub const SHADOWED: Code = code("MLT0102", Level::Warning, "a rule changes nothing beside others");
/// A DENY by identity does not see plaintext.
pub const PLAINTEXT: Code = code("MLT0103", Level::Warning, "a DENY that clients without an identity escape");
/// Layer 7 fields at a node proxy.
pub const LAYER7: Code = code("MLT0104", Level::Warning, "fields of layer 7 where only layer 4 is seen");
/// A policy is attached to nothing.
pub const NOTHING: Code = code("MLT0105", Level::Warning, "a policy that is attached to nothing");
/// A Service can be reached around its waypoint.
pub const AROUND: Code = code("MLT0106", Level::Warning, "a Service that can be reached around its waypoint");
/// A policy of layer 4 shuts out the waypoint.
pub const FORGETS: Code = code("MLT0107", Level::Error, "a policy of layer 4 that forgets the waypoint");
/// An ALLOW opens more than its author probably meant.
pub const OPENS: Code = code("MLT0108", Level::Warning, "an ALLOW that opens more than it seems to");
/// A rule leaves open what belongs together.
pub const LEAVES: Code = code("MLT0109", Level::Warning, "a rule that leaves a near path open");
/// The verdict differs from Istio's.
pub const DIFFERS: Code = code("MLT0110", Level::Info, "a policy whose verdict differs from Istio's");
/// Nobody can be asked.
pub const CUSTOM: Code = code("MLT0111", Level::Warning, "a provider that cannot be asked");
/// Rules are too much for an answer.
pub const UNDECIDED: Code =
    code("MLT0112", Level::Info, "rules that combine in too many ways to be compared");

/// What one DENY exempts is denied by another.
pub const EXEMPT: Code =
    code("MLT0113", Level::Warning, "an exemption of a DENY that another DENY takes back");
/// Admission warns of it.
pub const WARNED: Code = code("MLT0114", Level::Warning, "a warning of admission");
/// It is stored, and nothing acts on it.
pub const INERT: Code = code("MLT0115", Level::Warning, "a kind or field that nothing acts on");

/// A port without requests does not show it.
pub const STREAM: Code = code("MLT0116", Level::Warning, "fields of requests on ports that have none");

/// Every kind of finding.
pub const CODES: &[Code] = &[
    INVALID, NEVER, SHADOWED, PLAINTEXT, LAYER7, NOTHING, AROUND, FORGETS, OPENS, LEAVES, DIFFERS, CUSTOM,
    UNDECIDED, EXEMPT, WARNED, INERT, STREAM,
];

/// A finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What kind it is.
    pub code: &'static str,
    /// `<Kind> <namespace>/<name>`.
    pub origin: String,
    /// What it is and why.
    pub message: String,
    /// What to do about it.
    pub fix: String,
    /// The object's name.
    #[serde(skip)]
    pub name: NamespacedName,
}

impl Finding {
    fn new(code: Code, kind: &str, name: &NamespacedName, message: String, fix: impl Into<String>) -> Self {
        Self {
            level: code.level,
            code: code.code,
            origin: format!("{kind} {name}"),
            message,
            fix: fix.into(),
            name: name.clone(),
        }
    }

    fn policy(code: Code, name: &NamespacedName, message: String, fix: impl Into<String>) -> Self {
        Self::new(code, "AuthorizationPolicy", name, message, fix)
    }

    fn at(self, level: Level) -> Self {
        Self { level, ..self }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} [{}] ({}) {} Fix: {}", self.level, self.code, self.origin, self.message, self.fix)
    }
}

/// Everything that is found; of one namespace only when one is named. The worst first.
pub fn analyze(world: &World, namespace: Option<&str>) -> Vec<Finding> {
    let mut all: Vec<Finding> = world
        .faults
        .iter()
        .map(|fault| {
            let message = format!("Schema validation error: {}", fault.message);
            let fix = "correct it: admission refuses it, and what came past admission lets nothing through";
            Finding::new(INVALID, &fault.kind, &fault.name, message, fix)
        })
        .collect();
    said(world, &mut all);
    attachment::find(world, &mut all);
    intent::find(world, &mut all);
    ports::find(world, &mut all);
    streams::find(world, &mut all);
    unseen::find(world, &mut all);
    waypoint::find(world, &mut all);
    rules::find(world, &|| true, &mut all);
    all.retain(|f| namespace.is_none_or(|n| *n == *f.name.namespace));
    all.sort_by(|a, b| {
        b.level
            .cmp(&a.level)
            .then_with(|| (a.code, &a.origin, &a.message).cmp(&(b.code, &b.origin, &b.message)))
    });
    all.dedup();
    all
}

/// Warnings of admission, and what is stored and not acted on.
fn said(world: &World, out: &mut Vec<Finding>) {
    out.extend(world.warnings.iter().map(|w| {
        let fix = "correct it, unless it is meant as it is written";
        Finding::new(WARNED, &w.kind, &w.name, w.message.clone(), fix)
    }));
    out.extend(world.inert.iter().map(|i| {
        let level = if i.kind == "ConfigMap" { Level::Info } else { INERT.level };
        let fix = "do not rely on it: leave it out, or say it by what the mesh acts on";
        Finding::new(INERT, &i.kind, &i.name, i.message.clone(), fix).at(level)
    }));
    out.extend(world.peer_notices().into_iter().map(|(name, message)| {
        Finding::new(INERT, "PeerAuthentication", &name, message, "say by another field what is meant")
    }));
}

/// Kinds of findings that a policy's status tells.
const SUSPICIOUS: &[Code] = &[NEVER, SHADOWED, OPENS, LEAVES, EXEMPT, STREAM];

/// What each policy says and probably does not mean, in itself and beside the others: for its status. The questions that
/// are left when `go_on` says no stay unanswered, and accuse no rule.
pub fn suspicious(world: &World, go_on: &dyn Fn() -> bool) -> Vec<Finding> {
    let mut all = Vec::new();
    intent::find(world, &mut all);
    ports::find(world, &mut all);
    streams::find(world, &mut all);
    unseen::find(world, &mut all);
    rules::find(world, go_on, &mut all);
    all.retain(|f| f.level >= Level::Warning && SUSPICIOUS.iter().any(|c| c.code == f.code));
    all.sort_by(|a, b| (&a.name, a.code, &a.message).cmp(&(&b.name, b.code, &b.message)));
    all
}

#[cfg(test)]
mod tests;
