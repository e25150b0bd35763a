// SPDX-License-Identifier: Apache-2.0
//! What `analyze` finds in policies, for their status: the control plane's question in the words of the proofs.

use meltemi_analysis::{Finding, World, findings, suspicious, world};
use meltemi_control::review::{Remark, Remarks, Subject, TargetedService};
use meltemi_model::NamespacedName;
use meltemi_translate::gateways::classes::Class;

/// Reviews all policies. PeerAuthentications are left out: without them fewer rules are found, never others.
pub fn review(subject: &Subject, go_on: &dyn Fn() -> bool) -> Remarks {
    let mut world = World { mesh: subject.mesh.clone(), complete: true, ..World::default() };
    let policies = subject.policies.iter();
    world.policies = policies.map(|(name, policy)| (name.clone(), (**policy).clone())).collect();
    let service = |known: &TargetedService| {
        let TargetedService { labels, ports, streams } = known.clone();
        world::Service { labels, ports, streams, ..Default::default() }
    };
    world.services = subject.services.iter().map(|(name, labels)| (name.clone(), service(labels))).collect();
    let pods = subject.pods.iter().enumerate().map(|(at, pod)| world::Workload {
        labels: pod.labels.clone(),
        listens: pod.ports.clone(),
        ..world::Workload::new("Pod", NamespacedName::new(pod.namespace.clone(), at.to_string()))
    });
    world.workloads = pods.collect();
    let namespaces = subject.namespaces.iter();
    world.namespaces = namespaces.map(|(name, labels)| (name.to_string(), labels.clone())).collect();
    for (name, pods) in &subject.ingress {
        let (class, pod_labels) = (Some(Class::Ingress), pods.clone());
        let account = Some(name.clone());
        let gateway = world::Gateway { class, pod_labels, account, ..Default::default() };
        world.gateways.insert(name.clone(), gateway);
    }
    let mut remarks = Remarks::new();
    for finding in suspicious(&world, go_on) {
        let reason = reason_of(&finding);
        let text = format!("{}. To mend it: {}.", finding.message, finding.fix);
        remarks.entry(finding.name).or_default().push(Remark { reason, text });
    }
    remarks
}

/// The word that a condition gives for a kind of finding.
fn reason_of(finding: &Finding) -> &'static str {
    let words = [
        (findings::NEVER, "RuleNeverMatches"),
        (findings::SHADOWED, "RuleChangesNothing"),
        (findings::LEAVES, "NearPathIsOpen"),
        (findings::EXEMPT, "ExemptionHasNoEffect"),
        (findings::STREAM, "FieldsAreNotSeen"),
    ];
    let found = words.iter().find(|(code, _)| code.code == finding.code);
    found.map_or("AllowsMoreThanItSeems", |(_, word)| word)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use meltemi_control::review::SelectedPod;
    use meltemi_translate::MeshConfig;
    use meltemi_translate::facts::Labels;
    use meltemi_translate::security::authorization;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    /// Namespace `shop` with a Service `web` behind a waypoint and an ingress gateway `gw`.
    fn shop(policies: &[(&str, &str)]) -> Subject {
        let mesh = MeshConfig::default();
        let name = |name: &str| NamespacedName::new("shop", name);
        let read = |(of, yaml): &(&str, &str)| {
            let spec = serde_yaml_ng::from_str(yaml).unwrap();
            let read = authorization::read(&name(of), &spec, &Labels::new(), &mesh).unwrap();
            (name(of), Arc::new(read))
        };
        Subject {
            policies: policies.iter().map(read).collect(),
            services: [("web", 80, 8080, None), ("db", 5432, 5432, Some(5432))]
                .map(|(of, port, target, stream)| {
                    let service = TargetedService {
                        labels: labels(&[("istio.io/use-waypoint", "wp")]),
                        ports: vec![(port, Some(target))],
                        streams: stream.into_iter().collect(),
                    };
                    (name(of), service)
                })
                .into(),
            pods: [SelectedPod {
                namespace: "shop".into(),
                labels: labels(&[("app", "plain")]),
                ports: [8080].into(),
            }]
            .into(),
            namespaces: [("shop".into(), Labels::new())].into(),
            ingress: [(
                name("gw"),
                vec![labels(&[("app", "edge"), ("gateway.networking.k8s.io/gateway-name", "gw")])],
            )]
            .into(),
            mesh: mesh.clone(),
        }
    }

    #[test]
    fn what_is_probably_not_meant_is_said_of_its_policy() {
        const TO_WEB: &str = "targetRefs: [{kind: Service, group: '', name: web}]\n";
        let get =
            |methods: &str| format!("{TO_WEB}rules: [{{to: [{{operation: {{methods: [{methods}]}}}}]}}]");
        let edge = "selector: {matchLabels: {app: edge}}\nrules: [{to: [{operation: {methods: [GET]}}]}]";
        let two = "rules: [{from: [{source: {namespaces: [a]}}, {source: {ipBlocks: [10.0.0.0/8]}}]}]";
        /// What it is about, the policies, and what is said of them: name, reason, text.
        type Case = (
            &'static str,
            Vec<(&'static str, String)>,
            &'static [(&'static str, &'static str, &'static str)],
        );
        let cases: [Case; 11] = [
            ("nothing", vec![("a", get("GET")), ("b", get("POST"))], &[]),
            (
                "methods are upper case",
                vec![("a", get("get"))],
                &[("a", "RuleNeverMatches", "rule[0] can never match")],
            ),
            (
                "the wider one says it all",
                vec![("all", get("'*'")), ("get", get("GET"))],
                &[("get", "RuleChangesNothing", "shop/all rule[0] allows all that it matches")],
            ),
            (
                "alternatives that were to be conditions",
                vec![("or", two.to_owned())],
                &[("or", "AllowsMoreThanItSeems", "are alternatives")],
            ),
            (
                "two rules of one",
                vec![(
                    "dash",
                    format!(
                        "{TO_WEB}rules: [{{from: [{{source: {{namespaces: [a]}}}}], to: [{{operation: {{methods: [GET]}}}}]}}, {{to: [{{operation: {{paths: [/x]}}}}]}}]"
                    ),
                )],
                &[("dash", "AllowsMoreThanItSeems", "rule[1] has no `from`")],
            ),
            (
                "a near path",
                vec![(
                    "near",
                    format!(
                        "{TO_WEB}action: DENY\nrules: [{{to: [{{operation: {{paths: ['/admin/*']}}}}]}}]"
                    ),
                )],
                &[("near", "NearPathIsOpen", "not /admin itself")],
            ),
            (
                "the Pods' port at a waypoint",
                vec![(
                    "port",
                    format!("{TO_WEB}action: DENY\nrules: [{{to: [{{operation: {{ports: ['8080']}}}}]}}]"),
                )],
                &[("port", "RuleNeverMatches", "port 8080 is not a port of Service shop/web")],
            ),
            (
                "the Service's port at a node proxy",
                vec![(
                    "port",
                    "selector: {matchLabels: {app: plain}}\nrules: [{to: [{operation: {ports: ['80']}}]}]"
                        .to_owned(),
                )],
                &[("port", "RuleNeverMatches", "port 80 is not declared by a container")],
            ),
            (
                "fields of requests where there are none",
                vec![(
                    "db",
                    "targetRefs: [{kind: Service, group: '', name: db}]\naction: DENY\nrules: [{to: [{operation: {methods: [POST]}}]}]"
                        .to_owned(),
                )],
                &[("db", "FieldsAreNotSeen", "denies connections to port 5432 of Service shop/db")],
            ),
            ("an ingress gateway sees HTTP", vec![("edge", edge.to_owned())], &[]),
            (
                "a gateway does not hide what never matches",
                vec![("edge", edge.replace("GET", "get"))],
                &[("edge", "RuleNeverMatches", "rule[0] can never match")],
            ),
        ];
        for (what, policies, expected) in cases {
            let policies: Vec<(&str, &str)> = policies.iter().map(|(n, y)| (*n, y.as_str())).collect();
            let found = review(&shop(&policies), &|| true);
            assert_eq!(found.len(), expected.len(), "{what}: {found:?}");
            for (name, reason, text) in expected {
                let remarks = &found[&NamespacedName::new("shop", *name)];
                assert!(remarks.iter().all(|r| r.reason == *reason), "{what}: {remarks:?}");
                assert!(
                    remarks[0].text.contains(text) && remarks[0].text.contains("To mend it: "),
                    "{what}: {remarks:?}"
                );
            }
        }
    }

    #[test]
    fn what_there_was_no_time_for_accuses_nobody() {
        let never = "targetRefs: [{kind: Service, group: '', name: web}]\nrules: [{to: [{operation: {methods: [get]}}]}]";
        assert_eq!(review(&shop(&[("a", never)]), &|| false), Remarks::new());
    }
}
