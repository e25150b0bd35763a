// SPDX-License-Identifier: Apache-2.0
//! The plan in force: what nft says of it, and what happens to connections. In namespaces of its own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use meltemi_capture::{Options, Plan, apply, is_applied, remove};
use meltemi_linux::netns::NetNs;
use meltemi_linux::rtnl::{Route, Rtnl, VethEnd};
use meltemi_linux::sockopt;
use meltemi_testkit::namespaces;

fn main() {
    let cases: [(&str, fn()); 6] = [
        ("nft shows the rules as documented", golden),
        ("without a proxy nothing gets out or in, and removal undoes it", fails_closed),
        ("open connections go on, probes pass, the proxy's mark passes", exempt),
        ("a packet ahead of a connection does not lead it past the rules", ahead),
        ("an application on a port of the proxy answers nobody", impostor),
        ("a Pod that leaves keeps the connections that the proxy carries", leaves),
    ];
    namespaces::run(&cases, || {});
}

fn listed() -> String {
    let out = Command::new("nft").args(["-nn", "list", "ruleset"]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).unwrap();
    text.lines().map(str::trim).filter(|l| !l.is_empty() && *l != "}").collect::<Vec<_>>().join("\n")
}

const GOLDEN: &str = r#"table inet istio-ambient-raw {
chain output {
type filter hook output priority -300; policy accept;
meta mark & 0x00000fff == 0x00000539 udp dport 53 ct zone set 1
udp sport 15053 meta mark & 0x00000fff == 0x00000539 accept
chain prerouting {
type filter hook prerouting priority -300; policy accept;
iifname != "lo" udp sport 53 ct zone set 1
table inet istio-ambient-mangle {
chain prerouting {
type filter hook prerouting priority -150; policy accept;
meta mark & 0x00000fff == 0x00000539 ct mark set ct mark & 0xfffff111 | 0x00000111
chain output {
type route hook output priority -150; policy accept;
ct mark & 0x00000fff == 0x00000111 meta mark set ct mark
table inet istio-ambient-nat {
chain prerouting {
type nat hook prerouting priority -100; policy accept;
meta l4proto 6 ip saddr 169.254.7.127 accept
tcp flags 0x2 / 0x1,0x2,0x4,0x10 ip daddr != 127.0.0.1 tcp dport != 15008 meta mark & 0x00000fff != 0x00000539 redirect to :15006
chain output {
type nat hook output priority -100; policy accept;
oifname != "lo" meta mark & 0x00000fff != 0x00000539 udp dport 53 redirect to :15053
tcp flags 0x2 / 0x1,0x2,0x4,0x10 ip daddr != 127.0.0.1 tcp dport 53 meta mark & 0x00000fff != 0x00000539 redirect to :15053
meta l4proto 6 meta mark & 0x00000fff == 0x00000111 accept
oifname "lo" ip daddr != 127.0.0.1 accept
tcp flags 0x2 / 0x1,0x2,0x4,0x10 ip daddr != 127.0.0.1 meta mark & 0x00000fff != 0x00000539 redirect to :15001
table inet meltemi-proxy-ports {
chain output {
type filter hook output priority -310; policy accept;
tcp sport 15001 tcp flags ! 0x4 meta mark & 0x00001000 != 0x00001000 meta mark & 0x00000fff != 0x00000539 drop
tcp sport 15006 tcp flags ! 0x4 meta mark & 0x00001000 != 0x00001000 meta mark & 0x00000fff != 0x00000539 drop
tcp sport 15008 tcp flags ! 0x4 meta mark & 0x00001000 != 0x00001000 meta mark & 0x00000fff != 0x00000539 drop
tcp sport 15053 tcp flags ! 0x4 meta mark & 0x00001000 != 0x00001000 meta mark & 0x00000fff != 0x00000539 drop
udp sport 15053 meta mark & 0x00001000 != 0x00001000 meta mark & 0x00000fff != 0x00000539 drop"#;

fn golden() {
    let here = NetNs::current().unwrap();
    let v4 = Options { ipv6: false, ..Options::default() };
    apply(&here, &Plan::for_pod(&v4)).unwrap();
    apply(&here, &Plan::for_pod(&v4)).unwrap();
    assert_eq!(listed(), GOLDEN);
    let rules = Command::new("ip").args(["rule", "show", "pref", "32764"]).output().unwrap();
    let rules = String::from_utf8(rules.stdout).unwrap();
    assert_eq!(rules.trim(), "32764:\tfrom all fwmark 0x111/0xfff lookup 100");
    let routes = Command::new("ip").args(["route", "show", "table", "100"]).output().unwrap();
    let routes = String::from_utf8(routes.stdout).unwrap();
    assert!(routes.starts_with("local default dev lo"), "{routes}");

    apply(&here, &Plan::for_pod(&Options::default())).unwrap();
    let both = listed();
    assert!(both.contains("ip6 daddr != ::1") && both.contains("ip6 saddr fd16:9254:7127:1337"), "{both}");
    let gateway = Options { dns_capture: false, bypass_inbound: true, ipv6: false, node_probes: false };
    apply(&here, &Plan::for_pod(&gateway)).unwrap();
    let text = listed();
    assert!(!text.contains(":15006") && !text.contains(":15053") && text.contains("ct mark set"), "{text}");
    assert!(!text.contains("169.254.7.127"), "{text}");
    assert!(is_applied(&here).unwrap());
    remove(&here).unwrap();
    remove(&here).unwrap();
    assert!(!is_applied(&here).unwrap());
    assert_eq!(listed(), "");
}

/// How long a new link may take until it passes packets; one second at most where the kernel has time for it.
const CARRIER: Duration = Duration::from_secs(30);

/// A Pod at 10.244.1.2 beside this namespace, which is the node and holds the probe address.
fn pod() -> NetNs {
    let pod = NetNs::create().unwrap();
    let mut node = Rtnl::open().unwrap();
    let end = |name: &str, last| VethEnd { name: name.into(), mac: [2, 0, 0, 0, 0, last] };
    node.add_veth(&end("v0", 1), &end("eth0", 2), &pod).unwrap();
    let v0 = node.link_index("v0").unwrap();
    node.set_up(v0).unwrap();
    for address in ["172.30.0.11/32", "169.254.7.127/32"] {
        node.add_address(1, address.parse().unwrap()).unwrap();
    }
    let mut inside = pod.rtnl().unwrap();
    let eth0 = inside.link_index("eth0").unwrap();
    inside.set_up(eth0).unwrap();
    inside.add_address(eth0, "10.244.1.2/32".parse().unwrap()).unwrap();
    let gateway = "169.254.1.1".parse().unwrap();
    inside.set_neighbour(eth0, gateway, [2, 0, 0, 0, 0, 1]).unwrap();
    let default = Route {
        interface: Some(eth0),
        gateway: Some(gateway),
        onlink: true,
        ..Route::to("0.0.0.0/0".parse().unwrap())
    };
    inside.set_route(&default).unwrap();
    let source = "172.30.0.11".parse().ok();
    node.set_route(&Route { interface: Some(v0), source, ..Route::to("10.244.1.2/32".parse().unwrap()) })
        .unwrap();
    node.set_neighbour(v0, "10.244.1.2".parse().unwrap(), [2, 0, 0, 0, 0, 2]).unwrap();
    node.wait_running(v0, CARRIER).unwrap();
    inside.wait_running(eth0, CARRIER).unwrap();
    pod
}

fn connect(address: &str) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(10))
}

/// For what may stay without an answer.
fn connect_briefly(address: &str) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_millis(500))
}

fn blocking(listener: TcpListener) -> TcpListener {
    listener.set_nonblocking(false).unwrap();
    listener
}

fn fails_closed() {
    let pod = pod();
    let _outside = TcpListener::bind("172.30.0.11:80").unwrap();
    let _server = pod.listen_tcp("10.244.1.2:80".parse().unwrap(), |_| Ok(())).unwrap();
    pod.run(|| connect("172.30.0.11:80")).unwrap();
    connect("10.244.1.2:80").unwrap();
    apply(&pod, &Plan::for_pod(&Options::default())).unwrap();
    let refused = std::io::ErrorKind::ConnectionRefused;
    assert_eq!(pod.run(|| connect("172.30.0.11:80")).unwrap_err().kind(), refused);
    assert_eq!(connect("10.244.1.2:80").unwrap_err().kind(), refused);
    pod.run(|| connect("10.244.1.2:80")).unwrap();
    remove(&pod).unwrap();
    pod.run(|| connect("172.30.0.11:80")).unwrap();
    connect("10.244.1.2:80").unwrap();
}

fn exempt() {
    let pod = pod();
    let outside = TcpListener::bind("172.30.0.11:80").unwrap();
    let server = blocking(pod.listen_tcp("10.244.1.2:80".parse().unwrap(), |_| Ok(())).unwrap());
    let mut open = connect("10.244.1.2:80").unwrap();
    let (mut accepted, _) = server.accept().unwrap();
    apply(&pod, &Plan::for_pod(&Options::default())).unwrap();
    // The connection that was open before goes on in both directions.
    open.write_all(b"a").unwrap();
    accepted.read_exact(&mut [0]).unwrap();
    accepted.write_all(b"b").unwrap();
    open.read_exact(&mut [0]).unwrap();
    // A probe from the node's own address for it gets in.
    let probe = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    probe.bind(&"169.254.7.127:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    probe
        .connect_timeout(&"10.244.1.2:80".parse::<SocketAddr>().unwrap().into(), Duration::from_secs(1))
        .unwrap();
    // The proxy's mark passes; a listener on the capture port gets what has none, with its destination.
    let marked = pod.run(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        sockopt::set_mark(&socket, meltemi_capture::PROXY_MARK)?;
        socket.connect(&"172.30.0.11:80".parse::<SocketAddr>().unwrap().into())?;
        Ok(socket)
    });
    drop((marked.unwrap(), outside));
    let proxy = proxy_listener(&pod, 15001);
    let _client = pod.run(|| connect("172.30.0.11:80")).unwrap();
    let (captured, _) = proxy.accept().unwrap();
    assert_eq!(sockopt::original_dst(&captured).unwrap(), "172.30.0.11:80".parse().unwrap());
}

/// A listener of the proxy: with its mark, beside the application's.
fn proxy_listener(pod: &NetNs, port: u16) -> TcpListener {
    let listener = pod.listen_tcp(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), |socket| {
        sockopt::set_reuseport(socket)?;
        sockopt::set_mark(socket, meltemi_capture::LISTENER_MARK)
    });
    blocking(listener.unwrap())
}

/// The application takes the proxy's ports while no proxy is there, and shares them when one is.
fn impostor() {
    let pod = pod();
    for port in [15001_u16, 15006, 15008] {
        let shared = pod.listen_tcp(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), sockopt::set_reuseport);
        let _shared = shared.unwrap();
        apply(&pod, &Plan::for_pod(&Options { ipv6: false, ..Options::default() })).unwrap();
        // Port 80 is led to 15006, 15008 is dialled as it is; 15001 takes what the Pod itself dials.
        let dial = || match port {
            15001 => pod.run(|| connect_briefly("172.30.0.11:80")),
            15006 => connect_briefly("10.244.1.2:80"),
            _ => connect_briefly(&format!("10.244.1.2:{port}")),
        };
        for _ in 0..3 {
            let error = dial().expect_err("the application answered on a port of the proxy");
            assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{port}");
        }
        // Beside the proxy the kernel leads some connections to each of the two: those of the proxy are served.
        let proxy = proxy_listener(&pod, port);
        proxy.set_nonblocking(true).unwrap();
        let opened = (0..24).filter(|_| dial().is_ok()).count();
        let accepted = std::iter::from_fn(|| proxy.accept().ok()).count();
        assert_eq!(opened, accepted, "{port}: the application answered beside the proxy");
        assert!(opened > 0, "{port}: the proxy's listener is not reached");
        remove(&pod).unwrap();
    }
}

/// A connection that the proxy carries goes on while its Pod leaves, and a new one goes past the proxy.
fn leaves() {
    let pod = pod();
    let options = Options { ipv6: false, ..Options::default() };
    apply(&pod, &Plan::for_pod(&options)).unwrap();
    let proxy = proxy_listener(&pod, 15006);
    let server = blocking(pod.listen_tcp("10.244.1.2:80".parse().unwrap(), |_| Ok(())).unwrap());
    let mut carried = connect("10.244.1.2:80").unwrap();
    let (mut accepted, _) = proxy.accept().unwrap();
    apply(&pod, &Plan::leaving(&options)).unwrap();
    carried.write_all(b"a").unwrap();
    accepted.read_exact(&mut [0]).unwrap();
    accepted.write_all(b"b").unwrap();
    carried.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    carried.read_exact(&mut [0]).unwrap();
    let _direct = connect("10.244.1.2:80").unwrap();
    server.accept().unwrap();
    remove(&pod).unwrap();
    connect("10.244.1.2:80").unwrap();
}

/// A TCP packet with nothing but ACK, and an option that makes the receiver drop it without an answer (RFC 2385).
fn acknowledgement(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Vec<u8> {
    let mut packet = [&from.1.to_be_bytes()[..], &to.1.to_be_bytes(), &[0, 0, 0, 1, 0, 0, 0, 1]].concat();
    packet.extend([10 << 4, 0x10, 0xff, 0xff, 0, 0, 0, 0, 1, 1, 19, 18]);
    packet.extend([0x41; 16]);
    let length = u8::try_from(packet.len()).unwrap();
    let pseudo = [&from.0.octets()[..], &to.0.octets(), &[0, 6, 0, length]].concat();
    let words = pseudo.chunks(2).chain(packet.chunks(2)).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[16..18].copy_from_slice(&(!u16::try_from(sum).unwrap()).to_be_bytes());
    packet
}

fn ahead() {
    let pod = pod();
    let _server = pod.listen_tcp("10.244.1.2:80".parse().unwrap(), |_| Ok(())).unwrap();
    apply(&pod, &Plan::for_pod(&Options { ipv6: false, ..Options::default() })).unwrap();
    let (node, to) = (Ipv4Addr::new(172, 30, 0, 11), Ipv4Addr::new(10, 244, 1, 2));
    let raw = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::RAW, Some(socket2::Protocol::TCP));
    let packet = acknowledgement((node, 40000), (to, 80));
    raw.unwrap().send_to(&packet, &SocketAddr::from((to, 0)).into()).unwrap();
    let client = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    client.bind(&SocketAddr::from((node, 40000)).into()).unwrap();
    let opened = client.connect_timeout(&SocketAddr::from((to, 80)).into(), Duration::from_secs(1));
    assert_eq!(opened.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused, "past the proxy");
}
