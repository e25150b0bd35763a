// SPDX-License-Identifier: Apache-2.0
//! A live mesh of two nodes, looked at from outside: the wire between the nodes, certificates as openssl sees them, what
//! the CA and xDS refuse, plaintext, and what a Pod can do to its own capture.

use crate::machine::{KUBECTLS, Machine};
use crate::pods::{apply, client, echo, enforce, namespace, ready};
use serde_json::json;

/// A mesh with: in `mesh` (enrolled) clients `a`, `b` on node-1 and `echo` on node-2; in `outside` (not enrolled) a
/// client `x` on node-1.
fn world(kubectl: &str) -> Machine {
    let machine = Machine::start(kubectl);
    let mut objects = vec![namespace("mesh", true), namespace("outside", false)];
    objects.extend(client("mesh", "a", "node-1"));
    objects.extend(client("mesh", "b", "node-1"));
    objects.extend(echo("mesh", "node-2"));
    objects.extend(client("outside", "x", "node-1"));
    apply(&machine, &objects);
    ready(&machine, "mesh", 3);
    ready(&machine, "outside", 0);
    machine
}

/// `curl` from a Pod, with a header that can be looked for on the wire.
fn get(namespace: &str, pod: &str, marker: &str) -> String {
    format!("kubectl -n {namespace} exec {pod} -- curl -s -m 5 -H 'X-Marker: {marker}' http://echo.mesh/")
}

#[test]
fn the_wire_between_the_nodes() {
    let machine = world(KUBECTLS[1]);
    nothing_readable(&machine);
    certificates(&machine);
    crate::control::own_identities_only(&machine);
    crate::control::no_configuration_for_workloads(&machine);
}

/// A capture of all packets between the nodes: the request of an enrolled Pod cannot be read in it, that of another can.
fn nothing_readable(machine: &Machine) {
    let tap = machine.wiretap();
    machine.until(&get("mesh", "a", "under-the-seal"), "hello under-the-seal", 0);
    machine.until(&get("outside", "x", "on-a-postcard"), "hello on-a-postcard", 0);
    tap.shows(b"on-a-postcard");
    let packets = tap.output();
    let holds = |text: &[u8]| packets.windows(text.len()).any(|window| window == text);
    assert!(!holds(b"under-the-seal"), "the request crossed the nodes in the clear");
    // TLS records of application data, version 3.3 as TLS 1.3 writes it.
    assert!(holds(&[0x17, 0x03, 0x03]), "no TLS was seen: the capture proves nothing");
}

/// What openssl sees on 15008 from a Pod that is not enrolled.
fn certificates(machine: &Machine) {
    let ip = machine.output("kubectl -n mesh get pod echo -o jsonpath={.status.podIP}");
    let tls = |options: &str, rest: &str| {
        format!(
            "kubectl -n outside exec x -- sh -c '(sleep 1) | openssl s_client -connect {ip}:15008 -alpn h2 {options} 2>&1 {rest}'"
        )
    };
    // Certificates that nobody of the mesh has signed: one by a CA of the mesh's own name, one by another.
    for ca in ["cluster.local", "elsewhere"] {
        let make = format!(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout /tmp/{ca}.key -out /tmp/{ca}.crt \
             -days 1 -subj /O={ca} -addext basicConstraints=critical,CA:FALSE \
             -addext subjectAltName=URI:spiffe://cluster.local/ns/mesh/sa/a"
        );
        machine.step(&format!("kubectl -n outside exec x -- {make} 2>&1"), "", 0);
    }
    let cases = [
        ("", "| openssl x509 -noout -ext subjectAltName", "URI:spiffe://cluster.local/ns/mesh/sa/echo"),
        ("", "", "alert certificate required"),
        ("-cert /tmp/cluster.local.crt -key /tmp/cluster.local.key", "", "alert decrypt error"),
        ("-cert /tmp/elsewhere.crt -key /tmp/elsewhere.key", "", "alert unknown ca"),
        ("-tls1_2", "", "alert protocol version"),
    ];
    for (options, rest, shows) in cases {
        machine.eventually(&tls(options, rest), shows);
    }
}

#[test]
fn plaintext_and_what_a_pod_may_do() {
    let machine = world(KUBECTLS[1]);
    let refused = "command terminated with exit code 56";
    let (mesh, outside) = (get("mesh", "a", "1"), get("outside", "x", "1"));
    // Permissive, as Istio: plaintext is taken.
    machine.until(&outside, "hello", 0);
    // A principal never matches plaintext, not even when any principal will do.
    enforce(
        &machine,
        "mesh",
        "known",
        &json!({"selector": {"matchLabels": {"app": "echo"}}, "rules": [{"from": [{"source": {"principals": ["*"]}}]}]}),
    );
    machine.step(&outside, refused, 56);
    machine.until(&mesh, "hello", 0);
    machine.step("kubectl -n mesh delete authorizationpolicy known", "deleted", 0);
    machine.eventually(&outside, "hello");
    apply(
        &machine,
        &[json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
                 "metadata": {"name": "strict", "namespace": "mesh"}, "spec": {"mtls": {"mode": "STRICT"}}})],
    );
    machine.eventually(&outside, refused);
    machine.until(&mesh, "hello", 0);
    machine.step("kubectl -n mesh delete peerauthentication strict", "deleted", 0);
    machine.eventually(&outside, "hello");
    sandbox(&machine);
}

/// What an enrolled Pod tries in order to leave the mesh or to reach the host.
fn sandbox(machine: &Machine) {
    let python = |code: &str| format!("python3 -c '{code}'");
    let data = machine.file("data").display().to_string();
    let mark = python("import socket; socket.socket().setsockopt(1, 36, 0x539)");
    let probe = python("import socket; socket.socket().bind((\"169.254.7.127\", 0))");
    let raw = python("import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 768)");
    let cases = [
        ("touch /usr/bin/x".to_owned(), "Read-only file system"),
        (format!("ls {data}"), "No such file or directory"),
        ("nft flush ruleset".to_owned(), "Operation not permitted"),
        ("ip link set lo down".to_owned(), "Operation not permitted"),
        ("ip address add 169.254.7.127 dev lo".to_owned(), "Operation not permitted"),
        ("unshare --user --map-root-user true".to_owned(), "unshare failed"),
        (mark, "PermissionError"),
        (probe, "OSError"),
        (raw, "PermissionError"),
    ];
    // What is writable is the Pod's own.
    machine.step("kubectl -n mesh exec a -- sh -c 'touch /etc/meltemi-escape /tmp/meltemi-escape'", "", 0);
    for path in ["/etc/meltemi-escape", "/tmp/meltemi-escape"] {
        assert!(!std::path::Path::new(path).exists(), "{path} was written on the host");
    }
    for (attempt, shows) in cases {
        let quoted = attempt.replace('\'', "'\\''");
        let path = "PATH=$PATH:/usr/sbin:/sbin";
        machine.step(&format!("kubectl -n mesh exec a -- sh -c '{path} {quoted}' || true"), shows, 0);
    }
}
