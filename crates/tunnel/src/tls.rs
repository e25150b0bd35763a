// SPDX-License-Identifier: Apache-2.0
//! A TLS connection after its handshake. What it reads and writes goes through buffers of the thread: large socket calls,
//! and nothing held for a connection that is idle.

use std::cell::RefCell;
use std::io::{self, BufRead as _, IoSlice, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::Connection;
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::net::TcpStream;

use crate::framing::Reason;

/// Largest read from the socket.
const READ: usize = 128 * 1024;
/// Pieces that are handed to rustls at once.
const PIECES: usize = 64;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into());
}

/// What a read has brought.
#[derive(Debug)]
pub(crate) enum Read {
    /// Something.
    Some,
    /// The end.
    End,
    /// What the reader calls wrong.
    Wrong(Reason),
}

pub(crate) struct Tls {
    tcp: TcpStream,
    tls: Connection,
    /// The handshake may have read more than itself.
    is_fresh: bool,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("tcp", &self.tcp).finish_non_exhaustive()
    }
}

/// The socket without waiting.
struct Socket<'a>(&'a TcpStream);

impl Write for Socket<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.try_write(data)
    }

    fn write_vectored(&mut self, data: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Tls {
    /// Of a connection whose handshake is done.
    pub(crate) fn new(tcp: TcpStream, tls: impl Into<Connection>) -> Self {
        let mut tls = tls.into();
        // What is encrypted ahead is bounded by the caller, in whole frames.
        tls.set_buffer_limit(None);
        Self { tcp, tls, is_fresh: true }
    }

    /// Reads once from the socket, and hands out what was encrypted in it. `reader` makes the one that takes it.
    pub(crate) fn poll_read<R>(
        &mut self,
        cx: &mut Context<'_>,
        reader: impl FnOnce() -> R,
    ) -> Poll<io::Result<Read>>
    where
        R: FnMut(&[u8]) -> Result<(), Reason>,
    {
        if std::mem::take(&mut self.is_fresh) {
            return Poll::Ready(Self::hand_out(&mut self.tls, &mut reader()));
        }
        BUFFER.with_borrow_mut(|buffer| {
            // After a short read `poll_read` knows that there is no more, without asking the kernel.
            let mut read = ReadBuf::new(buffer);
            ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut read))?;
            let bytes = read.filled();
            if bytes.is_empty() {
                return Poll::Ready(Ok(Read::End));
            }
            Poll::Ready(Self::decrypt(&self.tcp, &mut self.tls, bytes, &mut reader()))
        })
    }

    fn decrypt(
        tcp: &TcpStream,
        tls: &mut Connection,
        mut bytes: &[u8],
        reader: &mut impl FnMut(&[u8]) -> Result<(), Reason>,
    ) -> io::Result<Read> {
        while !bytes.is_empty() {
            tls.read_tls(&mut bytes)?;
            if let Err(error) = tls.process_new_packets() {
                // The peer is told why.
                let _ = tls.write_tls(&mut Socket(tcp));
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
            match Self::hand_out(tls, reader)? {
                Read::Some => {}
                other => return Ok(other),
            }
        }
        Ok(Read::Some)
    }

    fn hand_out(
        tls: &mut Connection,
        reader: &mut impl FnMut(&[u8]) -> Result<(), Reason>,
    ) -> io::Result<Read> {
        let mut plain = tls.reader();
        loop {
            let bytes = match plain.fill_buf() {
                Ok([]) => return Ok(Read::End),
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Read::Some),
                Err(error) => return Err(error),
            };
            let length = bytes.len();
            if let Err(reason) = reader(bytes) {
                return Ok(Read::Wrong(reason));
            }
            plain.consume(length);
        }
    }

    /// Encrypts; what it becomes is written by [`Tls::poll_flush`].
    pub(crate) fn write<'a>(&mut self, parts: impl Iterator<Item = &'a [u8]>) -> io::Result<()> {
        let mut pieces = [IoSlice::new(&[]); PIECES];
        let mut used = 0;
        for part in parts.filter(|part| !part.is_empty()) {
            pieces[used] = IoSlice::new(part);
            used += 1;
            if used == PIECES {
                self.encrypt(&mut pieces)?;
                used = 0;
            }
        }
        self.encrypt(&mut pieces[..used])
    }

    fn encrypt(&mut self, mut pieces: &mut [IoSlice<'_>]) -> io::Result<()> {
        while !pieces.is_empty() {
            let written = self.tls.writer().write_vectored(pieces)?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            IoSlice::advance_slices(&mut pieces, written);
        }
        Ok(())
    }

    /// Writes what is encrypted; ready when the socket has taken all of it.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tls.wants_write() {
            ready!(self.tcp.poll_write_ready(cx))?;
            match self.tls.write_tls(&mut Socket(&self.tcp)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Ends in good order, as far as the socket takes it now.
    pub(crate) fn close(&mut self, cx: &mut Context<'_>) {
        self.tls.send_close_notify();
        let _ = self.poll_flush(cx);
        let _ = socket2::SockRef::from(&self.tcp).shutdown(std::net::Shutdown::Write);
    }
}
