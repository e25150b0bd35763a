// SPDX-License-Identifier: Apache-2.0
//! Envoy as a judge: a process of its own with one listener for each set of HTTP filters, behind Unix sockets.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

/// How long Envoy may take to serve after its start.
const START: Duration = Duration::from_secs(60);
/// Pause between two attempts to connect meanwhile.
const RETRY: Duration = Duration::from_millis(50);

/// The program: the environment variable `ENVOY`, else what `scripts/envoy.sh` has brought. `None` when there is none.
pub fn program() -> Option<OsString> {
    let brought = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/tools/envoy");
    std::env::var_os("ENVOY").or_else(|| std::fs::exists(brought).ok()?.then(|| brought.into()))
}

/// A running Envoy; it ends when this is dropped.
#[derive(Debug)]
pub struct Envoy {
    child: Child,
    folder: tempfile::TempDir,
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Envoy {
    /// Starts it with one listener for each list of HTTP filters, in order, which are followed by the router. A request that
    /// they let pass is answered with 200. Clients are taken for `identity`, as Istio's waypoint takes them for whom their
    /// tunnel says; where they come from and what they have called is for [`Self::connect`] to say.
    ///
    /// # Errors
    /// The program does not start, or does not serve in time.
    pub async fn start(program: OsString, filters: &[Vec<Value>], identity: &str) -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let socket = |number: usize| folder.path().join(number.to_string());
        let listeners: Vec<Value> =
            filters.iter().enumerate().map(|(at, list)| listener(at, socket(at), list, identity)).collect();
        let config = folder.path().join("envoy.json");
        let bootstrap = json!({ "static_resources": { "listeners": listeners } }).to_string();
        // Istio's waypoint gives its inner connection the peer's address; here only the PROXY protocol has it.
        std::fs::write(&config, bootstrap.replace("\"direct_remote_ip\"", "\"source_ip\""))?;
        let child = Command::new(program)
            .arg("--config-path")
            .arg(&config)
            .args(["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "error"])
            .stdin(Stdio::null())
            .spawn()?;
        let envoy = Self { child, folder };
        let serves = async {
            for number in 0..filters.len() {
                while UnixStream::connect(envoy.socket(number)).await.is_err() {
                    tokio::time::sleep(RETRY).await;
                }
            }
        };
        tokio::time::timeout(START, serves).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
        Ok(envoy)
    }

    fn socket(&self, number: usize) -> PathBuf {
        self.folder.path().join(number.to_string())
    }

    /// A connection to a listener, by the number of its filters, as of a client at `from` that has called `to`.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn connect(
        &self,
        number: usize,
        from: SocketAddrV4,
        to: SocketAddrV4,
    ) -> io::Result<UnixStream> {
        let mut io = UnixStream::connect(self.socket(number)).await?;
        // PROXY protocol, version 1: the addresses that Istio's waypoint takes from the tunnel.
        let addresses = format!("PROXY TCP4 {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port());
        io.write_all(addresses.as_bytes()).await?;
        Ok(io)
    }
}

/// A listener with the settings that Istio's waypoint has for HTTP (`pathNormalization: BASE`).
fn listener(number: usize, socket: PathBuf, filters: &[Value], identity: &str) -> Value {
    let extension = |name: &str, of: &str, mut config: Value| {
        config["@type"] = format!("type.googleapis.com/{of}").into();
        json!({ "name": name, "typed_config": config })
    };
    let peer = json!({
        "on_request_headers": [{
            "object_key": "io.istio.peer_principal",
            "factory_key": "envoy.string",
            "format_string": { "text_format_source": { "inline_string": format!("spiffe://{identity}") } },
        }],
    });
    let peer = extension("peer", "envoy.extensions.filters.http.set_filter_state.v3.Config", peer);
    let router = extension("router", "envoy.extensions.filters.http.router.v3.Router", json!({}));
    let all: Vec<Value> = [peer].into_iter().chain(filters.iter().cloned()).chain([router]).collect();
    let manager = json!({
        "stat_prefix": number.to_string(),
        "http_filters": all,
        "normalize_path": true,
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        "use_remote_address": false,
        // A connection that has gone wrong ends at once.
        "delayed_close_timeout": "0s",
        "upgrade_configs": [{ "upgrade_type": "websocket" }],
        "route_config": { "virtual_hosts": [{
            "name": "all",
            "domains": ["*"],
            "routes": [{ "match": { "prefix": "/" }, "direct_response": { "status": 200 } }],
        }] },
    });
    let of = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let proxied = "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol";
    json!({
        "name": number.to_string(),
        "address": { "pipe": { "path": socket } },
        "listener_filters": [extension("addresses", proxied, json!({}))],
        "filter_chains": [{ "filters": [extension("http", of, manager)] }],
    })
}
