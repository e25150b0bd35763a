// SPDX-License-Identifier: Apache-2.0
//! One request: which policies judge it where, what they say, and what had to be assumed.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use meltemi_model::authz::Policy;
use meltemi_model::{NamespacedName, SpiffeId};
use meltemi_policy::http::{Normalization, normalize, readings};
use meltemi_policy::{Decision, Explanation, Facts, Headers, HttpFacts, PolicySet};
use meltemi_resources::policies::AuthorizationPolicySpec;
use meltemi_translate::MeshConfig;
use meltemi_translate::security::authorization::{self, Authorization, Reference};
use meltemi_translate::security::layer4;
use serde::Serialize;
use serde_json::Value;

/// What is asked.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The client: namespace and ServiceAccount.
    pub from: (String, String),
    /// The Service: namespace and name.
    pub to: (String, String),
    /// Port of the Service; its first one when none.
    pub port: Option<u16>,
    /// HTTP method.
    pub method: Option<String>,
    /// HTTP path.
    pub path: Option<String>,
    /// HTTP headers.
    pub headers: Vec<(String, String)>,
}

/// The verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// It may.
    Allow,
    /// It may not.
    Deny,
    /// It depends on what was not told.
    Unknown,
}

/// The verdict with its reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// The verdict.
    pub verdict: Verdict,
    /// The policy that decided, or came closest.
    pub policy: Option<String>,
    /// Index of its rule.
    pub rule: Option<u32>,
    /// The clause that decided.
    pub clause: Option<String>,
    /// `node proxy` or `waypoint <ns>/<name>`.
    pub enforced_at: Option<String>,
    /// A sentence.
    pub reason: String,
    /// What the objects lack and was assumed.
    pub assumed: Vec<String>,
}

struct World<'a> {
    objects: &'a [Value],
    mesh: MeshConfig,
    assumed: Vec<String>,
}

/// Decides a request by the objects: Namespaces, Services, Gateways, ServiceAccounts and AuthorizationPolicies matter.
///
/// # Errors
/// A policy among the objects is invalid.
pub fn explain(objects: &[Value], request: &Request) -> Result<Answer, String> {
    let mut world = World { objects, mesh: MeshConfig::default(), assumed: Vec::new() };
    let policies = world.policies()?;
    let service = world.find("Service", &request.to.0, &request.to.1).cloned();
    if service.is_none() {
        world.assumed.push(format!(
            "Service {}/{} exists and selects Pods labelled app={}",
            request.to.0, request.to.1, request.to.1
        ));
    }
    if world.find("ServiceAccount", &request.from.0, &request.from.1).is_none() {
        world.assumed.push(format!("ServiceAccount {}/{} exists", request.from.0, request.from.1));
    }
    let labels = world.pod_labels(service.as_ref(), request);
    let (service_port, target_port) = ports(service.as_ref(), request.port);
    let client = identity(&world.mesh, &request.from.0, &request.from.1)?;
    let targeted: Vec<Arc<Policy>> = policies
        .iter()
        .filter(|p| {
            p.policy.name.namespace.as_ref() == request.to.0
                && p.targets.contains(&Reference::Service(request.to.1.clone()))
        })
        .map(|p| Arc::new(p.policy.clone()))
        .collect();
    let waypoint = world.waypoint(service.as_ref(), request, !targeted.is_empty());
    let mut peer = client.clone();
    if let Some((namespace, name)) = waypoint {
        let place = format!("waypoint {namespace}/{name}");
        let gateway = policies.iter().filter(|p| {
            *p.policy.name.namespace == *namespace && p.targets.contains(&Reference::Gateway(name.clone()))
        });
        let all = targeted.iter().cloned().chain(gateway.map(|p| Arc::new(p.policy.clone())));
        let set = PolicySet::compile(all).map_err(|e| e.to_string())?;
        if let Some(answer) = at_waypoint(&set, &client, service_port, request, &place, &mut world)? {
            return Ok(answer);
        }
        peer = identity(&world.mesh, &namespace, &name)?;
    }
    let set = PolicySet::compile(
        policies
            .iter()
            .filter(|p| selects(p, &request.to.0, &labels))
            .filter_map(|p| layer4::project(p).policy.map(Arc::new)),
    )
    .map_err(|e| e.to_string())?;
    let facts = facts(&peer, target_port, None);
    let why = meltemi_policy::explain(&set, &facts);
    let mut answer = answer(&why, "node proxy", world.assumed);
    if peer != client && answer.verdict == Verdict::Deny {
        answer.reason = format!(
            "{}; the connection comes from the waypoint ({peer}), which this policy does not admit",
            answer.reason
        );
    }
    Ok(answer)
}

/// The waypoint's half: an answer when it denies or cannot tell, none when it lets through.
fn at_waypoint(
    set: &PolicySet,
    client: &SpiffeId,
    port: u16,
    request: &Request,
    place: &str,
    world: &mut World<'_>,
) -> Result<Option<Answer>, String> {
    let judge = |method: &str, path: &str| -> Result<Explanation, String> {
        let normal = normalize(path, Normalization::Base).map_err(|e| format!("--path: {e}"))?;
        let (paths, headers) = (readings(&normal), Fields(&request.headers));
        let http = HttpFacts {
            method,
            host: &request.to.1,
            paths: &paths,
            headers: &headers,
            remote_ip: None,
            claims: None,
        };
        Ok(meltemi_policy::explain(set, &facts(client, port, Some(http))))
    };
    let method = request.method.as_deref();
    let path = request.path.as_deref();
    let why = judge(method.unwrap_or("GET"), path.unwrap_or("/"))?;
    if method.is_none() || path.is_none() {
        // What was not told must not matter: another method and path must be decided alike.
        let other = judge(method.unwrap_or("X-OTHER"), path.unwrap_or("/x-other/path"))?;
        if other.decision.is_allow() != why.decision.is_allow() {
            let mut unknown = answer(&why, place, std::mem::take(&mut world.assumed));
            unknown.verdict = Verdict::Unknown;
            unknown.reason = "the policies look at method or path: say --method and --path".into();
            return Ok(Some(unknown));
        }
    }
    if why.decision.is_allow() {
        return Ok(None);
    }
    Ok(Some(answer(&why, place, std::mem::take(&mut world.assumed))))
}

fn answer(why: &Explanation, place: &str, assumed: Vec<String>) -> Answer {
    let verdict = match why.decision {
        Decision::Allow { .. } => Verdict::Allow,
        Decision::Deny { .. } => Verdict::Deny,
        Decision::Ask { .. } | Decision::Undecided { .. } => Verdict::Unknown,
    };
    Answer {
        verdict,
        policy: why.policy.as_ref().map(ToString::to_string),
        rule: why.rule,
        clause: why.clause.clone(),
        enforced_at: Some(place.to_owned()),
        reason: why.text.clone(),
        assumed,
    }
}

struct Fields<'a>(&'a [(String, String)]);

impl Headers for Fields<'_> {
    fn each(&self, name: &str, with: &mut dyn FnMut(&str)) {
        self.0.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).for_each(|(_, v)| with(v));
    }
}

fn facts<'a>(source: &'a SpiffeId, port: u16, http: Option<HttpFacts<'a>>) -> Facts<'a> {
    let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    Facts {
        source: Some(source),
        source_ip: nowhere,
        destination_ip: nowhere,
        destination_port: port,
        sni: None,
        http,
    }
}

fn identity(mesh: &MeshConfig, namespace: &str, account: &str) -> Result<SpiffeId, String> {
    SpiffeId::new(&mesh.trust_domain, namespace, account).map_err(|e| e.to_string())
}

/// Port of the Service and of its Pods.
fn ports(service: Option<&Value>, wanted: Option<u16>) -> (u16, u16) {
    let list = service.and_then(|s| s["spec"]["ports"].as_array()).map(Vec::as_slice).unwrap_or_default();
    let number = |value: &Value| value.as_u64().and_then(|n| u16::try_from(n).ok());
    let found = list.iter().find(|p| wanted.is_none_or(|w| number(&p["port"]) == Some(w)));
    let port = wanted.or_else(|| found.and_then(|p| number(&p["port"]))).unwrap_or(80);
    (port, found.and_then(|p| number(&p["targetPort"])).unwrap_or(port))
}

fn selects(policy: &Authorization, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
    let name: &NamespacedName = &policy.policy.name;
    let near = *name.namespace == *namespace || *name.namespace == *"istio-system";
    near && policy.targets.is_empty()
        && policy.selector.as_ref().is_none_or(|wanted| wanted.iter().all(|(k, v)| labels.get(k) == Some(v)))
}

impl World<'_> {
    fn find(&self, kind: &str, namespace: &str, name: &str) -> Option<&Value> {
        self.objects.iter().find(|o| {
            let place = o["metadata"]["namespace"].as_str().unwrap_or(if kind == "Namespace" {
                ""
            } else {
                "default"
            });
            o["kind"] == kind && o["metadata"]["name"] == name && place == namespace
        })
    }

    fn policies(&self) -> Result<Vec<Authorization>, String> {
        let mut all = Vec::new();
        for object in self.objects.iter().filter(|o| o["kind"] == "AuthorizationPolicy") {
            let metadata = &object["metadata"];
            let name = metadata["name"].as_str().unwrap_or_default();
            let name = NamespacedName::new(metadata["namespace"].as_str().unwrap_or("default"), name);
            let wrong = |e: String| format!("AuthorizationPolicy {name}: {e}");
            let spec = object.get("spec").cloned().unwrap_or_else(|| serde_json::json!({}));
            let spec: AuthorizationPolicySpec =
                serde_json::from_value(spec).map_err(|e| wrong(format!("spec: {e}")))?;
            let texts = |map: &Value| {
                let pairs = map.as_object().into_iter().flatten();
                pairs.map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned())).collect()
            };
            let read = authorization::read(&name, &spec, &texts(&metadata["annotations"]), &self.mesh);
            all.push(read.map_err(wrong)?);
        }
        Ok(all)
    }

    /// Labels of the Service's Pods: of a workload that it selects, else what it selects by.
    fn pod_labels(&self, service: Option<&Value>, request: &Request) -> BTreeMap<String, String> {
        let texts = |map: &Value| -> BTreeMap<String, String> {
            let pairs = map.as_object().into_iter().flatten();
            pairs.map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned())).collect()
        };
        let Some(service) = service else { return [("app".to_owned(), request.to.1.clone())].into() };
        let selector = texts(&service["spec"]["selector"]);
        let of_pods = self.objects.iter().filter_map(|o| match o["kind"].as_str() {
            Some("Pod") => Some(texts(&o["metadata"]["labels"])),
            Some("Deployment" | "DaemonSet" | "StatefulSet") => {
                Some(texts(&o["spec"]["template"]["metadata"]["labels"]))
            }
            _ => None,
        });
        let mut fitting = of_pods.filter(|labels| selector.iter().all(|(k, v)| labels.get(k) == Some(v)));
        fitting.next().unwrap_or(selector)
    }

    /// The waypoint that requests to the Service go through.
    fn waypoint(
        &mut self,
        service: Option<&Value>,
        request: &Request,
        targeted: bool,
    ) -> Option<(String, String)> {
        let namespace = self.find("Namespace", "", &request.to.0);
        let labels = [service.map(|s| &s["metadata"]["labels"]), namespace.map(|n| &n["metadata"]["labels"])];
        let said = labels.into_iter().flatten().find_map(|l| {
            let name = l["istio.io/use-waypoint"].as_str()?;
            let place = l["istio.io/use-waypoint-namespace"].as_str().unwrap_or(&request.to.0);
            Some((place.to_owned(), name.to_owned()))
        });
        match said {
            Some((_, name)) if name == "none" => None,
            Some(found) => Some(found),
            None if targeted && (service.is_none() || namespace.is_none()) => {
                self.assumed.push(format!(
                    "Service {}/{} uses the waypoint \"waypoint\"",
                    request.to.0, request.to.1
                ));
                Some((request.to.0.clone(), "waypoint".to_owned()))
            }
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn policies() -> Vec<Value> {
        vec![
            json!({"kind": "AuthorizationPolicy", "metadata": {"name": "l4", "namespace": "default"}, "spec": {
                "selector": {"matchLabels": {"app": "web"}},
                "rules": [{"from": [{"source": {"principals": ["cluster.local/ns/default/sa/gw"]}}]}]}}),
            json!({"kind": "AuthorizationPolicy", "metadata": {"name": "l7", "namespace": "default"}, "spec": {
                "targetRefs": [{"kind": "Service", "group": "", "name": "web"}],
                "rules": [{"from": [{"source": {"principals": ["cluster.local/ns/default/sa/curl"]}}],
                           "to": [{"operation": {"methods": ["GET"]}}]}]}}),
        ]
    }

    fn ask(objects: &[Value], from: &str, method: Option<&str>) -> Answer {
        let request = Request {
            from: ("default".into(), from.into()),
            to: ("default".into(), "web".into()),
            method: method.map(str::to_owned),
            path: method.map(|_| "/".into()),
            ..Request::default()
        };
        explain(objects, &request).unwrap()
    }

    #[test]
    fn both_layers_and_what_was_not_told() {
        let mut objects = policies();
        let only_l4 = &objects[..1];
        assert_eq!(ask(only_l4, "gw", None).verdict, Verdict::Allow);
        let denied = ask(only_l4, "curl", None);
        assert_eq!((denied.verdict, denied.policy.as_deref()), (Verdict::Deny, Some("default/l4")));
        assert_eq!(denied.enforced_at.as_deref(), Some("node proxy"));
        assert!(denied.assumed.iter().any(|a| a.contains("Service default/web")));
        // With the waypoint: the layer 7 policy first, then the trap of the layer 4 policy that forgets the waypoint.
        assert_eq!(ask(&objects, "curl", None).verdict, Verdict::Unknown);
        assert_eq!(
            ask(&objects, "curl", Some("DELETE")).enforced_at.as_deref(),
            Some("waypoint default/waypoint")
        );
        let trap = ask(&objects, "curl", Some("GET"));
        assert!(trap.verdict == Verdict::Deny && trap.reason.contains("comes from the waypoint"), "{trap:?}");
        objects[0]["spec"]["rules"][0]["from"][0]["source"]["principals"] =
            json!(["cluster.local/ns/default/sa/gw", "cluster.local/ns/default/sa/waypoint"]);
        assert_eq!(ask(&objects, "curl", Some("GET")).verdict, Verdict::Allow);
    }
}
