// SPDX-License-Identifier: Apache-2.0
//! What the peer's frames do to the state of a connection.
//!
//! An error is one of the connection; errors of a stream reset it and go on, at a price (see [`Conn::noise`]).

use std::task::Waker;

use super::conn::{Conn, Leaving, Role, STREAM_ERROR};
use super::entry::Entry;
use super::head::Request;
use super::{Broken, Reason, frame};
use crate::MAX_STREAMS;

type Result<T = ()> = std::result::Result<T, Reason>;

impl Conn {
    /// An error of a stream: it is reset, if it is there.
    pub(super) fn fault(&mut self, stream: u32, reason: Reason) -> Result {
        self.noise(STREAM_ERROR)?;
        if self.streams.get(&stream).is_some_and(|entry| !entry.is_closed()) {
            self.reset(stream, reason);
        } else {
            self.push(|out| frame::reset(stream, reason, out));
            self.forget(stream);
        }
        Ok(())
    }

    /// A request; `None` if it is malformed.
    pub(super) fn on_request(&mut self, id: u32, is_end: bool, request: Option<Request>) -> Result {
        if id.is_multiple_of(2) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        if id <= self.last {
            return match self.streams.get(&id) {
                // Only DATA follows a CONNECT (RFC 9113 §8.5).
                Some(entry) if !entry.is_closed() && !entry.recv_end => {
                    self.fault(id, Reason::PROTOCOL_ERROR)
                }
                Some(entry) if entry.broken.is_some() => Ok(()),
                None if self.forgotten.contains(&id) => Ok(()),
                _ => Err(Reason::STREAM_CLOSED),
            };
        }
        if self.leaving == Leaving::Told {
            // The peer knows that it is not looked at.
            return self.noise(1);
        }
        self.last = id;
        let Some(request) = request else { return self.fault(id, Reason::PROTOCOL_ERROR) };
        if self.open >= MAX_STREAMS {
            return self.fault(id, Reason::REFUSED_STREAM);
        }
        self.open += 1;
        let mut entry = Entry::new(self.peer_window);
        entry.request = Some(request);
        entry.recv_end = is_end;
        self.streams.insert(id, entry);
        self.accepted.push_back(id);
        Ok(())
    }

    /// An answer; `None` if it is malformed.
    pub(super) fn on_response(&mut self, id: u32, is_end: bool, status: Option<u16>) -> Result {
        self.is_begun(id)?;
        let Some(entry) = self.streams.get_mut(&id) else { return Ok(()) };
        if entry.broken.is_some() {
            return Ok(());
        }
        if entry.recv_end {
            return self.fault(id, Reason::STREAM_CLOSED);
        }
        match status {
            Some(status) if entry.status.is_none() => {
                if status < 200 {
                    // Interim answers say nothing; they cannot be the end.
                    self.noise(STREAM_ERROR)?;
                    return if is_end { self.fault(id, Reason::PROTOCOL_ERROR) } else { Ok(()) };
                }
                entry.status = Some(status);
                entry.reader.take().into_iter().for_each(Waker::wake);
                if is_end {
                    self.end_receiving(id);
                }
                Ok(())
            }
            // Malformed, or a second one: only DATA follows (RFC 9113 §8.5).
            _ => self.fault(id, Reason::PROTOCOL_ERROR),
        }
    }
    /// Room for a stream, or for all.
    pub(super) fn on_window_update(&mut self, id: u32, increment: u32) -> Result {
        let increment = increment & frame::LARGEST_WINDOW;
        if id == 0 {
            return if increment == 0 { Err(Reason::PROTOCOL_ERROR) } else { self.add_window(increment) };
        }
        self.is_begun(id)?;
        let Some(entry) = self.streams.get_mut(&id).filter(|entry| !entry.is_closed()) else { return Ok(()) };
        if increment == 0 {
            return self.fault(id, Reason::PROTOCOL_ERROR);
        }
        entry.send_window += i64::from(increment);
        if entry.send_window > i64::from(frame::LARGEST_WINDOW) {
            return self.fault(id, Reason::FLOW_CONTROL_ERROR);
        }
        entry.writer.take().into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// Frames other than HEADERS and PRIORITY are of streams that exist, or have.
    pub(super) fn is_begun(&self, id: u32) -> Result {
        let is_begun = match self.role {
            Role::Server => id % 2 == 1 && id <= self.last,
            Role::Client => id % 2 == 1 && id < self.next,
        };
        if is_begun { Ok(()) } else { Err(Reason::PROTOCOL_ERROR) }
    }

    /// The peer sends no more on a stream.
    pub(super) fn end_receiving(&mut self, id: u32) {
        if let Some(entry) = self.streams.get_mut(&id) {
            entry.recv_end = true;
            entry.reader.take().into_iter().for_each(Waker::wake);
            self.settle(id);
        }
    }

    pub(super) fn on_reset(&mut self, id: u32, reason: Reason) -> Result {
        let Some(entry) = self.streams.get_mut(&id).filter(|entry| !entry.is_closed()) else {
            return self.noise(1);
        };
        entry.broken = Some(Broken::Reset(reason));
        entry.wake();
        if entry.request.take().is_some() {
            self.accepted.retain(|accepted| *accepted != id);
            self.abandon();
        }
        self.settle(id);
        if self.is_hostile() { Err(Reason::ENHANCE_YOUR_CALM) } else { Ok(()) }
    }

    pub(super) fn on_goaway(&mut self, last: u32, reason: Reason) -> Result {
        self.farewell = Some(reason);
        if self.role == Role::Server {
            return Ok(());
        }
        // A later one may take back more, never less.
        let last = last.min(self.refused_after.unwrap_or(last));
        self.refused_after = Some(last);
        let refused: Vec<u32> = self.streams.keys().copied().filter(|id| *id > last).collect();
        for id in refused {
            if let Some(entry) = self.streams.get_mut(&id).filter(|entry| !entry.is_closed()) {
                entry.broken = Some(Broken::Unprocessed);
                entry.wake();
                self.settle(id);
            }
        }
        self.waiting.drain(..).for_each(Waker::wake);
        self.wake_driver();
        Ok(())
    }

    pub(super) fn on_settings(&mut self, payload: &[u8]) -> Result {
        let mut window = None;
        for setting in payload.chunks_exact(6) {
            let id = u16::from_be_bytes([setting[0], setting[1]]);
            let value = frame::number(&setting[2..]).unwrap_or_default();
            match id {
                frame::ENABLE_PUSH if value > 1 || (value == 1 && self.role == Role::Client) => {
                    return Err(Reason::PROTOCOL_ERROR);
                }
                frame::MAX_CONCURRENT_STREAMS => self.peer_streams = value,
                frame::INITIAL_WINDOW_SIZE if value > frame::LARGEST_WINDOW => {
                    return Err(Reason::FLOW_CONTROL_ERROR);
                }
                // The last one holds; what is before it in the same frame is never in use.
                frame::INITIAL_WINDOW_SIZE => window = Some(i64::from(value)),
                frame::MAX_FRAME_SIZE if !(frame::SMALLEST_FRAME..=frame::LARGEST_FRAME).contains(&value) => {
                    return Err(Reason::PROTOCOL_ERROR);
                }
                frame::MAX_FRAME_SIZE => self.peer_frame = value as usize,
                // The size of a table that is not used, and what is not known.
                _ => {}
            }
        }
        if let Some(window) = window {
            let change = window - std::mem::replace(&mut self.peer_window, window);
            for entry in self.streams.values_mut() {
                entry.send_window += change;
                if entry.send_window > i64::from(frame::LARGEST_WINDOW) {
                    return Err(Reason::FLOW_CONTROL_ERROR);
                }
                entry.writer.take().into_iter().for_each(Waker::wake);
            }
        }
        self.waiting.drain(..).for_each(Waker::wake);
        self.push(|out| frame::write(frame::SETTINGS, frame::ACK, 0, &[], out));
        Ok(())
    }
}
