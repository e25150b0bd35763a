// SPDX-License-Identifier: Apache-2.0
//! A server of one identity, its applications, and a client with a pool.

use std::net::SocketAddr;
use std::sync::Arc;

use http::HeaderMap;
use meltemi_identity::svid::Svid;
use meltemi_identity::tls;
use meltemi_model::SpiffeId;
use meltemi_runtime::{Tasks, drain};
use meltemi_testkit::ca::{authority, identity, issue};
use meltemi_tunnel::{Dial, Patience, Pool, TunnelIo, accept};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub(crate) static LARGE: [u8; 60_000] = [b'x'; 60_000];

/// An application by its port: 1 answers without end, 2 does so byte by byte, 3 never reads, others say what they hear.
async fn application(port: u16, mut io: TunnelIo) {
    match port {
        1 => while io.write_all(&LARGE).await.is_ok() {},
        2 => {
            while io.write_all(b"x").await.is_ok() {
                tokio::task::yield_now().await;
            }
        }
        3 => std::future::pending().await,
        _ => {
            let mut heard = [0; 1024];
            while let Ok(n @ 1..) = io.read(&mut heard).await {
                io.write_all(&heard[..n]).await.unwrap();
            }
        }
    }
}

async fn server(svid: &Svid) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = Arc::new(tls::server(svid).unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let config = config.clone();
            tokio::spawn(async move {
                let Ok(mut incoming) = accept(stream, config).await else { return };
                while let Ok(Some(connect)) = incoming.next().await {
                    let port = connect.authority().rsplit(':').next().unwrap().parse().unwrap();
                    tokio::spawn(application(port, TunnelIo::new(connect.accept().unwrap())));
                }
            });
        }
    });
    address
}

pub(crate) struct World {
    pub(crate) pool: Pool,
    pub(crate) client: Arc<Svid>,
    pub(crate) server: SpiffeId,
    pub(crate) address: SocketAddr,
    _trigger: drain::DrainTrigger,
    _supervisor: meltemi_runtime::tasks::Supervisor,
}

impl World {
    pub(crate) async fn start() -> Self {
        let ca = authority();
        let [client, own] = ["client", "server"].map(|name| Arc::new(issue(&ca, &identity(name)).0));
        let (trigger, watch) = drain::channel();
        let (tasks, supervisor) = Tasks::new("test", watch);
        let pool = Pool::new(Arc::new(|to| Box::pin(TcpStream::connect(to)) as _), tasks);
        let (address, server) = (server(&own).await, own.identity.clone());
        Self { pool, client, server, address, _trigger: trigger, _supervisor: supervisor }
    }

    pub(crate) async fn to(&self, port: u16) -> TunnelIo {
        let dial = Dial {
            svid: self.client.clone(),
            address: self.address,
            expected: vec![self.server.clone()],
            authority: format!("10.0.0.1:{port}"),
            headers: HeaderMap::new(),
            patience: Patience::Full,
        };
        let dialled = self.pool.dial(&dial).await.unwrap();
        TunnelIo::holding(dialled.stream, dialled.lease)
    }
}
