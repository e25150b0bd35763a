// SPDX-License-Identifier: Apache-2.0
//! Frames: their heads, and those that are written (RFC 9113 §4 and §6).

use super::Reason;

pub(super) const HEAD: usize = 9;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 1;
pub(super) const ACK: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const PADDED: u8 = 8;
pub(super) const PRIORITIZED: u8 = 0x20;

pub(super) const ENABLE_PUSH: u16 = 2;
pub(super) const MAX_CONCURRENT_STREAMS: u16 = 3;
pub(super) const INITIAL_WINDOW_SIZE: u16 = 4;
pub(super) const MAX_FRAME_SIZE: u16 = 5;
pub(super) const MAX_HEADER_LIST_SIZE: u16 = 6;

/// The client's first bytes (RFC 9113 §3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Initial size of windows, and of frames at most.
pub(super) const WINDOW: u32 = 65_535;
pub(super) const SMALLEST_FRAME: u32 = 16_384;
pub(super) const LARGEST_FRAME: u32 = (1 << 24) - 1;
pub(super) const LARGEST_WINDOW: u32 = (1 << 31) - 1;

/// What a frame begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) length: u32,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl Head {
    pub(super) fn read(octets: &[u8; HEAD]) -> Self {
        let [a, b, c, kind, flags, stream @ ..] = *octets;
        Self {
            length: u32::from_be_bytes([0, a, b, c]),
            kind,
            flags,
            // The first bit is reserved, and ignored.
            stream: u32::from_be_bytes(stream) & LARGEST_WINDOW,
        }
    }

    pub(super) fn write(self) -> [u8; HEAD] {
        let [_, a, b, c] = self.length.to_be_bytes();
        let [w, x, y, z] = self.stream.to_be_bytes();
        [a, b, c, self.kind, self.flags, w, x, y, z]
    }

    pub(super) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// A number of four octets; the first bit is reserved in all that we read this way.
pub(super) fn number(octets: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(octets.try_into().ok()?))
}

/// Appends a frame whose payload fits.
pub(super) fn write(kind: u8, flags: u8, stream: u32, payload: &[u8], into: &mut Vec<u8>) {
    let length = u32::try_from(payload.len()).unwrap_or(LARGEST_FRAME);
    into.extend_from_slice(&Head { length, kind, flags, stream }.write());
    into.extend_from_slice(payload);
}

pub(super) fn settings(values: &[(u16, u32)], into: &mut Vec<u8>) {
    let payload: Vec<u8> = values
        .iter()
        .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
        .collect();
    write(SETTINGS, 0, 0, &payload, into);
}

pub(super) fn window_update(stream: u32, increment: u32, into: &mut Vec<u8>) {
    write(WINDOW_UPDATE, 0, stream, &increment.to_be_bytes(), into);
}

pub(super) fn reset(stream: u32, reason: Reason, into: &mut Vec<u8>) {
    write(RST_STREAM, 0, stream, &reason.0.to_be_bytes(), into);
}

pub(super) fn goaway(last: u32, reason: Reason, into: &mut Vec<u8>) {
    let payload = [last.to_be_bytes(), reason.0.to_be_bytes()].concat();
    write(GOAWAY, 0, 0, &payload, into);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_as_they_are_written() {
        let head = Head { length: 0x01_02_03, kind: DATA, flags: END_STREAM, stream: 0x7fff_fffe };
        assert_eq!(Head::read(&head.write()), head);
        let mut reserved = head.write();
        reserved[5] |= 0x80;
        assert_eq!(Head::read(&reserved), head);
    }
}
