// SPDX-License-Identifier: Apache-2.0
//! Databases on ports that declare nothing go on when their namespace gets a waypoint, those whose server speaks first too.

use serde_json::json;

use crate::machine::{KUBECTLS, Machine};
use crate::pods::{apply, client, enforce, namespace, pod, ready};

/// Two servers: one sends a greeting, the other answers a PostgreSQL client's first message and echoes everything else.
const SERVER: &str = r#"
import socket, threading
def serve(port, talk):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("", port))
    listener.listen(50)
    while True:
        client, _ = listener.accept()
        threading.Thread(target=talk, args=(client,), daemon=True).start()
def server_first(client):
    client.sendall(b"greeting 5.7")
    client_first(client)
def client_first(client):
    while data := client.recv(4096):
        client.sendall(b"N" if data[4:8] == b"\x04\xd2\x16/" else b"echo " + data)
threading.Thread(target=serve, args=(3307, server_first), daemon=True).start()
serve(5432, client_first)
"#;
/// Says of each port what came, or the error.
const CLIENT: &str = r#"
import socket
for port, first in (3307, b""), (5432, b"\x00\x00\x00\x08\x04\xd2\x16/"), (5432, b"HELO"):
    try:
        server = socket.create_connection(("db", port), 120)
        server.sendall(first)
        print(port, server.recv(40).decode(), end="; ")
    except Exception as error:
        print(port, type(error).__name__, end="; ")
print()
"#;

#[test]
fn databases_on_undeclared_ports_work_behind_a_waypoint() {
    let machine = Machine::start(KUBECTLS[1]);
    let mut objects = vec![namespace("mesh", true)];
    objects.extend(client("mesh", "a", "node-1"));
    objects.extend(pod("mesh", "db", "node-2", &["python3", "-u", "-c", SERVER]));
    objects.push(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "db", "namespace": "mesh"},
        "spec": {"selector": {"app": "db"}, "ports": [{"name": "custom", "port": 3307}, {"name": "postgres", "port": 5432}]}
    }));
    apply(&machine, &objects);
    ready(&machine, "mesh", 2);
    let ask = format!("kubectl -n mesh exec a -- python3 -c '{CLIENT}'");
    let works = "3307 greeting 5.7; 5432 N; 5432 echo HELO; ";
    machine.eventually(&ask, works);
    machine.step("meltemi waypoint apply -n mesh --enroll-namespace --wait", "applied", 0);
    machine.step(
        "kubectl -n mesh wait --for=condition=meltemi.dev/PortsDeclared=false service/db --timeout=60s",
        "condition met",
        0,
    );
    machine.eventually(
        &format!("{ask} >/dev/null; kubectl -n mesh logs deploy/waypoint"),
        "dst.service=\"db.mesh",
    );
    machine.step(&ask, works, 0);
    // What needs HTTP denies what is none, by name, and writes no HTTP into it.
    enforce(
        &machine,
        "mesh",
        "no-admin",
        &json!({"targetRefs": [{"kind": "Service", "group": "", "name": "db"}], "action": "DENY",
                "rules": [{"to": [{"operation": {"paths": ["/admin"]}}]}]}),
    );
    let denied = "3307 ConnectionResetError; 5432 ConnectionResetError; 5432 ConnectionResetError; ";
    machine.step(&ask, denied, 0);
    for why in ["the client says nothing", "first bytes are not HTTP"] {
        let logs =
            format!("kubectl -n mesh logs deploy/waypoint | grep 'policy=mesh/no-admin' | grep '{why}'");
        machine.eventually(&logs, "declares no protocol");
    }
}
