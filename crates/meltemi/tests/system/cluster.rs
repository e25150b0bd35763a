// SPDX-License-Identifier: Apache-2.0
//! The whole cluster on one machine, judged by kubectl: Debian 12's 1.20 and a current 1.35, side by side.

use serde_json::json;

use crate::machine::{KUBECTLS, Machine};
use crate::pods::{apply, echo, namespace, ready};

/// Commands that change nothing.
const READS: [&str; 4] = ["kubectl exec", "kubectl get", "kubectl logs", "kubectl describe"];

/// What a user types, what must be seen, and the exit code.
const STEPS: &[(&str, &str, i32)] = &[
    ("kubectl apply -f samples/bookinfo/bookinfo.yaml", "deployment.apps/productpage-v1 created", 0),
    ("kubectl apply -f samples/curl/curl.yaml", "deployment.apps/curl created", 0),
    ("kubectl rollout status deploy/productpage-v1 --timeout=120s", "successfully rolled out", 0),
    ("kubectl wait --for=condition=Ready pods -l app=reviews --timeout=120s", "condition met", 0),
    ("kubectl wait --for=condition=Ready pods -l app=curl --timeout=120s", "condition met", 0),
    ("kubectl wait --for=condition=Ready pods -l app=ratings --timeout=120s", "condition met", 0),
    ("kubectl wait --for=condition=Ready pods -l app=details --timeout=120s", "condition met", 0),
    ("kubectl get nodes", "Ready", 0),
    ("kubectl get pods -o wide", "node-2", 0),
    (
        "kubectl exec deploy/curl -- curl -s http://productpage:9080/productpage",
        "<title>Simple Bookstore App</title>",
        0,
    ),
    ("kubectl exec deploy/curl -- sh -c 'exit 56'", "command terminated with exit code 56", 56),
    ("kubectl logs deploy/details-v1", "listens on", 0),
    ("kubectl describe pod -l app=ratings", "Started container ratings", 0),
    ("kubectl label namespace default team=books", "namespace/default labeled", 0),
    ("kubectl scale deploy/ratings-v1 --replicas=2", "scaled", 0),
    ("kubectl rollout restart deploy/details-v1", "restarted", 0),
    ("kubectl rollout status deploy/details-v1 --timeout=120s", "successfully rolled out", 0),
    ("kubectl apply -f samples/bookinfo/bookinfo.yaml", "service/reviews unchanged", 0),
    ("kubectl delete deploy ratings-v1", "deployment.apps \"ratings-v1\" deleted", 0),
    (
        "kubectl wait --for=delete pod -l app=ratings --timeout=120s; kubectl get pods -l app=ratings",
        "No resources found",
        0,
    ),
];

#[test]
fn what_a_user_types_works_with_both_kubectls() {
    let machines: Vec<Machine> = KUBECTLS.iter().map(|kubectl| Machine::start(kubectl)).collect();
    for machine in &machines {
        for (command, shows, code) in STEPS {
            // What only looks may be ahead of what was written before it; a write must succeed at once.
            if READS.iter().any(|verb| command.starts_with(verb)) {
                machine.until(command, shows, *code);
            } else {
                machine.step(command, shows, *code);
            }
        }
        // With ratings gone the page says so: the services really call each other.
        machine.eventually(
            "for i in 1 2 3 4 5 6; do kubectl exec deploy/curl -- curl -s http://productpage:9080/productpage; done",
            "Ratings service is currently unavailable",
        );
        machine.port_forward("svc/productpage", 9080, "/productpage", "Book Reviews");
    }
}

/// One connection of a forward that ends badly is the end of that connection only; a drain waits for budgets.
#[test]
fn a_forward_outlives_its_connections_and_a_drain_waits_for_budgets() {
    for kubectl in KUBECTLS {
        let machine = Machine::start(kubectl);
        apply(&machine, &[&[namespace("plain", false)][..], &echo("plain", "node-1")].concat());
        ready(&machine, "plain", 0);
        let (forward, local) = machine.forward("-n plain pod/echo", 8080);
        for _ in 0..5 {
            machine.output(&format!("curl -s -m 20 http://localhost:{local}/reset"));
            machine.eventually(&format!("curl -s -m 20 http://localhost:{local}/"), "hello");
        }
        let said = String::from_utf8_lossy(&forward.output()).into_owned();
        assert!(!said.contains("lost connection"), "{kubectl}: {said}");

        let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
            "metadata": {"name": "echo", "namespace": "plain"},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "echo"}}}});
        machine.step(&format!("kubectl create --raw /apis/policy/v1/namespaces/plain/poddisruptionbudgets -f - <<'END'\n{budget}\nEND"), "echo", 0);
        let drain =
            "kubectl drain node-1 --ignore-daemonsets --force --delete-emptydir-data --pod-selector=app=echo";
        machine.step(&format!("{drain} --timeout=8s"), "violate the pod's disruption budget", 1);
        machine.step("kubectl -n plain get pod echo", "Running", 0);
        machine.step("kubectl -n plain delete pdb echo", "deleted", 0);
        machine.step(&format!("{drain} --timeout=60s"), "evicted", 0);
        machine.step("kubectl uncordon node-1", "uncordoned", 0);
    }
}

/// AuthorizationPolicies that are refused, and what is said: by the schema, or by the webhook in Istio's words.
const REFUSED: &[(&str, &str)] = &[
    ("{selektor: {}}", "unknown field \"spec.selektor\""),
    (
        "{rules: [{from: [{source: {principal: [a]}}]}]}",
        "unknown field \"spec.rules[0].from[0].source.principal\"",
    ),
    (
        "{selector: {matchLabels: {a: b}}, targetRefs: [{kind: Service, group: \"\", name: x}]}",
        "only one of targetRefs or selector can be set",
    ),
    ("{action: PERMIT}", "supported values: \"ALLOW\", \"DENY\", \"AUDIT\", \"CUSTOM\""),
    ("{action: DENY}", "DENY action without `rules` is meaningless as it will never be triggered"),
    ("{rules: [{from: [{source: {ipBlocks: [10.0.0.0/33]}}]}]}", "bad CIDR range (10.0.0.0/33)"),
    ("{rules: [{from: []}]}", "`from` must not be empty, found at rule 0"),
    ("{rules: [{to: [{operation: {methods: [\"\"]}}]}]}", "empty value not allowed, found in Methods"),
    ("{rules: [{to: [{operation: {ports: [\"80-90\"]}}]}]}", "bad port (80-90)"),
];

#[test]
fn what_is_wrong_is_refused_and_what_is_not_allowed_is_forbidden() {
    let machine = Machine::start(KUBECTLS[0]);
    let policy = |spec: &str| {
        format!(
            "kubectl apply --validate=false -f - <<END\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: p, namespace: default}}\nspec: {spec}\nEND"
        )
    };
    // A client that asks for no validation: the API refuses all the same.
    for (spec, says) in REFUSED {
        machine.step(&policy(spec), says, 1);
    }
    machine.step(&policy("{rules: [{from: [{source: {principals: [a]}}]}]}"), "created", 0);
    machine.step("kubectl apply -f samples/curl/curl.yaml", "created", 0);
    machine.step(
        "kubectl wait --for=condition=Ready pods -l app=curl --timeout=120s; kubectl get pods",
        "Running",
        0,
    );
    let token = "/var/run/secrets/kubernetes.io/serviceaccount/token";
    let ask = format!(
        "kubectl exec deploy/curl -- sh -c 'curl -sk -H \"Authorization: Bearer $(cat {token})\" \
         https://10.96.0.1/api/v1/namespaces/default/secrets'"
    );
    machine.step(&ask, "cannot list resource", 0);
    machine.step(
        "kubectl exec deploy/curl -- sh -c 'curl -sk https://10.96.0.1/api/v1/nodes'",
        "system:anonymous",
        0,
    );
    for (attempt, code) in [("touch /usr/x", 1), ("ls /var/lib/meltemi", 2)] {
        machine.step(&format!("kubectl exec deploy/curl -- {attempt}"), "command terminated", code);
    }
}

#[test]
fn data_survives_and_nothing_else_remains() {
    let machine = Machine::start(KUBECTLS[1]);
    machine.step("kubectl create configmap kept --from-literal=a=b", "configmap/kept created", 0);
    let root = machine.output("kubectl get secret -n istio-system istio-ca-secret -o jsonpath={.data}");
    let machine = machine.restart(&[]);
    machine.step("kubectl get nodes -o name", "node/node-1\nnode/node-2", 0);
    machine.step("kubectl get configmap kept -o jsonpath={.data.a}", "b", 0);
    assert_eq!(
        machine.output("kubectl get secret -n istio-system istio-ca-secret -o jsonpath={.data}"),
        root
    );
    let machine = machine.restart(&["--nodes", "1"]);
    assert_eq!(machine.output("kubectl get nodes -o name"), "node/node-1\n");
    machine.kill_supervisor();
    assert!(machine.processes().is_empty(), "left behind: {:?}", machine.processes());
}
