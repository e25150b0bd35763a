// SPDX-License-Identifier: Apache-2.0
//! Unix `SOCK_SEQPACKET` sockets that carry file descriptors beside their messages.
//!
//! [`SeqPacket`] and [`Listener`] are for tokio; [`send`] and [`recv`] are the same on any descriptor.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sockopt::{PeerCredentials, peer_credentials};

/// At most this many descriptors are taken from one message; the rest are closed by the kernel.
pub const MAX_FDS: usize = 240;

/// One received message.
#[derive(Debug, Default)]
pub struct Message {
    /// Its bytes; empty when the peer has closed.
    pub bytes: Vec<u8>,
    /// The descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// Sends one message with descriptors; the whole message or an error.
///
/// # Errors
/// The peer is gone, the message is too long, or (non-blocking) there is no room.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let iov = [IoSlice::new(bytes)];
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &iov, control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Two connected, blocking sockets.
///
/// # Errors
/// No descriptors left.
pub fn blocking_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (a, b) = socket2::Socket::pair(socket2::Domain::UNIX, socket2::Type::SEQPACKET, None)?;
    Ok((a.into(), b.into()))
}

/// Connects to a listener's path, for a program without a runtime: [`send`] and [`recv`] on the result wait up to `timeout`
/// each, and fail with [`io::ErrorKind::WouldBlock`] then.
///
/// # Errors
/// Nobody listens there, or the path is longer than 107 bytes.
pub fn connect_blocking(path: &Path, timeout: std::time::Duration) -> io::Result<OwnedFd> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::SEQPACKET, None)?;
    socket.set_read_timeout(Some(timeout))?;
    socket.set_write_timeout(Some(timeout))?;
    socket.connect(&socket2::SockAddr::unix(path)?)?;
    Ok(socket.into())
}

/// Receives one message of at most `limit` bytes; a longer one is an error.
///
/// # Errors
/// The socket failed, the message was truncated, or (non-blocking) there is none.
pub fn recv(socket: BorrowedFd<'_>, limit: usize) -> io::Result<Message> {
    let mut bytes = vec![0; limit];
    let mut space = cmsg_space!([RawFd; MAX_FDS]);
    let (length, fds, truncated) = {
        let mut iov = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let got = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut iov, Some(&mut space), flags)?;
        let mut fds = Vec::new();
        for control in got.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the kernel has just installed these descriptors for this process; nobody else owns them.
                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        (got.bytes, fds, got.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC))
    };
    if truncated {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message longer than this side accepts"));
    }
    bytes.truncate(length);
    Ok(Message { bytes, fds })
}

/// A connected socket, for tokio.
#[derive(Debug)]
pub struct SeqPacket(AsyncFd<OwnedFd>);

impl SeqPacket {
    /// Connects to a listener's path.
    ///
    /// # Errors
    /// Nobody listens there, or the path is longer than 107 bytes.
    pub async fn connect(path: &Path) -> io::Result<Self> {
        // A local connect only waits when the listener's backlog is full; then EAGAIN comes and is the caller's.
        let socket = socket()?;
        socket.connect(&socket2::SockAddr::unix(path)?)?;
        Self::from_fd(socket.into())
    }

    /// Two connected ends.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = socket2::Socket::pair(socket2::Domain::UNIX, socket2::Type::SEQPACKET, None)?;
        a.set_nonblocking(true)?;
        b.set_nonblocking(true)?;
        Ok((Self::from_fd(a.into())?, Self::from_fd(b.into())?))
    }

    fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self(crate::sys::watched(fd, Interest::READABLE | Interest::WRITABLE)?))
    }

    /// Sends one message with descriptors.
    ///
    /// # Errors
    /// The peer is gone or the message is too long.
    pub async fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.0.async_io(Interest::WRITABLE, |fd| send(fd.as_fd(), bytes, fds)).await
    }

    /// Two connected, blocking sockets.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn blocking_pair() -> io::Result<(OwnedFd, OwnedFd)> {
        let (a, b) = socket2::Socket::pair(socket2::Domain::UNIX, socket2::Type::SEQPACKET, None)?;
        Ok((a.into(), b.into()))
    }

    /// Receives one message of at most `limit` bytes; empty when the peer has closed.
    ///
    /// # Errors
    /// The socket failed or the message was longer.
    pub async fn recv(&self, limit: usize) -> io::Result<Message> {
        self.0.async_io(Interest::READABLE, |fd| recv(fd.as_fd(), limit)).await
    }

    /// Who is at the other end.
    ///
    /// # Errors
    /// The socket is not connected.
    pub fn peer(&self) -> io::Result<PeerCredentials> {
        peer_credentials(self.0.get_ref())
    }
}

/// A listening socket at a path, for tokio.
#[derive(Debug)]
pub struct Listener(AsyncFd<OwnedFd>);

impl Listener {
    /// Binds to a path with mode 0600, taking the place of a socket that is there already.
    ///
    /// # Errors
    /// The folder does not exist, or the path is longer than 107 bytes.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let socket = socket()?;
        socket.bind(&socket2::SockAddr::unix(path)?)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        socket.listen(64)?;
        Ok(Self(crate::sys::watched(socket.into(), Interest::READABLE | Interest::WRITABLE)?))
    }

    /// The next connection.
    ///
    /// # Errors
    /// No descriptors left.
    pub async fn accept(&self) -> io::Result<SeqPacket> {
        let fd = self
            .0
            .async_io(Interest::READABLE, |fd| {
                let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
                // SAFETY: the peer's address is not asked for.
                let fd = unsafe {
                    libc::accept4(fd.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags)
                };
                crate::sys::check(fd.into()).map(crate::sys::owned)
            })
            .await?;
        SeqPacket::from_fd(fd)
    }
}

fn socket() -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::SEQPACKET, None)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[tokio::test]
    async fn a_descriptor_travels_with_its_message() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("zds.sock");
        let listener = Listener::bind(&path).unwrap();
        let client = SeqPacket::connect(&path).await.unwrap();
        let server = listener.accept().await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, b"inside").unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        server.send(b"with", &[file.as_fd()]).await.unwrap();
        server.send(b"without", &[]).await.unwrap();
        let first = client.recv(64).await.unwrap();
        assert_eq!((first.bytes.as_slice(), first.fds.len()), (&b"with"[..], 1));
        let mut text = String::new();
        std::fs::File::from(first.fds.into_iter().next().unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "inside");
        assert_eq!(client.recv(64).await.unwrap().bytes, b"without");
        drop(server);
        assert!(client.recv(64).await.unwrap().bytes.is_empty());
    }

    #[tokio::test]
    async fn a_message_beyond_the_limit_is_an_error_not_a_piece() {
        let (a, b) = SeqPacket::pair().unwrap();
        a.send(&[7; 100], &[]).await.unwrap();
        assert_eq!(b.recv(10).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
