// SPDX-License-Identifier: Apache-2.0
//! A waypoint and gateway in this process: real tunnels, real certificates, a backend that writes down what it gets.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use meltemi_identity::CertManager;
use meltemi_identity::ca::{CaCore, CaMaterial};
use meltemi_identity::channel::ControlPlane;
use meltemi_identity::manager::{Fetch, Fetcher};
use meltemi_identity::svid::{Svid, key_and_csr};
use meltemi_model::authz::{
    Action, Attribute, Clause, ClauseOrigin, Match, Policy, Predicate, Rule, Scope, StringMatch, ValueMatch,
};
use meltemi_model::l7::{
    Backend, Filter, HttpPolicy, Jwt, JwtRule, Listener, Parent, Protocol, Provider, Route, RouteMatch,
    RouteRule, Target, TlsSecret,
};
use meltemi_model::service::{AppProtocol, PortMapping};
use meltemi_model::workload::{GatewayAddress, GatewayDestination, TunnelProtocol};
use meltemi_model::{
    NamespacedHostname, NamespacedName, NetworkAddress, Service, SpiffeId, TrustDomain, Workload, WorkloadUid,
};
use meltemi_runtime::drain::{self, DrainTrigger, DrainWatch};
use meltemi_runtime::metrics::Metrics;
use meltemi_runtime::telemetry::Format;
use meltemi_runtime::{Tasks, tasks::Supervisor};
use meltemi_state::Delta;
use meltemi_tunnel::{Dial, DialError, Patience, Pool, TunnelIo};
use meltemi_view::Mesh;
use meltemi_view::View;
use meltemi_view::access_log::AccessLog;
use meltemi_waypoint::{Config, Limits, Parts};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone)]
struct Ca(Arc<CaCore>);

impl Fetcher for Ca {
    fn fetch<'a>(&'a self, identity: &'a SpiffeId, csr: String) -> Fetch<'a> {
        Box::pin(
            async move { self.0.sign(&csr, identity, None, SystemTime::now()).map_err(|e| e.to_string()) },
        )
    }
}

pub(crate) fn id(account: &str) -> SpiffeId {
    SpiffeId::new(&TrustDomain::default(), "default", account).unwrap()
}

fn issue(ca: &CaCore, account: &str) -> Arc<Svid> {
    let identity = id(account);
    let (key, csr) = key_and_csr(&identity).unwrap();
    let chain = ca.sign(&csr, &identity, None, SystemTime::now()).unwrap();
    Arc::new(Svid::new(&chain, &key, &identity).unwrap())
}

/// Lines of the access log.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub(crate) type Seen = Arc<Mutex<Vec<String>>>;

pub(crate) struct World {
    pub(crate) view: View,
    pub(crate) metrics: Metrics,
    pub(crate) gateway: SocketAddr,
    pub(crate) hbone: SocketAddr,
    client: Arc<Svid>,
    pool: Pool,
    lines: Lines,
    /// Every request that the backend got.
    pub(crate) seen: Seen,
    /// How many connections the backend has accepted.
    pub(crate) opened: Arc<AtomicUsize>,
    mesh: Mesh,
    /// Of every Service.
    ports: Vec<PortMapping>,
    drain: Option<(DrainTrigger, DrainWatch)>,
    supervisor: Option<Supervisor>,
}

impl World {
    pub(crate) async fn start(limits: Limits) -> Self {
        let ca = Arc::new(
            CaCore::new(&CaMaterial::generate("cluster.local", SystemTime::now()).unwrap()).unwrap(),
        );
        let (trigger, watch) = drain::channel();
        let (tasks, supervisor) = Tasks::new("test", watch.clone());
        let (seen, lines) = (Seen::default(), Lines::default());
        let opened = Arc::new(AtomicUsize::new(0));
        let backend = super::backend::start(seen.clone(), opened.clone()).await;
        let hbone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = hbone.local_addr().unwrap();
        let free = reserve_port();
        let parts = Parts {
            view: View::fixed(Mesh::default()),
            certs: CertManager::start(Ca(ca.clone()), &tasks),
            log: AccessLog::to(lines.clone(), Format::Text).unwrap(),
            metrics: Metrics::new(),
            limits,
        };
        let (view, metrics) = (parts.view.clone(), parts.metrics.clone());
        meltemi_waypoint::serve(config(), parts, hbone, &tasks).unwrap();
        let connector = Arc::new(|to| Box::pin(TcpStream::connect(to)) as _);
        let mut world = Self {
            view,
            metrics,
            gateway: free,
            hbone: address,
            client: issue(&ca, "client"),
            pool: Pool::new(connector, tasks),
            lines,
            seen,
            opened,
            mesh: Mesh::default(),
            ports: Vec::new(),
            drain: Some((trigger, watch)),
            supervisor: Some(supervisor),
        };
        world.fill(backend);
        world.wait_for_gateway().await;
        world
    }

    /// Services by number: each has its address, its policies come from [`super::fixtures`].
    fn fill(&mut self, backend: SocketAddr) {
        let port = |service_port, app_protocol| PortMapping {
            service_port,
            target_port: backend.port(),
            app_protocol,
        };
        self.ports = vec![
            port(80, AppProtocol::Unknown),
            port(3306, AppProtocol::Tcp),
            port(81, AppProtocol::Http11),
            port(82, AppProtocol::Http2),
        ];
        let uid = WorkloadUid::pod("Kubernetes", "default", "backend");
        let mut workload = Workload::empty(uid, "default", "backend");
        workload.addresses = vec![backend.ip()];
        for number in 0..super::fixtures::SERVICES {
            let mut one = self.unbound(number);
            one.waypoint = Some(waypoint("default", OWN_ADDRESS));
            workload.services.insert(service(number), self.ports.clone());
            self.mesh.snapshot.apply([Delta::Service(Box::new(one))]);
        }
        self.mesh.snapshot.apply([Delta::Workload(Box::new(workload))]);
        super::fixtures::policies(self);
        let listener = |name: &str, hostname: Option<&str>| Listener {
            gateway: gateway_name(),
            name: name.into(),
            port: self.gateway.port(),
            protocol: Protocol::Http,
            hostname: hostname.map(Into::into),
            secrets: Vec::new(),
        };
        for one in [listener("open", None), listener("inside", Some("inside.example"))] {
            self.mesh.listeners.insert(one.name.clone(), Arc::new(one));
        }
        super::fixtures::routes(self);
        self.publish();
    }

    /// Adds a port to every Service, and an application behind it.
    pub(crate) fn add_port(&mut self, service_port: u16, to: SocketAddr, app_protocol: AppProtocol) {
        self.ports.push(PortMapping { service_port, target_port: to.port(), app_protocol });
        let uid = WorkloadUid::pod("Kubernetes", "default", "backend");
        let mut workload = Workload::clone(self.mesh.snapshot.workload(&uid).unwrap());
        for number in 0..super::fixtures::SERVICES {
            workload.services.insert(service(number), self.ports.clone());
            self.bind(number, Some(("default", OWN_ADDRESS)));
        }
        self.mesh.snapshot.apply([Delta::Workload(Box::new(workload))]);
    }

    /// Adds a port to every Service, with an endpoint of its own for each address.
    pub(crate) fn add_endpoints(&mut self, service_port: u16, to: &[SocketAddr], app_protocol: AppProtocol) {
        // The first endpoint has no such port: its Pod is left out.
        self.ports.push(PortMapping { service_port, target_port: 0, app_protocol });
        for number in 0..super::fixtures::SERVICES {
            self.bind(number, Some(("default", OWN_ADDRESS)));
        }
        for address in to {
            let uid = WorkloadUid::pod("Kubernetes", "default", &format!("backend-{}", address.port()));
            let mut workload = Workload::empty(uid.clone(), "default", format!("backend-{}", address.port()));
            if let Some(known) = self.mesh.snapshot.workload(&uid) {
                workload = Workload::clone(known);
            }
            workload.addresses = vec![address.ip()];
            for number in 0..super::fixtures::SERVICES {
                let port = PortMapping { service_port, target_port: address.port(), app_protocol };
                workload.services.entry(service(number)).or_default().push(port);
            }
            self.mesh.snapshot.apply([Delta::Workload(Box::new(workload))]);
        }
    }

    /// An endpoint of [`World::add_endpoints`] is reached through a tunnel.
    pub(crate) fn tunnel_to(&mut self, endpoint: SocketAddr) {
        let uid = WorkloadUid::pod("Kubernetes", "default", &format!("backend-{}", endpoint.port()));
        let mut workload = Workload::clone(self.mesh.snapshot.workload(&uid).unwrap());
        workload.tunnel_protocol = TunnelProtocol::Hbone;
        self.mesh.snapshot.apply([Delta::Workload(Box::new(workload))]);
    }

    /// Takes an endpoint out of a Service.
    pub(crate) fn leave(&mut self, endpoint: SocketAddr, number: u8) {
        let uid = WorkloadUid::pod("Kubernetes", "default", &format!("backend-{}", endpoint.port()));
        let mut workload = Workload::clone(self.mesh.snapshot.workload(&uid).unwrap());
        workload.services.remove(&service(number));
        self.mesh.snapshot.apply([Delta::Workload(Box::new(workload))]);
    }

    async fn wait_for_gateway(&self) {
        self.wait_for_port(self.gateway.port()).await;
    }

    /// Waits until something listens on a port.
    pub(crate) async fn wait_for_port(&self, port: u16) {
        let opened = async {
            while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, opened).await.unwrap();
    }

    pub(crate) fn publish(&self) {
        self.view.publish(self.mesh.clone());
    }

    pub(crate) fn policy(&mut self, target: Target, policy: Policy) {
        let name = policy.name.to_string();
        let policy = HttpPolicy { policy, targets: vec![target] }.try_into().unwrap();
        Arc::make_mut(&mut self.mesh.http_policies).insert(name, Arc::new(policy));
    }

    /// A policy that judges what is addressed to a Service, and what is forwarded to its Pods.
    pub(crate) fn close(&mut self, number: u8, policy: Policy) {
        let targets = vec![Target::Service(service(number)), Target::Backend(service(number))];
        let name = policy.name.to_string();
        let policy = HttpPolicy { policy, targets }.try_into().unwrap();
        Arc::make_mut(&mut self.mesh.http_policies).insert(name, Arc::new(policy));
    }

    /// Gives a Service another waypoint, by namespace and host name, or none.
    pub(crate) fn bind(&mut self, number: u8, to: Option<(&str, &str)>) {
        let mut one = self.unbound(number);
        one.waypoint = to.map(|(namespace, host)| waypoint(namespace, host));
        self.mesh.snapshot.apply([Delta::Service(Box::new(one))]);
    }

    /// The address of the backend's Pod.
    pub(crate) fn pod(&self) -> SocketAddr {
        let port = self.ports.first().unwrap().target_port;
        (*self.backend().addresses.first().unwrap(), port).into()
    }

    fn backend(&self) -> Workload {
        let uid = WorkloadUid::pod("Kubernetes", "default", "backend");
        Workload::clone(self.mesh.snapshot.workload(&uid).unwrap())
    }

    /// Gives the backend's Pod a waypoint of its own, by namespace and host name, or none.
    pub(crate) fn bind_pod(&mut self, to: Option<(&str, &str)>) {
        let mut pod = self.backend();
        pod.addresses = vec![[127, 0, 0, 1].into()];
        pod.waypoint = to.map(|(namespace, host)| waypoint(namespace, host));
        self.mesh.snapshot.apply([Delta::Workload(Box::new(pod))]);
    }

    /// One of the same name comes in the place of the backend's Pod, at another address.
    pub(crate) fn move_pod(&mut self) {
        let mut pod = self.backend();
        pod.addresses = vec![[127, 0, 0, 2].into()];
        self.mesh.snapshot.apply([Delta::Workload(Box::new(pod))]);
    }

    /// Deletes a Service.
    pub(crate) fn delete(&mut self, number: u8) {
        self.mesh.snapshot.apply([Delta::AddressGone(service(number).to_string())]);
    }

    fn unbound(&self, number: u8) -> Service {
        let mut one = Service::empty(service(number), format!("p{number}"));
        one.addresses = vec![NetworkAddress::new("", vip(number, 80).ip())];
        one.ports = self.ports.clone();
        one
    }

    /// A route of a Service to another one.
    pub(crate) fn route_of_service(&mut self, name: &str, from: u8, to: u8, filters: Vec<Filter>) {
        let parent = Parent { target: Target::Service(service(from)), section: None, port: None };
        let backend = Backend { service: Some(service(to)), port: 80, weight: 1, filters: Vec::new() };
        let rule = RouteRule {
            matches: vec![RouteMatch::default()],
            filters,
            backends: vec![backend],
            ..RouteRule::default()
        };
        self.add_route(name, parent, rule);
    }

    /// A route of a Service to itself, with a time for the whole request.
    pub(crate) fn limited_route(&mut self, name: &str, number: u8, timeout_ms: u64) {
        let parent = Parent { target: Target::Service(service(number)), section: None, port: None };
        let backend = Backend { service: Some(service(number)), port: 80, weight: 1, filters: Vec::new() };
        let timeout_ms = Some(timeout_ms);
        let rule = RouteRule { backends: vec![backend], timeout_ms, ..RouteRule::default() };
        self.add_route(name, parent, rule);
    }

    /// A route of a Service with one rule; without a backend of its own it leads to the Service.
    pub(crate) fn rule(&mut self, name: &str, number: u8, mut rule: RouteRule) {
        let parent = Parent { target: Target::Service(service(number)), section: None, port: None };
        if rule.backends.is_empty() {
            rule.backends =
                vec![Backend { service: Some(service(number)), port: 80, weight: 1, filters: Vec::new() }];
        }
        self.add_route(name, parent, rule);
    }

    /// A listener of the Gateway that ends TLS, on a port of its own.
    pub(crate) fn secure_listener(
        &mut self,
        name: &str,
        port: u16,
        hostname: Option<&str>,
        secrets: &[&str],
    ) {
        self.listener(name, port, Protocol::Https, hostname, secrets);
    }

    /// A listener of the Gateway, on a port of its own.
    pub(crate) fn listener(
        &mut self,
        name: &str,
        port: u16,
        protocol: Protocol,
        hostname: Option<&str>,
        secrets: &[&str],
    ) {
        let listener = Listener {
            gateway: gateway_name(),
            name: name.into(),
            port,
            protocol,
            hostname: hostname.map(Into::into),
            secrets: secrets.iter().map(|secret| NamespacedName::new("default", *secret)).collect(),
        };
        self.mesh.listeners.insert(name.into(), Arc::new(listener));
    }

    /// A certificate and its key, PEM.
    pub(crate) fn secret(&mut self, name: &str, certificate: String, key: String) {
        let secret = TlsSecret { name: NamespacedName::new("default", name), certificate, key };
        Arc::make_mut(&mut self.mesh.secrets).insert(secret.name.to_string(), Arc::new(secret));
    }

    /// A route of every listener of the Gateway.
    pub(crate) fn route_of_gateway(&mut self, name: &str, rule: RouteRule) {
        let parent = Parent { target: Target::Gateway(gateway_name()), section: None, port: None };
        self.add_route(name, parent, rule);
    }

    /// A TLSRoute of a listener, to a port of the Service without a policy.
    pub(crate) fn tls_route(&mut self, name: &str, section: &str, hosts: &[&str], service_port: u16) {
        let section = Some(section.to_owned());
        let parent = Parent { target: Target::Gateway(gateway_name()), section, port: None };
        let service = Some(service(super::fixtures::FREE));
        let backend = Backend { service, port: service_port, weight: 1, filters: Vec::new() };
        let rule = RouteRule { backends: vec![backend], ..RouteRule::default() };
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        self.add_route_of(name, hosts, parent, rule);
    }

    fn add_route(&mut self, name: &str, parent: Parent, rule: RouteRule) {
        self.add_route_of(name, Vec::new(), parent, rule);
    }

    fn add_route_of(&mut self, name: &str, hostnames: Vec<String>, parent: Parent, rule: RouteRule) {
        let route = Route {
            name: NamespacedName::new("default", name),
            created: String::new(),
            hostnames,
            parents: vec![parent],
            rules: vec![rule],
        };
        self.mesh.routes.insert(route.name.to_string(), Arc::new(route));
    }

    pub(crate) fn no_policy(&mut self, name: &str) {
        Arc::make_mut(&mut self.mesh.http_policies).remove(&format!("default/{name}"));
    }

    pub(crate) fn jwt(&mut self, number: u8) {
        let name = NamespacedName::new("default", format!("jwt-{number}"));
        let rule = JwtRule { payload_header: Some("x-claims".into()), ..JwtRule::default() };
        self.tokens(Jwt { name, targets: vec![Target::Service(service(number))], rules: vec![rule] });
    }

    /// An external authorizer, in the place of the one of its name.
    pub(crate) fn provider(&mut self, provider: Provider) {
        let settings = Arc::make_mut(&mut self.mesh.settings).entry("mesh".to_owned()).or_default();
        let settings = Arc::make_mut(settings);
        settings.providers.retain(|other| other.name != provider.name);
        settings.providers.push(provider);
    }

    /// A RequestAuthentication, in the place of the one of its name.
    pub(crate) fn tokens(&mut self, jwt: Jwt) {
        self.mesh.jwts.insert(jwt.name.to_string(), Arc::new(jwt.try_into().unwrap()));
    }

    pub(crate) fn route(&mut self, name: &str, section: &str, one: RouteMatch, filters: Vec<Filter>) {
        let parent = Parent {
            target: Target::Gateway(gateway_name()),
            section: Some(section.into()),
            port: Some(self.gateway.port()),
        };
        let backend = Backend { service: Some(service(0)), port: 80, weight: 1, filters: Vec::new() };
        let rule = RouteRule { matches: vec![one], filters, backends: vec![backend], ..RouteRule::default() };
        self.add_route(name, parent, rule);
    }

    /// Tells the proxy to end, and waits until it has been told.
    pub(crate) async fn drain(&mut self) {
        let (trigger, mut watch) = self.drain.take().unwrap();
        tokio::spawn(trigger.start(PATIENCE));
        watch.started().await;
    }

    /// Resolves when the proxy has ended, after [`World::drain`].
    pub(crate) async fn ended(&mut self) {
        self.supervisor.take().unwrap().run().await.unwrap();
    }

    /// A stream through a tunnel to a service of the waypoint.
    pub(crate) async fn tunnel(&self, to: &str) -> Result<TunnelIo, DialError> {
        let dial = Dial {
            svid: self.client.clone(),
            address: self.hbone,
            expected: vec![id("waypoint")],
            authority: to.into(),
            headers: HeaderMap::new(),
            patience: Patience::Full,
        };
        let dialled = self.pool.dial(&dial).await?;
        Ok(TunnelIo::holding(dialled.stream, dialled.lease))
    }

    pub(crate) async fn to_service(&self, number: u8) -> TunnelIo {
        self.tunnel(&vip(number, 80).to_string()).await.unwrap()
    }

    /// To a port that declares HTTP/1.1; [`Self::to_service`] is for one that declares nothing.
    pub(crate) async fn to_http(&self, number: u8) -> TunnelIo {
        self.tunnel(&vip(number, 81).to_string()).await.unwrap()
    }

    pub(crate) async fn to_gateway(&self) -> TcpStream {
        TcpStream::connect(self.gateway).await.unwrap()
    }

    /// What the backend got with this request id.
    pub(crate) fn seen(&self, id: &str) -> Vec<String> {
        let marker = format!("x-request-id: {id}\r\n");
        self.seen.lock().unwrap().iter().filter(|r| r.contains(&marker)).cloned().collect()
    }

    /// How many requests the backend got that have this text.
    pub(crate) fn seen_with(&self, text: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|r| r.contains(text)).count()
    }

    /// The access log's lines with this text.
    pub(crate) fn lines_with(&self, marker: &str) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.lines.0.lock().unwrap()).into_owned();
        text.lines().filter(|line| line.contains(marker)).map(ToOwned::to_owned).collect()
    }

    /// The access log's line with this text, when it has come.
    pub(crate) async fn line(&self, marker: &str) -> String {
        let found = async {
            loop {
                let text = String::from_utf8_lossy(&self.lines.0.lock().unwrap()).into_owned();
                if let Some(line) = text.lines().find(|l| l.contains(marker)) {
                    return line.to_owned();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("no line with {marker}"))
    }
}

/// Host name of the proxy's own Service.
pub(crate) const OWN_ADDRESS: &str = "waypoint.default.svc.cluster.local";

fn waypoint(namespace: &str, host: &str) -> GatewayAddress {
    let destination = GatewayDestination::Hostname(NamespacedHostname::new(namespace, host));
    GatewayAddress { destination, hbone_port: 15008 }
}

fn config() -> Config {
    Config {
        gateway: gateway_name(),
        pod: NamespacedName::new("default", "waypoint-1"),
        identity: id("waypoint"),
        control: ControlPlane {
            address: String::new(),
            server_name: String::new(),
            roots: "/nowhere".into(),
            token: "/nowhere".into(),
        },
        cluster_id: "Kubernetes".into(),
        instance_ip: "127.0.0.1".into(),
        log_format: Format::Text,
        workers: 2,
        ready_port: 0,
        stats_port: 0,
        admin_port: 0,
    }
}

pub(crate) fn gateway_name() -> NamespacedName {
    NamespacedName::new("default", "waypoint")
}

/// A free port, at the loopback address, kept from everybody else until the process ends: one that was only looked up is
/// taken by another test. Who is told of it may listen there; until then connections are refused. It is free at every
/// address of the machine: a gateway listens at all of them, and a connection to somewhere else may have it at one.
pub(crate) fn reserve_port() -> SocketAddr {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(([0, 0, 0, 0], 0).into()).unwrap();
    let port = socket.local_addr().unwrap().port();
    Box::leak(Box::new(socket));
    ([127, 0, 0, 1], port).into()
}

pub(crate) fn service(number: u8) -> NamespacedHostname {
    NamespacedHostname::new("default", format!("p{number}.default.svc.cluster.local"))
}

pub(crate) fn vip(number: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([10, 96, 0, number], port))
}

/// A policy of one rule; values are ANDed by attribute.
pub(crate) fn policy(name: &str, action: Action, fields: &[(Attribute, &[&str])]) -> Policy {
    let value = |attribute: &Attribute, text: &str| match attribute {
        Attribute::RemoteIp => ValueMatch::Cidr(text.parse().unwrap()),
        _ => ValueMatch::String(StringMatch::parse(text)),
    };
    let predicates = fields.iter().map(|(attribute, values)| Predicate {
        attribute: attribute.clone(),
        values: values.iter().map(|v| value(attribute, v)).collect(),
        not_values: Vec::new(),
    });
    let clause =
        Clause { origin: ClauseOrigin::To, matches: vec![Match { predicates: predicates.collect() }] };
    Policy {
        name: NamespacedName::new("default", name),
        scope: Scope::WorkloadSelector,
        action,
        dry_run: false,
        rules: vec![Rule { clauses: vec![clause] }],
    }
}

/// A policy of one not-value.
pub(crate) fn policy_but(name: &str, action: Action, attribute: Attribute, value: &str) -> Policy {
    let mut policy = policy(name, action, &[(attribute, &[value])]);
    let predicate = &mut policy.rules[0].clauses[0].matches[0].predicates[0];
    predicate.not_values = std::mem::take(&mut predicate.values);
    policy
}

/// Reads until there is a whole answer (head, and body by its length or chunks). None at the end of the connection.
pub(crate) async fn answer<IO: tokio::io::AsyncRead + Unpin>(
    io: &mut IO,
    rest: &mut Vec<u8>,
) -> Option<Vec<u8>> {
    loop {
        if let Some(end) = message_end(rest) {
            let tail = rest.split_off(end);
            return Some(std::mem::replace(rest, tail));
        }
        let mut more = [0; 4096];
        match tokio::time::timeout(PATIENCE, io.read(&mut more)).await.expect("an answer or an end") {
            Ok(n @ 1..) => rest.extend_from_slice(&more[..n]),
            _ => return None,
        }
    }
}

/// Where a message ends: what the tests write and get is framed plainly.
pub(crate) fn message_end(bytes: &[u8]) -> Option<usize> {
    let head = bytes.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    if text.contains("\r\ntransfer-encoding: chunked") {
        let rest = &bytes[head..];
        let last = if rest.starts_with(b"0\r\n") {
            Some(0)
        } else {
            rest.windows(5).position(|w| w == b"\r\n0\r\n").map(|at| at + 2)
        };
        let end = rest[last?..].windows(4).position(|w| w == b"\r\n\r\n")?;
        return Some(head + last? + end + 4);
    }
    let length = text.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    (bytes.len() >= head + length).then_some(head + length)
}

pub(crate) fn status(answer: &[u8]) -> u16 {
    let text = String::from_utf8_lossy(answer);
    text.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("no answer: {text}"))
}

pub(crate) async fn write<IO: tokio::io::AsyncWrite + Unpin + ?Sized>(io: &mut IO, bytes: &[u8]) {
    // The proxy may have closed already: what it answered says so.
    let _ = io.write_all(bytes).await;
    let _ = io.flush().await;
}
