// SPDX-License-Identifier: Apache-2.0
//! The way past the node proxy: Pods made at random under policies that let nobody in, dialled from everywhere by every
//! address. No byte of a captured one arrives, and of one that is not captured the policies' status says so.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::machine::{KUBECTLS, Machine};
use crate::pods::{apply, client, echo, enforce, namespace, ready};

const GREEDY: &str = include_str!("greedy.py");
const DIAL: &str = include_str!("dial.py");
const KNOCK: &str = include_str!("knock.py");

/// Pods made at random.
const PODS: usize = 9;
/// The variable that repeats a run: the seed that a failure shows.
const SEED: &str = "MELTEMI_TEST_SEED";
/// Longest until the statuses have settled.
const SETTLED: Duration = Duration::from_secs(60);

/// xorshift64*
struct Random(u64);

impl Random {
    fn new() -> Self {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        let seed = std::env::var(SEED).ok().and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(|| u64::try_from(now()).unwrap());
        eprintln!("{SEED}={seed}");
        Self(seed.max(1))
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

/// A Pod, its Service, and what should be true of it.
struct Made {
    name: String,
    port: u16,
    objects: Vec<Value>,
    /// Nothing about it asks for a way past the proxy.
    plain: bool,
}

fn make(index: usize, random: &mut Random) -> Made {
    let name = format!("p{index}");
    let port = 8080 + u16::try_from(index).unwrap();
    // The first is an ordinary one, the second opts out: whatever the dice say, both kinds are there.
    let (first, second) = (index == 0, index == 1);
    let mut labels = json!({"app": name});
    let mut annotations = json!({});
    let mut plain = true;
    let set = |object: &mut Value, key: &str, value: &str| object[key] = value.into();
    if second || (!first && random.one_in(5)) {
        set(&mut labels, "istio.io/dataplane-mode", "none");
        plain = false;
    } else if random.one_in(4) {
        set(&mut labels, "istio.io/dataplane-mode", "ambient");
    }
    if !first && random.one_in(5) {
        set(&mut annotations, "ambient.istio.io/bypass-inbound-capture", "true");
        plain = false;
    }
    if random.one_in(3) {
        set(&mut annotations, "ambient.istio.io/dns-capture", "false");
    }
    if random.one_in(3) {
        // Whoever may write the Pod says that it is captured.
        set(&mut annotations, "ambient.istio.io/redirection", "enabled");
    }
    if !first && random.one_in(8) {
        set(&mut annotations, "sidecar.istio.io/status", "{}");
        plain = false;
    }
    if random.one_in(4) {
        // As if it were the proxy of a Gateway.
        set(&mut labels, "gateway.networking.k8s.io/gateway-name", "waypoint");
    }
    let host_network = !first && random.one_in(6);
    plain &= !host_network;
    let greedy = if host_network { "modest" } else { "greedy" };
    let container = json!({
        "name": "main", "image": "curlimages/curl", "ports": [{"containerPort": port, "name": "web"}],
        "command": ["python3", "-u", "-c", GREEDY, name, port.to_string(), greedy],
    });
    let node = format!("node-{}", 1 + random.below(2));
    let spec = json!({
        "nodeSelector": {"kubernetes.io/hostname": node}, "hostNetwork": host_network,
        "serviceAccountName": name, "dnsPolicy": if random.one_in(2) { "ClusterFirst" } else { "Default" },
        "terminationGracePeriodSeconds": 0, "containers": [container],
    });
    let metadata = json!({"name": name, "namespace": "bank", "labels": labels, "annotations": annotations});
    let mut service = json!({"selector": {"app": name}, "ports": [{"port": 80, "targetPort": port}]});
    match random.below(4) {
        0 => service["type"] = "LoadBalancer".into(),
        1 => service["externalIPs"] = json!([format!("172.30.1.{}", 200 + index)]),
        2 => service["clusterIP"] = "None".into(),
        _ => {}
    }
    let object = |kind: &str, api: &str, spec: Value| json!({"apiVersion": api, "kind": kind, "metadata": {"name": name, "namespace": "bank"}, "spec": spec});
    let selector = json!({"matchLabels": {"app": name}});
    let objects = vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": "bank"}}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}),
        object("Service", "v1", service),
        object("AuthorizationPolicy", "security.istio.io/v1", json!({"selector": selector})),
        object(
            "PeerAuthentication",
            "security.istio.io/v1",
            json!({"selector": selector, "mtls": {"mode": "STRICT"}}),
        ),
    ];
    Made { name, port, objects, plain }
}

/// Every address that the cluster knows, each with the ports at which something might answer.
fn targets(machine: &Machine, made: &[Made]) -> Value {
    let text = |command: &str| machine.output(command);
    let object = |command: &str| -> Value { serde_json::from_str(&text(command)).unwrap() };
    let mut addresses: BTreeSet<String> =
        ["169.254.7.127", "169.254.1.1", "172.30.0.1", "127.0.0.1"].map(String::from).into();
    let pods = object("kubectl get pods -A -o json");
    for item in pods["items"].as_array().unwrap() {
        addresses.extend(item["status"]["podIP"].as_str().map(String::from));
    }
    for item in object("kubectl -n bank get services -o json")["items"].as_array().unwrap() {
        let ingress = item["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten();
        let ingress = ingress.map(|entry| &entry["ip"]);
        let external = item["spec"]["externalIPs"].as_array().into_iter().flatten();
        let cluster = [&item["spec"]["clusterIP"]].into_iter().filter(|ip| *ip != "None");
        addresses.extend(ingress.chain(external).chain(cluster).filter_map(Value::as_str).map(String::from));
    }
    let of_pod = |address: &str| {
        let item = pods["items"].as_array().unwrap().iter().find(|item| item["status"]["podIP"] == address);
        let name = item.and_then(|item| item["metadata"]["name"].as_str()).unwrap_or_default().to_owned();
        made.iter().find(|made| made.name == name).map(|made| made.port)
    };
    let mut out = Vec::new();
    for address in &addresses {
        let own = of_pod(address);
        // On a node any of the Pods may be found.
        let all =
            made.iter().map(|made| made.port).filter(|_| own.is_none() && address.starts_with("172.30.0."));
        for port in own.into_iter().chain(all).chain([80, 15001, 15006, 15008, 15053]) {
            out.push(json!([address, port]));
        }
    }
    Value::Array(out)
}

/// Dials the targets from these Pods at once; the names of the Pods that answered, with the lines that say where.
fn dial(machine: &Machine, from: &[&str], targets: &Value) -> Vec<(String, String)> {
    let script = machine.file("dial.py");
    std::fs::write(&script, DIAL).unwrap();
    let one = |pod: &&str| {
        let (namespace, name) = pod.split_once('/').unwrap();
        format!(
            "(kubectl -n {namespace} exec {name} -- python3 -c \"$(cat {})\" '{targets}' | sed 's|^|{pod} |') &",
            script.display()
        )
    };
    let text = machine.output(&format!("{} wait", from.iter().map(one).collect::<Vec<_>>().join(" ")));
    for pod in from {
        assert!(text.contains(&format!("{pod} done")), "{pod} did not dial: {text}");
    }
    let reached = text.lines().filter_map(|line| {
        let name = line.split_once(" reached ")?.1.split(' ').next()?;
        Some((name.to_owned(), line.to_owned()))
    });
    reached.collect()
}

fn enforced(machine: &Machine, kind: &str, name: &str) -> Value {
    let text = machine.output(&format!("kubectl -n bank get {kind} {name} -o json"));
    let object: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|c| c["type"] == "meltemi.dev/Enforced").unwrap_or_default()
}

/// Whether the status of both policies says what is true of the Pod.
fn is_said(machine: &Machine, made: &Made) -> Result<(), String> {
    for kind in ["authorizationpolicy", "peerauthentication"] {
        let condition = enforced(machine, kind, &made.name);
        let named =
            condition["message"].as_str().is_some_and(|m| m.contains(&format!("bank/{} (", made.name)));
        let said =
            if made.plain { condition["status"] == "True" } else { condition["status"] == "False" && named };
        if !said {
            return Err(format!("{kind} {}, plain: {}: {condition}", made.name, made.plain));
        }
    }
    Ok(())
}

fn settle(machine: &Machine, made: &[Made]) {
    let begun = Instant::now();
    for made in made {
        while let Err(why) = is_said(machine, made) {
            assert!(begun.elapsed() < SETTLED, "{why}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

#[test]
fn no_byte_of_a_captured_pod_arrives_or_the_status_says_so() {
    let machine = Machine::start(KUBECTLS[1]);
    let mut random = Random::new();
    let made: Vec<Made> = (0..PODS).map(|index| make(index, &mut random)).collect();
    let mut objects = vec![namespace("bank", true), namespace("mesh", true), namespace("plain", false)];
    objects.push(namespace("hosts", false));
    for index in [0, 3] {
        objects[index]["metadata"]["labels"]["meltemi.dev/host-network"] = "allowed".into();
    }
    objects.extend(client("mesh", "a", "node-1"));
    objects.extend(client("plain", "x", "node-2"));
    let mut host = client("hosts", "h", "node-1");
    host[1]["spec"]["hostNetwork"] = true.into();
    objects.extend(host);
    objects.extend(made.iter().flat_map(|made| made.objects.clone()));
    apply(&machine, &objects);
    for (namespace, enrolled) in [("bank", 0), ("mesh", 1), ("plain", 0), ("hosts", 0)] {
        ready(&machine, namespace, enrolled);
    }
    settle(&machine, &made);
    let clients = ["mesh/a", "plain/x", "hosts/h"];
    judge(&made, &dial(&machine, &clients, &targets(&machine, &made)));
    node_network(&machine);
    probes(&machine);
    // The node proxies are away for a moment, and everybody wants their ports.
    machine.step("kubectl -n istio-system delete pod -l app=ztunnel --wait=false", "deleted", 0);
    judge(&made, &dial(&machine, &["plain/x"], &targets(&machine, &made)));
    machine.step("kubectl -n istio-system rollout status daemonset/ztunnel --timeout=60s", "", 0);
    judge(&made, &dial(&machine, &["plain/x"], &targets(&machine, &made)));
    settle(&machine, &made);
}

fn judge(made: &[Made], reached: &[(String, String)]) {
    for (name, line) in reached {
        let pod = made.iter().find(|made| made.name == *name).unwrap();
        assert!(!pod.plain, "past every policy, and no status says so: {line}");
    }
    // Otherwise the dialling proves nothing.
    assert!(reached.iter().any(|(name, _)| name == "p1"), "one that opted out is not reached: {reached:?}");
}

/// The node's network is for those whom an administrator lets there, and the proxy's admin port for nobody there.
fn node_network(machine: &Machine) {
    let mut host = client("plain", "host", "node-1");
    host[1]["spec"]["hostNetwork"] = true.into();
    apply(machine, &host);
    let events = "kubectl -n plain get events -o jsonpath='{.items[*].message}'";
    machine.eventually(events, "spec.hostNetwork: namespace plain does not allow the node's network");
    let exec = "kubectl -n hosts exec h -- curl -s -o /dev/null -w '%{http_code}' -m 5 http://127.0.0.1";
    machine.step(&format!("{exec}:15021/healthz/ready"), "200", 0);
    machine.step(&format!("{exec}:15000/config_dump"), "000", 7);
    machine.step(&format!("{exec}:15000/logging?level=error -X POST"), "000", 7);
    machine.step("meltemi ztunnel-config workload", "bank", 0);
}

/// A probe reaches its own Pod and nobody else.
fn probes(machine: &Machine) {
    let bank = machine.output("kubectl -n bank get pod p0 -o jsonpath={.status.podIP}");
    let mut probe = client("plain", "probe", "node-1");
    probe[1]["spec"]["containers"][0]["readinessProbe"] =
        json!({"tcpSocket": {"host": bank, "port": 8080}, "periodSeconds": 1});
    let mut own = echo("mesh", "node-1");
    own[1]["spec"]["containers"][0]["readinessProbe"] =
        json!({"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1});
    apply(machine, &[probe, own].concat());
    let events = "kubectl -n plain get events -o jsonpath='{.items[*].message}'";
    machine.eventually(events, "probes and hooks reach their own Pod only");
    ready(machine, "mesh", 2);
}

/// Load balancers and external addresses lead an enrolled client through the mesh, as the cluster address does.
#[test]
fn every_address_of_a_service_is_judged_and_enrolment_loses_nothing() {
    let machine = Machine::start(KUBECTLS[1]);
    let mut objects = vec![namespace("mesh", true), namespace("shop", true), namespace("plain", false)];
    objects.extend(client("mesh", "a", "node-1"));
    objects.extend(client("shop", "c", "node-1"));
    objects.extend(client("plain", "x", "node-2"));
    let mut shop = echo("shop", "node-2");
    shop[2]["spec"]["type"] = "LoadBalancer".into();
    shop[2]["spec"]["externalIPs"] = json!(["172.30.1.200"]);
    objects.extend(shop);
    apply(&machine, &objects);
    for (namespace, enrolled) in [("mesh", 1), ("shop", 2), ("plain", 0)] {
        ready(&machine, namespace, enrolled);
    }
    let deny = json!({"selector": {"matchLabels": {"app": "echo"}}, "action": "DENY",
                      "rules": [{"from": [{"source": {"namespaces": ["mesh"]}}]}]});
    enforce(&machine, "shop", "no-mesh", &deny);
    let ip = |path: &str| machine.output(&format!("kubectl -n shop get service echo -o jsonpath={{{path}}}"));
    let addresses =
        [ip(".spec.clusterIP"), ip(".status.loadBalancer.ingress[0].ip"), "172.30.1.200".to_owned()];
    for address in &addresses {
        let curl = |pod: &str| format!("kubectl -n {pod} -- curl -s -m 20 http://{address}/");
        machine.step(&curl("mesh exec a"), "exit code 56", 56);
        machine.step(&curl("plain exec x"), "hello", 0);
    }
    machine.step("kubectl -n shop delete authorizationpolicy no-mesh", "deleted", 0);
    flip(&machine, &addresses[0]);
}

/// The label put on and taken off again while clients inside and outside of the mesh open connections.
fn flip(machine: &Machine, address: &str) {
    let pods = ["mesh exec a", "shop exec c", "plain exec x"];
    let script = machine.file("knock.py");
    std::fs::write(&script, KNOCK).unwrap();
    let knocking = pods.map(|pod| {
        let command = format!("kubectl -n {pod} -- python3 -c \"$(cat {})\" {address} 80", script.display());
        let knocking = machine.background(&command);
        knocking.shows(b"knocking");
        knocking
    });
    for round in 0..5 {
        machine.step("kubectl label namespace shop istio.io/dataplane-mode-", "", 0);
        // Sometimes long enough for the proxy to have let go.
        std::thread::sleep(Duration::from_secs(if round == 2 { 14 } else { 2 }));
        machine.step("kubectl label namespace shop istio.io/dataplane-mode=ambient", "labeled", 0);
        std::thread::sleep(Duration::from_secs(2));
    }
    for (pod, knocking) in pods.iter().zip(&knocking) {
        machine.step(&format!("kubectl -n {pod} -- touch /tmp/stop"), "", 0);
        knocking.shows(b"total");
        let text = String::from_utf8(knocking.output()).unwrap();
        assert!(text.contains(" lost 0 "), "{pod}: {text}");
    }
}
