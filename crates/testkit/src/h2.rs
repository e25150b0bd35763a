// SPDX-License-Identifier: Apache-2.0
//! HTTP/2 by hand (RFC 9113, RFC 7541): what no client library would write.

/// Types of frames.
pub mod kind {
    /// DATA.
    pub const DATA: u8 = 0;
    /// HEADERS.
    pub const HEADERS: u8 = 1;
    /// PRIORITY.
    pub const PRIORITY: u8 = 2;
    /// RST_STREAM.
    pub const RST_STREAM: u8 = 3;
    /// SETTINGS.
    pub const SETTINGS: u8 = 4;
    /// PING.
    pub const PING: u8 = 6;
    /// GOAWAY.
    pub const GOAWAY: u8 = 7;
    /// WINDOW_UPDATE.
    pub const WINDOW_UPDATE: u8 = 8;
    /// CONTINUATION.
    pub const CONTINUATION: u8 = 9;
}

/// The stream has no more.
pub const END_STREAM: u8 = 1;
/// The header block has no more.
pub const END_HEADERS: u8 = 4;

/// A frame.
///
/// # Panics
/// The payload is longer than a frame can say.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).ok().filter(|n| *n < 1 << 24).expect("a frame's length");
    [&length.to_be_bytes()[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The client's first words, and empty settings.
pub fn preface() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &frame(kind::SETTINGS, 0, 0, &[])].concat()
}

/// A header: a literal without indexing, with a new name; both shorter than 127 bytes.
///
/// # Panics
/// One of them is longer.
pub fn literal(name: &str, value: &str) -> Vec<u8> {
    let text = |t: &str| {
        let length = u8::try_from(t.len()).ok().filter(|n| *n < 127).expect("a short text");
        [&[length], t.as_bytes()].concat()
    };
    [vec![0], text(name), text(value)].concat()
}
