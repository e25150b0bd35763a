// SPDX-License-Identifier: Apache-2.0
//! A connection without a socket, for fuzzing: a peer's bytes and a user's actions in any order, and what must hold then.

use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::Reason;
use super::conn::{Conn, Role, Shared, lock};
use super::queue::Out;
use super::receive::Receiver;
use super::stream::Stream;
use crate::{BASE_WINDOW, EXTRA_PER_TUNNEL, MAX_STREAMS, SEND_BUFFER};

/// A connection, and its streams that somebody uses.
pub(crate) struct Probe {
    pub(crate) shared: Shared,
    receiver: Receiver,
    pub(super) streams: Vec<Stream>,
    pub(super) ended: Option<Reason>,
}

impl Probe {
    pub(crate) fn new(role: Role) -> Self {
        let shared = Arc::new(Mutex::new(Conn::new(role)));
        Self { shared, receiver: Receiver::new(role), streams: Vec::new(), ended: None }
    }

    /// What the peer sends.
    pub(super) fn receive(&mut self, bytes: &[u8]) {
        if self.ended.is_none() {
            self.ended = self.receiver.receive(&mut lock(&self.shared), bytes).err();
        }
    }

    /// What the peer is sent.
    pub(super) fn sent(&mut self) -> Vec<u8> {
        let mut taken = Vec::new();
        lock(&self.shared).take_out(usize::MAX, &mut taken);
        let bytes = taken.into_iter().map(|out| match out {
            Out::Frames(frames) => frames,
            Out::Data { head, data, .. } => [&head[..], &data].concat(),
        });
        bytes.collect::<Vec<_>>().concat()
    }

    /// Something that a user of streams does.
    fn act(&mut self, what: u8) {
        let cx = Context::from_waker(Waker::noop());
        let index = usize::from(what >> 3) % self.streams.len().max(1);
        match (what & 7, self.streams.get(index)) {
            (0, _) => self.streams.extend(Stream::accepted(&self.shared).map(|(stream, _)| stream)),
            (1, _) => drop(self.sent()),
            (2, Some(stream)) => drop(stream.respond(200, what & 0x80 != 0)),
            (3, Some(stream)) => {
                if let Poll::Ready(Some(Ok(data))) = stream.poll_data(&cx) {
                    stream.release(data.len());
                }
            }
            (4, Some(stream)) => {
                if let Poll::Ready(Ok(capacity)) = stream.poll_capacity(&cx) {
                    let _ = stream.poll_send(&cx, &mut Bytes::from(vec![0; capacity.min(40_000)]));
                }
            }
            (5, Some(stream)) => stream.end(),
            (6, Some(_)) => drop(self.streams.swap_remove(index)),
            _ if lock(&self.shared).role == Role::Server => {}
            _ => {
                let opened = lock(&self.shared).poll_connect(&cx, "10.0.0.1:80", &http::HeaderMap::new());
                if let Poll::Ready(Ok(id)) = opened {
                    self.streams.push(Stream::of(&self.shared, id));
                }
            }
        }
    }

    /// What holds whatever a peer sends.
    pub(super) fn check(&self) {
        let conn = lock(&self.shared);
        let open = conn.streams.values().filter(|entry| entry.is_open).count();
        assert_eq!(open, conn.open as usize);
        assert!(conn.role == Role::Client || conn.open <= MAX_STREAMS);
        assert!(
            conn.streams.values().map(|entry| u64::from(entry.extra())).sum::<u64>()
                <= EXTRA_PER_TUNNEL.into()
        );
        for (id, entry) in &conn.streams {
            assert!(entry.held() <= (BASE_WINDOW + entry.extra()) as usize, "{id}: more than its window");
            assert!(entry.queued <= SEND_BUFFER, "{id}: more than its part of the queue");
            assert!(entry.is_held || !entry.is_closed(), "{id}: nobody has it, and it is closed");
        }
        assert!(conn.accepted.len() <= MAX_STREAMS as usize);
    }
}

/// Feeds what a fuzzer has made, after the peer's settings: an octet says what comes. If it is even, bytes of the peer, two
/// octets how many before them; else what a user does.
pub(crate) fn drive(is_server: bool, mut data: &[u8]) {
    let role = if is_server { Role::Server } else { Role::Client };
    let mut probe = Probe::new(role);
    if is_server {
        probe.receive(super::frame::PREFACE);
    } else {
        probe.act(7);
    }
    let mut settings = Vec::new();
    super::frame::settings(&[], &mut settings);
    probe.receive(&settings);
    while let Some((what, rest)) = data.split_first() {
        data = rest;
        if what & 1 == 0 {
            let Some((length, rest)) = data.split_first_chunk() else { break };
            let (bytes, rest) = rest.split_at(rest.len().min(u16::from_be_bytes(*length).into()));
            data = rest;
            probe.receive(bytes);
        } else {
            probe.act(what >> 1);
        }
        probe.check();
    }
    probe.streams.clear();
    probe.check();
    assert!(lock(&probe.shared).streams.values().all(|entry| entry.request.is_some()));
}
