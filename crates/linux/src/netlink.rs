// SPDX-License-Identifier: Apache-2.0
//! Netlink messages: laid out, sent as one batch, and answered. The ground of [`crate::rtnl`] and [`crate::nft`].

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

pub(crate) const F_REQUEST: u16 = 0x1;
pub(crate) const F_ACK: u16 = 0x4;
pub(crate) const F_ROOT_MATCH: u16 = 0x300;
pub(crate) const F_EXCL: u16 = 0x200;
pub(crate) const F_REPLACE: u16 = 0x100;
pub(crate) const F_CREATE: u16 = 0x400;
pub(crate) const F_APPEND: u16 = 0x800;
const NESTED: u16 = 0x8000;
const MSG_ERROR: u16 = 2;
const MSG_DONE: u16 = 3;

/// A growing sequence of messages.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    seq: u32,
}

impl Buffer {
    /// Begins a message: kind, flags, then the family's own fixed header.
    pub(crate) fn begin(&mut self, kind: u16, flags: u16, header: &[u8]) {
        self.start = self.bytes.len();
        self.seq += 1;
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | F_REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&self.seq.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(header);
        self.pad();
    }

    /// Ends the message begun last.
    pub(crate) fn end(&mut self) {
        let length = u32::try_from(self.bytes.len() - self.start).expect("messages are small");
        self.bytes[self.start..self.start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// An attribute with these bytes.
    pub(crate) fn attr(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).expect("attributes are small");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    /// An attribute with a text and its NUL.
    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes);
    }

    /// An attribute with a number in network order, as nf_tables wants them.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_be_bytes());
    }

    /// An attribute with a number in the machine's order, as rtnetlink wants them.
    pub(crate) fn ne32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_ne_bytes());
    }

    /// An attribute that holds the attributes which `fill` adds.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        fill(self);
        let length = u16::try_from(self.bytes.len() - at).expect("a nest stays below 64 KiB");
        self.bytes[at..at + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// Bytes between attributes (a fixed header inside a nest).
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }
}

/// One answer to a batch.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) kind: u16,
    pub(crate) seq: u32,
    pub(crate) body: Vec<u8>,
}

/// A netlink socket; it belongs to the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Socket(OwnedFd);

impl Socket {
    pub(crate) fn open(protocol: i32) -> io::Result<Self> {
        // SAFETY: plain integers in, a new descriptor out.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
        let socket = Self(crate::sys::check(fd.into()).map(crate::sys::owned)?);
        // Big batches need big buffers; the forced variant needs a right that not everybody has.
        for name in [libc::SO_SNDBUF, libc::SO_RCVBUF, libc::SO_SNDBUFFORCE, libc::SO_RCVBUFFORCE] {
            let _ =
                crate::sys::setsockopt(std::os::fd::AsFd::as_fd(&socket.0), libc::SOL_SOCKET, name, 8 << 20);
        }
        Ok(socket)
    }

    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        // SAFETY: the buffer is valid for its length.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        crate::sys::check(sent as libc::c_long).map(drop)
    }

    /// Answers that are there; waits for some unless `poll`.
    pub(crate) fn receive(&self, poll: bool) -> io::Result<Vec<Answer>> {
        let mut buffer = vec![0u8; 1 << 16];
        let flags = if poll { libc::MSG_DONTWAIT } else { 0 };
        // SAFETY: the buffer is valid for its length.
        let got = unsafe { libc::recv(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) };
        let length = usize::try_from(crate::sys::check(got as libc::c_long)?).unwrap_or(0);
        Ok(split(&buffer[..length]))
    }

    /// Sends one request that asks for an acknowledgement; gives what came before it.
    pub(crate) fn request(&self, buffer: &Buffer) -> io::Result<Vec<Answer>> {
        self.send(buffer.as_bytes())?;
        let mut all = Vec::new();
        loop {
            for answer in self.receive(false)? {
                match answer.kind {
                    MSG_ERROR => return error(&answer.body).map(|()| all),
                    MSG_DONE => return Ok(all),
                    _ => all.push(answer),
                }
            }
        }
    }
}

/// The error in an answer of kind `NLMSG_ERROR`; zero is an acknowledgement.
pub(crate) fn error(body: &[u8]) -> io::Result<()> {
    match body.first_chunk::<4>().map(|b| i32::from_ne_bytes(*b)) {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
        None => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}

/// Whether an answer reports an error or an acknowledgement.
pub(crate) fn is_error(answer: &Answer) -> bool {
    answer.kind == MSG_ERROR
}

fn split(mut bytes: &[u8]) -> Vec<Answer> {
    let mut answers = Vec::new();
    while let Some(header) = bytes.first_chunk::<16>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let seq = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
        let Some(body) = bytes.get(16..length) else { break };
        answers.push(Answer { kind, seq, body: body.to_vec() });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    answers
}
