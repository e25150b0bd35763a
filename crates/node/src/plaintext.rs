// SPDX-License-Identifier: Apache-2.0
//! Plaintext captured on 15006: authorized by the same policies, without a peer identity.

use std::io;
use std::net::SocketAddr;

use meltemi_tunnel::deliver;
use meltemi_view::L4Request;
use meltemi_view::access_log::Direction;
use meltemi_view::metrics::ResponseFlags;
use tokio::net::TcpStream;

use crate::pod::{Served, refuse};
use crate::record::{Recording, side};
use crate::sockets;

impl Served {
    /// Serves a captured inbound connection.
    pub(crate) async fn plaintext(&self, stream: TcpStream, from: SocketAddr) -> io::Result<()> {
        let Some(to) = Self::original(&stream)? else {
            let destination = side(stream.local_addr().ok(), None, Some(&self.pod.identity));
            Recording::new(&self.context, Direction::Inbound, side(Some(from), None, None), destination)
                .failed(ResponseFlags::None, "a connection to the proxy itself");
            refuse(stream).await;
            return Ok(());
        };
        let Some(own) = self.own_at(to.ip()).await else {
            let recording = Recording::new(
                &self.context,
                Direction::Inbound,
                side(Some(from), None, None),
                side(Some(to), None, None),
            );
            recording.failed(
                ResponseFlags::Deny,
                format!("workload {} is not known at {}", self.pod.workload, to.ip()),
            );
            refuse(stream).await;
            return Ok(());
        };
        let mut recording = self.inbound(from, None, &own, to, None);
        let request = L4Request { source: None, from, to, workload: self.pod.workload.clone() };
        let (permit, guard) = match self.context.admit(request).await {
            Ok(admitted) => admitted,
            Err(denied) => {
                recording.denied(&denied);
                refuse(stream).await;
                return Ok(());
            }
        };
        let source = from.ip().to_canonical();
        match Box::pin(deliver(permit, sockets::connect(&self.pod.netns, to, Some(source)))).await {
            Ok(delivered) => {
                recording.opened(&self.pod.workload);
                let copied = delivered.relay(stream).await;
                recording.ended(copied.to_tunnel, copied.from_tunnel, copied.error);
            }
            Err(error) => {
                recording.failed(ResponseFlags::Connect, format!("{to}: {error}"));
                refuse(stream).await;
            }
        }
        drop(guard);
        Ok(())
    }
}
