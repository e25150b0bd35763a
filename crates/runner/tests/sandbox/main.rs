// SPDX-License-Identifier: Apache-2.0
//! What a Pod can and cannot do, tried from inside of one. In namespaces of its own, as an ordinary user would be.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod claims;
mod images;
mod limits;
mod property;
mod servers;

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
use meltemi_runner::pod_init::{self, Bind, ContainerSpec, Rights};
use meltemi_runner::sandbox::{Exec, Sandbox, Stdio};
use meltemi_runner::users::Supply;
use meltemi_testkit::namespaces;

const NODE: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 11);
const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 2);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 3);
const SNOOP: &str = include_str!("snoop.py");
const ENV_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next() == Some(OsString::from(pod_init::WORD)) {
        return pod_init::main(args);
    }
    let cases: [(&str, fn()); 17] = [
        ("nothing of the host can be written or seen", host_is_out_of_reach),
        ("a container's own files are bounded, and the next one has room", roots_are_bounded),
        ("the capture cannot be undone or gone around", capture_holds),
        ("another's address cannot be used", addresses_are_ones_own),
        ("a program that does not exist is a clear error", clear_errors),
        ("exec enters the container with its restrictions", exec_enters),
        ("everything of a Pod ends with it, and it starts quickly", ends_whole),
        ("a link swapped into a volume leads nowhere", links_lead_nowhere),
        ("containers do not see each other's processes", processes_are_apart),
        ("a program runs as the user that it is to", users_are_in_force),
        ("root of a Pod may what root may, over what is the Pod's", root_of_a_pod),
        ("a claim's folder keeps its owners from Pod to Pod", claims::run),
        ("an image's root is what its containers see, and nothing of the machine", images::run),
        ("Debian's servers run from their ordinary entry points", servers::run),
        ("limits of memory, processes and processor time hold", limits::run),
        ("no canary is seen by init containers, probes and mounts beside link races", property::run),
        ("no canary is seen by any program of a Pod", canaries_stay_unseen),
    ];
    namespaces::run_in_all(&cases, || {
        meltemi_linux::mount::tmpfs(Path::new("/run"), 64 << 20, 0o755).unwrap();
        let mut rtnl = Rtnl::open().unwrap();
        rtnl.add_address(1, format!("{NODE}/32").parse().unwrap()).unwrap();
        net::prepare_node().unwrap();
    });
    ExitCode::SUCCESS
}

/// Ids above those of the system that the tests use.
const NAMED: [u32; 2] = [1337, 4711];

fn pod(address: Ipv4Addr) -> Sandbox {
    let users = Supply::new(Path::new("/run/user-ids"), 0).unwrap();
    let sandbox = Sandbox::start(false, Some(users.take(&NAMED.into()).unwrap())).unwrap();
    net::connect_pod(sandbox.netns(), address, NODE).unwrap();
    sandbox
}

/// A folder that belongs to the root of a Pod.
fn make_volume(folder: &Path, sandbox: &Sandbox) {
    fs::create_dir_all(folder).unwrap();
    let root = sandbox.id_outside(0);
    std::os::unix::fs::chown(folder, Some(root), Some(root)).unwrap();
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

fn roots_are_bounded() {
    let sandbox = pod(POD);
    // Room is asked for and none is used: a kernel that gives it would give the bytes as well.
    let (output, code) =
        script(&sandbox, "fallocate -l 1025M /tmp/x; echo $?; fallocate -l 1M /tmp/y && echo fits");
    assert_eq!(code, 0, "{output}");
    assert!(output.contains("No space left on device") && output.ends_with("1\nfits\n"), "{output}");
    let (output, _) = script(&sandbox, "fallocate -l 1M /tmp/x && echo fits");
    assert_eq!(output, "fits\n");
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
            "head -c 8 /proc/kpageflags | grep -q .",
            "head -c 8 /proc/kpagecount | grep -q .",
            "head -c 8 /proc/vmallocinfo | grep -q .",
            "head -c 8 /proc/cmdline | grep -q .",
            "echo 'some 150000 1000000' > /proc/pressure/memory",
            "ls /work /var/lib/meltemi /home/*/.ssh",
            "mount -t tmpfs none /mnt",
            "mount -o remount,rw /usr",
            "umount /proc/sys",
            "unshare --user true",
            "unshare --net true",
            "mknod /tmp/disk b 8 0",
            "python3 -c 'import socket; socket.socket(40, socket.SOCK_STREAM)'",
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
    // Kubernetes' default set.
    assert!(lines[5].ends_with("00000000a80425fb"), "{output}");
    let volume = Path::new("/run/volume");
    make_volume(volume, &sandbox);
    let mut with =
        spec(&["sh", "-c", "echo y > /data/f; echo z > /fixed/f && echo wrote; touch /root/x && echo root"]);
    with.read_only_root = true;
    with.binds = vec![
        Bind { source: volume.into(), target: "/data".into(), ..Bind::default() },
        Bind { source: volume.into(), target: "/fixed".into(), read_only: true, ..Bind::default() },
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
    missing.binds = vec![Bind { source: "/run/none".into(), target: "/data".into(), ..Bind::default() }];
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
        rights: Rights::default(),
        group: None,
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
    assert_eq!(output, "pod\nCapEff:\t00000000a80425fb\nNoNewPrivs:\t1\nSeccomp:\t2\ntyped");
    assert_eq!(child.wait().unwrap().code(), 56);
    assert!(Path::new(&format!("/proc/{}/root/tmp/seen", container.pid())).exists());
    let wrong = Exec { argv: vec!["nosuch".into()], ..exec };
    assert!(sandbox.exec(&container, &wrong, self::stdio().1).is_err());
}

/// Exchanges a folder and a link to `/` in a volume without end. The paths are variables: perl ends at a literal, since a
/// system call might write into it.
const FLIP: &str = "my ($x, $l) = ('/v/x', '/v/l'); mkdir $x; symlink '/', $l; $| = 1; \
                    syscall(316, -100, $x, -100, $l, 2) == 0 or die $!; print 'flipping'; \
                    while (1) { syscall(316, -100, $x, -100, $l, 2); }";

fn links_lead_nowhere() {
    fs::write("/run/canary", "seen").unwrap();
    let volume = Path::new("/run/volume");
    let sandbox = pod(POD);
    make_volume(volume, &sandbox);
    let mut flip = spec(&["perl", "-e", FLIP]);
    flip.binds = vec![Bind { source: volume.into(), target: "/v".into(), ..Bind::default() }];
    let (mut out, stdio) = stdio();
    let flipping = sandbox.start_container(&flip, stdio).unwrap();
    out.read_exact(&mut [0; 8]).unwrap();
    let (mut started, begun) = (0, Instant::now());
    for round in 0.. {
        if started == 20 || begun.elapsed() > Duration::from_secs(120) {
            break;
        }
        let mut mounted = spec(&["sh", "-c", "ls /host /host/run 2>/dev/null"]);
        let beneath = if round % 2 == 0 { "x".into() } else { format!("x/{round}/deep").into() };
        // The second is mounted at a place that other containers change as well.
        mounted.binds = vec![
            Bind { source: volume.into(), beneath, target: "/host".into(), ..Bind::default() },
            Bind { source: volume.into(), target: "/v".into(), ..Bind::default() },
            Bind { source: volume.into(), target: format!("/v/x/{round}/at").into(), ..Bind::default() },
        ];
        let (mut out, stdio) = self::stdio();
        let Ok(child) = sandbox.start_container(&mounted, stdio) else {
            // A refusal takes no time: the next attempt is to meet another state of the folder.
            std::thread::sleep(Duration::from_millis(3));
            continue;
        };
        started += 1;
        let mut output = String::new();
        out.read_to_string(&mut output).unwrap();
        child.wait().unwrap();
        assert!(!output.contains("canary") && !output.contains("etc"), "round {round}: {output}");
    }
    assert!(started > 0, "no container started");
    let made: Vec<_> = fs::read_dir("/").unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(made.iter().all(|name| name.to_string_lossy().parse::<u32>().is_err()), "{made:?}");
    assert!(flipping.try_wait().unwrap().is_none(), "nothing was exchanged any more");
}

/// What of the Pod's first process might show something.
const SHARED: &str = "cat /proc/[0-9]*/comm; ls -A /proc/1/root/ /proc/1/cwd/; cat /proc/1/environ; \
                      for fd in 0 1 2 3 4 5; do readlink /proc/1/fd/$fd && echo link; done";

fn processes_are_apart() {
    let sandbox = pod(POD);
    let mut secret = spec(&["sleep", "1000"]);
    secret.env.push(("SECRET".into(), "of-the-first".into()));
    let first = sandbox.start_container(&secret, stdio().1).unwrap();
    let (output, code) = script(&sandbox, "cat /proc/[0-9]*/environ | tr '\\0' '\\n'; echo $$; kill -TERM 1");
    assert!(!output.contains("of-the-first"), "{output}");
    // A container's program is the first process that it sees.
    assert!(output.contains("\n1\n"), "{output}");
    assert_eq!(code, 0);
    // One that is to see the processes of another sees those, and ends with them.
    let among = spec(&["sh", "-c", "tr '\\0' '\\n' < /proc/1/environ; sleep 1000"]);
    let (mut out, stdio) = self::stdio();
    let mounts = sandbox.open_mounts(&among).unwrap();
    let beside = sandbox.start_mounted(&among, mounts, stdio, None, Some(&first)).unwrap();
    // It has begun to say what it sees.
    out.read_exact(&mut [0; 5]).unwrap();
    assert!(first.try_wait().unwrap().is_none());
    assert!(!first.handles(nix::libc::SIGTERM));
    first.signal(nix::libc::SIGKILL).unwrap();
    // The first process of a PID namespace is gone when all others of it are.
    assert_eq!(beside.wait().unwrap(), meltemi_linux::process::Exit::Signal(9));
    first.wait().unwrap();
    let mut output = String::new();
    out.read_to_string(&mut output).unwrap();
    assert!(output.contains("SECRET=of-the-first"), "{output}");
    let mut shared = spec(&["sh", "-c", SHARED]);
    shared.share_processes = true;
    let (mut out, stdio) = self::stdio();
    let child = sandbox.start_container(&shared, stdio).unwrap();
    let mut output = String::new();
    out.read_to_string(&mut output).unwrap();
    child.wait().unwrap();
    // The first process of the Pod is there, and shows nothing.
    assert!(output.starts_with("exe\n") || output.starts_with("pause\n"), "{output}");
    assert_eq!(output.matches("Permission denied").count(), 3, "{output}");
    assert!(!output.contains("link"), "{output}");
}

/// Runs a script with these rights; its output and exit code.
fn script_as(sandbox: &Sandbox, rights: Rights, text: &str) -> (String, i32) {
    let mut spec = spec(&["sh", "-c", text]);
    spec.rights = rights;
    let (mut out, stdio) = stdio();
    let child = sandbox.start_container(&spec, stdio).unwrap();
    let mut output = String::new();
    out.read_to_string(&mut output).unwrap();
    (output, child.wait().unwrap().code())
}

fn user(uid: u32, gid: u32, groups: &[u32]) -> Rights {
    let Rights::User { capabilities, .. } = Rights::default() else { unreachable!() };
    Rights::User { uid, gid, groups: groups.into(), capabilities }
}

fn is_single(sandbox: &Sandbox) -> bool {
    sandbox.users().unwrap().is_single()
}

fn users_are_in_force() {
    let sandbox = pod(POD);
    let text = "id -u; id -g; grep CapEff /proc/self/status; echo out > /dev/stdout; echo err > /dev/stderr; \
                touch /root/x 2>/dev/null || echo kept out; touch /tmp/mine && stat -c %u /tmp/mine";
    let (output, code) = script_as(&sandbox, user(1337, 4711, &[7]), text);
    let kept_out = if is_single(&sandbox) { "" } else { "kept out\n" };
    let expected = format!("1337\n4711\nCapEff:\t0000000000000000\nout\nerr\n{kept_out}1337\n");
    assert_eq!((output.as_str(), code), (expected.as_str(), 0));
    // A program that is started beside it is the same user.
    let mut sleeping = spec(&["sleep", "1000"]);
    sleeping.rights = user(1337, 4711, &[7]);
    let container = sandbox.start_container(&sleeping, stdio().1).unwrap();
    let exec = Exec {
        argv: ["sh", "-c", "id -u; id -g; id -G | tr ' ' '\\n' | grep -x 7; kill -0 1 && echo same"]
            .map(String::from)
            .into(),
        env: vec![("PATH".into(), ENV_PATH.into())],
        cwd: "/".into(),
        rights: sleeping.rights.clone(),
        group: None,
    };
    let (mut out, stdio) = stdio();
    let child = sandbox.exec(&container, &exec, stdio).unwrap();
    let mut output = String::new();
    out.read_to_string(&mut output).unwrap();
    child.wait().unwrap();
    let group = if is_single(&sandbox) { "" } else { "7\n" };
    assert_eq!(output, format!("1337\n4711\n{group}same\n"));
    // No right where all are dropped, be it for root.
    let nothing = Rights::User { uid: 0, gid: 0, groups: vec![], capabilities: 0 };
    let (output, _) =
        script_as(&sandbox, nothing, "grep -E 'Cap(Eff|Bnd)' /proc/self/status; chown 33 /tmp || echo no");
    assert!(output.starts_with("CapEff:\t0000000000000000\nCapBnd:\t0000000000000000\n"), "{output}");
    assert!(is_single(&sandbox) || output.ends_with("no\n"), "{output}");
}

fn root_of_a_pod() {
    let sandbox = pod(POD);
    let text = "touch /tmp/f; chown 33:33 /tmp/f && stat -c %u:%g /tmp/f; stat -c %u / /etc/hostname /dev/pts/..; \
                setpriv --reuid 33 --regid 33 --clear-groups id -u; chroot / true && echo chrooted";
    let (output, _) = script(&sandbox, text);
    if is_single(&sandbox) {
        assert!(output.contains("0\n0\n0\n") && output.contains("chrooted"), "{output}");
    } else {
        assert_eq!(output, "33:33\n0\n0\n0\n33\nchrooted\n");
    }
    // Nothing of the machine's is its own.
    all_fail(
        &sandbox,
        &[
            "chmod 777 /usr",
            "chown 0 /usr/bin",
            "touch /opt/meltemi/x /usr/x",
            "mknod /tmp/null c 1 3",
            "ip link set lo down",
        ],
    );
}

/// A canary in the memory of this process, in a file that only it sees, and in a descriptor that it has open; programs in
/// containers look for them while programs with a long way to their exec are started beside them.
fn canaries_stay_unseen() {
    let seconds = std::env::var("SNOOP_SECONDS").unwrap_or_else(|_| "6".into());
    // Put together here: the words are in nobody's arguments.
    let token = format!("token-{:016x}", std::process::id() ^ 0x5eed_5eed);
    let kept = vec![token.clone(); 10_000];
    fs::create_dir_all("/run/canaries").unwrap();
    let name = format!("file-{:016x}", std::process::id() ^ 0xf11e);
    fs::write(Path::new("/run/canaries").join(&name), &token).unwrap();
    let open = File::open(Path::new("/run/canaries").join(&name)).unwrap();
    // One Pod each: the words are in a snooper's own memory.
    let sandboxes = [pod(POD), pod(OTHER)];
    let snooper = |shared: bool| {
        let mut spec = spec(&["python3", "-c", SNOOP, &seconds, &token, &name]);
        spec.share_processes = shared;
        let (out, stdio) = stdio();
        (sandboxes[usize::from(shared)].start_container(&spec, stdio).unwrap(), out)
    };
    let snoopers = [snooper(false), snooper(true)];
    let path = "/nowhere:".repeat(40_000);
    let slow = |argv: &[&str]| Exec {
        argv: argv.iter().map(|a| (*a).to_owned()).collect(),
        env: vec![("PATH".into(), path.clone())],
        cwd: "/".into(),
        rights: Rights::default(),
        group: None,
    };
    let begun = Instant::now();
    let mut rounds = 0;
    let mut ended = [false; 2];
    while ended.contains(&false) {
        for (ended, (child, _)) in ended.iter_mut().zip(&snoopers).filter(|(ended, _)| !**ended) {
            *ended = child.try_wait().unwrap().is_some();
        }
        for (sandbox, (container, _)) in sandboxes.iter().zip(&snoopers) {
            // Killed with the snooper, if that ends meanwhile.
            let started = sandbox.exec(container, &slow(&["nosuch"]), self::stdio().1);
            assert!(started.is_err() || !started.unwrap().wait().unwrap().success());
        }
        // Starts of containers are seen by those that share the Pod's processes.
        let mut short = spec(&["true"]);
        short.share_processes = true;
        sandboxes[1].start_container(&short, stdio().1).unwrap().wait().unwrap();
        rounds += 1;
        assert!(begun.elapsed() < Duration::from_secs(300), "the snoopers do not end");
    }
    assert!(rounds > 3, "{rounds}");
    for (_, mut out) in snoopers {
        let mut output = String::new();
        out.read_to_string(&mut output).unwrap();
        assert!(output.contains("walking") && output.contains("done"), "{output}");
        assert!(!output.contains("FOUND"), "{output}");
    }
    assert_eq!((kept.len(), open.metadata().unwrap().len()), (10_000, token.len() as u64));
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
