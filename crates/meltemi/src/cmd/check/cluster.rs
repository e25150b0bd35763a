// SPDX-License-Identifier: Apache-2.0
//! The cluster itself: its version, the definitions that are in it, and who else is.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, Namespace, PodSpec};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt as _;

use super::facts::{DEFINITIONS, Facts, SYSTEM};
use super::{Fault, Rule, listed};

/// The oldest Kubernetes that the mesh is made for: 1.MINOR.
const MINOR: u32 = 30;
/// First argument of every component of the mesh, whatever its image is called.
const ROLE: &str = "serve";
/// Version of the definitions, as Gateway API writes it into them.
const BUNDLE: &str = "gateway.networking.k8s.io/bundle-version";
/// How strictly a namespace's Pods are judged.
const POD_SECURITY: &str = "pod-security.kubernetes.io/enforce";
const INSTALL: &str = "meltemi install";

/// What holds before an installation and after it.
pub(super) const RULES: &[Rule] = &[
    Rule { category: "cluster", name: "the version of Kubernetes is supported", needs: &[], look: version },
    Rule {
        category: "cluster",
        name: "the namespace of the mesh lets its node proxies run",
        needs: &["namespaces"],
        look: pod_security,
    },
    Rule {
        category: "cluster",
        name: "no other mesh captures Pods here",
        needs: &["daemonsets"],
        look: other_agents,
    },
    Rule {
        category: "definitions",
        name: "Gateway API is served as the mesh reads it",
        needs: &["customresourcedefinitions"],
        look: gateway_api,
    },
];

/// What holds before an installation only.
pub(super) const PRE: &[Rule] = &[
    Rule {
        category: "installation",
        name: "you may install every object",
        needs: &["selfsubjectaccessreviews"],
        look: rights,
    },
    Rule {
        category: "installation",
        name: "no control plane of Istio is in the place of the mesh's",
        needs: &["deployments"],
        look: istiod,
    },
];

fn version(facts: &Facts) -> Result<String, Fault> {
    let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().ok();
    let mut parts = facts.version.trim_start_matches('v').split('.');
    let (major, minor) = (parts.next().and_then(number), parts.next().and_then(number));
    match (major, minor) {
        (Some(1), Some(minor)) if minor >= MINOR => Ok(facts.version.clone()),
        _ => Err(Fault::failed(
            format!("{:?}", facts.version),
            format!("use Kubernetes 1.{MINOR} or later: the mesh is tried with those only"),
        )),
    }
}

fn pod_security(facts: &Facts) -> Result<String, Fault> {
    let enforced = |namespace: &Namespace| namespace.labels().get(POD_SECURITY).cloned();
    let namespace = facts.namespaces.iter().find(|namespace| namespace.name_any() == SYSTEM);
    match namespace.and_then(enforced) {
        Some(level) if level != "privileged" => Err(Fault::failed(
            format!("namespace {SYSTEM} has {POD_SECURITY}={level}: Pods of ds/ztunnel are refused"),
            format!("kubectl label namespace {SYSTEM} {POD_SECURITY}=privileged --overwrite"),
        )),
        _ => Ok(String::new()),
    }
}

/// Whether every container is one of the mesh's.
fn is_ours(pod: Option<&PodSpec>) -> bool {
    let has_role = |container: &Container| {
        container.args.as_ref().and_then(|args| args.first()).is_some_and(|first| first == ROLE)
    };
    pod.is_some_and(|pod| pod.containers.iter().all(has_role))
}

fn other_agents(facts: &Facts) -> Result<String, Fault> {
    let is_other = |set: &&DaemonSet| {
        let labels = set.spec.as_ref().and_then(|spec| spec.template.metadata.as_ref()?.labels.as_ref());
        let has =
            |key: &str, value: &str| labels.is_some_and(|labels| labels.get(key).is_some_and(|v| v == value));
        let pod = set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
        has("k8s-app", "istio-cni-node") || has("app", "ztunnel") && !is_ours(pod)
    };
    let others: Vec<String> = { facts.daemon_sets.iter() }
        .filter(is_other)
        .map(|set| format!("{}/{}", set.namespace().unwrap_or_default(), set.name_any()))
        .collect();
    if others.is_empty() {
        return Ok(String::new());
    }
    Err(Fault::failed(
        format!("DaemonSets {}: two agents would capture the same Pods", listed(&others)),
        "take Istio's ambient mode out first: istioctl uninstall --purge, or helm uninstall of its charts cni and ztunnel",
    ))
}

fn gateway_api(facts: &Facts) -> Result<String, Fault> {
    let (mut missing, mut not_served, mut versions) = (Vec::new(), Vec::new(), Vec::new());
    let names = DEFINITIONS.iter().filter(|name| name.ends_with(".gateway.networking.k8s.io"));
    let all = names.clone().count();
    for name in names {
        let Some(definition) = facts.definitions.iter().find(|d| d.name_any() == **name) else {
            missing.push((*name).to_owned());
            continue;
        };
        if !serves(definition, "v1") {
            not_served.push((*name).to_owned());
        }
        versions.extend(definition.annotations().get(BUNDLE).cloned());
    }
    versions.sort_unstable();
    versions.dedup();
    if missing.len() == all && facts.pre {
        return Ok("not there: the installation brings it".to_owned());
    }
    if missing.len() == all {
        return Err(Fault::warning(
            "not there: no waypoint, no gateway and no route can be written",
            format!("{INSTALL}: it brings the definitions that are missing"),
        ));
    }
    let found =
        format!("version {}", if versions.is_empty() { "unknown".to_owned() } else { listed(&versions) });
    match (missing.is_empty(), not_served.is_empty()) {
        (true, true) => Ok(found),
        (false, _) => Err(Fault::warning(
            format!("{found}; without {}: the mesh does without this kind", listed(&missing)),
            format!("{INSTALL}, or install the definitions of a newer Gateway API"),
        )),
        (true, false) => Err(Fault::warning(
            format!("{found}; {} is read in an older version, and has no status", listed(&not_served)),
            "install the definitions of a newer Gateway API",
        )),
    }
}

/// Whether a definition serves a version.
pub(super) fn serves(definition: &CustomResourceDefinition, version: &str) -> bool {
    definition.spec.versions.iter().any(|served| served.name == version && served.served)
}

fn rights(facts: &Facts) -> Result<String, Fault> {
    if facts.denied.is_empty() {
        return Ok(String::new());
    }
    Err(Fault::failed(
        format!("you may not: {}", listed(&facts.denied)),
        "use a kubeconfig with the rights of cluster-admin: the mesh has definitions, ClusterRoles and privileged Pods",
    ))
}

fn istiod(facts: &Facts) -> Result<String, Fault> {
    let Some(deployment) = &facts.control_plane else { return Ok(String::new()) };
    let pod = deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    if is_ours(pod) {
        return Ok("the mesh is installed already".to_owned());
    }
    let images: Vec<String> =
        pod.into_iter().flat_map(|pod| pod.containers.iter().filter_map(|c| c.image.clone())).collect();
    Err(Fault::failed(
        format!("deploy/istiod in {SYSTEM} runs {}: the installation would replace it", listed(&images)),
        "remove Istio first (istioctl uninstall --purge); its policies and routes stay and are read by the mesh",
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::State;
    use super::*;

    fn state(result: Result<String, Fault>) -> State {
        result.map_or_else(|fault| fault.state, |_| State::Ok)
    }

    #[test]
    fn versions_are_compared_by_number() {
        for (version, expected) in [
            ("v1.34.4", State::Ok),
            ("v1.30.0-gke.1", State::Ok),
            ("v1.30+", State::Ok),
            ("v1.100.0", State::Ok),
            ("v1.29.9", State::Failed),
            ("v1.9.0", State::Failed),
            ("v2.0.0", State::Failed),
            ("", State::Failed),
        ] {
            let facts = Facts { version: version.to_owned(), ..Facts::default() };
            assert_eq!(state(super::version(&facts)), expected, "{version}");
        }
    }

    #[test]
    fn a_namespace_that_refuses_the_node_proxies_is_found() {
        for (labels, expected) in [
            (json!({}), State::Ok),
            (json!({POD_SECURITY: "privileged"}), State::Ok),
            (json!({POD_SECURITY: "baseline"}), State::Failed),
            (json!({POD_SECURITY: "restricted"}), State::Failed),
        ] {
            let namespace = json!({"metadata": {"name": SYSTEM, "labels": labels}});
            let facts =
                Facts { namespaces: vec![serde_json::from_value(namespace).unwrap()], ..Facts::default() };
            assert_eq!(state(pod_security(&facts)), expected, "{labels}");
        }
    }

    fn daemon_set(labels: &Value, args: &Value) -> DaemonSet {
        serde_json::from_value(json!({
            "metadata": {"name": "x", "namespace": "y"},
            "spec": {"selector": {}, "template": {"metadata": {"labels": labels},
                "spec": {"containers": [{"name": "a", "args": args}]}}},
        }))
        .unwrap()
    }

    #[test]
    fn other_agents_are_found_and_the_own_one_is_none() {
        let (ztunnel, cni) = (json!({"app": "ztunnel"}), json!({"k8s-app": "istio-cni-node"}));
        let (ours, theirs) = (json!(["serve", "node"]), json!(["proxy", "ztunnel"]));
        for (labels, args, expected) in [
            (&ztunnel, &ours, State::Ok),
            (&ztunnel, &theirs, State::Failed),
            (&ztunnel, &Value::Null, State::Failed),
            (&cni, &ours, State::Failed),
            (&json!({"app": "web"}), &Value::Null, State::Ok),
        ] {
            let facts = Facts { daemon_sets: vec![daemon_set(labels, args)], ..Facts::default() };
            assert_eq!(state(other_agents(&facts)), expected, "{labels} {args}");
        }
    }

    fn definition(name: &str, versions: &[(&str, bool)]) -> CustomResourceDefinition {
        let versions: Vec<Value> = versions
            .iter()
            .map(|(name, served)| json!({"name": name, "served": served, "storage": false}))
            .collect();
        serde_json::from_value(json!({
            "metadata": {"name": name, "annotations": {BUNDLE: "v1.4.0"}},
            "spec": {"group": "", "names": {"kind": "", "plural": ""}, "scope": "", "versions": versions},
        }))
        .unwrap()
    }

    #[test]
    fn a_part_of_gateway_api_is_named() {
        let all = &DEFINITIONS[..6];
        let with = |versions: &dyn Fn(&str) -> Vec<(&'static str, bool)>| {
            let definitions = all.iter().map(|name| definition(name, &versions(name)));
            Facts {
                definitions: definitions.filter(|d| !d.spec.versions.is_empty()).collect(),
                ..Facts::default()
            }
        };
        let whole = with(&|_| vec![("v1", true)]);
        assert_eq!(gateway_api(&whole), Ok("version v1.4.0".to_owned()));
        let grants_of_old = with(&|n| {
            if n.starts_with("ref") { vec![("v1beta1", true), ("v1", false)] } else { vec![("v1", true)] }
        });
        let without = with(&|n| if n.starts_with("grpc") { vec![] } else { vec![("v1", true)] });
        for (facts, text) in [
            (&grants_of_old, "referencegrants.gateway.networking.k8s.io is read in an older version"),
            (&without, "without grpcroutes.gateway.networking.k8s.io"),
            (&Facts::default(), "not there"),
        ] {
            let fault = gateway_api(facts).unwrap_err();
            assert!(fault.state == State::Warning && fault.detail.contains(text), "{}", fault.detail);
        }
        assert!(gateway_api(&Facts { pre: true, ..Facts::default() }).is_ok(), "the installation brings it");
    }

    #[test]
    fn istios_control_plane_is_told_from_the_own_one() {
        let deployment = |role: &str| {
            serde_json::from_value(
                json!({"metadata": {"name": "istiod"}, "spec": {"selector": {}, "template":
                {"spec": {"containers": [{"name": "discovery", "image": "x", "args": [role]}]}}}}),
            )
            .unwrap()
        };
        for (role, expected) in [("discovery", State::Failed), ("serve", State::Ok)] {
            let facts = Facts { control_plane: Some(deployment(role)), ..Facts::default() };
            assert_eq!(state(istiod(&facts)), expected, "{role}");
        }
        let facts = Facts { denied: vec!["create clusterroles".to_owned()], ..Facts::default() };
        assert_eq!((state(rights(&facts)), state(istiod(&facts))), (State::Failed, State::Ok));
    }
}
