// SPDX-License-Identifier: Apache-2.0
//! Whether what goes to a Pod passes a node proxy, so that a policy for node proxies holds for it.

use crate::facts::{Capture, Labels, PodFacts};
use crate::labels;

/// How many Pods or namespaces a message names.
const NAMED: usize = 5;

/// Where the traffic of a Pod passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Passage {
    /// A node proxy of the mesh.
    Proxy,
    /// None yet, and nothing can be reached: the Pod has ended or has not started.
    Nothing,
    /// No proxy: neither the Pod nor its namespace asks for the mesh.
    Outside,
    /// No proxy, for this reason, although the Pod or its namespace asks for the mesh.
    Open(String),
}

/// What [`passage`] looks at.
type PassageFacts<'a> = (&'a Labels, &'a Capture, [bool; 7]);

impl PodFacts {
    /// What decides whether the Pod's traffic passes a node proxy: equal facts, equal passage.
    pub fn passage_facts(&self) -> PassageFacts<'_> {
        let flags = [
            self.alive,
            self.running,
            self.enrolled,
            self.host_network,
            self.bypasses_inbound,
            self.has_sidecar,
            self.ips.is_empty(),
        ];
        (&self.labels, &self.capture, flags)
    }
}

/// Decides where the traffic of a Pod passes; `namespace`: the labels of its namespace.
///
/// The condition that the agent of the node writes comes first: it takes rights on the status of Pods to write it. Labels and
/// annotations are written by whoever may change the Pod, so that they only count against it.
pub fn passage(pod: &PodFacts, namespace: &Labels) -> Passage {
    if !pod.alive {
        return Passage::Nothing;
    }
    match &pod.capture {
        Capture::Captured => return Passage::Proxy,
        Capture::NotCaptured(why) => return Passage::Open(why.clone()),
        Capture::Unknown if pod.ips.is_empty() => return Passage::Nothing,
        Capture::Unknown => {}
    }
    let own = pod.labels.get(labels::DATAPLANE_MODE).map(String::as_str);
    let of_namespace = namespace.get(labels::DATAPLANE_MODE).map(String::as_str);
    if own != Some("ambient") && of_namespace != Some("ambient") {
        return Passage::Outside;
    }
    if pod.host_network {
        return Passage::Open("on the network of its node".to_owned());
    }
    if pod.has_sidecar {
        return Passage::Open(format!("annotation {}: it has a sidecar", labels::SIDECAR_STATUS));
    }
    if own == Some("none") {
        return Passage::Open(format!("label {}=none", labels::DATAPLANE_MODE));
    }
    if pod.bypasses_inbound {
        return Passage::Open(format!("annotation {}", labels::BYPASS_INBOUND));
    }
    match (pod.enrolled, pod.running) {
        (true, _) => Passage::Proxy,
        (false, true) => Passage::Open("not captured yet".to_owned()),
        // A Pod of the mesh is captured before it starts.
        (false, false) => Passage::Nothing,
    }
}

/// The first few of a list as a text, and how many more there are.
pub fn listed(all: &[String]) -> String {
    let first = all.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(NAMED) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_names_the_first_few_and_counts_the_rest() {
        let pods = |count: usize| (1..=count).map(|n| format!("p{n}")).collect::<Vec<_>>();
        assert_eq!(listed(&pods(NAMED)), "p1, p2, p3, p4, p5");
        assert_eq!(listed(&pods(10_000)), "p1, p2, p3, p4, p5 and 9995 more");
    }

    #[test]
    fn labels_and_annotations_count_against_a_pod_only() {
        let enrolled = json!({"ambient.istio.io/redirection": "enabled"});
        let sidecar = json!({"ambient.istio.io/redirection": "enabled", labels::SIDECAR_STATUS: "{}"});
        let bypass = json!({"ambient.istio.io/redirection": "enabled", labels::BYPASS_INBOUND: "true"});
        let condition =
            |status: &str| json!([{"type": labels::CAPTURED, "status": status, "message": "why"}]);
        let open = |why: &str| Passage::Open(why.to_owned());
        let none = json!({labels::DATAPLANE_MODE: "none"});
        let own = json!({labels::DATAPLANE_MODE: "ambient"});
        let no = json!(null);
        for (labels, annotations, host, phase, conditions, ambient, expected) in [
            (&no, &enrolled, false, "Running", &no, true, Passage::Proxy),
            (&no, &no, false, "Running", &condition("True"), true, Passage::Proxy),
            (&no, &enrolled, false, "Running", &condition("False"), true, open("why")),
            (&no, &no, false, "Pending", &condition("False"), true, open("why")),
            (&no, &no, false, "Running", &no, true, open("not captured yet")),
            (&no, &no, false, "Pending", &no, true, Passage::Nothing),
            (&no, &enrolled, false, "Succeeded", &no, true, Passage::Nothing),
            // The annotation is one that anybody may write.
            (&no, &enrolled, false, "Running", &no, false, Passage::Outside),
            (&own, &enrolled, false, "Running", &no, false, Passage::Proxy),
            (&none, &enrolled, false, "Running", &no, true, open("label istio.io/dataplane-mode=none")),
            (&no, &enrolled, true, "Running", &no, true, open("on the network of its node")),
            (
                &no,
                &sidecar,
                false,
                "Running",
                &no,
                true,
                open("annotation sidecar.istio.io/status: it has a sidecar"),
            ),
            // Who can write the condition has seen that it is captured all the same.
            (&no, &sidecar, false, "Running", &condition("True"), true, Passage::Proxy),
            (
                &no,
                &bypass,
                false,
                "Running",
                &no,
                true,
                open("annotation ambient.istio.io/bypass-inbound-capture"),
            ),
        ] {
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {"name": "p", "namespace": "n", "labels": labels, "annotations": annotations},
                "spec": {"containers": [], "hostNetwork": host},
                "status": {"phase": phase, "podIP": "10.0.0.1", "conditions": conditions},
            }))
            .unwrap();
            let namespace = if ambient { own.clone() } else { json!({}) };
            let namespace = serde_json::from_value(namespace).unwrap();
            let got = passage(&PodFacts::read(&pod), &namespace);
            assert_eq!(got, expected, "{labels} {annotations} {host} {phase} {conditions} {ambient}");
        }
    }

    #[test]
    fn a_list_is_cut() {
        let all: Vec<String> = (0..7).map(|n| n.to_string()).collect();
        assert_eq!(listed(&all[..2]), "0, 1");
        assert_eq!(listed(&all), "0, 1, 2, 3, 4 and 2 more");
    }
}
