// SPDX-License-Identifier: Apache-2.0
//! Rollouts under load: an application, its waypoint and its gateway are replaced, and every request is answered, on new
//! connections and on kept ones.

use serde_json::{Value, json};

use crate::machine::{KUBECTLS, Machine};
use crate::pods::{apply, enforce, namespace, pod, ready};

const SERVER: &str = include_str!("rollouts_server.py");
const LOAD: &str = include_str!("rollouts_load.py");

/// The application `web` with two Pods, and its Service on port 80.
fn web() -> Vec<Value> {
    let labels = json!({"app": "web"});
    let container = json!({
        "name": "main", "image": "curlimages/curl", "command": ["python3", "-u", "-c", SERVER],
        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}});
    vec![
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "mesh"},
               "spec": {"replicas": 2, "selector": {"matchLabels": labels},
                        "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}}}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "mesh"},
               "spec": {"selector": labels, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}}),
    ]
}

/// A gateway for it, on port 80.
fn gateway() -> [Value; 2] {
    let version = "gateway.networking.k8s.io/v1";
    let metadata = json!({"name": "edge", "namespace": "mesh"});
    [
        json!({"apiVersion": version, "kind": "Gateway", "metadata": metadata,
               "spec": {"gatewayClassName": "istio", "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}]}}),
        json!({"apiVersion": version, "kind": "HTTPRoute", "metadata": metadata,
               "spec": {"parentRefs": [{"name": "edge"}], "rules": [{"backendRefs": [{"name": "web", "port": 80}]}]}}),
    ]
}

#[test]
fn no_request_is_lost_while_an_application_its_waypoint_and_its_gateway_are_replaced() {
    let machine = Machine::start(KUBECTLS[1]);
    let mut objects = vec![namespace("mesh", true), namespace("outside", false)];
    objects.extend(web());
    objects.extend(gateway());
    apply(&machine, &objects);
    ready(&machine, "mesh", 2);
    machine.step("meltemi waypoint apply -n mesh --enroll-namespace --wait", "applied", 0);
    let methods = json!({"targetRefs": [{"kind": "Service", "group": "", "name": "web"}],
                         "rules": [{"to": [{"operation": {"methods": ["GET", "POST"]}}]}]});
    enforce(&machine, "mesh", "methods", &methods);
    machine.step(
        "kubectl -n mesh wait --for=condition=Programmed gateway/edge --timeout=120s",
        "condition met",
        0,
    );
    let edge = machine.output("kubectl -n mesh get gateway edge -o jsonpath='{.status.addresses[0].value}'");
    let clients = [("mesh", "web.mesh"), ("outside", edge.trim())];
    for (namespace, host) in clients {
        let once = format!("kubectl -n {namespace} exec load -- curl -s -m 5 http://{host}/");
        let wait = "until [ -e /tmp/start ]; do sleep 0.1; done; exec python3 -u -c \"$0\" \"$@\"";
        apply(&machine, &pod(namespace, "load", "node-1", &["sh", "-c", wait, LOAD, host, "80"]));
        machine.until(&once, "ok", 0);
        machine.step(&format!("kubectl -n {namespace} exec load -- touch /tmp/start"), "", 0);
        machine.eventually(&format!("kubectl -n {namespace} logs load"), "begun");
    }
    for name in ["web", "waypoint", "edge-istio"] {
        machine.step(&format!("kubectl -n mesh rollout restart deployment {name}"), "restarted", 0);
        machine.until(
            &format!("kubectl -n mesh rollout status deployment {name} --timeout=10s"),
            "successfully rolled out",
            0,
        );
        // Those of before are really gone, and the load has met their end: two of the application, one of each proxy, and
        // the client.
        machine.until("kubectl -n mesh get pods -o name | wc -l", "5", 0);
    }
    for (namespace, host) in clients {
        machine.step(&format!("kubectl -n {namespace} exec load -- touch /tmp/stop"), "", 0);
        machine.eventually(&format!("kubectl -n {namespace} logs load"), "finished");
        let said = machine.output(&format!("kubectl -n {namespace} logs load"));
        eprintln!("{host}: {said}");
        assert!(!said.contains("LOST"), "{host}: {said}");
        for way in ["'kept'", "'kept with a body'", "'kept that pause'", "'new'", "'streams of HTTP/2'"] {
            assert!(said.contains(way), "{host}: {way} was never answered: {said}");
        }
    }
}
