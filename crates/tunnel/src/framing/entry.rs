// SPDX-License-Identifier: Apache-2.0
//! One stream: what has arrived and nobody has taken, both windows, and how far it has ended.
//!
//! A window that nobody uses must not cost memory, and one that is too small costs throughput between distant peers. So
//! each stream begins with [`BASE_WINDOW`] and gets more while its peer fills it and its reader keeps up, as long as the
//! tunnel and the process have some to give.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Waker;

use bytes::{Bytes, BytesMut};

use super::head::Request;
use super::{Broken, Reason};
use crate::{BASE_WINDOW, EXTRA_PER_PROCESS, EXTRA_PER_TUNNEL, STREAM_WINDOW};

/// Small pieces are put together to parts of this size: what a piece costs beside its bytes is not in the window.
const PART: usize = 64 * 1024;

/// What all streams of the process have beyond [`BASE_WINDOW`].
static EXTRA: AtomicU32 = AtomicU32::new(0);

#[derive(Debug)]
pub(super) struct Entry {
    parts: VecDeque<Bytes>,
    /// Behind `parts`, and still growing.
    last: BytesMut,
    /// Bytes that have arrived and whose window the reader has not given back.
    unread: u32,
    /// What the peer may still send.
    pub(super) room: u32,
    /// What it may have under way at once.
    window: u32,
    /// What it is to be given back.
    owed: u32,
    /// The peer had half of its window under way: a larger one would be used.
    is_low: bool,
    pub(super) recv_end: bool,
    pub(super) send_end: bool,
    pub(super) broken: Option<Broken>,
    /// What we may still send; negative after the peer has made its windows smaller.
    pub(super) send_window: i64,
    /// Bytes in the queue of the connection.
    pub(super) queued: usize,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
    /// Of an accepted stream that nobody has asked for yet.
    pub(super) request: Option<Request>,
    /// Of a stream of ours, once it is answered.
    pub(super) status: Option<u16>,
    /// Its user has it.
    pub(super) is_held: bool,
    /// It counts as open.
    pub(super) is_open: bool,
}

impl Entry {
    pub(super) fn new(send_window: i64) -> Self {
        Self {
            parts: VecDeque::new(),
            last: BytesMut::new(),
            unread: 0,
            room: BASE_WINDOW,
            window: BASE_WINDOW,
            owed: 0,
            is_low: false,
            recv_end: false,
            send_end: false,
            broken: None,
            send_window,
            queued: 0,
            reader: None,
            writer: None,
            request: None,
            status: None,
            is_held: false,
            is_open: true,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.broken.is_some() || (self.recv_end && self.send_end)
    }

    /// Whether what arrives has a reader, now or when it is accepted.
    pub(super) fn is_held_or_new(&self) -> bool {
        self.is_held || self.request.is_some()
    }

    /// Bytes that wait for its reader.
    pub(super) fn held(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum::<usize>() + self.last.len()
    }

    pub(super) fn extra(&self) -> u32 {
        self.window - BASE_WINDOW
    }

    /// Adds a piece of a frame of which `left` bytes are still to come, the piece among them.
    pub(super) fn put(&mut self, piece: &[u8], left: usize) {
        if !self.last.is_empty() && self.last.len() + piece.len() > PART {
            self.parts.push_back(std::mem::take(&mut self.last).freeze());
        }
        if self.last.capacity() - self.last.len() < piece.len() {
            // The frame's size is only a claim; one frame is under way at a time.
            self.last.reserve(left.min(PART).max(piece.len()));
        }
        self.last.extend_from_slice(piece);
        self.reader.take().into_iter().for_each(Waker::wake);
    }

    /// What has arrived next.
    pub(super) fn take(&mut self) -> Option<Bytes> {
        self.parts
            .pop_front()
            .or_else(|| (!self.last.is_empty()).then(|| std::mem::take(&mut self.last).freeze()))
    }

    /// The peer has used so much of its window, `padding` of it for nothing.
    pub(super) fn use_window(&mut self, length: u32, padding: u32) -> Result<(), Reason> {
        self.room = self.room.checked_sub(length).ok_or(Reason::FLOW_CONTROL_ERROR)?;
        self.unread += length - padding;
        self.owed += padding;
        self.is_low |= self.room < self.window / 2;
        Ok(())
    }

    /// The reader has taken so much. What the peer is to be given back now; `tunnel` is what all streams of the tunnel have
    /// beyond their base.
    pub(super) fn release(&mut self, bytes: u32, tunnel: &mut u32) -> Option<u32> {
        let bytes = bytes.min(self.unread);
        self.unread -= bytes;
        self.owed += bytes;
        if self.recv_end || self.broken.is_some() {
            return None;
        }
        let more = if self.is_low && self.unread <= self.window / 4 { self.grow(tunnel) } else { 0 };
        if more == 0 && self.owed < self.window / 2 {
            return None;
        }
        let update = std::mem::take(&mut self.owed) + more;
        self.room += update;
        Some(update)
    }

    /// Makes the window larger, if there is something to give; by how much.
    fn grow(&mut self, tunnel: &mut u32) -> u32 {
        self.is_low = false;
        let more = (self.window * 3).min(STREAM_WINDOW - self.window);
        if *tunnel + more > EXTRA_PER_TUNNEL || !reserve(more) {
            return 0;
        }
        *tunnel += more;
        self.window += more;
        more
    }

    pub(super) fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }
}

fn reserve(more: u32) -> bool {
    if EXTRA.fetch_add(more, Ordering::Relaxed) + more <= EXTRA_PER_PROCESS {
        return true;
    }
    give_back(more);
    false
}

/// Gives back what streams had beyond their base.
pub(super) fn give_back(extra: u32) {
    EXTRA.fetch_sub(extra, Ordering::Relaxed);
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Mutex;

    use super::*;

    /// For tests that look at what a process has to give out.
    pub(in crate::framing) static ALONE: Mutex<()> = Mutex::new(());

    /// The peer fills the window of a stream again and again, and its reader keeps up.
    fn fill(entry: &mut Entry, tunnel: &mut u32) {
        for _ in 0..8 {
            let room = entry.room;
            entry.use_window(room, 0).unwrap();
            entry.release(room, tunnel);
        }
    }

    #[test]
    fn all_tunnels_of_a_process_share_what_is_beyond_first_windows() {
        let _alone = ALONE.lock().unwrap();
        let mut streams = Vec::new();
        for _ in 0..EXTRA_PER_PROCESS / EXTRA_PER_TUNNEL * 2 {
            let mut tunnel = 0;
            for _ in 0..EXTRA_PER_TUNNEL / STREAM_WINDOW + 2 {
                let mut entry = Entry::new(0);
                fill(&mut entry, &mut tunnel);
                // Whoever gets nothing more still has a window.
                assert!(entry.room >= BASE_WINDOW / 2, "{}", entry.room);
                streams.push(entry);
            }
            assert!(tunnel <= EXTRA_PER_TUNNEL);
        }
        let all: u32 = streams.iter().map(Entry::extra).sum();
        // Streams of other tests have some as well.
        assert!(all <= EXTRA_PER_PROCESS && all > EXTRA_PER_PROCESS / 2, "{all}");
        give_back(all);
        let (mut entry, mut tunnel) = (Entry::new(0), 0);
        fill(&mut entry, &mut tunnel);
        assert_eq!(entry.extra(), STREAM_WINDOW - BASE_WINDOW, "what was given back is given out again");
        give_back(entry.extra());
    }
}
