// SPDX-License-Identifier: Apache-2.0
//! A StatefulSet with volume claims: names, addresses and data outlive the Pods.

use serde_json::{Value, json};

use crate::machine::{KUBECTLS, Machine};
use crate::pods::apply;

/// Each start of a Pod adds a line with its name to its volume.
const PROGRAM: &str = "echo $HOSTNAME >> /data/starts; exec sleep infinity";

fn database() -> Vec<Value> {
    let labels = json!({"app": "db"});
    vec![
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "db"},
            "spec": {"clusterIP": "None", "selector": labels, "ports": [{"name": "tcp", "port": 5432}]}}),
        json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"}, "spec": {
            "serviceName": "db", "replicas": 2, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"terminationGracePeriodSeconds": 0, "containers": [
                {"name": "main", "image": "curlimages/curl", "command": ["sh", "-c", PROGRAM],
                 "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}}}}]}}),
    ]
}

#[test]
fn names_addresses_and_data_outlive_the_pods() {
    let machine = Machine::start(KUBECTLS[1]);
    apply(&machine, &database());
    let rolled_out = || {
        machine.until("kubectl rollout status statefulset db --timeout=120s", "roll", 0);
    };
    let starts = |lines: usize| {
        let expected = format!("{lines} db-1");
        machine.until("kubectl exec db-1 -- sh -c 'sort /data/starts | uniq -c'", &expected, 0);
    };
    rolled_out();
    starts(1);
    machine.until(
        "kubectl get pvc data-db-0 data-db-1 -o jsonpath='{.items[*].status.phase}'",
        "Bound Bound",
        0,
    );
    let find = "import socket; print(socket.gethostbyname(\"db-1.db\"))";
    let address = machine.output("kubectl get pod db-1 -o jsonpath='{.status.podIP}'");
    machine.until(&format!("kubectl exec db-0 -- python3 -c '{find}'"), address.trim(), 0);

    machine.step("kubectl delete pod db-1", "deleted", 0);
    rolled_out();
    starts(2);

    machine.step("kubectl scale statefulset db --replicas=1", "scaled", 0);
    machine.until("kubectl get pods -l app=db -o name", "pod/db-0", 0);
    machine.step("kubectl wait --for=delete pod/db-1 --timeout=120s", "", 0);
    machine.step("kubectl get pvc data-db-1", "Bound", 0);
    machine.step("kubectl scale statefulset db --replicas=2", "scaled", 0);
    rolled_out();
    starts(3);

    machine.step("kubectl set env statefulset db CHANGED=yes", "updated", 0);
    rolled_out();
    starts(4);
    machine.until("kubectl exec db-0 -- sh -c 'echo $CHANGED'", "yes", 0);
    machine.step("kubectl rollout undo statefulset db", "rolled back", 0);
    machine.until("kubectl exec db-0 -- sh -c 'echo \"[$CHANGED]\"'", "[]", 0);

    machine.step("kubectl delete statefulset db", "deleted", 0);
    machine.until("kubectl get pods -l app=db -o name | wc -l", "0", 0);
    machine.step(
        "kubectl get pvc data-db-0 data-db-1 -o jsonpath='{.items[*].status.phase}'",
        "Bound Bound",
        0,
    );
}
