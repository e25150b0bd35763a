// SPDX-License-Identifier: Apache-2.0
//! Field selectors: `metadata.name=x,spec.nodeName!=y`. Each kind has a list of fields that can be asked for, as in
//! Kubernetes; any other is an error, for a slip in a negative selector would match every object.

use serde_json::Value;

use crate::registry::ResourceInfo;
use crate::status::Refusal;

/// ANDed requirements on fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(Vec<Term>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    /// The field as the client names it.
    label: String,
    /// Where it is in the stored object. The first of several that is there counts.
    paths: Vec<String>,
    /// Its value where it is not set.
    unset: &'static str,
    equal: bool,
    value: String,
}

/// A field that can be asked for: label, paths in the stored object (separated by `|`), value when unset.
type Row = (&'static str, &'static str, &'static str);

/// What every kind has.
const OF_ANY: &[Row] =
    &[("metadata.name", "metadata.name", ""), ("metadata.namespace", "metadata.namespace", "")];

const POD: &[Row] = &[
    ("spec.nodeName", "spec.nodeName", ""),
    ("spec.host", "spec.nodeName", ""),
    ("spec.restartPolicy", "spec.restartPolicy", ""),
    ("spec.schedulerName", "spec.schedulerName", ""),
    ("spec.serviceAccountName", "spec.serviceAccountName", ""),
    ("spec.hostNetwork", "spec.hostNetwork", "false"),
    ("status.phase", "status.phase", ""),
    ("status.podIP", "status.podIP", ""),
    ("status.podIPs", "status.podIP", ""),
    ("status.nominatedNodeName", "status.nominatedNodeName", ""),
];

const CORE_EVENT: &[Row] = &[
    ("involvedObject.kind", "involvedObject.kind", ""),
    ("involvedObject.namespace", "involvedObject.namespace", ""),
    ("involvedObject.name", "involvedObject.name", ""),
    ("involvedObject.uid", "involvedObject.uid", ""),
    ("involvedObject.apiVersion", "involvedObject.apiVersion", ""),
    ("involvedObject.resourceVersion", "involvedObject.resourceVersion", ""),
    ("involvedObject.fieldPath", "involvedObject.fieldPath", ""),
    ("reason", "reason", ""),
    ("reportingComponent", "reportingComponent", ""),
    ("source", "source.component|reportingComponent", ""),
    ("type", "type", ""),
];

/// Events are stored in their core form.
const EVENT: &[Row] = &[
    ("regarding.kind", "involvedObject.kind", ""),
    ("regarding.namespace", "involvedObject.namespace", ""),
    ("regarding.name", "involvedObject.name", ""),
    ("regarding.uid", "involvedObject.uid", ""),
    ("regarding.apiVersion", "involvedObject.apiVersion", ""),
    ("regarding.resourceVersion", "involvedObject.resourceVersion", ""),
    ("regarding.fieldPath", "involvedObject.fieldPath", ""),
    ("reason", "reason", ""),
    ("reportingController", "reportingComponent", ""),
    ("type", "type", ""),
];

/// What the built-in kind has beside [`OF_ANY`].
fn rows(info: &ResourceInfo) -> &'static [Row] {
    if info.custom.is_some() {
        return &[];
    }
    match (info.group.as_str(), info.kind.as_str()) {
        ("", "Pod") => POD,
        ("", "Event") => CORE_EVENT,
        ("events.k8s.io", "Event") => EVENT,
        ("", "Node") => &[("spec.unschedulable", "spec.unschedulable", "false")],
        ("", "Namespace") => &[("status.phase", "status.phase", "")],
        ("", "Secret") => &[("type", "type", "")],
        ("", "Service") => &[("spec.clusterIP", "spec.clusterIP", ""), ("spec.type", "spec.type", "")],
        ("", "ReplicationController") | ("apps", "ReplicaSet") => {
            &[("status.replicas", "status.replicas", "0")]
        }
        ("batch", "Job") => &[("status.successful", "status.succeeded", "0")],
        _ => &[],
    }
}

impl Fields {
    /// Parses a field selector. Which fields there are is known with the resource: see [`Self::for_resource`].
    ///
    /// # Errors
    /// 400 with the part that cannot be read.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        split_unescaped(text)
            .into_iter()
            .filter(|part| !part.trim().is_empty())
            .map(term)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The same for the objects of a resource.
    ///
    /// # Errors
    /// 400 for a field that cannot be asked for.
    pub fn for_resource(mut self, info: &ResourceInfo) -> Result<Self, Refusal> {
        let custom = info.custom.as_ref().map(|custom| custom.selectable.as_slice()).unwrap_or_default();
        for term in &mut self.0 {
            let known = || OF_ANY.iter().chain(rows(info));
            if let Some((_, paths, unset)) = known().find(|(label, ..)| *label == term.label) {
                term.paths = paths.split('|').map(str::to_owned).collect();
                term.unset = unset;
            } else if custom.contains(&term.label) {
                term.paths = vec![term.label.clone()];
            } else {
                let all: Vec<&str> =
                    known().map(|(label, ..)| *label).chain(custom.iter().map(String::as_str)).collect();
                return Err(Refusal::bad_request(format!(
                    "field label not supported: {}; {} support {}",
                    term.label,
                    info.qualified(),
                    all.join(", ")
                )));
            }
        }
        Ok(self)
    }

    /// Whether an object matches.
    pub fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|term| {
            let found = term.paths.iter().find_map(|path| text_at(object, path));
            (found.as_deref().unwrap_or(term.unset) == term.value) == term.equal
        })
    }

    /// The name that is asked for, when the selector asks for one: kubectl watches a single object so, and a rule with
    /// names allows it.
    pub fn name(&self) -> Option<&str> {
        self.0.iter().find(|term| term.equal && term.label == "metadata.name").map(|term| term.value.as_str())
    }
}

/// A field as text; `None` where it is not set.
fn text_at(object: &Value, path: &str) -> Option<String> {
    match path.split('.').fold(object, |value, key| &value[key]) {
        Value::Null => None,
        Value::String(text) if text.is_empty() => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

fn term(part: &str) -> Result<Term, Refusal> {
    let wrong = || Refusal::bad_request(format!("invalid field selector: {part:?}"));
    let (label, equal, value) = part
        .split_once("!=")
        .map(|(label, value)| (label, false, value))
        .or_else(|| part.split_once("==").map(|(label, value)| (label, true, value)))
        .or_else(|| part.split_once('=').map(|(label, value)| (label, true, value)))
        .ok_or_else(wrong)?;
    let label = label.trim().to_owned();
    let value = unescape(value.trim()).ok_or_else(wrong)?;
    Ok(Term { paths: vec![label.clone()], label, unset: "", equal, value })
}

/// The parts between commas; `\,` is no separator.
fn split_unescaped(text: &str) -> Vec<&str> {
    let (mut parts, mut begin, mut escaped) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        if c == ',' && !escaped {
            parts.push(&text[begin..at]);
            begin = at + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    parts.push(&text[begin..]);
    parts
}

/// `\\`, `\,` and `\=` stand for the character; any other escape, and a bare separator, is an error.
fn unescape(text: &str) -> Option<String> {
    let (mut plain, mut chars) = (String::new(), text.chars());
    while let Some(c) = chars.next() {
        match c {
            '\\' => plain.push(chars.next().filter(|next| matches!(next, '\\' | ',' | '='))?),
            ',' | '=' => return None,
            other => plain.push(other),
        }
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::registry::Registry;

    fn info(group: &str, version: &str, plural: &str) -> std::sync::Arc<ResourceInfo> {
        let registry = Registry::new();
        registry.add_definition(&json!({"metadata": {"name": "foos.x.io"}, "spec": {"group": "x.io", "scope": "Namespaced",
            "names": {"plural": "foos", "kind": "Foo"}, "versions": [{"name": "v1", "served": true, "storage": true,
            "selectableFields": [{"jsonPath": ".spec.colour"}], "schema": {"openAPIV3Schema": {"type": "object"}}}]}}));
        registry.find(group, version, plural).unwrap()
    }

    #[test]
    fn fields_are_compared_as_kubernetes_does() {
        let pod =
            json!({"metadata": {"name": "n"}, "spec": {"nodeName": "x"}, "status": {"phase": "Running"}});
        let event =
            json!({"involvedObject": {"name": "p"}, "source": {"component": "c"}, "reportingComponent": "r"});
        let cases = [
            (info("", "v1", "pods"), &pod, "metadata.name=n", true),
            (info("", "v1", "pods"), &pod, "spec.nodeName!=x", false),
            (info("", "v1", "pods"), &pod, "status.phase==Running, spec.host=x", true),
            (info("", "v1", "pods"), &pod, "spec.hostNetwork=false", true),
            (info("", "v1", "pods"), &pod, "status.podIP=", true),
            (info("", "v1", "pods"), &pod, "metadata.name=a\\,b", false),
            (info("", "v1", "nodes"), &json!({}), "spec.unschedulable=false", true),
            (
                info("", "v1", "nodes"),
                &json!({"spec": {"unschedulable": true}}),
                "spec.unschedulable=false",
                false,
            ),
            (info("batch", "v1", "jobs"), &json!({"status": {"succeeded": 1}}), "status.successful=1", true),
            (info("batch", "v1", "jobs"), &json!({}), "status.successful=0", true),
            (info("apps", "v1", "replicasets"), &json!({}), "status.replicas=0", true),
            (info("", "v1", "events"), &event, "involvedObject.name=p,source=c", true),
            (info("", "v1", "events"), &json!({"reportingComponent": "r"}), "source=r", true),
            (info("events.k8s.io", "v1", "events"), &event, "regarding.name=p,reportingController=r", true),
            (info("x.io", "v1", "foos"), &json!({"spec": {"colour": "red"}}), "spec.colour!=red", false),
        ];
        for (info, object, text, expected) in cases {
            let fields = Fields::parse(text).unwrap().for_resource(&info).unwrap();
            assert_eq!(fields.matches(object), expected, "{} {text}", info.plural);
        }
    }

    #[test]
    fn a_field_that_is_no_field_of_the_kind_is_refused() {
        let cases = [
            (info("", "v1", "pods"), "status.phas!=Running"),
            (info("", "v1", "pods"), "status.qosClass=BestEffort"),
            (info("", "v1", "pods"), "spec.containers=x"),
            (info("", "v1", "pods"), "metadata.labels.app=web"),
            (info("", "v1", "configmaps"), "spec.nodeName=x"),
            (info("events.k8s.io", "v1", "events"), "involvedObject.name=x"),
            (info("x.io", "v1", "foos"), "spec.size=1"),
        ];
        for (info, text) in cases {
            let refusal = Fields::parse(text).unwrap().for_resource(&info).unwrap_err();
            assert_eq!(refusal.code, 400);
            assert!(refusal.message.starts_with("field label not supported: "), "{}", refusal.message);
        }
        for text in ["a", "metadata.name=a=b", "metadata.name=a\\b", "metadata.name=a\\"] {
            assert!(Fields::parse(text).is_err(), "{text}");
        }
    }
}
