// SPDX-License-Identifier: Apache-2.0
//! SPDY/3.1 frames: a decoder that never holds more than a chunk of a data frame, and an encoder.

use std::io;

use bytes::{BufMut as _, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::dictionary::DICTIONARY;

/// Data is handed on in chunks of at most this size, whatever the frame's.
pub(super) const CHUNK: usize = 16 * 1024;
/// A control frame larger than this, or headers that unpack to more, are a fault of the other side.
const MAX_CONTROL: usize = 64 * 1024;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;
const FLAG_FIN: u8 = 1;
const SETTING_INITIAL_WINDOW: u32 = 7;

/// Header names (lower case) and values, in order.
pub(super) type Headers = Vec<(String, String)>;

/// Why a stream is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reset {
    Refused = 3,
    Cancel = 5,
}

/// What a peer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    SynStream {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    SynReply {
        stream: u32,
        fin: bool,
    },
    Headers {
        stream: u32,
        fin: bool,
    },
    Data {
        stream: u32,
        fin: bool,
        bytes: Bytes,
    },
    Reset {
        stream: u32,
    },
    /// With the initial window, if given.
    Settings(Option<u32>),
    Ping(u32),
    GoAway,
    WindowUpdate {
        stream: u32,
        delta: u32,
    },
    /// A type that is unknown is skipped.
    Unknown(u16),
}

/// Reads frames.
pub(super) struct Decoder<R> {
    reader: R,
    inflate: Decompress,
    /// The data frame being read: stream, FIN at its end, bytes left.
    data: Option<(u32, bool, usize)>,
}

impl<R: AsyncRead + Unpin> Decoder<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, inflate: Decompress::new(true), data: None }
    }

    /// The next frame, or the next chunk of a data frame; `None` at the end of the stream.
    pub(super) async fn next(&mut self) -> io::Result<Option<Frame>> {
        if let Some((stream, fin, left)) = self.data.take() {
            return self.chunk(stream, fin, left).await.map(Some);
        }
        let mut head = [0; 8];
        if self.reader.read(&mut head[..1]).await? == 0 {
            return Ok(None);
        }
        self.reader.read_exact(&mut head[1..]).await?;
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        let fin = head[4] & FLAG_FIN != 0;
        if head[0] & 0x80 == 0 {
            let stream = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
            return self.chunk(stream, fin, length).await.map(Some);
        }
        let version = u16::from_be_bytes([head[0] & 0x7f, head[1]]);
        if version != 3 {
            return Err(invalid(format!("version {version} of SPDY")));
        }
        if length > MAX_CONTROL {
            return Err(invalid(format!("control frame of {length} bytes")));
        }
        let mut payload = vec![0; length];
        self.reader.read_exact(&mut payload).await?;
        self.control(u16::from_be_bytes([head[2], head[3]]), fin, &payload).map(Some)
    }

    async fn chunk(&mut self, stream: u32, fin: bool, left: usize) -> io::Result<Frame> {
        let now = left.min(CHUNK);
        let mut bytes = vec![0; now];
        self.reader.read_exact(&mut bytes).await?;
        if left > now {
            self.data = Some((stream, fin, left - now));
        }
        Ok(Frame::Data { stream, fin: fin && left == now, bytes: bytes.into() })
    }

    fn control(&mut self, kind: u16, fin: bool, payload: &[u8]) -> io::Result<Frame> {
        let word = |at: usize| {
            let bytes = payload.get(at..at + 4).ok_or_else(|| invalid("control frame is too short"))?;
            Ok::<_, io::Error>(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        };
        let stream = || word(0).map(|id| id & 0x7fff_ffff);
        // The header blocks of all frames are one compressed stream: each must be unpacked, wanted or not.
        let block = |at: usize| payload.get(at..).ok_or_else(|| invalid("control frame is too short"));
        Ok(match kind {
            SYN_STREAM => {
                let headers = unpack(&mut self.inflate, block(10)?)?;
                Frame::SynStream { stream: stream()?, fin, headers }
            }
            SYN_REPLY => {
                unpack(&mut self.inflate, block(4)?)?;
                Frame::SynReply { stream: stream()?, fin }
            }
            HEADERS => {
                unpack(&mut self.inflate, block(4)?)?;
                Frame::Headers { stream: stream()?, fin }
            }
            RST_STREAM => Frame::Reset { stream: stream()? },
            SETTINGS => {
                let entries = payload.get(4..).unwrap_or_default().chunks_exact(8);
                let mut window = None;
                for entry in entries {
                    if u32::from_be_bytes([0, entry[1], entry[2], entry[3]]) == SETTING_INITIAL_WINDOW {
                        window = Some(u32::from_be_bytes([entry[4], entry[5], entry[6], entry[7]]));
                    }
                }
                Frame::Settings(window)
            }
            PING => Frame::Ping(word(0)?),
            GOAWAY => Frame::GoAway,
            WINDOW_UPDATE => Frame::WindowUpdate { stream: stream()?, delta: word(4)? & 0x7fff_ffff },
            other => Frame::Unknown(other),
        })
    }
}

/// Unpacks a header block.
fn unpack(inflate: &mut Decompress, block: &[u8]) -> io::Result<Headers> {
    let mut text = Vec::with_capacity(4096);
    let start = inflate.total_in();
    loop {
        let consumed = usize::try_from(inflate.total_in() - start).map_err(io::Error::other)?;
        let before = (consumed, text.len());
        match inflate.decompress_vec(&block[consumed..], &mut text, FlushDecompress::Sync) {
            Ok(Status::Ok | Status::BufError) => {}
            Ok(Status::StreamEnd) => return Err(invalid("the stream of headers has ended")),
            Err(e) if e.needs_dictionary().is_some() => {
                inflate.set_dictionary(&DICTIONARY).map_err(io::Error::other)?;
                continue;
            }
            Err(e) => return Err(invalid(format!("headers: {e}"))),
        }
        let consumed = usize::try_from(inflate.total_in() - start).map_err(io::Error::other)?;
        if text.len() > MAX_CONTROL {
            return Err(invalid("headers are too large"));
        }
        if text.len() == text.capacity() {
            text.reserve(4096);
        } else if consumed == block.len() {
            return parse(&text);
        } else if (consumed, text.len()) == before {
            return Err(invalid("headers cannot be unpacked"));
        }
    }
}

fn parse(mut block: &[u8]) -> io::Result<Headers> {
    fn number(block: &mut &[u8]) -> io::Result<usize> {
        let (head, rest) =
            block.split_first_chunk::<4>().ok_or_else(|| invalid("header block is too short"))?;
        *block = rest;
        Ok(u32::from_be_bytes(*head) as usize)
    }
    fn string(block: &mut &[u8]) -> io::Result<String> {
        let length = number(block)?;
        let (text, rest) =
            block.split_at_checked(length).ok_or_else(|| invalid("header block is too short"))?;
        *block = rest;
        String::from_utf8(text.to_vec()).map_err(|_| invalid("header is not UTF-8"))
    }
    let count = number(&mut block)?;
    let mut headers = Vec::new();
    for _ in 0..count {
        let name = string(&mut block)?.to_ascii_lowercase();
        headers.push((name, string(&mut block)?));
    }
    Ok(headers)
}

/// Writes frames into a buffer.
pub(super) struct Encoder {
    deflate: Compress,
}

impl Encoder {
    pub(super) fn new() -> io::Result<Self> {
        let mut deflate = Compress::new(Compression::best(), true);
        deflate.set_dictionary(&DICTIONARY).map_err(io::Error::other)?;
        Ok(Self { deflate })
    }

    pub(super) fn syn_reply(&mut self, out: &mut BytesMut, stream: u32, headers: &Headers) -> io::Result<()> {
        let block = self.pack(headers)?;
        control(out, SYN_REPLY, 0, 4 + block.len());
        out.put_u32(stream);
        out.put_slice(&block);
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn syn_stream(&mut self, out: &mut BytesMut, stream: u32, fin: bool, headers: &Headers) {
        let block = self.pack(headers).unwrap();
        control(out, SYN_STREAM, u8::from(fin), 10 + block.len());
        out.put_u32(stream);
        out.put_u32(0);
        out.put_u16(0);
        out.put_slice(&block);
    }

    fn pack(&mut self, headers: &Headers) -> io::Result<Vec<u8>> {
        let length = |n: usize| u32::try_from(n).map_err(io::Error::other);
        let mut text = BytesMut::new();
        text.put_u32(length(headers.len())?);
        for part in headers.iter().flat_map(|(name, value)| [name, value]) {
            text.put_u32(length(part.len())?);
            text.put_slice(part.as_bytes());
        }
        let mut block = Vec::with_capacity(text.len() + 64);
        let start = self.deflate.total_in();
        loop {
            let consumed = usize::try_from(self.deflate.total_in() - start).map_err(io::Error::other)?;
            self.deflate
                .compress_vec(&text[consumed..], &mut block, FlushCompress::Sync)
                .map_err(io::Error::other)?;
            let consumed = usize::try_from(self.deflate.total_in() - start).map_err(io::Error::other)?;
            // All is out when there was room to spare.
            if consumed == text.len() && block.len() < block.capacity() {
                return Ok(block);
            }
            block.reserve(256);
        }
    }
}

/// Data; at most [`CHUNK`] bytes by convention, fewer than 2^24 by protocol.
pub(super) fn data_head(out: &mut BytesMut, stream: u32, fin: bool, length: usize) {
    out.put_u32(stream & 0x7fff_ffff);
    out.put_u32((u32::from(fin) << 24) | length_of(length));
}

pub(super) fn reset(out: &mut BytesMut, stream: u32, why: Reset) {
    control(out, RST_STREAM, 0, 8);
    out.put_u32(stream);
    out.put_u32(why as u32);
}

pub(super) fn ping(out: &mut BytesMut, id: u32) {
    control(out, PING, 0, 4);
    out.put_u32(id);
}

pub(super) fn go_away(out: &mut BytesMut, last_stream: u32) {
    control(out, GOAWAY, 0, 8);
    out.put_u32(last_stream);
    out.put_u32(0);
}

pub(super) fn window_update(out: &mut BytesMut, stream: u32, delta: u32) {
    control(out, WINDOW_UPDATE, 0, 8);
    out.put_u32(stream);
    out.put_u32(delta);
}

#[cfg(test)]
pub(super) fn settings(out: &mut BytesMut, initial_window: u32) {
    control(out, SETTINGS, 0, 12);
    out.put_u32(1);
    out.put_u32(SETTING_INITIAL_WINDOW);
    out.put_u32(initial_window);
}

fn control(out: &mut BytesMut, kind: u16, flags: u8, length: usize) {
    out.put_u16(0x8003);
    out.put_u16(kind);
    out.put_u32((u32::from(flags) << 24) | length_of(length));
}

fn length_of(length: usize) -> u32 {
    // Callers write blocks and chunks far below 2^24.
    u32::try_from(length).unwrap_or(u32::MAX) & 0x00ff_ffff
}

fn invalid(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("SPDY: {}", why.into()))
}

#[cfg(test)]
mod tests;
