// SPDX-License-Identifier: Apache-2.0
//! Strict: the framing of HTTP/1.1 as it comes in, byte for byte, before any parser makes it nicer.
//!
//! A parser that accepts a bare line feed, folds equal lengths or prefers one framing over another gives the same bytes
//! another meaning than the next program does. What has two meanings is refused here, and this is all that this does: it
//! passes bytes on unchanged or not at all, so a mistake of its own can refuse too much and never let through more.

use crate::limits::{MAX_BUFFER, MAX_CHUNK_LINE};

/// Longest decimal length and hexadecimal chunk size: no overflow in 64 bits.
const MAX_DIGITS: (usize, usize) = (18, 15);

/// Bytes of a line's buffer that are kept for the next line.
const KEPT: usize = 256;

#[derive(Debug)]
enum State {
    /// The lines of a head.
    Head(Head),
    /// That many bytes of a body with a length.
    Sized(u64),
    /// A chunk's size line.
    ChunkSize,
    /// That many bytes of a chunk, and its line end.
    Chunk(u64),
    /// The lines after the last chunk.
    Trailers,
    /// A protocol that the client asked to change to: not HTTP any more, or the connection ends.
    Opaque,
}

#[derive(Debug, Default)]
struct Head {
    lines: u32,
    old: bool,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
}

/// The framing of one connection's requests.
#[derive(Debug)]
pub(crate) struct Framing {
    state: State,
    /// The line so far, without its line feed.
    line: Vec<u8>,
}

impl Framing {
    pub(crate) fn new() -> Self {
        Self { state: State::Head(Head::default()), line: Vec::new() }
    }

    /// Whether a head has begun and not ended.
    pub(crate) fn in_head(&self) -> bool {
        matches!(&self.state, State::Head(head) if head.lines > 0 || !self.line.is_empty())
    }

    /// Reads on.
    ///
    /// # Errors
    /// Index of the byte at which the request can be read in two ways.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<(), usize> {
        let mut at = 0;
        while at < bytes.len() {
            match &mut self.state {
                State::Opaque => return Ok(()),
                State::Sized(left) => {
                    at += take(left, bytes.len() - at);
                    if *left == 0 {
                        self.state = State::Head(Head::default());
                    }
                }
                State::Chunk(left) if *left > 2 => {
                    let mut data = *left - 2;
                    at += take(&mut data, bytes.len() - at);
                    *left = data + 2;
                }
                State::Chunk(left) => {
                    let expected = if *left == 2 { b'\r' } else { b'\n' };
                    if bytes[at] != expected {
                        return Err(at);
                    }
                    *left -= 1;
                    at += 1;
                    if *left == 0 {
                        self.state = State::ChunkSize;
                    }
                }
                State::Head(_) | State::ChunkSize | State::Trailers => at = self.line(bytes, at)?,
            }
        }
        Ok(())
    }

    /// Up to the end of the line, or of what there is.
    fn line(&mut self, bytes: &[u8], at: usize) -> Result<usize, usize> {
        let rest = &bytes[at..];
        let end = rest.iter().position(|b| *b == b'\n');
        let limit = if matches!(self.state, State::ChunkSize) { MAX_CHUNK_LINE } else { MAX_BUFFER };
        let part = &rest[..end.unwrap_or(rest.len())];
        let room = limit.saturating_sub(self.line.len());
        if part.len() > room && matches!(self.state, State::ChunkSize) {
            return Err(at + room);
        }
        // A head that is too long is the parser's to refuse, with a status of its own.
        self.line.extend_from_slice(&part[..part.len().min(room)]);
        let Some(end) = end else { return Ok(bytes.len()) };
        let mut line = std::mem::take(&mut self.line);
        let ended = self.ended(&line);
        // An idle connection holds no long line.
        if line.capacity() <= KEPT {
            line.clear();
            self.line = line;
        }
        ended.map(|()| at + end + 1).ok_or(at + end)
    }

    /// A whole line; none when it must not be.
    fn ended(&mut self, line: &[u8]) -> Option<()> {
        let line = line.strip_suffix(b"\r")?;
        if line.iter().any(|b| matches!(b, b'\r' | 0)) {
            return None;
        }
        match &mut self.state {
            State::Head(head) if line.is_empty() && head.lines == 0 => {}
            State::Head(head) if line.is_empty() => self.state = head.body(),
            State::Head(head) => head.line(line)?,
            State::ChunkSize => {
                let size = chunk_size(line)?;
                self.state = if size == 0 { State::Trailers } else { State::Chunk(size + 2) };
            }
            State::Trailers if line.is_empty() => self.state = State::Head(Head::default()),
            State::Trailers if line.starts_with(b" ") || line.starts_with(b"\t") => return None,
            _ => {}
        }
        Some(())
    }
}

impl Head {
    fn line(&mut self, line: &[u8]) -> Option<()> {
        self.lines = self.lines.saturating_add(1);
        if self.lines == 1 {
            self.old = line.ends_with(b"HTTP/1.0");
            return Some(());
        }
        // A folded line continues a value for some and begins a header for others.
        if line.starts_with(b" ") || line.starts_with(b"\t") {
            return None;
        }
        let colon = line.iter().position(|b| *b == b':')?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.is_empty() || name.iter().any(u8::is_ascii_whitespace) {
            return None;
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            let digits =
                !value.is_empty() && value.len() <= MAX_DIGITS.0 && value.iter().all(u8::is_ascii_digit);
            if !digits || self.length.is_some() || self.chunked {
                return None;
            }
            self.length = Some(value.iter().fold(0, |n, d| n * 10 + u64::from(d - b'0')));
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            let chunked = value.eq_ignore_ascii_case(b"chunked");
            if !chunked || self.chunked || self.length.is_some() || self.old {
                return None;
            }
            self.chunked = true;
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            self.upgrade |= value.eq_ignore_ascii_case(b"websocket");
        }
        Some(())
    }

    fn body(&self) -> State {
        match (self.chunked, self.length) {
            (true, _) => State::ChunkSize,
            (false, Some(length)) if length > 0 => State::Sized(length),
            _ if self.upgrade => State::Opaque,
            _ => State::Head(Self::default()),
        }
    }
}

/// Takes what there is of what is left; returns how much.
fn take(left: &mut u64, there: usize) -> usize {
    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(there);
    *left -= taken as u64;
    taken
}

/// Hexadecimal digits, then nothing or an extension of printable characters.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().position(|b| !b.is_ascii_hexdigit()).unwrap_or(line.len());
    let (size, extension) = line.split_at(digits);
    if size.is_empty() || size.len() > MAX_DIGITS.1 {
        return None;
    }
    let clean = extension.is_empty() || extension.starts_with(b";");
    if !clean || extension.iter().any(|b| b.is_ascii_control() && *b != b'\t') {
        return None;
    }
    let digit = |b: &u8| u64::from(char::from(*b).to_digit(16).unwrap_or(0));
    Some(size.iter().fold(0, |n, d| n * 16 + digit(d)))
}

#[cfg(test)]
mod tests;
