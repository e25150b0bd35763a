// SPDX-License-Identifier: Apache-2.0
//! The paths that are measured: which Pods there are, and which processes stand between client and server.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::load::{self, LOAD_GENERATOR, Requests, Shape};
use super::mesh::{Mesh, Program, Tools};

/// Connections of the closed loop and of the fixed rate.
const CONNECTIONS: u32 = 32;
/// Clients that open new connections at once.
const NEW_AT_ONCE: u32 = 16;

/// The node proxies of both nodes.
const NODE_PROXIES: Program = Program { command: "serve node", pod: None };

/// A way from the client to the server.
pub(crate) struct Path {
    pub(crate) name: String,
    /// Name of the path that this one is to be compared with; `None` where there is nothing to compare.
    pub(crate) against: Option<String>,
    namespace: &'static str,
    url: String,
    /// Address of an iperf3 server; `None`: layer 7, bytes are not measured.
    bulk: Option<String>,
    /// The proxies on this path.
    proxies: Vec<Program>,
}

/// One round's figures of one path.
#[derive(Serialize)]
pub(crate) struct Measured {
    pub(crate) requests: Requests,
    pub(crate) fixed_rate: Requests,
    pub(crate) single_connection: Requests,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) new_connections: Option<Requests>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gigabits_per_second: Option<f64>,
    /// Processor time of the proxies for each request of the closed loop, microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu_us_per_request: Option<f64>,
    /// Processor time of the proxies for each gigabyte of one stream, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu_ms_per_gigabyte: Option<f64>,
    /// Resident memory of the proxies after the round, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) resident_bytes: Option<u64>,
}

impl Path {
    /// Measures each figure for `span`.
    ///
    /// # Errors
    /// A load generator that does not run.
    pub(crate) fn measure(&self, mesh: &Mesh, span: Duration, rate: u32) -> anyhow::Result<Measured> {
        let send = |shape| load::send(mesh, self.namespace, &self.url, shape, span);
        let before = mesh.cpu_seconds(&self.proxies);
        let requests = send(Shape::Closed { connections: CONNECTIONS })?;
        let spent = mesh.cpu_seconds(&self.proxies) - before;
        let fixed_rate = send(Shape::Open { connections: CONNECTIONS, rate })?;
        let single_connection = send(Shape::Closed { connections: 1 })?;
        let (mut new_connections, mut gigabits_per_second, mut cpu_ms_per_gigabyte) = (None, None, None);
        if let Some(server) = &self.bulk {
            new_connections = Some(send(Shape::NewConnections { at_once: NEW_AT_ONCE })?);
            if !server.is_empty() {
                let before = mesh.cpu_seconds(&self.proxies);
                let stream = load::stream(mesh, self.namespace, server, span)?;
                let spent = mesh.cpu_seconds(&self.proxies) - before;
                gigabits_per_second = Some(stream.bits_per_second / 1e9);
                cpu_ms_per_gigabyte = self.has_proxies().then(|| spent * 1e3 / (stream.bytes as f64 / 1e9));
            }
        }
        let cpu_us_per_request = self.has_proxies().then(|| spent * 1e6 / requests.succeeded.max(1) as f64);
        Ok(Measured {
            requests,
            fixed_rate,
            single_connection,
            new_connections,
            gigabits_per_second,
            cpu_us_per_request,
            cpu_ms_per_gigabyte,
            resident_bytes: self.has_proxies().then(|| mesh.resident_bytes(&self.proxies)),
        })
    }

    fn has_proxies(&self) -> bool {
        !self.proxies.is_empty()
    }
}

/// Starts the Pods and returns the paths in the order in which a round measures them.
///
/// # Errors
/// A Pod, Gateway or policy that does not become ready.
pub(crate) fn prepare(mesh: &Mesh, tools: &Tools, rules: u32) -> anyhow::Result<Vec<Path>> {
    add_images(mesh, tools)?;
    mesh.apply(&layer_4_objects(tools))?;
    for namespace in ["plain", "mesh", "seven"] {
        mesh.kubectl(&["-n", namespace, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"])?;
    }
    mesh.meltemi_by_api(&["waypoint", "apply", "-n", "seven", "--enroll-namespace", "--wait"])?;
    let web = address(mesh, "plain", "web")?;
    write_peer_configurations(mesh, tools, &web)?;
    mesh.apply(&layer_7_objects(tools, rules))?;
    mesh.kubectl(&[
        "-n",
        "plain",
        "wait",
        "--for=condition=Programmed",
        "gateway",
        "--all",
        "--timeout=60s",
    ])?;
    mesh.kubectl(&["-n", "plain", "wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"])?;
    for namespace in ["plain", "seven"] {
        let enforced = "--for=condition=meltemi.dev/Enforced";
        mesh.kubectl(&[
            "-n",
            namespace,
            "wait",
            enforced,
            "authorizationpolicies",
            "--all",
            "--timeout=60s",
        ])?;
    }
    let mut paths = layer_4_paths(mesh, tools)?;
    paths.extend(layer_7_paths(mesh, tools, rules)?);
    Ok(paths)
}

fn add_images(mesh: &Mesh, tools: &Tools) -> anyhow::Result<()> {
    let etc = format!("{}:/bench/etc", mesh.etc.display());
    let generator = format!("{}:{LOAD_GENERATOR}", tools.load_generator.display());
    std::fs::write(mesh.etc.join("web.conf"), nginx("return 200 \"ok\\n\";", ""))?;
    let add = |image: &str, mounts: &[&str], command: &[&str]| {
        let mut args = vec![image];
        args.extend(mounts.iter().flat_map(|mount| ["--mount", mount]));
        args.push("--");
        args.extend(command);
        mesh.meltemi("image add", &args).map(drop)
    };
    add("bench/client:1", &[&generator], &["/bin/sleep", "infinity"])?;
    add("bench/web:1", &[&etc], &["/usr/sbin/nginx", "-c", "/bench/etc/web.conf"])?;
    add("bench/nginx:1", &[&etc], &["/usr/sbin/nginx", "-c", "/bench/etc/proxy.conf"])?;
    if tools.iperf3 {
        add("bench/bulk:1", &[], &["/usr/bin/iperf3", "-s"])?;
    }
    if tools.haproxy {
        add("bench/haproxy:1", &[&etc], &["/usr/sbin/haproxy", "-f", "/bench/etc/haproxy.cfg"])?;
    }
    if let Some(folder) = tools.envoy.as_deref().and_then(std::path::Path::parent) {
        let mount = format!("{}:/bench/tools", folder.display());
        let command =
            ["/bench/tools/envoy", "-c", "/bench/etc/envoy.json", "--concurrency", "1", "-l", "error"];
        add("bench/envoy:1", &[&etc, &mount], &command)?;
    }
    Ok(())
}

/// One process of nginx that serves `location` on port 8080.
fn nginx(location: &str, upstream: &str) -> String {
    let folders: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path /tmp/{kind}; "))
        .collect();
    format!(
        "user root; master_process off; pid /tmp/nginx.pid; daemon off; error_log /dev/null;\n\
         events {{ worker_connections 8192; }}\n\
         http {{ access_log off; {folders}keepalive_requests 100000000; {upstream}\n\
         server {{ listen 8080; location / {{ {location} }} }} }}\n"
    )
}

/// Peers proxy to `web`, keep its connections, and let only GET through, as the mesh's rule does.
fn write_peer_configurations(mesh: &Mesh, tools: &Tools, web: &str) -> anyhow::Result<()> {
    let upstream = format!("upstream web {{ server {web}:8080; keepalive 64; }}");
    let location = "if ($request_method != GET) { return 403; } proxy_http_version 1.1; \
                    proxy_set_header Connection \"\"; proxy_pass http://web;";
    std::fs::write(mesh.etc.join("proxy.conf"), nginx(location, &upstream))?;
    if tools.haproxy {
        let text = format!(
            "global\n  nbthread 1\ndefaults\n  mode http\n  timeout client 1m\n  timeout server 1m\n  \
             timeout connect 5s\nfrontend f\n  bind :8080\n  http-request deny unless METH_GET\n  \
             default_backend b\nbackend b\n  http-reuse always\n  server s {web}:8080\n"
        );
        std::fs::write(mesh.etc.join("haproxy.cfg"), text)?;
    }
    if tools.envoy.is_some() {
        std::fs::write(mesh.etc.join("envoy.json"), envoy(web).to_string())?;
    }
    Ok(())
}

fn envoy(web: &str) -> serde_json::Value {
    const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters";
    let get = serde_json::json!({"header": {"name": ":method", "string_match": {"exact": "GET"}}});
    let rbac = serde_json::json!({
        "@type": format!("{FILTERS}.http.rbac.v3.RBAC"),
        "rules": {"action": "ALLOW", "policies": {"get": {"permissions": [get], "principals": [{"any": true}]}}},
    });
    let manager = serde_json::json!({
        "@type": format!("{FILTERS}.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "bench", "normalize_path": true,
        "http_filters": [
            {"name": "rbac", "typed_config": rbac},
            {"name": "router", "typed_config": {"@type": format!("{FILTERS}.http.router.v3.Router")}},
        ],
        "route_config": {"virtual_hosts": [
            {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "web"}}]},
        ]},
    });
    let at = |address: &str, port: u16| serde_json::json!({"socket_address": {"address": address, "port_value": port}});
    serde_json::json!({"static_resources": {
        "listeners": [{"address": at("0.0.0.0", 8080),
            "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}]}],
        "clusters": [{"name": "web", "type": "STATIC", "load_assignment": {"cluster_name": "web",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": at(web, 8080)}}]}]}}],
    }})
}

fn pod(name: &str, namespace: &str, image: &str, node: u8) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}\n\
         spec: {{nodeName: node-{node}, containers: [{{name: main, image: \"bench/{image}:1\"}}]}}\n"
    )
}

fn service(namespace: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: {namespace}}}\n\
         spec: {{selector: {{app: web}}, ports: [{{name: http, port: 8080, appProtocol: http}}]}}\n"
    )
}

/// Three namespaces with a client on node 1 and servers on node 2, in one of them a server on node 1 as well.
fn layer_4_objects(tools: &Tools) -> String {
    let mut text = String::new();
    for (namespace, enrolled) in [("plain", false), ("mesh", true), ("seven", true)] {
        let labels = if enrolled { "{istio.io/dataplane-mode: ambient}" } else { "{}" };
        let _ = writeln!(
            text,
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, labels: {labels}}}"
        );
        text += &pod("client", namespace, "client", 1);
        text += &pod("web", namespace, "web", 2);
        text += &service(namespace);
        if namespace != "seven" {
            text += &pod("near", namespace, "web", 1);
            if tools.iperf3 {
                text += &pod("bulk", namespace, "bulk", 2);
                text += &pod("near-bulk", namespace, "bulk", 1);
            }
        }
    }
    text
}

/// Two gateways, one with a rule and one with many; the waypoint's rule; the peers.
fn layer_7_objects(tools: &Tools, rules: u32) -> String {
    let mut text = String::new();
    for gateway in ["one", "many"] {
        let _ = writeln!(
            text,
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
             metadata: {{name: {gateway}, namespace: plain}}\n\
             spec: {{gatewayClassName: istio, listeners: [{{name: http, port: 80, protocol: HTTP}}]}}\n\
             ---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
             metadata: {{name: {gateway}, namespace: plain}}\n\
             spec: {{parentRefs: [{{name: {gateway}}}], rules: [{{backendRefs: [{{name: web, port: 8080}}]}}]}}"
        );
    }
    const GATEWAY: &str = "{group: gateway.networking.k8s.io, kind: Gateway, name: NAME}";
    text += &policies("plain", "one", &GATEWAY.replace("NAME", "one"), 1);
    text += &policies("plain", "many", &GATEWAY.replace("NAME", "many"), rules);
    text += &policies("seven", "one", "{group: \"\", kind: Service, name: web}", 1);
    text += &pod("nginx", "plain", "nginx", 1);
    if tools.haproxy {
        text += &pod("haproxy", "plain", "haproxy", 1);
    }
    if tools.envoy.is_some() {
        text += &pod("envoy", "plain", "envoy", 1);
    }
    text
}

/// ALLOW policies of at most 500 rules each; only the last rule lets the benchmark's request through.
fn policies(namespace: &str, name: &str, target: &str, rules: u32) -> String {
    const RULES_OF_ONE: u32 = 500;
    let mut text = String::new();
    let mut first = 0;
    while first < rules {
        let end = rules.min(first + RULES_OF_ONE);
        let _ = writeln!(
            text,
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: {name}-{first}, namespace: {namespace}}}\n\
             spec:\n  targetRefs: [{target}]\n  action: ALLOW\n  rules:"
        );
        for rule in first..end {
            let path = if rule + 1 == rules { "/".to_owned() } else { format!("/other/{rule}") };
            let _ = writeln!(text, "  - to: [{{operation: {{methods: [GET], paths: [\"{path}\"]}}}}]");
        }
        first = end;
    }
    text
}

fn address(mesh: &Mesh, namespace: &str, app: &str) -> anyhow::Result<String> {
    mesh.kubectl(&["-n", namespace, "get", "pod", app, "-o", "jsonpath={.status.podIP}"])
}

fn layer_4_paths(mesh: &Mesh, tools: &Tools) -> anyhow::Result<Vec<Path>> {
    let mut paths = Vec::new();
    for (nodes, web, bulk) in [("two nodes", "web", "bulk"), ("one node", "near", "near-bulk")] {
        for (who, namespace) in [("no proxy", "plain"), ("mesh", "mesh")] {
            let enrolled = namespace == "mesh";
            paths.push(Path {
                name: format!("layer 4, {nodes}: {who}"),
                against: enrolled.then(|| format!("layer 4, {nodes}: no proxy")),
                namespace,
                url: format!("http://{}:8080/", address(mesh, namespace, web)?),
                bulk: Some(if tools.iperf3 { address(mesh, namespace, bulk)? } else { String::new() }),
                proxies: if enrolled { vec![NODE_PROXIES] } else { Vec::new() },
            });
        }
    }
    Ok(paths)
}

fn layer_7_paths(mesh: &Mesh, tools: &Tools, rules: u32) -> anyhow::Result<Vec<Path>> {
    let waypoint =
        mesh.kubectl(&["-n", "seven", "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"])?;
    let mut paths = vec![Path {
        name: "mesh and waypoint, 1 rule".into(),
        against: Some("layer 4, two nodes: mesh".into()),
        namespace: "seven",
        url: format!("http://{waypoint}:8080/"),
        bulk: None,
        proxies: vec![NODE_PROXIES, Program { command: "serve waypoint", pod: Some("waypoint-") }],
    }];
    let one = "gateway, 1 rule".to_owned();
    for (name, gateway, pod) in
        [(one.clone(), "one", "one-istio-"), (format!("gateway, {rules} rules"), "many", "many-istio-")]
    {
        let label = format!("gateway.networking.k8s.io/gateway-name={gateway}");
        let args = ["-n", "plain", "get", "pod", "-l", &label, "-o", "jsonpath={.items[0].status.podIP}"];
        paths.push(Path {
            against: (name != one).then(|| one.clone()),
            name,
            namespace: "plain",
            url: format!("http://{}/", mesh.kubectl(&args)?),
            bulk: None,
            proxies: vec![Program { command: "serve waypoint", pod: Some(pod) }],
        });
    }
    let mut peers = vec![("nginx", "/bench/etc/proxy.conf")];
    if tools.haproxy {
        peers.push(("haproxy", "/bench/etc/haproxy.cfg"));
    }
    if tools.envoy.is_some() {
        peers.push(("envoy", "/bench/etc/envoy.json"));
    }
    for (peer, configuration) in peers {
        paths.push(Path {
            name: format!("{peer}, 1 rule"),
            against: Some(one.clone()),
            namespace: "plain",
            url: format!("http://{}:8080/", address(mesh, "plain", peer)?),
            bulk: None,
            proxies: vec![Program { command: configuration, pod: None }],
        });
    }
    Ok(paths)
}
