// SPDX-License-Identifier: Apache-2.0
//! The state of one connection: its streams, and the queue of what is to be sent.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use http::HeaderMap;

use super::entry::{self, Entry};
use super::frame;
use super::head;
use super::pace::Bucket;
use super::ping::Pings;
use super::queue::Out;
use super::{Broken, Reason};
use crate::{BASE_WINDOW, CONNECTION_WINDOW, FRAME, MAX_HEADERS, MAX_STREAMS};

/// CONNECTs that a peer may cancel before their answer: at once, and each second. Occasional cancellations are normal; only a
/// rate that no real client reaches ends the tunnel.
const ABANDONED: (u32, u32) = (256, 100);
/// Frames that bring a peer nothing, at once and each second; see [`Conn::noise`].
const NOISE: (u32, u32) = (10_000, 1000);
/// What an error that ends only a stream counts as noise.
pub(super) const STREAM_ERROR: u32 = 40;
/// Streams of which is remembered that this side has reset them: what the peer sent before it knew is no fault.
const FORGOTTEN: usize = 256;

pub(crate) type Shared = Arc<Mutex<Conn>>;

pub(crate) fn lock(shared: &Shared) -> MutexGuard<'_, Conn> {
    // No holder leaves it half changed.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

/// How far this side has gone in saying that it takes no further streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaving {
    No,
    /// The peer is told, and a ping is under way behind it.
    Announced,
    /// What the peer opened before it knew has arrived: nothing further is taken.
    Told,
}

#[derive(Debug)]
pub(crate) struct Conn {
    pub(super) role: Role,
    pub(super) streams: HashMap<u32, Entry>,
    /// Those that count as open.
    pub(super) open: u32,
    pub(super) out: VecDeque<Out>,
    /// Bytes of [`Out::Frames`].
    pub(super) control: usize,
    pub(super) send_window: i64,
    pub(super) peer_window: i64,
    pub(super) peer_frame: usize,
    pub(super) peer_streams: u32,
    /// What the peer may still send in all, and what it is to be given back.
    room: u32,
    owed: u32,
    /// Of our next stream.
    pub(super) next: u32,
    /// The peer's last stream.
    pub(super) last: u32,
    pub(super) accepted: VecDeque<u32>,
    pub(super) forgotten: VecDeque<u32>,
    pub(super) leaving: Leaving,
    /// The peer takes none of our streams after this one.
    pub(super) refused_after: Option<u32>,
    /// Why the peer leaves, if it says so.
    pub(super) farewell: Option<Reason>,
    /// No further streams of ours will be asked for.
    no_users: bool,
    pub(super) failure: Option<Arc<io::Error>>,
    pub(super) driver: Option<Waker>,
    pub(super) waiting: Vec<Waker>,
    pub(super) pings: Pings,
    noise: Bucket,
    abandoned: Bucket,
    is_hostile: bool,
    /// What its streams have beyond their base.
    extra: u32,
}

impl Conn {
    pub(crate) fn new(role: Role) -> Self {
        let mut first = Vec::new();
        let of_role = match role {
            Role::Client => {
                first.extend_from_slice(frame::PREFACE);
                (frame::ENABLE_PUSH, 0)
            }
            Role::Server => (frame::MAX_CONCURRENT_STREAMS, MAX_STREAMS),
        };
        let settings = [
            of_role,
            (frame::INITIAL_WINDOW_SIZE, BASE_WINDOW),
            (frame::MAX_FRAME_SIZE, FRAME),
            (frame::MAX_HEADER_LIST_SIZE, MAX_HEADERS),
        ];
        frame::settings(&settings, &mut first);
        frame::window_update(0, CONNECTION_WINDOW - frame::WINDOW, &mut first);
        Self {
            role,
            streams: HashMap::new(),
            open: 0,
            control: first.len(),
            out: VecDeque::from([Out::Frames(first)]),
            send_window: frame::WINDOW.into(),
            peer_window: frame::WINDOW.into(),
            peer_frame: frame::SMALLEST_FRAME as usize,
            peer_streams: u32::MAX,
            room: CONNECTION_WINDOW,
            owed: 0,
            next: 1,
            last: 0,
            accepted: VecDeque::new(),
            forgotten: VecDeque::new(),
            leaving: Leaving::No,
            refused_after: None,
            farewell: None,
            no_users: false,
            failure: None,
            driver: None,
            waiting: Vec::new(),
            pings: Pings::default(),
            noise: Bucket::new(NOISE.0, NOISE.1),
            abandoned: Bucket::new(ABANDONED.0, ABANDONED.1),
            is_hostile: false,
            extra: 0,
        }
    }

    /// The driver has something to do.
    pub(super) fn wake_driver(&mut self) {
        self.driver.take().into_iter().for_each(Waker::wake);
    }

    /// Counts a frame that brings the peer nothing.
    pub(super) fn noise(&mut self, cost: u32) -> Result<(), Reason> {
        if self.noise.add(cost) && !self.is_hostile { Ok(()) } else { Err(Reason::ENHANCE_YOUR_CALM) }
    }

    /// Counts a request that the peer has given up before it was answered; too many of them end the connection.
    pub(crate) fn abandon(&mut self) {
        if !self.abandoned.add(1) {
            self.is_hostile = true;
            self.wake_driver();
        }
    }

    pub(super) fn is_hostile(&self) -> bool {
        self.is_hostile
    }

    /// Whether nothing is open and nothing further will be.
    pub(super) fn is_done(&self) -> bool {
        let no_more = match self.role {
            Role::Client => self.no_users || self.refused_after.is_some(),
            Role::Server => self.leaving == Leaving::Told,
        };
        no_more && self.open == 0
    }

    /// Whether new streams need another connection.
    pub(crate) fn is_over(&self) -> bool {
        self.failure.is_some() || self.refused_after.is_some()
    }

    /// Nobody will ask for further streams.
    pub(crate) fn leave_to_streams(&mut self) {
        self.no_users = true;
        self.wake_driver();
    }

    /// Says that no further stream is taken: first that this will be so, then, when all that was opened before has arrived,
    /// that it is.
    pub(crate) fn leave(&mut self) {
        if self.leaving == Leaving::No {
            self.leaving = Leaving::Announced;
            self.push(|out| frame::goaway(frame::LARGEST_WINDOW, Reason::NO_ERROR, out));
            self.push(|out| frame::write(frame::PING, 0, 0, &super::ping::LEAVE, out));
        }
    }

    /// The end of everything: what was not complete is cut off.
    pub(crate) fn fail(&mut self, error: io::Error) {
        if self.failure.is_none() {
            self.failure = Some(Arc::new(error));
        }
        self.out.clear();
        self.control = 0;
        self.accepted.clear();
        self.streams.values_mut().for_each(Entry::wake);
        self.waiting.drain(..).for_each(Waker::wake);
        self.pings.wake();
        self.wake_driver();
    }

    pub(super) fn broken(&self) -> Option<Broken> {
        self.failure.clone().map(Broken::Connection)
    }

    /// The peer has sent this much DATA. The connection's window is given back at once: it is the streams' windows that bound
    /// what is held.
    pub(super) fn use_window(&mut self, length: u32) -> Result<(), Reason> {
        self.room = self.room.checked_sub(length).ok_or(Reason::FLOW_CONTROL_ERROR)?;
        self.owed += length;
        if self.owed >= CONNECTION_WINDOW / 4 {
            let owed = std::mem::take(&mut self.owed);
            self.room += owed;
            self.push(|out| frame::window_update(0, owed, out));
        }
        Ok(())
    }

    /// Opens a stream with a CONNECT.
    pub(super) fn poll_connect(
        &mut self,
        cx: &Context<'_>,
        authority: &str,
        headers: &HeaderMap,
    ) -> Poll<Result<u32, Broken>> {
        if let Some(broken) = self.broken() {
            return Poll::Ready(Err(broken));
        }
        if self.refused_after.is_some() || self.next > frame::LARGEST_WINDOW {
            return Poll::Ready(Err(Broken::Unprocessed));
        }
        if self.open >= self.peer_streams {
            if !self.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                self.waiting.push(cx.waker().clone());
            }
            return Poll::Pending;
        }
        let block = head::encode_connect(authority, headers);
        if block.len() > self.peer_frame {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "the request's headers are too large");
            return Poll::Ready(Err(Broken::Connection(Arc::new(error))));
        }
        let id = self.next;
        self.next += 2;
        self.open += 1;
        let mut entry = Entry::new(self.peer_window);
        entry.is_held = true;
        self.streams.insert(id, entry);
        self.push(|out| frame::write(frame::HEADERS, frame::END_HEADERS, id, &block, out));
        Poll::Ready(Ok(id))
    }

    /// Answers a stream of the peer's.
    pub(super) fn respond(&mut self, id: u32, status: u16, is_end: bool) -> Result<(), Broken> {
        self.usable(id)?;
        let flags = frame::END_HEADERS | if is_end { frame::END_STREAM } else { 0 };
        let block = head::encode_response(status);
        self.push(|out| frame::write(frame::HEADERS, flags, id, &block, out));
        if is_end {
            self.end_sending(id);
        }
        Ok(())
    }

    pub(super) fn forget(&mut self, id: u32) {
        if self.forgotten.len() >= FORGOTTEN {
            self.forgotten.pop_front();
        }
        self.forgotten.push_back(id);
    }

    /// The user of a stream lets go of it.
    pub(super) fn drop_stream(&mut self, id: u32) {
        let Some(entry) = self.streams.get_mut(&id) else { return };
        entry.is_held = false;
        // After an end of ours nothing is cut off: we only read no further (RFC 9113 §8.1).
        let reason = if entry.send_end { Reason::NO_ERROR } else { Reason::CANCEL };
        self.reset(id, reason);
        self.settle(id);
    }

    /// The reader of a stream has taken so much.
    pub(super) fn release(&mut self, id: u32, bytes: usize) {
        let Some(entry) = self.streams.get_mut(&id) else { return };
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        if let Some(update) = entry.release(bytes, &mut self.extra) {
            self.push(|out| frame::window_update(id, update, out));
        }
    }

    /// To be called when something of a stream has ended.
    pub(super) fn settle(&mut self, id: u32) {
        let Some(entry) = self.streams.get_mut(&id).filter(|entry| entry.is_closed()) else { return };
        let (was_open, is_held) = (std::mem::take(&mut entry.is_open), entry.is_held);
        if !is_held && let Some(entry) = self.streams.remove(&id) {
            self.extra -= entry.extra();
            entry::give_back(entry.extra());
        }
        if was_open {
            self.open -= 1;
            self.waiting.drain(..).for_each(Waker::wake);
            if self.is_done() {
                self.wake_driver();
            }
        }
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        entry::give_back(self.extra);
    }
}
