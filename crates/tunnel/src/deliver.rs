// SPDX-License-Identifier: Apache-2.0
//! The only way to an application's socket: with a permit.

use std::future::Future;
use std::io;
use std::time::Duration;

use meltemi_policy::Permit;
use tokio::net::TcpStream;

use crate::copy::{Copied, relay, splice};
use crate::framing::stream::Stream;

/// How long an application may take to accept.
const LIMIT: Duration = Duration::from_secs(10);

/// An open connection to an application, with the permit that it lives by.
#[derive(Debug)]
pub struct Delivered {
    stream: TcpStream,
    /// Ends the connection when taken back.
    permit: Permit,
}

impl Delivered {
    /// Copies between the application and a stream of a tunnel, for as long as the permit holds.
    pub fn splice(self, stream: Stream) -> impl Future<Output = Copied> {
        splice(stream, self.stream, Some(self.permit))
    }

    /// Copies between the application and a plaintext connection of a client, for as long as the permit holds.
    pub fn relay(self, client: TcpStream) -> impl Future<Output = Copied> {
        relay(client, self.stream, Some(self.permit))
    }
}

/// Connects to the application that the permit was given for.
///
/// # Errors
/// The application does not accept, or the permit was taken back meanwhile.
pub async fn deliver<F>(permit: Permit, connect: F) -> io::Result<Delivered>
where
    F: Future<Output = io::Result<TcpStream>>,
{
    let stream = tokio::select! {
        connected = tokio::time::timeout(LIMIT, connect) => {
            connected.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the application does not accept"))??
        }
        reason = permit.revoked() => return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason.to_string())),
    };
    stream.set_nodelay(true)?;
    Ok(Delivered { stream, permit })
}
