// SPDX-License-Identifier: Apache-2.0
//! What a Pod can and cannot do, tried from inside of one. In namespaces of its own, as an ordinary user would be.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use meltemi_capture::{Options, PROBE_SOURCE_V4, Plan};
use meltemi_linux::process::{Child, pipe};
use meltemi_linux::rtnl::Rtnl;
use meltemi_runner::net;
use meltemi_runner::pod_init::{self, Bind, ContainerSpec};
use meltemi_runner::sandbox::{Exec, Sandbox, Stdio};
use meltemi_testkit::namespaces;

const NODE: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 11);
const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 2);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 3);
const ENV_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next() == Some(OsString::from(pod_init::WORD)) {
        return pod_init::main(args);
    }
    let cases: [(&str, fn()); 6] = [
        ("nothing of the host can be written or seen", host_is_out_of_reach),
        ("the capture cannot be undone or gone around", capture_holds),
        ("another's address cannot be used", addresses_are_ones_own),
        ("a program that does not exist is a clear error", clear_errors),
        ("exec enters the container with its restrictions", exec_enters),
        ("everything of a Pod ends with it, and it starts quickly", ends_whole),
    ];
    namespaces::run(&cases, || {
        meltemi_linux::mount::tmpfs(Path::new("/run"), 64 << 20, 0o755).unwrap();
        let mut rtnl = Rtnl::open().unwrap();
        rtnl.add_address(1, format!("{NODE}/32").parse().unwrap()).unwrap();
        net::prepare_node().unwrap();
    });
    ExitCode::SUCCESS
}

fn pod(address: Ipv4Addr) -> Sandbox {
    let sandbox = Sandbox::start(false).unwrap();
    net::connect_pod(sandbox.netns(), address, NODE).unwrap();
    sandbox
}

fn spec(argv: &[&str]) -> ContainerSpec {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let root = PathBuf::from(format!("/run/roots/{number}"));
    fs::create_dir_all(&root).unwrap();
    ContainerSpec {
        root,
        hostname: Some("pod".into()),
        files: vec![("/etc/hostname".into(), "pod\n".into())],
        env: vec![("PATH".into(), ENV_PATH.into())],
        argv: argv.iter().map(|a| (*a).to_owned()).collect(),
        cwd: "/".into(),
        ..ContainerSpec::default()
    }
}

fn stdio() -> (File, Stdio) {
    let (read, write) = pipe().unwrap();
    let stdin = File::open("/dev/null").unwrap().into();
    let stderr = write.try_clone().unwrap();
    (read.into(), Stdio { stdin, stdout: write, stderr, terminal: false })
}

/// Runs a script in a new container; its output and exit code.
fn script(sandbox: &Sandbox, text: &str) -> (String, i32) {
    let (mut out, stdio) = stdio();
    let child = sandbox.start_container(&spec(&["sh", "-c", text]), stdio).unwrap();
    let mut output = String::new();
    out.read_to_string(&mut output).unwrap();
    (output, child.wait().unwrap().code())
}

/// Every one of these has to fail inside.
fn all_fail(sandbox: &Sandbox, attempts: &[&str]) {
    for attempt in attempts {
        let (output, code) = script(sandbox, attempt);
        assert_ne!(code, 0, "{attempt} succeeded: {output}");
        assert!(!output.contains("not found"), "{attempt} was not even tried: {output}");
    }
}

fn host_is_out_of_reach() {
    let secret = Path::new("/run/secret");
    fs::write(secret, "the key").unwrap();
    let sandbox = pod(POD);
    all_fail(
        &sandbox,
        &[
            "touch /usr/bin/x",
            "echo x >> /etc/ssl/certs/ca-certificates.crt",
            "echo 1 > /proc/sys/net/ipv4/ip_forward",
            "echo x > /proc/sysrq-trigger",
            "cat /run/secret",
            "ls /work /var/lib/meltemi /home/*/.ssh",
            "mount -t tmpfs none /mnt",
            "mount -o remount,rw /usr",
            "umount /proc/sys",
            "unshare --user true",
            "unshare --net true",
            "mknod /tmp/disk b 8 0",
            "chroot / true",
            "nsenter --target 1 --mount true",
            "kill -9 1 && sleep 0.3 && kill -0 1 && false",
        ],
    );
    let (output, code) = script(
        &sandbox,
        "id -u; hostname; echo x > /tmp/y && cat /tmp/y; ls /proc | grep -c '^[0-9]'; test -s /proc/kcore; echo $?; grep CapEff /proc/self/status",
    );
    assert_eq!(code, 0, "{output}");
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[..3], ["0", "pod", "x"]);
    assert!(lines[3].parse::<u32>().unwrap() <= 6, "sees other processes: {output}");
    assert_eq!(lines[4], "1");
    assert!(lines[5].ends_with("0000000000000000"));
    let volume = Path::new("/run/volume");
    fs::create_dir_all(volume).unwrap();
    let mut with =
        spec(&["sh", "-c", "echo y > /data/f; echo z > /fixed/f && echo wrote; touch /root/x && echo root"]);
    with.read_only_root = true;
    with.binds = vec![
        Bind { source: volume.into(), target: "/data".into(), read_only: false },
        Bind { source: volume.into(), target: "/fixed".into(), read_only: true },
    ];
    let (mut out, stdio) = stdio();
    let child = sandbox.start_container(&with, stdio).unwrap();
    let mut output = String::new();
    out.read_to_string(&mut output).unwrap();
    child.wait().unwrap();
    assert_eq!(fs::read_to_string("/run/volume/f").unwrap(), "y\n");
    assert!(!output.contains("wrote") && !output.contains("root\n"), "{output}");
}

const PERL: &str = "use Socket; socket(S,PF_INET,SOCK_STREAM,0) or die;";

fn capture_holds() {
    let sandbox = pod(POD);
    let listener = TcpListener::bind((NODE, 80)).unwrap();
    let reach = format!("{PERL} connect(S,sockaddr_in(80,inet_aton('{NODE}'))) or die $!");
    let reach = format!("perl -e \"{reach}\"");
    let (output, code) = script(&sandbox, &reach);
    assert_eq!(code, 0, "{output}");
    meltemi_capture::apply(sandbox.netns(), &Plan::for_pod(&Options::default())).unwrap();
    let mark = format!("perl -e \"{PERL} setsockopt(S,SOL_SOCKET,36,pack('I',0x539)) or die $!\"");
    let transparent = format!("perl -e \"{PERL} setsockopt(S,0,19,1) or die $!\"");
    all_fail(
        &sandbox,
        &[
            &reach,
            &mark,
            &transparent,
            "nft flush ruleset",
            "ip rule add pref 1 lookup main",
            "ip route add 1.2.3.4 dev lo",
            "ip link set eth0 down",
            "perl -e 'use Socket; socket(S,AF_INET,SOCK_RAW,6) or die $!'",
        ],
    );
    assert!(meltemi_capture::is_applied(sandbox.netns()).unwrap());
    drop(listener);
}

fn addresses_are_ones_own() {
    let (first, second) = (pod(POD), pod(OTHER));
    let bind =
        |ip: Ipv4Addr| format!("perl -e \"{PERL} bind(S,sockaddr_in(0,inet_aton('{ip}'))) or die $!\"");
    all_fail(
        &first,
        &[&bind(PROBE_SOURCE_V4), &bind(OTHER), &bind(NODE), "ip addr add 169.254.7.127/32 dev lo"],
    );
    // Even with every right over its namespace, what a Pod sends from a wrong address does not arrive.
    let listener = TcpListener::bind((NODE, 81)).unwrap();
    listener.set_nonblocking(true).unwrap();
    for wrong in [OTHER, PROBE_SOURCE_V4, Ipv4Addr::new(8, 8, 8, 8)] {
        let mut rtnl = first.netns().rtnl().unwrap();
        rtnl.add_address(1, format!("{wrong}/32").parse().unwrap()).unwrap();
        let sent = first.netns().run(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.bind(&SocketAddr::from((wrong, 0)).into())?;
            socket.connect_timeout(&SocketAddr::from((NODE, 81)).into(), Duration::from_millis(300))
        });
        assert!(sent.is_err(), "{wrong}");
        assert!(listener.accept().is_err());
    }
    let own = first.netns().run(|| TcpStream::connect_timeout(&(NODE, 81).into(), Duration::from_secs(1)));
    own.unwrap();
    drop(second);
}

fn clear_errors() {
    let sandbox = pod(POD);
    for (argv, expected) in [
        (&["nosuch"][..], "exec: \"nosuch\": executable file not found in $PATH"),
        (&["/no/such"], "exec: \"/no/such\": no such file or directory"),
        (&["/etc/hostname"], "exec: \"/etc/hostname\": Permission denied"),
    ] {
        let error = sandbox.start_container(&spec(argv), stdio().1).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    let mut missing = spec(&["true"]);
    missing.binds = vec![Bind { source: "/run/none".into(), target: "/data".into(), read_only: true }];
    let error = sandbox.start_container(&missing, stdio().1).unwrap_err().to_string();
    assert!(error.contains("/run/none"), "{error}");
}

fn sleeper(sandbox: &Sandbox) -> Child {
    sandbox.start_container(&spec(&["sleep", "1000"]), stdio().1).unwrap()
}

fn exec_enters() {
    let sandbox = pod(POD);
    let container = sleeper(&sandbox);
    let exec = Exec {
        argv: ["sh", "-c", "echo in > /tmp/seen; hostname; grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; cat; exit 56"].map(String::from).into(),
        env: vec![("PATH".into(), ENV_PATH.into())],
        cwd: "/".into(),
        network_admin: false,
    };
    let (mut out, mut stdio) = stdio();
    let (input, write) = pipe().unwrap();
    stdio.stdin = input;
    let child = sandbox.exec(&container, &exec, stdio).unwrap();
    let mut write = File::from(write);
    write.write_all(b"typed").unwrap();
    drop(write);
    let mut output = String::new();
    out.read_to_string(&mut output).unwrap();
    assert_eq!(output, "pod\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\ntyped");
    assert_eq!(child.wait().unwrap().code(), 56);
    assert!(Path::new(&format!("/proc/{}/root/tmp/seen", container.pid())).exists());
    let wrong = Exec { argv: vec!["nosuch".into()], ..exec };
    assert!(sandbox.exec(&container, &wrong, self::stdio().1).is_err());
}

fn ends_whole() {
    let begun = Instant::now();
    let sandbox = pod(POD);
    let container = sleeper(&sandbox);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    drop(sandbox);
    assert_eq!(container.wait().unwrap(), meltemi_linux::process::Exit::Signal(9));
    net::disconnect_pod(POD).unwrap();
    // The address can be used again at once.
    drop(pod(POD));
}
