// SPDX-License-Identifier: Apache-2.0
//! What the kernel makes of it: each case runs in namespaces of its own, as root or not.
//!
//! Not libtest's harness: a new user namespace needs a process with one thread.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use meltemi_linux::nft::{self, Action, Base, Chain, Family, Hook, Is, Kind, L4, Match, Rule, Table};
use meltemi_linux::rtnl::{Route, Rtnl, VethEnd, write_sysctl};
use meltemi_linux::{netns::NetNs, process};
use meltemi_testkit::namespaces;

fn main() {
    let cases: [(&str, fn()); 6] = [
        ("every expression is what nft says it is", every_expression),
        ("a table is replaced whole or not at all", replaced_whole),
        ("a redirect brings a connection to a port and tells where it went", redirected),
        ("a veth pair carries packets between namespaces", veth),
        ("a process joins namespaces and loses its rights", spawned),
        ("a process changes its user while threads of its parent come and go", becomes_user),
    ];
    namespaces::run(&cases, || {});
}

fn listed() -> String {
    let out = Command::new("nft").args(["-nn", "list", "ruleset"]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn base(kind: Kind, hook: Hook, priority: i32) -> Option<Base> {
    Some(Base { kind, hook, priority })
}

fn chain(name: &str, base: Option<Base>, rules: Vec<Rule>) -> Chain {
    Chain { name: name.into(), base, rules }
}

fn every_expression() {
    let mark = |is| Match::Mark { mask: 0xfff, value: 0x539, is };
    let cases = vec![
        (
            Kind::Filter,
            Hook::Input,
            Rule::new().when(mark(Is::Not)).then(Action::Accept),
            "meta mark & 0x00000fff != 0x00000539 accept",
        ),
        (
            Kind::Filter,
            Hook::Prerouting,
            Rule::new().when(mark(Is::Equal)).then(Action::SetCtMark { mask: 0xfff, value: 0x111 }),
            "meta mark & 0x00000fff == 0x00000539 ct mark set ct mark & 0xfffff111 | 0x00000111",
        ),
        (
            Kind::Route,
            Hook::Output,
            Rule::new()
                .when(Match::CtMark { mask: 0xfff, value: 0x111, is: Is::Equal })
                .then(Action::MarkFromCt),
            "ct mark & 0x00000fff == 0x00000111 meta mark set ct mark",
        ),
        (
            Kind::Filter,
            Hook::Input,
            Rule::new()
                .when(Match::Source("169.254.7.127/32".parse().unwrap(), Is::Equal))
                .when(Match::Protocol(L4::Tcp))
                .then(Action::Drop),
            "ip saddr 169.254.7.127 meta l4proto 6 drop",
        ),
        (
            Kind::Filter,
            Hook::Input,
            Rule::new()
                .when(Match::Destination("10.1.0.0/16".parse().unwrap(), Is::Not))
                .then(Action::Return),
            "ip daddr != 10.1.0.0/16 return",
        ),
        (
            Kind::Filter,
            Hook::Input,
            Rule::new()
                .when(Match::Destination("fd16::1/128".parse().unwrap(), Is::Equal))
                .then(Action::Counter),
            "ip6 daddr fd16::1 counter packets 0 bytes 0",
        ),
        (
            Kind::Nat,
            Hook::Prerouting,
            Rule::new()
                .when(Match::Protocol(L4::Tcp))
                .when(Match::DestinationPort(15008, Is::Not))
                .then(Action::Redirect(15006)),
            "tcp dport != 15008 redirect to :15006",
        ),
        (
            Kind::Nat,
            Hook::Output,
            Rule::new()
                .when(Match::OutInterface("lo".into(), Is::Not))
                .when(Match::Protocol(L4::Udp))
                .when(Match::DestinationPort(53, Is::Equal))
                .then(Action::Redirect(15053)),
            "oifname != \"lo\" udp dport 53 redirect to :15053",
        ),
        (
            Kind::Nat,
            Hook::Prerouting,
            Rule::new()
                .when(Match::InInterface("eth0".into(), Is::Equal))
                .when(Match::Protocol(L4::Tcp))
                .when(Match::OneIn(3))
                .then(Action::Dnat("10.244.1.5:9080".parse().unwrap())),
            "iifname \"eth0\" meta l4proto 6 numgen random mod 3 0 dnat ip to 10.244.1.5:9080",
        ),
        (
            Kind::Nat,
            Hook::Prerouting,
            Rule::new()
                .when(Match::Protocol(L4::Udp))
                .when(Match::SourcePort(53, Is::Equal))
                .then(Action::Dnat("10.244.1.5:53".parse().unwrap())),
            "udp sport 53 dnat ip to 10.244.1.5:53",
        ),
        (Kind::Nat, Hook::Postrouting, Rule::new().then(Action::Masquerade), "masquerade"),
        (
            Kind::Nat,
            Hook::Postrouting,
            Rule::new().then(Action::Snat("169.254.7.127".parse().unwrap())),
            "snat ip to 169.254.7.127",
        ),
        (
            Kind::Filter,
            Hook::Output,
            Rule::new().when(Match::Protocol(L4::Tcp)).then(Action::Refuse),
            "meta l4proto 6 reject with tcp reset",
        ),
        (
            Kind::Filter,
            Hook::Output,
            Rule::new().when(Match::Protocol(L4::Udp)).then(Action::Refuse),
            "meta l4proto 17 reject",
        ),
        (Kind::Filter, Hook::Prerouting, Rule::new().then(Action::NoTrack), "notrack"),
        (Kind::Filter, Hook::Prerouting, Rule::new().then(Action::SetCtZone(1)), "ct zone set 1"),
        (Kind::Filter, Hook::Input, Rule::new().then(Action::Jump("other".into())), "jump other"),
    ];
    for (kind, hook, rule, expected) in cases {
        let table = Table {
            family: Family::Inet,
            name: "t".into(),
            chains: vec![chain("c", base(kind, hook, -150), vec![rule]), chain("other", None, vec![])],
        };
        nft::replace_here(&[table], &[]).unwrap_or_else(|e| panic!("{expected}: {e}"));
        let text = listed();
        assert!(text.lines().any(|l| l.trim() == expected), "expected {expected}, nft says:\n{text}");
    }
    let hash = Rule::new().when(Match::SourceHash { modulus: 2, value: 1 }).then(Action::Accept);
    let table = Table {
        family: Family::Ip,
        name: "t".into(),
        chains: vec![chain("c", base(Kind::Nat, Hook::Prerouting, -100), vec![hash])],
    };
    nft::replace_here(&[table], &[(Family::Inet, "t")]).unwrap();
    assert!(listed().contains("jhash ip saddr mod 2"), "{}", listed());
}

fn replaced_whole() {
    let good = |port| Table {
        family: Family::Inet,
        name: "one".into(),
        chains: vec![chain(
            "c",
            base(Kind::Nat, Hook::Output, -100),
            vec![Rule::new().when(Match::Protocol(L4::Tcp)).then(Action::Redirect(port))],
        )],
    };
    nft::replace_here(&[good(1)], &[]).unwrap();
    nft::replace_here(&[good(1)], &[]).unwrap();
    assert_eq!(listed().matches("redirect to :1").count(), 1);
    let mut bad = good(2);
    bad.chains[0].rules.push(Rule::new().then(Action::Jump("nowhere".into())));
    let error = nft::replace_here(&[bad], &[]).unwrap_err();
    assert!(error.to_string().contains("table one chain c rule 2"), "{error}");
    assert!(listed().contains("redirect to :1"), "{}", listed());
    nft::replace_here(&[], &[(Family::Inet, "one"), (Family::Ip, "never")]).unwrap();
    assert_eq!(listed(), "");
}

fn redirected() {
    let rule = Rule::new().when(Match::Protocol(L4::Tcp)).when(Match::DestinationPort(80, Is::Equal));
    let table = Table {
        family: Family::Inet,
        name: "t".into(),
        chains: vec![chain(
            "c",
            base(Kind::Nat, Hook::Output, -100),
            vec![rule.then(Action::Redirect(15001))],
        )],
    };
    nft::replace_here(&[table], &[]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:15001").unwrap();
    let _client = TcpStream::connect("127.0.0.9:80").unwrap();
    let (server, _) = listener.accept().unwrap();
    let original = meltemi_linux::sockopt::original_dst(&server).unwrap();
    assert_eq!(original, "127.0.0.9:80".parse().unwrap());
}

fn veth() {
    let other = NetNs::create().unwrap();
    let mut here = Rtnl::open().unwrap();
    let end = |name: &str, last| VethEnd { name: name.into(), mac: [2, 0, 0, 0, 0, last] };
    here.add_veth(&end("v0", 1), &end("eth0", 2), &other).unwrap();
    let v0 = here.link_index("v0").unwrap();
    here.set_up(v0).unwrap();
    here.add_address(v0, "169.254.1.1/32".parse().unwrap()).unwrap();
    let mut to_pod = Route::to("10.244.1.2/32".parse().unwrap());
    to_pod.interface = Some(v0);
    here.set_route(&to_pod).unwrap();
    here.set_neighbour(v0, "10.244.1.2".parse().unwrap(), [2, 0, 0, 0, 0, 2]).unwrap();

    let mut there = other.rtnl().unwrap();
    let eth0 = there.link_index("eth0").unwrap();
    there.set_up(eth0).unwrap();
    there.add_address(eth0, "10.244.1.2/32".parse().unwrap()).unwrap();
    there.set_neighbour(eth0, "169.254.1.1".parse().unwrap(), [2, 0, 0, 0, 0, 1]).unwrap();
    let mut default = Route::to("0.0.0.0/0".parse().unwrap());
    (default.interface, default.gateway, default.onlink) = (Some(eth0), "169.254.1.1".parse().ok(), true);
    there.set_route(&default).unwrap();

    here.wait_running(v0, Duration::from_secs(30)).unwrap();
    there.wait_running(eth0, Duration::from_secs(30)).unwrap();
    // A link whose other end is not switched on never runs.
    let half = NetNs::create().unwrap();
    here.add_veth(&end("v1", 3), &end("eth0", 4), &half).unwrap();
    let v1 = here.link_index("v1").unwrap();
    here.set_up(v1).unwrap();
    let error = here.wait_running(v1, Duration::from_millis(5)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);

    let listener = other.listen_tcp("10.244.1.2:80".parse().unwrap(), |_| Ok(())).unwrap();
    listener.set_nonblocking(false).unwrap();
    let mut client =
        TcpStream::connect_timeout(&"10.244.1.2:80".parse().unwrap(), Duration::from_secs(2)).unwrap();
    let (mut server, peer) = listener.accept().unwrap();
    assert_eq!(peer.ip().to_string(), "169.254.1.1");
    server.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
    // The server's end is seen in its namespace, and ended from outside.
    let sockets = other.run(meltemi_linux::diag::tcp_sockets).unwrap();
    assert_eq!(sockets.listening, ["10.244.1.2:80".parse().unwrap()]);
    let [open] = sockets.established.as_slice() else { panic!("{sockets:?}") };
    assert_eq!((open.local, open.remote), (server.local_addr().unwrap(), peer));
    other.run(|| meltemi_linux::diag::destroy(open)).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let again = other.run(|| meltemi_linux::diag::destroy(open)).unwrap_err();
    assert_eq!(again.kind(), std::io::ErrorKind::NotFound);
    other.run(|| write_sysctl("ipv4/ip_forward", "1")).unwrap();
    assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap().trim(), "0");
    assert!(other.id().unwrap() != NetNs::current().unwrap().id().unwrap());
}

fn spawned() {
    let netns = NetNs::create().unwrap();
    let sh = |script: &str| {
        process::Spawn::new("/bin/sh".as_ref())
            .unwrap()
            .arg("-c")
            .unwrap()
            .arg(script)
            .unwrap()
            .env("PATH", "/usr/bin:/usr/sbin:/bin:/sbin")
            .unwrap()
    };
    let (read, write) = process::pipe().unwrap();
    let script = "readlink /proc/self/ns/net; grep -E 'CapEff|NoNewPrivs' /proc/self/status; unshare -U true && echo escaped; mount -t tmpfs x /mnt && echo mounted; nft flush ruleset && echo flushed; ls /proc/self/fd | wc -l; exit 7";
    let child = sh(script)
        .fd(1, write)
        .in_netns(&netns)
        .unwrap()
        .restrict(meltemi_linux::caps::Restrict::Everything)
        .spawn()
        .unwrap();
    let mut text = String::new();
    std::fs::File::from(read).read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap(), process::Exit::Code(7));
    let expected =
        format!("net:[{}]\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\n", netns.id().unwrap().inode());
    assert!(text.starts_with(&expected), "{text}");
    assert!(!text.contains("escaped") && !text.contains("mounted") && !text.contains("flushed"), "{text}");

    let error = process::Spawn::new("/no/such".as_ref()).unwrap().spawn().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    let child = sh("kill -9 $$").spawn().unwrap();
    assert_eq!(child.wait().unwrap(), process::Exit::Signal(9));
}

/// The child has a copy of every lock that another thread held when it was made: it must not wait for one.
fn becomes_user() {
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (done, ended) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    std::thread::spawn(|| ()).join().unwrap();
                }
            });
        }
        scope.spawn(move || {
            if ended.recv_timeout(Duration::from_secs(120)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
            {
                eprintln!("a child hangs between fork and exec");
                std::process::abort();
            }
        });
        for _ in 0..300 {
            let user = meltemi_linux::users::Identity { uid: 0, gid: 0, groups: None };
            let child = process::Spawn::new("/bin/true".as_ref()).unwrap().become_user(user).spawn().unwrap();
            assert_eq!(child.wait().unwrap(), process::Exit::Code(0));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        drop(done);
    });
}
