// SPDX-License-Identifier: Apache-2.0
//! HTTP/2 as no client library would write it.

use meltemi_testkit::h2::kind::{
    CONTINUATION, DATA, GOAWAY, HEADERS, PING, PRIORITY, RST_STREAM, SETTINGS, WINDOW_UPDATE,
};
use meltemi_testkit::h2::{END_HEADERS, END_STREAM, frame, literal};

pub(crate) use meltemi_testkit::h2::preface;

const PROTOCOL_ERROR: u32 = 1;
const FRAME_SIZE_ERROR: u32 = 6;
const ENHANCE_YOUR_CALM: u32 = 11;

fn pseudo(path: &str) -> Vec<u8> {
    [
        literal(":method", "GET"),
        literal(":scheme", "http"),
        literal(":authority", "a"),
        literal(":path", path),
    ]
    .concat()
}

pub(crate) fn get(path: &str, stream: u32) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &pseudo(path))
}

/// Odd stream numbers, each given up at once in one way or another.
fn given_up(end: impl Fn(u32) -> Vec<u8>) -> Flood {
    let all: Vec<Vec<u8>> =
        (0..20_000u32).map(|n| [get("/hang", n * 2 + 1), end(n * 2 + 1)].concat()).collect();
    Box::new(all.into_iter())
}

type Flood = Box<dyn Iterator<Item = Vec<u8>> + Send>;

/// What is sent, and the reason that the connection is ended with.
pub(crate) fn floods() -> Vec<(&'static str, u32, Flood)> {
    let repeated = |part: Vec<u8>, times: usize| -> Flood { Box::new(std::iter::repeat_n(part, times)) };
    let open = frame(HEADERS, 0, 1, &pseudo("/x"));
    let crumb = literal("cookie", "a=b");
    let bomb = {
        // One entry of 4000 bytes in the dynamic table, then named again and again by one byte.
        let value = vec![b'v'; 4000];
        let length = [0x7f, 0xa1, 0x1e];
        let entry = [[0x40, 1, b'x'].as_slice(), &length, &value].concat();
        frame(HEADERS, END_STREAM | END_HEADERS, 1, &[pseudo("/x"), entry, vec![0xbe; 10_000]].concat())
    };
    vec![
        ("rapid reset", ENHANCE_YOUR_CALM, given_up(reset)),
        (
            "made you reset",
            PROTOCOL_ERROR,
            given_up(|stream| frame(WINDOW_UPDATE, 0, stream, &0u32.to_be_bytes())),
        ),
        (
            "window over its end",
            ENHANCE_YOUR_CALM,
            given_up(|stream| frame(WINDOW_UPDATE, 0, stream, &0x7fff_ffffu32.to_be_bytes())),
        ),
        (
            "endless continuation",
            ENHANCE_YOUR_CALM,
            Box::new(
                std::iter::once(open.clone())
                    .chain(repeated(frame(CONTINUATION, 0, 1, &crumb.repeat(100)), 100_000)),
            ),
        ),
        (
            "empty continuation",
            ENHANCE_YOUR_CALM,
            Box::new(std::iter::once(open).chain(repeated(frame(CONTINUATION, 0, 1, &[]), 1_000_000))),
        ),
        ("HPACK bomb", ENHANCE_YOUR_CALM, Box::new([bomb].into_iter().chain(repeated(get("*bad", 3), 1)))),
        ("frame beyond the limit", FRAME_SIZE_ERROR, repeated(frame(DATA, 0, 1, &vec![0; 1 << 20]), 1)),
        ("data for a stream that never was", PROTOCOL_ERROR, repeated(frame(DATA, 0, 99, b"x"), 1)),
        ("even stream", PROTOCOL_ERROR, repeated(get("/x", 2), 1)),
        ("no preface after all", FRAME_SIZE_ERROR, repeated(b"GET / HTTP/1.1\r\n\r\n".to_vec(), 10)),
        ("half a priority", PROTOCOL_ERROR, repeated(frame(PRIORITY, 0, 1, &[0]), 1)),
        ("half a ping", PROTOCOL_ERROR, repeated(frame(PING, 0, 0, &[0]), 1)),
    ]
}

pub(crate) fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())
}

/// The reason of the first GOAWAY among the frames.
pub(crate) fn goaway(mut bytes: &[u8]) -> Option<u32> {
    while bytes.len() >= 9 {
        let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        let payload = bytes.get(9..9 + length)?;
        if bytes[3] == GOAWAY {
            return Some(u32::from_be_bytes(payload.get(4..8)?.try_into().unwrap()));
        }
        bytes = &bytes[9 + length..];
    }
    None
}

/// How many bytes of data the frames have.
pub(crate) fn data(mut bytes: &[u8]) -> usize {
    let mut sum = 0;
    while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = bytes {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        sum += if *kind == DATA { length } else { 0 };
        bytes = rest.get(length..).unwrap_or_default();
    }
    sum
}

/// Sent for a while on a connection of one's own.
pub(crate) struct Lasting {
    pub(crate) name: &'static str,
    pub(crate) first: Vec<u8>,
    pub(crate) then: Then,
}

/// The part with a number.
type Then = Box<dyn Fn(u32) -> Vec<u8> + Send + Sync>;

fn setting(id: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[id.to_be_bytes().as_slice(), &value.to_be_bytes()].concat())
}

/// What all streams may be sent.
pub(crate) fn windows(size: u32) -> Vec<u8> {
    setting(4, size)
}

fn post(path: &str, stream: u32) -> Vec<u8> {
    let fields = [literal(":method", "POST"), literal(":scheme", "http"), literal(":authority", "a")];
    frame(HEADERS, END_HEADERS, stream, &[fields.concat(), literal(":path", path)].concat())
}

/// What HTTP/2 allows, in masses.
pub(crate) fn lasting() -> Vec<Lasting> {
    let row = |name, first: Vec<u8>, then: Then| Lasting { name, first, then };
    let open = |path: &str| (0..100).flat_map(|n| post(path, n * 2 + 1)).collect::<Vec<u8>>();
    let skipped = || frame(77, 0, 0, &[]);
    let hang = || open("/hang");
    vec![
        row("settings", hang(), Box::new(|n| windows(65_535 + n % 2))),
        row("table sizes", hang(), Box::new(|n| setting(1, n % 2 * 1_000_000))),
        row("pings", hang(), Box::new(|n| frame(PING, 0, 0, &u64::from(n).to_be_bytes()))),
        row("window updates", hang(), Box::new(|_| frame(WINDOW_UPDATE, 0, 1, &1u32.to_be_bytes()))),
        row("priorities", hang(), Box::new(|n| frame(PRIORITY, 0, n * 2 + 1, &[0, 0, 0, 0, 200]))),
        row("empty data", hang(), Box::new(|_| frame(DATA, 0, 1, &[]))),
        row("crumbs", hang(), Box::new(|n| frame(DATA, 0, n % 100 * 2 + 1, b"x"))),
        row("requests without an end", Vec::new(), Box::new(|n| post("/hang", n * 2 + 1))),
        row(
            "answers without a window",
            [windows(0), open("/endless")].concat(),
            Box::new(move |_| skipped()),
        ),
        row(
            "answers with a large window",
            [windows(0x7fff_ffff), open("/endless")].concat(),
            Box::new(move |_| skipped()),
        ),
    ]
}
