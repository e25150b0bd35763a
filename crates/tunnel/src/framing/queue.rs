// SPDX-License-Identifier: Apache-2.0
//! What is to be sent: one queue for all streams, in order.

use std::task::Waker;

use bytes::Bytes;

use super::conn::Conn;
use super::entry::Entry;
use super::frame::{self, Head};
use super::{Broken, Reason};
use crate::SEND_BUFFER;

/// Answers to the peer's frames that may wait: beyond this nothing is read.
const MAX_CONTROL: usize = 64 * 1024;

/// Something to be sent.
#[derive(Debug)]
pub(super) enum Out {
    /// Whole frames.
    Frames(Vec<u8>),
    /// A DATA frame.
    Data { head: [u8; frame::HEAD], stream: u32, data: Bytes },
}

impl Conn {
    /// Queues whole frames, behind what is queued.
    pub(super) fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if self.failure.is_some() {
            return;
        }
        if !matches!(self.out.back(), Some(Out::Frames(_))) {
            self.out.push_back(Out::Frames(Vec::new()));
        }
        if let Some(Out::Frames(frames)) = self.out.back_mut() {
            let before = frames.len();
            write(frames);
            self.control += frames.len() - before;
        }
        self.wake_driver();
    }

    /// Moves about `limit` bytes of the queue.
    pub(super) fn take_out(&mut self, limit: usize, into: &mut Vec<Out>) {
        let mut taken = 0;
        while taken < limit
            && let Some(out) = self.out.pop_front()
        {
            match &out {
                Out::Frames(frames) => {
                    taken += frames.len();
                    self.control -= frames.len();
                }
                Out::Data { stream, data, .. } => {
                    taken += data.len() + frame::HEAD;
                    if let Some(entry) = self.streams.get_mut(stream) {
                        entry.queued -= data.len();
                        entry.writer.take().into_iter().for_each(Waker::wake);
                    }
                }
            }
            into.push(out);
        }
    }

    /// Whether so much waits to be sent in answer to the peer that it must take some of it first.
    pub(super) fn is_crowded(&self) -> bool {
        self.control > MAX_CONTROL
    }

    /// The peer gives room for all streams.
    pub(super) fn add_window(&mut self, increment: u32) -> Result<(), Reason> {
        let was_closed = self.send_window <= 0;
        self.send_window += i64::from(increment);
        if self.send_window > i64::from(frame::LARGEST_WINDOW) {
            return Err(Reason::FLOW_CONTROL_ERROR);
        }
        if was_closed {
            self.streams.values_mut().filter_map(|e| e.writer.take()).for_each(Waker::wake);
        }
        Ok(())
    }

    /// That something can be sent on a stream.
    pub(super) fn usable(&self, id: u32) -> Result<&Entry, Broken> {
        if let Some(broken) = self.broken() {
            return Err(broken);
        }
        let entry = self.streams.get(&id).ok_or(Broken::Reset(Reason::STREAM_CLOSED))?;
        match &entry.broken {
            Some(broken) => Err(broken.clone()),
            None if entry.send_end => Err(Broken::Reset(Reason::STREAM_CLOSED)),
            None => Ok(entry),
        }
    }

    /// How much may be sent on a stream now; 0 if nothing.
    pub(super) fn capacity(&self, entry: &Entry) -> usize {
        let window = usize::try_from(entry.send_window.min(self.send_window)).unwrap_or_default();
        window.min(SEND_BUFFER.saturating_sub(entry.queued))
    }

    /// Queues data, no more than [`Conn::capacity`].
    pub(super) fn send(&mut self, id: u32, mut data: Bytes) -> Result<(), Broken> {
        self.usable(id)?;
        let length = i64::try_from(data.len()).unwrap_or(i64::MAX);
        let Some(entry) = self.streams.get_mut(&id) else { return Ok(()) };
        self.send_window -= length;
        entry.send_window -= length;
        entry.queued += data.len();
        while !data.is_empty() {
            let data = data.split_to(data.len().min(self.peer_frame));
            let length = u32::try_from(data.len()).unwrap_or(frame::LARGEST_FRAME);
            let head = Head { length, kind: frame::DATA, flags: 0, stream: id }.write();
            self.out.push_back(Out::Data { head, stream: id, data });
        }
        self.wake_driver();
        Ok(())
    }

    /// Ends this side of a stream, behind what is queued.
    pub(super) fn end(&mut self, id: u32) {
        if self.usable(id).is_ok() {
            self.push(|out| frame::write(frame::DATA, frame::END_STREAM, id, &[], out));
            self.end_sending(id);
        }
    }

    pub(super) fn end_sending(&mut self, id: u32) {
        if let Some(entry) = self.streams.get_mut(&id) {
            entry.send_end = true;
            self.settle(id);
        }
    }

    /// Resets a stream, behind what is queued.
    pub(super) fn reset(&mut self, id: u32, reason: Reason) {
        let Some(entry) = self.streams.get_mut(&id).filter(|entry| !entry.is_closed()) else { return };
        entry.broken = Some(Broken::Reset(reason));
        entry.wake();
        self.push(|out| frame::reset(id, reason, out));
        self.forget(id);
        self.settle(id);
    }
}
