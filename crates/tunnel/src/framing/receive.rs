// SPDX-License-Identifier: Apache-2.0
//! What the peer sends: bytes to frames, frames to the state of the connection. DATA goes to its stream piece by piece;
//! other frames are read when they are whole, from the socket's buffer if they lie in it.
//!
//! An error is one of the connection; errors of a stream reset it and go on, at a price (see [`Conn::noise`]).

use super::conn::{Conn, Role};
use super::frame::{self, HEAD, Head};
use super::hpack::{Decoder, HpackError};
use super::{Reason, head};
use crate::{FRAME, MAX_HEADERS};

/// Frames of one header block at most.
const CONTINUATIONS: u32 = 16;

/// A DATA frame under way.
#[derive(Debug)]
struct Data {
    /// `None` when nobody wants it.
    stream: Option<u32>,
    left: u32,
    padding: u32,
    is_end: bool,
}

#[derive(Debug)]
enum State {
    /// So much of the client's preface has been read.
    Preface(usize),
    Head,
    Payload(Head),
    /// The length of the padding comes first.
    Padding(Head),
    Data(Data),
    Skip(u32),
}

/// A header block under way.
#[derive(Debug)]
struct Block {
    stream: u32,
    is_end: bool,
    frames: u32,
    fields: Vec<u8>,
}

/// The reading side of a connection.
#[derive(Debug)]
pub(super) struct Receiver {
    state: State,
    /// What has arrived of a head or a payload that is not whole.
    partial: Vec<u8>,
    block: Option<Block>,
    decoder: Decoder,
    /// The peer's settings have arrived, with which it must begin.
    has_begun: bool,
}

type Result<T = ()> = std::result::Result<T, Reason>;

impl Receiver {
    pub(super) fn new(role: Role) -> Self {
        let state = if role == Role::Server { State::Preface(0) } else { State::Head };
        Self { state, partial: Vec::new(), block: None, decoder: Decoder::default(), has_begun: false }
    }

    /// Whether the peer has begun to speak HTTP/2.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Reads all of `bytes`.
    pub(super) fn receive(&mut self, conn: &mut Conn, mut bytes: &[u8]) -> Result {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Preface(read) => {
                    let (first, rest) = bytes.split_at(bytes.len().min(frame::PREFACE.len() - *read));
                    if !frame::PREFACE[*read..].starts_with(first) {
                        return Err(Reason::PROTOCOL_ERROR);
                    }
                    *read += first.len();
                    bytes = rest;
                    if *read == frame::PREFACE.len() {
                        self.state = State::Head;
                    }
                }
                State::Head => {
                    if let Some(octets) = gather(&mut self.partial, &mut bytes, HEAD) {
                        let head = octets.as_slice().try_into().map_err(|_| Reason::PROTOCOL_ERROR)?;
                        let head = Head::read(head);
                        self.partial.clear();
                        self.begin(conn, head)?;
                    }
                }
                State::Payload(head) => {
                    let head = *head;
                    let length = head.length as usize;
                    if self.partial.is_empty() && bytes.len() >= length {
                        let (payload, rest) = bytes.split_at(length);
                        bytes = rest;
                        self.state = State::Head;
                        self.whole(conn, head, payload)?;
                    } else if gather(&mut self.partial, &mut bytes, length).is_some() {
                        let payload = std::mem::take(&mut self.partial);
                        self.state = State::Head;
                        self.whole(conn, head, &payload)?;
                    }
                }
                State::Padding(head) => {
                    let (head, padding) = (*head, u32::from(bytes[0]));
                    bytes = &bytes[1..];
                    let left = head.length - 1;
                    let content = left.checked_sub(padding).ok_or(Reason::PROTOCOL_ERROR)?;
                    self.data(conn, head, content, padding)?;
                }
                State::Data(data) => {
                    let (piece, rest) = bytes.split_at(bytes.len().min(data.left as usize));
                    bytes = rest;
                    if let Some(entry) = data.stream.and_then(|id| conn.streams.get_mut(&id))
                        && entry.is_held_or_new()
                    {
                        entry.put(piece, data.left as usize);
                    }
                    data.left -= u32::try_from(piece.len()).unwrap_or(data.left);
                    self.end_data(conn);
                }
                State::Skip(left) => {
                    let skipped = bytes.len().min(*left as usize);
                    bytes = &bytes[skipped..];
                    *left -= u32::try_from(skipped).unwrap_or(*left);
                    if *left == 0 {
                        self.state = State::Head;
                    }
                }
            }
        }
        Ok(())
    }

    /// A head has been read.
    fn begin(&mut self, conn: &mut Conn, head: Head) -> Result {
        if head.length > FRAME {
            return Err(Reason::FRAME_SIZE_ERROR);
        }
        let follows = self.block.as_ref().map(|block| block.stream);
        if follows.is_some_and(|stream| head.kind != frame::CONTINUATION || head.stream != stream)
            || (follows.is_none() && head.kind == frame::CONTINUATION)
            || (!self.has_begun && (head.kind != frame::SETTINGS || head.has(frame::ACK)))
        {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let is_of_stream = match head.kind {
            frame::DATA | frame::HEADERS | frame::PRIORITY | frame::RST_STREAM | frame::CONTINUATION => true,
            frame::SETTINGS | frame::PING | frame::GOAWAY => false,
            // A client pushes nothing, and a server has been told not to.
            frame::PUSH_PROMISE => return Err(Reason::PROTOCOL_ERROR),
            _ => head.stream != 0,
        };
        if is_of_stream != (head.stream != 0) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let fixed = match head.kind {
            frame::RST_STREAM | frame::WINDOW_UPDATE => Some(4),
            frame::PING => Some(8),
            frame::PRIORITY => Some(5),
            frame::SETTINGS if head.has(frame::ACK) => Some(0),
            frame::SETTINGS if !head.length.is_multiple_of(6) => return Err(Reason::FRAME_SIZE_ERROR),
            frame::GOAWAY if head.length < 8 => return Err(Reason::FRAME_SIZE_ERROR),
            _ => None,
        };
        if fixed.is_some_and(|length| length != head.length) {
            return Err(Reason::FRAME_SIZE_ERROR);
        }
        match head.kind {
            frame::DATA if head.has(frame::PADDED) => {
                // Nothing before the padding's length can be judged.
                self.state = State::Padding(head);
                if head.length == 0 { Err(Reason::FRAME_SIZE_ERROR) } else { Ok(()) }
            }
            frame::DATA => self.data(conn, head, head.length, 0),
            // PRIORITY means nothing any more (RFC 9113 §5.3.2), as do types that are not known.
            frame::PRIORITY | 10.. => {
                self.skip(head.length);
                conn.noise(1)
            }
            _ if head.length == 0 => self.whole(conn, head, &[]),
            _ => {
                self.state = State::Payload(head);
                Ok(())
            }
        }
    }

    fn skip(&mut self, length: u32) {
        self.state = if length == 0 { State::Head } else { State::Skip(length) };
    }

    /// A DATA frame begins.
    fn data(&mut self, conn: &mut Conn, head: Head, content: u32, padding: u32) -> Result {
        conn.use_window(head.length)?;
        let (id, is_end) = (head.stream, head.has(frame::END_STREAM));
        if content == 0 && !is_end {
            conn.noise(1)?;
        }
        conn.is_begun(id)?;
        let mut stream = None;
        match conn.streams.get_mut(&id) {
            Some(entry) if entry.broken.is_some() => {}
            Some(entry) if entry.recv_end => conn.fault(id, Reason::STREAM_CLOSED)?,
            // Before the answer there is nothing to follow.
            Some(entry) if conn.role == Role::Client && entry.status.is_none() => {
                conn.fault(id, Reason::PROTOCOL_ERROR)?;
            }
            Some(entry) => match entry.use_window(head.length, head.length - content) {
                Ok(()) => stream = Some(id),
                Err(reason) => conn.fault(id, reason)?,
            },
            None if conn.forgotten.contains(&id) => {}
            None => conn.fault(id, Reason::STREAM_CLOSED)?,
        }
        self.state = State::Data(Data { stream, left: content, padding, is_end });
        self.end_data(conn);
        Ok(())
    }

    /// Ends a DATA frame that is whole.
    fn end_data(&mut self, conn: &mut Conn) {
        let State::Data(data) = &self.state else { return };
        if data.left > 0 {
            return;
        }
        let (stream, padding, is_end) = (data.stream, data.padding, data.is_end);
        if let Some(id) = stream.filter(|_| is_end) {
            conn.end_receiving(id);
        }
        self.skip(padding);
    }

    /// A frame other than DATA is whole.
    fn whole(&mut self, conn: &mut Conn, head: Head, payload: &[u8]) -> Result {
        self.state = State::Head;
        match head.kind {
            frame::HEADERS => {
                let fields = fields(head, payload)?;
                let is_end = head.has(frame::END_STREAM);
                let block = Block { stream: head.stream, is_end, frames: 0, fields: Vec::new() };
                if head.has(frame::END_HEADERS) {
                    return self.headers(conn, &block, fields);
                }
                self.block = Some(Block { fields: fields.to_vec(), ..block });
                Ok(())
            }
            frame::CONTINUATION => {
                let Some(mut block) = self.block.take() else { return Err(Reason::PROTOCOL_ERROR) };
                block.frames += 1;
                block.fields.extend_from_slice(payload);
                if block.frames > CONTINUATIONS || block.fields.len() > MAX_HEADERS as usize {
                    return Err(Reason::ENHANCE_YOUR_CALM);
                }
                if head.has(frame::END_HEADERS) {
                    let fields = std::mem::take(&mut block.fields);
                    return self.headers(conn, &block, &fields);
                }
                self.block = Some(block);
                Ok(())
            }
            frame::RST_STREAM => {
                conn.is_begun(head.stream)?;
                conn.on_reset(head.stream, Reason(frame::number(payload).unwrap_or_default()))
            }
            frame::SETTINGS if head.has(frame::ACK) => conn.noise(1),
            frame::SETTINGS => {
                conn.noise(if self.has_begun { 8 } else { 1 })?;
                self.has_begun = true;
                conn.on_settings(payload)
            }
            frame::PING if head.has(frame::ACK) => {
                conn.on_pong(payload);
                conn.noise(1)
            }
            frame::PING => {
                conn.push(|out| frame::write(frame::PING, frame::ACK, 0, payload, out));
                conn.noise(1)
            }
            frame::GOAWAY => {
                conn.noise(1)?;
                let last = frame::number(&payload[..4]).unwrap_or_default() & frame::LARGEST_WINDOW;
                let reason = Reason(frame::number(&payload[4..8]).unwrap_or_default());
                conn.on_goaway(last, reason)
            }
            _ => conn.on_window_update(head.stream, frame::number(payload).unwrap_or_default()),
        }
    }

    /// A header block is whole.
    fn headers(&mut self, conn: &mut Conn, block: &Block, fields: &[u8]) -> Result {
        match conn.role {
            Role::Server => {
                let request = head::request(&mut self.decoder, fields).map_err(unreadable)?;
                conn.on_request(block.stream, block.is_end, request)
            }
            Role::Client => {
                let status = head::response(&mut self.decoder, fields).map_err(unreadable)?;
                conn.on_response(block.stream, block.is_end, status)
            }
        }
    }
}

/// Adds to `partial` until it holds `length` bytes.
fn gather<'a>(partial: &'a mut Vec<u8>, bytes: &mut &[u8], length: usize) -> Option<&'a mut Vec<u8>> {
    let (part, rest) = bytes.split_at(bytes.len().min(length - partial.len()));
    partial.extend_from_slice(part);
    *bytes = rest;
    (partial.len() == length).then_some(partial)
}

fn unreadable(error: HpackError) -> Reason {
    match error {
        HpackError::Malformed => Reason::COMPRESSION_ERROR,
        HpackError::TooLarge => Reason::ENHANCE_YOUR_CALM,
    }
}

/// The fields of a HEADERS frame, without padding and priority.
fn fields(head: Head, payload: &[u8]) -> Result<&[u8]> {
    let (mut fields, mut padding) = (payload, 0);
    if head.has(frame::PADDED) {
        let (first, rest) = fields.split_first().ok_or(Reason::FRAME_SIZE_ERROR)?;
        (fields, padding) = (rest, usize::from(*first));
    }
    if head.has(frame::PRIORITIZED) {
        fields = fields.get(5..).ok_or(Reason::FRAME_SIZE_ERROR)?;
    }
    let length = fields.len().checked_sub(padding).ok_or(Reason::PROTOCOL_ERROR)?;
    Ok(&fields[..length])
}
