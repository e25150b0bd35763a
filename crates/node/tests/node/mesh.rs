// SPDX-License-Identifier: Apache-2.0
//! A mesh of two Pods on one node, in network namespaces of its own: a real proxy, a real CA, and a view that the test writes.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use meltemi_capture::{Options, Plan, apply};
use meltemi_identity::ca::CaCore;
use meltemi_identity::channel::ControlPlane;
use meltemi_identity::manager::{Fetch, Fetcher};
use meltemi_linux::netns::NetNs;
use meltemi_linux::rtnl::{Route, Rtnl, VethEnd};
use meltemi_linux::seqpacket::{Listener, SeqPacket};
use meltemi_model::authz::{
    Action, Attribute, Clause, ClauseOrigin, Match, Policy, Predicate, Rule, Scope, StringMatch, ValueMatch,
};
use meltemi_model::workload::TunnelProtocol;
use meltemi_model::{NamespacedName, SpiffeId, TrustDomain, Workload, WorkloadUid};
use meltemi_node::{Config, start_with};
use meltemi_runtime::drain::{self, DrainTrigger};
use meltemi_runtime::tasks::Supervisor;
use meltemi_runtime::telemetry::Format;
use meltemi_runtime::{Readiness, Tasks};
use meltemi_state::Delta;
pub(crate) use meltemi_testkit::ca::{authority, identity as id, issue};
use meltemi_view::Mesh as Known;
use meltemi_view::View;
use meltemi_wire::zds::{self, MAX_MESSAGE, Request};
use socket2::{Domain, Protocol, Socket, Type};

pub(crate) const A: &str = "10.244.1.2";
pub(crate) const B: &str = "10.244.1.3";
pub(crate) const NODE: &str = "172.30.0.11";

/// A CA that answers nobody while it is told so.
#[derive(Clone)]
struct Ca(Arc<CaCore>, Arc<AtomicBool>);

impl Fetcher for Ca {
    fn fetch<'a>(&'a self, identity: &'a SpiffeId, csr: String) -> Fetch<'a> {
        Box::pin(async move {
            if self.1.load(Ordering::SeqCst) {
                return Err("not now".into());
            }
            self.0.sign(&csr, identity, None, SystemTime::now()).map_err(|e| e.to_string())
        })
    }
}

pub(crate) struct Mesh {
    pub(crate) a: NetNs,
    pub(crate) b: NetNs,
    pub(crate) view: View,
    pub(crate) ca: Arc<CaCore>,
    pub(crate) readiness: Readiness,
    pub(crate) known: Known,
    pub(crate) tasks: Tasks,
    trigger: Option<DrainTrigger>,
    supervisor: Option<Supervisor>,
    agent: SeqPacket,
    _folder: tempfile::TempDir,
}

impl Mesh {
    /// Two enrolled Pods `a` and `b` of accounts `a` and `b`; `b` has an application on 9080 that echoes.
    pub(crate) async fn start() -> Self {
        Self::start_with(Arc::default()).await
    }

    /// The same, with a CA that answers nobody while `silent` is set.
    pub(crate) async fn start_with(silent: Arc<AtomicBool>) -> Self {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        Rtnl::open().unwrap().add_address(1, format!("{NODE}/32").parse().unwrap()).unwrap();
        let (a, b) = (pod("va", A, 1), pod("vb", B, 3));
        for pod in [&a, &b] {
            apply(pod, &Plan::for_pod(&Options { ipv6: false, ..Options::default() })).unwrap();
        }
        echo(b.listen_tcp("10.244.1.3:9080".parse().unwrap(), |_| Ok(())).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("zds.sock");
        let listener = Listener::bind(&path).unwrap();
        let (trigger, watch) = drain::channel();
        let (tasks, supervisor) = Tasks::new("test", watch);
        let (view, ca) = (View::fixed(Known::default()), Arc::new(authority()));
        let nowhere = ControlPlane {
            address: String::new(),
            server_name: String::new(),
            roots: path.clone(),
            token: path.clone(),
        };
        let config = Config {
            pod_name: "ztunnel-1".into(),
            pod_namespace: "istio-system".into(),
            node_name: "node-1".into(),
            instance_ip: NODE.parse().unwrap(),
            cluster_id: "Kubernetes".into(),
            trust_domain: TrustDomain::default(),
            zds_socket: path,
            control: nowhere,
            certificate_ttl: Duration::from_secs(3600),
            resolver: format!("{NODE}:53").parse().unwrap(),
            connections_per_pod: 300,
            log_format: Format::Text,
            workers: 2,
            endpoints: None,
        };
        let readiness = Readiness::new();
        start_with(config, view.clone(), Ca(ca.clone(), silent), readiness.clone(), &tasks).unwrap();
        let agent = listener.accept().await.unwrap();
        zds::read_hello(&agent.recv(MAX_MESSAGE).await.unwrap().bytes).unwrap();
        let mut known = Known::default();
        for (name, ip, netns) in [("a", A, &a), ("b", B, &b)] {
            let workload = zds::Workload {
                uid: name.into(),
                name: name.into(),
                namespace: "default".into(),
                service_account: name.into(),
                keep_listeners: true,
            };
            tell(&agent, &Request::Add(workload), Some(netns)).await;
            known.snapshot.apply([Delta::Workload(Box::new(self::workload(name, ip)))]);
        }
        tell(&agent, &Request::SnapshotSent, None).await;
        view.publish(known.clone());
        Self {
            a,
            b,
            view,
            ca,
            readiness,
            known,
            tasks,
            trigger: Some(trigger),
            supervisor: Some(supervisor),
            agent,
            _folder: folder,
        }
    }

    /// Begins a drain with a deadline of ten seconds; resolves when everything has ended.
    #[expect(clippy::disallowed_methods, reason = "a test has no owner for tasks but itself")]
    pub(crate) fn stop(&mut self) -> tokio::task::JoinHandle<()> {
        let (trigger, supervisor) = (self.trigger.take().unwrap(), self.supervisor.take().unwrap());
        tokio::spawn(async move {
            tokio::select! {
                ended = supervisor.run() => ended.unwrap(),
                () = trigger.start(Duration::from_secs(10)) => panic!("the deadline has passed"),
            }
        })
    }

    /// Tells the proxy that another one has taken over.
    pub(crate) async fn succeed(&self) {
        tell(&self.agent, &Request::Successor, None).await;
    }

    /// Puts what is known as it is changed directly into use.
    pub(crate) fn publish(&self) {
        self.view.publish(self.known.clone());
    }

    /// Changes what is known.
    pub(crate) fn apply(&mut self, deltas: impl IntoIterator<Item = Delta>) {
        self.known.snapshot.apply(deltas);
        self.view.publish(self.known.clone());
    }

    pub(crate) fn policy(&mut self, policy: Policy) {
        self.apply([Delta::Policy(Box::new(policy))]);
    }
}

pub(crate) fn workload(name: &str, ip: &str) -> Workload {
    let uid = WorkloadUid::pod("Kubernetes", "default", name);
    let mut workload = Workload::empty(uid, "default", name);
    workload.addresses = vec![ip.parse::<IpAddr>().unwrap()];
    workload.service_account = name.into();
    workload.tunnel_protocol = TunnelProtocol::Hbone;
    workload
}

/// A policy of namespace default about principals.
pub(crate) fn policy(name: &str, action: Action, scope: Scope, values: &[&str], not: &[&str]) -> Policy {
    let all = |texts: &[&str]| texts.iter().map(|t| ValueMatch::String(StringMatch::parse(t))).collect();
    let predicate =
        Predicate { attribute: Attribute::SourcePrincipal, values: all(values), not_values: all(not) };
    let clause = Clause { origin: ClauseOrigin::From, matches: vec![Match { predicates: vec![predicate] }] };
    Policy {
        name: NamespacedName::new("default", name),
        scope,
        action,
        dry_run: false,
        rules: vec![Rule { clauses: vec![clause] }],
    }
}

async fn tell(agent: &SeqPacket, request: &Request, netns: Option<&NetNs>) {
    let fds: Vec<_> = netns.iter().map(|n| n.as_fd()).collect();
    agent.send(&request.encode(), &fds).await.unwrap();
    let answer = agent.recv(MAX_MESSAGE).await.unwrap();
    assert_eq!(zds::read_ack(&answer.bytes).unwrap(), None);
}

fn pod(link: &str, ip: &str, mac: u8) -> NetNs {
    let pod = NetNs::create().unwrap();
    let mut node = Rtnl::open().unwrap();
    let end = |name: &str, last| VethEnd { name: name.into(), mac: [2, 0, 0, 0, 0, last] };
    node.add_veth(&end(link, mac), &end("eth0", mac + 1), &pod).unwrap();
    let index = node.link_index(link).unwrap();
    node.set_up(index).unwrap();
    let mut inside = pod.rtnl().unwrap();
    let eth0 = inside.link_index("eth0").unwrap();
    inside.set_up(eth0).unwrap();
    inside.add_address(eth0, format!("{ip}/32").parse().unwrap()).unwrap();
    let gateway = "169.254.1.1".parse().unwrap();
    inside.set_neighbour(eth0, gateway, [2, 0, 0, 0, 0, mac]).unwrap();
    let default = Route {
        interface: Some(eth0),
        gateway: Some(gateway),
        onlink: true,
        ..Route::to("0.0.0.0/0".parse().unwrap())
    };
    inside.set_route(&default).unwrap();
    let source = NODE.parse().ok();
    let to = format!("{ip}/32").parse().unwrap();
    node.set_route(&Route { interface: Some(index), source, ..Route::to(to) }).unwrap();
    node.set_neighbour(index, ip.parse().unwrap(), [2, 0, 0, 0, 0, mac + 1]).unwrap();
    node.wait_running(index, Duration::from_secs(30)).unwrap();
    inside.wait_running(eth0, Duration::from_secs(30)).unwrap();
    pod
}

/// Echoes what it gets, after the address that it sees the client under, as one line.
fn echo(listener: TcpListener) {
    listener.set_nonblocking(false).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let peer = stream.peer_addr().unwrap();
                let _ = writeln!(stream, "{}", peer.ip());
                let mut buffer = [0; 65536];
                while let Ok(n @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..n]).is_err() {
                        return;
                    }
                }
                let _ = stream.shutdown(std::net::Shutdown::Write);
            });
        }
    });
}

/// A connection from inside a namespace; its reads wait twenty seconds.
pub(crate) fn dial(netns: &NetNs, to: &str) -> TcpStream {
    try_dial(netns, to).unwrap()
}

pub(crate) fn try_dial(netns: &NetNs, to: &str) -> std::io::Result<TcpStream> {
    let to: SocketAddr = to.parse().unwrap();
    let stream = netns.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(20)))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(stream)
}

/// Sends a byte and gives back the line that the application begins with, or the error.
pub(crate) fn greeting(stream: &mut TcpStream) -> std::io::Result<String> {
    stream.write_all(b"x")?;
    let (mut line, mut byte) = (String::new(), [0]);
    loop {
        if stream.read(&mut byte)? == 0 {
            return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, line));
        }
        if byte[0] == b'\n' {
            stream.read_exact(&mut byte)?;
            return Ok(line);
        }
        line.push(char::from(byte[0]));
    }
}

/// Every packet that passes the node's interfaces.
pub(crate) struct Wire {
    stop: Arc<AtomicBool>,
    reader: std::thread::JoinHandle<Vec<u8>>,
}

impl Wire {
    pub(crate) fn tap() -> Self {
        const EVERYTHING: i32 = 0x0003_u16.to_be() as i32;
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(EVERYTHING))).unwrap();
        socket.set_recv_buffer_size(32 << 20).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let reader = std::thread::spawn(move || {
            let (mut seen, mut packet) = (Vec::new(), vec![0; 1 << 17]);
            while !stopping.load(Ordering::SeqCst) {
                if let Ok(n) = (&socket).read(&mut packet) {
                    seen.extend_from_slice(&packet[..n]);
                }
            }
            seen
        });
        Self { stop, reader }
    }

    pub(crate) fn seen(self) -> Vec<u8> {
        self.stop.store(true, Ordering::SeqCst);
        self.reader.join().unwrap()
    }
}
