// SPDX-License-Identifier: Apache-2.0
//! Debian's nginx, PostgreSQL and redis, installed in `/usr`, started as root by what starts them on any Debian machine; they
//! change their users themselves.

use std::fs;
use std::io::Read;

use meltemi_runner::pod_init::ContainerSpec;
use meltemi_runner::sandbox::Sandbox;

use crate::{POD, is_single, pod, spec, stdio, user};

/// A server's files in `/etc`, the script that starts it and uses it, and what that prints.
struct Server {
    name: &'static str,
    etc: &'static [(&'static str, &'static str)],
    script: &'static str,
    shows: &'static [&'static str],
}

const SERVERS: [Server; 3] = [
    Server {
        name: "nginx",
        etc: &[(
            "/etc/nginx.conf",
            "user www-data; worker_processes 1; error_log /dev/stderr; pid /run/nginx.pid; events {}\n\
             http { access_log /dev/stdout; client_body_temp_path /tmp/b; proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f;\n\
             uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s;\n\
             server { listen 80; location / { return 200 'served\\n'; } } }\n",
        )],
        script: "nginx -c /etc/nginx.conf -g 'daemon off;' & \
                 for i in $(seq 300); do curl -s http://127.0.0.1/ && break; sleep 0.1; done; \
                 ps -eo user:20,args | grep 'nginx: worker' | grep -v grep; kill -QUIT $(cat /run/nginx.pid); wait; echo ended",
        shows: &["served\n", "www-data", "GET / HTTP/1.1", "ended\n"],
    },
    Server {
        name: "redis",
        etc: &[],
        script: "mkdir /data; chown redis:redis /data; \
                 setpriv --reuid redis --regid redis --init-groups redis-server --dir /data --save '' & \
                 for i in $(seq 300); do redis-cli ping 2>/dev/null | grep PONG && break; sleep 0.1; done; \
                 ps -eo user:20,args | grep 'redis-server' | grep -v grep; redis-cli set a b; redis-cli save; ls -l /data; \
                 redis-cli shutdown; wait; echo ended",
        shows: &["PONG\n", "redis ", "OK\n", "dump.rdb", "ended\n"],
    },
    Server {
        name: "PostgreSQL",
        etc: &[],
        script: "version=$(ls /usr/lib/postgresql | sort -n | tail -n 1); mkdir -p /var/run/postgresql /var/log/postgresql; \
                 chown postgres:postgres /var/run/postgresql /var/log/postgresql; mkdir -p /etc/postgresql-common; \
                 pg_createcluster $version main -- --auth=trust >/dev/null && \
                 { pg_ctlcluster $version main start --foreground & } && \
                 for i in $(seq 600); do pg_isready -q && break; sleep 0.1; done; \
                 psql -U postgres -tAc 'select 6*7'; ps -eo user:20,args | grep 'postgres' | grep -v grep | head -n 1; \
                 pg_ctlcluster $version main stop -m fast; wait; echo ended",
        shows: &["42\n", "postgres", "ended\n"],
    },
];

/// PostgreSQL where there is one user: it refuses to be root.
const ALONE: &str = "bin=/usr/lib/postgresql/$(ls /usr/lib/postgresql | sort -n | tail -n 1)/bin; \
    $bin/initdb -D /tmp/data --auth=trust >/dev/null && \
    echo 'select 6*7 as answer' | $bin/postgres --single -D /tmp/data postgres";

fn output_of(sandbox: &Sandbox, spec: &ContainerSpec) -> String {
    let (mut out, stdio) = stdio();
    let child = sandbox.start_container(spec, stdio).unwrap();
    let mut output = String::new();
    out.read_to_string(&mut output).unwrap();
    child.wait().unwrap();
    output
}

/// The machine's users and groups, as the runner shows them.
fn accounts() -> Vec<(std::path::PathBuf, String)> {
    let text = |file: &str| fs::read_to_string(file).unwrap();
    ["/etc/passwd", "/etc/group"].map(|file| (file.into(), text(file))).into()
}

pub(crate) fn run() {
    let sandbox = pod(POD);
    // With one user there is nobody to change to; a server that refuses root runs as the user that the manifest names.
    if is_single(&sandbox) {
        let mut refusing = spec(&["sh", "-c", ALONE]);
        refusing.rights = user(1337, 4711, &[]);
        refusing.files.push(("/etc/passwd".into(), "me:x:1337:4711::/tmp:/bin/sh\n".into()));
        let output = output_of(&sandbox, &refusing);
        assert!(output.contains("answer = \"42\""), "{output}");
        return;
    }
    for server in &SERVERS {
        let mut spec = spec(&["sh", "-c", server.script]);
        spec.files.extend(accounts());
        spec.files.push(("/etc/hosts".into(), "127.0.0.1\tlocalhost\n".into()));
        spec.files.extend(server.etc.iter().map(|(path, text)| ((*path).into(), (*text).to_owned())));
        let output = output_of(&sandbox, &spec);
        for text in server.shows {
            assert!(output.contains(text), "{} does not show {text:?}:\n{output}", server.name);
        }
    }
}
