// SPDX-License-Identifier: Apache-2.0
//! HPACK (RFC 7541): a decoder whose table is bounded, and an encoder that indexes nothing.

use std::collections::VecDeque;

use super::huffman;

/// Size of the decoder's table at most: HTTP/2's initial value, which our settings leave as it is.
const TABLE: usize = 4096;
/// What an entry counts beside its name and value (RFC 7541 §4.1).
const OVERHEAD: usize = 32;

/// Why a header block cannot be read. The tunnel has to end: later blocks depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HpackError {
    /// It is not HPACK.
    Malformed,
    /// It holds more than the limit.
    TooLarge,
}

type Result<T> = std::result::Result<T, HpackError>;

/// The state that all header blocks of one direction share.
#[derive(Debug)]
pub(super) struct Decoder {
    entries: VecDeque<(Vec<u8>, Vec<u8>)>,
    size: usize,
    /// What the peer allows itself, at most [`TABLE`].
    capacity: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { entries: VecDeque::new(), size: 0, capacity: TABLE }
    }
}

impl Decoder {
    /// Reads a block and hands out its fields in order. `limit` bounds the list (RFC 9113 §6.5.2: names, values and 32 for
    /// each field).
    pub(super) fn decode(
        &mut self,
        block: &[u8],
        limit: usize,
        mut each: impl FnMut(&[u8], &[u8]),
    ) -> Result<()> {
        let (mut rest, mut listed, mut begun) = (block, 0, false);
        let (mut name, mut value) = (Vec::new(), Vec::new());
        while let Some(first) = rest.first().copied() {
            name.clear();
            value.clear();
            let (bits, is_kept) = match first {
                0x80.. => {
                    let (known, of) = self.field(integer(&mut rest, 7)?)?;
                    name.extend_from_slice(known);
                    value.extend_from_slice(of);
                    (0, false)
                }
                0x40.. => (6, true),
                0x20.. if !begun => {
                    let capacity = integer(&mut rest, 5)?;
                    self.resize(capacity)?;
                    continue;
                }
                0x20.. => return Err(HpackError::Malformed),
                // Without indexing, or never indexed: the same to a reader that forwards nothing.
                _ => (4, false),
            };
            begun = true;
            if bits > 0 {
                match integer(&mut rest, bits)? {
                    0 => text(&mut rest, limit, &mut name)?,
                    index => name.extend_from_slice(self.field(index)?.0),
                }
                text(&mut rest, limit, &mut value)?;
            }
            listed += name.len() + value.len() + OVERHEAD;
            if listed > limit {
                return Err(HpackError::TooLarge);
            }
            each(&name, &value);
            if is_kept {
                self.insert(&name, &value);
            }
        }
        Ok(())
    }

    fn field(&self, index: usize) -> Result<(&[u8], &[u8])> {
        if let Some((name, value)) = index.checked_sub(1).and_then(|index| STATIC.get(index)) {
            return Ok((name.as_bytes(), value.as_bytes()));
        }
        let dynamic = index.checked_sub(STATIC.len() + 1).and_then(|index| self.entries.get(index));
        dynamic.map(|(name, value)| (&**name, &**value)).ok_or(HpackError::Malformed)
    }

    fn insert(&mut self, name: &[u8], value: &[u8]) {
        let size = name.len() + value.len() + OVERHEAD;
        self.evict(size);
        if size <= self.capacity {
            self.size += size;
            self.entries.push_front((name.to_vec(), value.to_vec()));
        }
    }

    fn resize(&mut self, capacity: usize) -> Result<()> {
        if capacity > TABLE {
            return Err(HpackError::Malformed);
        }
        self.capacity = capacity;
        self.evict(0);
        Ok(())
    }

    /// Makes room for `size`.
    fn evict(&mut self, size: usize) {
        while self.size + size > self.capacity {
            let Some((name, value)) = self.entries.pop_back() else { return };
            self.size -= name.len() + value.len() + OVERHEAD;
        }
    }
}

/// An integer with a prefix of so many bits; what no length or index can be is refused.
fn integer(rest: &mut &[u8], bits: u32) -> Result<usize> {
    let mask = (1 << bits) - 1;
    let mut value = take_octet(rest)? & mask;
    if value < mask {
        return Ok(value);
    }
    for shift in [0, 7, 14, 21] {
        let octet = take_octet(rest)?;
        value += (octet & 0x7f) << shift;
        if octet & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(HpackError::Malformed)
}

fn take_octet(rest: &mut &[u8]) -> Result<usize> {
    let (first, more) = rest.split_first().ok_or(HpackError::Malformed)?;
    *rest = more;
    Ok(usize::from(*first))
}

fn text(rest: &mut &[u8], limit: usize, into: &mut Vec<u8>) -> Result<()> {
    let is_huffman = rest.first().is_some_and(|first| first & 0x80 != 0);
    let length = integer(rest, 7)?;
    let (text, more) = rest.split_at_checked(length).ok_or(HpackError::Malformed)?;
    *rest = more;
    if is_huffman {
        // No code is shorter than five bits.
        if text.len() > limit {
            return Err(HpackError::TooLarge);
        }
        return huffman::decode(text, text.len() * 8 / 5, into).ok_or(HpackError::Malformed);
    }
    into.extend_from_slice(text);
    Ok(())
}

/// Appends a field: a literal without indexing, its name by its place in the static table if that is not 0.
pub(super) fn encode(place: u8, name: &str, value: &[u8], into: &mut Vec<u8>) {
    length(place.into(), 4, into);
    if place == 0 {
        length(name.len(), 7, into);
        into.extend_from_slice(name.as_bytes());
    }
    length(value.len(), 7, into);
    into.extend_from_slice(value);
}

/// An integer with a prefix of so many bits, all others of the octet zero.
fn length(mut value: usize, bits: u32, into: &mut Vec<u8>) {
    let mask = (1 << bits) - 1;
    if value < mask {
        into.push(low(value));
        return;
    }
    into.push(low(mask));
    value -= mask;
    while value >= 0x80 {
        into.push(low(value) | 0x80);
        value >>= 7;
    }
    into.push(low(value));
}

fn low(value: usize) -> u8 {
    value.to_le_bytes()[0]
}

/// RFC 7541 Appendix A.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<String>> {
        let mut fields = Vec::new();
        decoder.decode(block, 1000, |name, value| {
            fields.push(format!("{}={}", String::from_utf8_lossy(name), String::from_utf8_lossy(value)));
        })?;
        Ok(fields)
    }

    #[test]
    fn requests_of_the_rfc_share_a_table() {
        // RFC 7541 C.3 and C.4: the same three requests without and with Huffman's code.
        let plain: [&[u8]; 3] = [
            b"\x82\x86\x84\x41\x0fwww.example.com",
            b"\x82\x86\x84\xbe\x58\x08no-cache",
            b"\x82\x87\x85\xbf\x40\x0acustom-key\x0ccustom-value",
        ];
        let coded: [&[u8]; 3] = [
            b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff",
            b"\x82\x86\x84\xbe\x58\x86\xa8\xeb\x10\x64\x9c\xbf",
            b"\x82\x87\x85\xbf\x40\x88\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f\x89\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf",
        ];
        for blocks in [plain, coded] {
            let mut decoder = Decoder::default();
            let first = decode(&mut decoder, blocks[0]).unwrap();
            assert_eq!(first, [":method=GET", ":scheme=http", ":path=/", ":authority=www.example.com"]);
            let second = decode(&mut decoder, blocks[1]).unwrap();
            assert_eq!(second[3..], [":authority=www.example.com", "cache-control=no-cache"]);
            let third = decode(&mut decoder, blocks[2]).unwrap();
            assert_eq!(
                third[2..],
                [":path=/index.html", ":authority=www.example.com", "custom-key=custom-value"]
            );
            assert_eq!((decoder.size, decoder.entries.len()), (164, 3));
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let long = "v".repeat(600);
        let mut block = Vec::new();
        encode(1, "", b"10.0.0.1:80", &mut block);
        encode(38, "", b"h", &mut block);
        encode(0, "forwarded", long.as_bytes(), &mut block);
        let fields = decode(&mut Decoder::default(), &block).unwrap();
        assert_eq!(
            fields,
            [":authority=10.0.0.1:80".to_owned(), "host=h".into(), format!("forwarded={long}")]
        );
    }

    #[test]
    fn a_table_holds_no_more_than_its_bound() {
        let mut decoder = Decoder::default();
        for n in 0..10_000u32 {
            let block = [b"\x40\x01x\x04".as_slice(), &n.to_be_bytes()].concat();
            decode(&mut decoder, &block).unwrap();
            assert!(decoder.size <= TABLE && decoder.size == decoder.entries.len() * 37);
        }
        // An entry that does not fit empties the table; a smaller table drops what is too much.
        let large = [b"\x40\x01y\x7f\x81\x02".as_slice(), &[b'v'; 384]].concat();
        decode(&mut decoder, &[&[0x3f, 0x81, 0x02], large.as_slice()].concat()).unwrap();
        assert_eq!((decoder.size, decoder.entries.len(), decoder.capacity), (0, 0, 288));
        assert_eq!(decode(&mut decoder, &[0xbe]), Err(HpackError::Malformed));
        assert_eq!(decode(&mut decoder, &[0x20]), Ok(vec![]));
        assert_eq!(decoder.capacity, 0);
    }

    #[test]
    fn what_is_no_block_is_refused() {
        use HpackError::{Malformed, TooLarge};
        let long = [b"\x00\x7f\xef\x06".as_slice(), &[b'x'; 1006], b"\x00"].concat();
        for (block, error) in [
            (&[0x80][..], Malformed),
            (&[0xbe], Malformed),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff], Malformed),
            (&[0xff], Malformed),
            (&[0x00, 0x05, b'a'], Malformed),
            (&[0x00, 0x01, b'a'], Malformed),
            (&[0x01, 0x81, 0x00], Malformed),
            (&[0x82, 0x20], Malformed),
            (&[0x3f, 0xe2, 0x1f], Malformed),
            (&long, TooLarge),
            (&[0x82; 30], TooLarge),
        ] {
            assert_eq!(decode(&mut Decoder::default(), block), Err(error), "{block:x?}");
        }
        assert!(decode(&mut Decoder::default(), &[0x3f, 0xe1, 0x1f, 0x20, 0x82]).is_ok());
    }
}
