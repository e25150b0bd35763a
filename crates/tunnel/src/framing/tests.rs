// SPDX-License-Identifier: Apache-2.0
//! Rules of RFC 9113 one by one, as h2spec has them: what a peer sends, and what becomes of it.

use bytes::Bytes;
use futures::FutureExt as _;
use http::HeaderMap;
use proptest::prelude::*;

use super::conn::{Role, lock};
use super::frame::{self, Head};
use super::probe::{Probe, drive};
use super::stream::Stream;
use super::{Reason, head};
use crate::{BASE_WINDOW, MAX_STREAMS, SEND_BUFFER};

const PROTOCOL: Outcome = Outcome::Connection(Reason::PROTOCOL_ERROR);
const SIZE: Outcome = Outcome::Connection(Reason::FRAME_SIZE_ERROR);
const CLOSED: Outcome = Outcome::Connection(Reason::STREAM_CLOSED);
const CALM: Outcome = Outcome::Connection(Reason::ENHANCE_YOUR_CALM);
const FLOW: Outcome = Outcome::Connection(Reason::FLOW_CONTROL_ERROR);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Fine,
    Stream(u32, Reason),
    Connection(Reason),
}
use Outcome::Fine;

fn of(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::write(kind, flags, stream, payload, &mut bytes);
    bytes
}

fn settings(id: u16, value: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::settings(&[(id, value)], &mut bytes);
    bytes
}

fn block() -> Vec<u8> {
    head::encode_connect("10.0.0.1:80", &HeaderMap::new())
}

fn connect(stream: u32) -> Vec<u8> {
    of(frame::HEADERS, frame::END_HEADERS, stream, &block())
}

fn number(value: u32) -> [u8; 4] {
    value.to_be_bytes()
}

/// Frames in what was sent.
fn frames(mut bytes: &[u8]) -> Vec<(Head, Vec<u8>)> {
    let mut frames = Vec::new();
    bytes = bytes.strip_prefix(frame::PREFACE).unwrap_or(bytes);
    while let Some((octets, rest)) = bytes.split_first_chunk() {
        let head = Head::read(octets);
        let (payload, rest) = rest.split_at(head.length as usize);
        frames.push((head, payload.to_vec()));
        bytes = rest;
    }
    frames
}

fn outcome(probe: &mut Probe) -> Outcome {
    probe.check();
    if let Some(reason) = probe.ended {
        return Outcome::Connection(reason);
    }
    let resets = frames(&probe.sent());
    let reset = resets.into_iter().find(|(head, _)| head.kind == frame::RST_STREAM);
    reset.map_or(Fine, |(head, payload)| {
        Outcome::Stream(head.stream, Reason(frame::number(&payload).unwrap()))
    })
}

/// At once, and byte by byte: nothing depends on how it arrives.
fn server(bytes: &[u8]) -> Outcome {
    let ends = [bytes.len().max(1), 1, 7].map(|size| {
        let mut probe = Probe::new(Role::Server);
        bytes.chunks(size).for_each(|part| probe.receive(part));
        outcome(&mut probe)
    });
    assert!(ends.iter().all(|end| *end == ends[0]), "{ends:?}");
    ends[0].clone()
}

fn begun(frames: &[Vec<u8>]) -> Vec<u8> {
    [frame::PREFACE, &of(frame::SETTINGS, 0, 0, &[]), &frames.concat()].concat()
}

#[test]
fn how_a_peer_begins() {
    let first = of(frame::SETTINGS, 0, 0, &[]);
    for (bytes, expected) in [
        (begun(&[]), Fine),
        (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), PROTOCOL),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX".to_vec(), PROTOCOL),
        ([frame::PREFACE, &of(frame::PING, 0, 0, &[0; 8])].concat(), PROTOCOL),
        ([frame::PREFACE, &connect(1)].concat(), PROTOCOL),
        ([frame::PREFACE, &of(frame::SETTINGS, frame::ACK, 0, &[])].concat(), PROTOCOL),
        ([frame::PREFACE, &of(frame::SETTINGS, 0, 1, &[])].concat(), PROTOCOL),
        ([&first[..], frame::PREFACE].concat(), PROTOCOL),
    ] {
        assert_eq!(server(&bytes), expected, "{bytes:x?}");
    }
}

fn reset(stream: u32, code: u32) -> Vec<u8> {
    of(frame::RST_STREAM, 0, stream, &number(code))
}

fn window(stream: u32, increment: u32) -> Vec<u8> {
    of(frame::WINDOW_UPDATE, 0, stream, &number(increment))
}

fn closed(id: u32) -> Outcome {
    Outcome::Stream(id, Reason::STREAM_CLOSED)
}

fn wrong(id: u32) -> Outcome {
    Outcome::Stream(id, Reason::PROTOCOL_ERROR)
}

#[test]
fn frames_and_their_streams() {
    use frame::{CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PADDED, PING, PRIORITIZED};
    use frame::{PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE};
    let data = |stream, flags, payload: &[u8]| of(DATA, flags, stream, payload);
    let many = |count: u32| (0..count).map(|n| connect(n * 2 + 1)).collect::<Vec<_>>();
    let cases: Vec<(&str, Vec<Vec<u8>>, Outcome)> = vec![
        ("4.1 an unknown type", vec![of(99, 0xff, 7, b"x"), connect(1)], Fine),
        ("4.1 unknown flags", vec![of(PING, 0xfe, 0, &[0; 8])], Fine),
        ("4.1 a reserved bit", vec![of(PING, 0, 1 << 31, &[0; 8])], Fine),
        ("4.2 a frame beyond the limit", vec![of(99, 0, 0, &vec![0; 65_537])], SIZE),
        ("4.2 data beyond the limit", vec![connect(1), data(1, 0, &vec![0; 65_537])], SIZE),
        (
            "4.3 no HPACK",
            vec![of(HEADERS, END_HEADERS, 1, &[0xff; 9])],
            Outcome::Connection(Reason::COMPRESSION_ERROR),
        ),
        (
            "4.3 another frame within a block",
            vec![of(HEADERS, 0, 1, &block()), of(PING, 0, 0, &[0; 8])],
            PROTOCOL,
        ),
        ("4.3 another stream's block within", vec![of(HEADERS, 0, 1, &block()), connect(3)], PROTOCOL),
        ("5.1 idle: DATA", vec![data(1, 0, b"x")], PROTOCOL),
        ("5.1 idle: RST_STREAM", vec![reset(1, 8)], PROTOCOL),
        ("5.1 idle: WINDOW_UPDATE", vec![window(1, 1)], PROTOCOL),
        ("5.1 idle: CONTINUATION", vec![of(CONTINUATION, END_HEADERS, 1, &block())], PROTOCOL),
        ("5.1 idle: PRIORITY", vec![of(PRIORITY, 0, 1, &[0; 5])], Fine),
        ("5.1 half-closed: DATA", vec![connect(1), data(1, END_STREAM, b"x"), data(1, 0, b"x")], closed(1)),
        ("5.1 half-closed: HEADERS", vec![connect(1), data(1, END_STREAM, b""), connect(1)], CLOSED),
        ("5.1 half-closed: WINDOW_UPDATE", vec![connect(1), data(1, END_STREAM, b""), window(1, 1)], Fine),
        ("5.1 half-closed: RST_STREAM", vec![connect(1), data(1, END_STREAM, b""), reset(1, 8)], Fine),
        ("5.1 closed: DATA", vec![connect(1), reset(1, 8), data(1, 0, b"x")], closed(1)),
        ("5.1 closed: HEADERS", vec![connect(1), reset(1, 8), connect(1)], CLOSED),
        ("5.1 closed: WINDOW_UPDATE", vec![connect(1), reset(1, 8), window(1, 1)], Fine),
        ("5.1 closed: RST_STREAM", vec![connect(1), reset(1, 8), reset(1, 8)], Fine),
        ("5.1.1 an even stream", vec![connect(2)], PROTOCOL),
        ("5.1.1 a smaller stream", vec![connect(5), connect(3)], CLOSED),
        ("5.1.2 as many as allowed", many(MAX_STREAMS), Fine),
        (
            "5.1.2 one more",
            many(MAX_STREAMS + 1),
            Outcome::Stream(MAX_STREAMS * 2 + 1, Reason::REFUSED_STREAM),
        ),
        ("6.1 DATA of no stream", vec![data(0, 0, b"x")], PROTOCOL),
        ("6.1 padding", vec![connect(1), data(1, PADDED, b"\x02x\0\0")], Fine),
        ("6.1 only padding", vec![connect(1), data(1, PADDED, b"\x02\0\0")], Fine),
        ("6.1 padding beyond the frame", vec![connect(1), data(1, PADDED, b"\x04x\0\0")], PROTOCOL),
        ("6.1 padding without a length", vec![connect(1), data(1, PADDED, b"")], SIZE),
        ("6.2 HEADERS of no stream", vec![connect(0)], PROTOCOL),
        (
            "6.2 padding and priority",
            vec![of(
                HEADERS,
                END_HEADERS | PADDED | PRIORITIZED,
                1,
                &[&[2, 0, 0, 0, 0, 9][..], &block(), &[0, 0]].concat(),
            )],
            Fine,
        ),
        (
            "6.2 padding beyond the block",
            vec![of(HEADERS, END_HEADERS | PADDED, 1, &[&[200], &block()[..]].concat())],
            PROTOCOL,
        ),
        ("6.2 no room for the priority", vec![of(HEADERS, END_HEADERS | PRIORITIZED, 1, &[0; 4])], SIZE),
        ("6.2 nothing", vec![of(HEADERS, END_HEADERS, 1, &[])], wrong(1)),
        ("6.3 PRIORITY of no stream", vec![of(PRIORITY, 0, 0, &[0; 5])], PROTOCOL),
        ("6.3 PRIORITY too short", vec![of(PRIORITY, 0, 1, &[0; 4])], SIZE),
        ("6.4 RST_STREAM of no stream", vec![reset(0, 8)], PROTOCOL),
        ("6.4 RST_STREAM too long", vec![connect(1), of(RST_STREAM, 0, 1, &[0; 5])], SIZE),
        ("6.4 an unknown code", vec![connect(1), reset(1, 0xffff)], Fine),
        ("6.5 SETTINGS of a stream", vec![of(SETTINGS, 0, 1, &[])], PROTOCOL),
        ("6.5 an answer with content", vec![of(SETTINGS, frame::ACK, 0, &[0; 6])], SIZE),
        ("6.5 no whole setting", vec![of(SETTINGS, 0, 0, &[0; 5])], SIZE),
        ("6.5.2 ENABLE_PUSH", vec![settings(2, 2)], PROTOCOL),
        ("6.5.2 a window too large", vec![settings(4, 1 << 31)], FLOW),
        ("6.5.2 frames too small", vec![settings(5, 16_383)], PROTOCOL),
        ("6.5.2 frames too large", vec![settings(5, 1 << 24)], PROTOCOL),
        ("6.5.2 an unknown setting", vec![settings(0x99, 1)], Fine),
        ("6.6 PUSH_PROMISE", vec![connect(1), of(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2])], PROTOCOL),
        ("6.7 PING of a stream", vec![of(PING, 0, 1, &[0; 8])], PROTOCOL),
        ("6.7 PING too short", vec![of(PING, 0, 0, &[0; 7])], SIZE),
        ("6.7 an answer to nothing", vec![of(PING, frame::ACK, 0, b"meltemi?")], Fine),
        ("6.8 GOAWAY of a stream", vec![of(GOAWAY, 0, 1, &[0; 8])], PROTOCOL),
        ("6.8 GOAWAY too short", vec![of(GOAWAY, 0, 0, &[0; 7])], SIZE),
        ("6.8 GOAWAY with a text", vec![of(GOAWAY, 0, 0, b"\0\0\0\0\0\0\0\0bye"), connect(1)], Fine),
        ("6.9 no increment", vec![window(0, 0)], PROTOCOL),
        ("6.9 no increment of a stream", vec![connect(1), window(1, 0)], wrong(1)),
        ("6.9 WINDOW_UPDATE too short", vec![of(WINDOW_UPDATE, 0, 0, &[0; 3])], SIZE),
        ("6.9.1 a window too large", vec![window(0, 0x7fff_ffff)], FLOW),
        (
            "6.9.1 a stream's window too large",
            vec![connect(1), window(1, 0x7fff_ffff)],
            Outcome::Stream(1, Reason::FLOW_CONTROL_ERROR),
        ),
        (
            "6.9.2 a stream's by settings",
            vec![connect(1), window(1, 0x7fff_0000), settings(4, 0x7fff_0000)],
            FLOW,
        ),
        (
            "6.9 more data than the window",
            vec![connect(1), data(1, 0, &[0; BASE_WINDOW as usize]), data(1, 0, b"x")],
            Outcome::Stream(1, Reason::FLOW_CONTROL_ERROR),
        ),
        (
            "6.10 a block in parts",
            vec![
                of(HEADERS, 0, 1, &block()[..3]),
                of(CONTINUATION, 0, 1, &[]),
                of(CONTINUATION, END_HEADERS, 1, &block()[3..]),
            ],
            Fine,
        ),
        (
            "6.10 a part of another stream",
            vec![of(HEADERS, 0, 1, &block()), of(CONTINUATION, END_HEADERS, 3, &[])],
            PROTOCOL,
        ),
        ("6.10 a part after the end", vec![connect(1), of(CONTINUATION, END_HEADERS, 1, &[])], PROTOCOL),
        (
            "6.10 a part of no stream",
            vec![of(HEADERS, 0, 1, &block()), of(CONTINUATION, END_HEADERS, 0, &[])],
            PROTOCOL,
        ),
        (
            "6.10 parts without end",
            [vec![of(HEADERS, 0, 1, &block())], vec![of(CONTINUATION, 0, 1, &[]); 17]].concat(),
            CALM,
        ),
        ("8.5 a second block", vec![connect(1), connect(1)], wrong(1)),
        ("8.5 a trailer", vec![connect(1), of(HEADERS, END_HEADERS | END_STREAM, 1, &[])], wrong(1)),
        ("8.5 a block after data", vec![connect(1), data(1, 0, b"x"), connect(1)], wrong(1)),
        ("10.5 nothing, often", [vec![connect(1)], vec![data(1, 0, b""); 10_500]].concat(), CALM),
        (
            "10.5 streams given up",
            (0..400).flat_map(|n| [connect(n * 2 + 1), reset(n * 2 + 1, 8)]).collect(),
            CALM,
        ),
        (
            "10.5 faults of streams",
            (0..400).map(|n| of(HEADERS, END_HEADERS, n * 2 + 1, &[])).collect(),
            CALM,
        ),
        ("10.5 settings", vec![settings(4, 1); 1500], CALM),
    ];
    for (name, frames, expected) in cases {
        assert_eq!(server(&begun(&frames)), expected, "{name}");
    }
}

/// Asks for a stream.
fn open(probe: &Probe) -> Option<Result<Stream, super::Broken>> {
    Stream::connect(&probe.shared, "10.0.0.1:80", &HeaderMap::new()).now_or_never()
}

/// A dialling side with one stream under way.
fn client(frames: &[Vec<u8>]) -> Outcome {
    let mut probe = Probe::new(Role::Client);
    probe.streams.extend(open(&probe).unwrap().ok());
    probe.receive(&[of(frame::SETTINGS, 0, 0, &[]), frames.concat()].concat());
    outcome(&mut probe)
}

#[test]
fn answers() {
    use frame::{DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PUSH_PROMISE};
    let answer = |status, flags| of(HEADERS, END_HEADERS | flags, 1, &head::encode_response(status));
    let wrong = Outcome::Stream(1, Reason::PROTOCOL_ERROR);
    let cases: Vec<(&str, Vec<Vec<u8>>, Outcome)> = vec![
        ("200", vec![answer(200, 0), of(DATA, 0, 1, b"x")], Fine),
        ("503 and the end", vec![answer(503, END_STREAM)], Fine),
        ("an interim answer", vec![answer(103, 0), answer(200, 0)], Fine),
        ("an interim answer as the end", vec![answer(103, END_STREAM)], wrong.clone()),
        ("data before the answer", vec![of(DATA, 0, 1, b"x")], wrong.clone()),
        ("two answers", vec![answer(200, 0), answer(200, 0)], wrong.clone()),
        ("no status", vec![of(HEADERS, END_HEADERS, 1, &[])], wrong),
        (
            "after the end",
            vec![answer(200, END_STREAM), of(DATA, 0, 1, b"x")],
            Outcome::Stream(1, Reason::STREAM_CLOSED),
        ),
        (
            "a stream that nobody asked for",
            vec![of(HEADERS, END_HEADERS, 3, &head::encode_response(200))],
            PROTOCOL,
        ),
        ("an even stream", vec![of(HEADERS, END_HEADERS, 2, &head::encode_response(200))], PROTOCOL),
        ("a push", vec![of(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2])], PROTOCOL),
        ("a server that enables pushes", vec![settings(2, 1)], PROTOCOL),
        ("a goodbye", vec![of(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]), answer(200, 0)], Fine),
    ];
    for (name, frames, expected) in cases {
        assert_eq!(client(&frames), expected, "{name}");
    }
}

#[test]
fn a_goodbye_says_which_streams_another_tunnel_may_take() {
    let mut probe = Probe::new(Role::Client);
    for _ in 0..2 {
        probe.streams.extend(open(&probe).unwrap().ok());
    }
    let goodbye = of(frame::GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]);
    probe.receive(&[of(frame::SETTINGS, 0, 0, &[]), goodbye].concat());
    let status = |stream: &Stream| stream.status().now_or_never();
    assert!(status(&probe.streams[0]).is_none());
    assert!(matches!(status(&probe.streams[1]), Some(Err(super::Broken::Unprocessed))));
    assert!(matches!(open(&probe), Some(Err(super::Broken::Unprocessed))));
    assert!(!lock(&probe.shared).is_done());
    probe.streams.clear();
    assert!(lock(&probe.shared).is_done());
}

/// Two streams see the same room of the connection before either of them sends, as two copies do that wait for their
/// applications.
#[test]
fn room_that_two_streams_saw_is_used_once() {
    let mut probe = Probe::new(Role::Server);
    probe.receive(&[frame::PREFACE, &settings(4, 1_000_000), &connect(1), &connect(3)].concat());
    for _ in 0..2 {
        let (stream, _) = Stream::accepted(&probe.shared).unwrap();
        stream.respond(200, false).unwrap();
        probe.streams.push(stream);
    }
    let cx = std::task::Context::from_waker(std::task::Waker::noop());
    let data = |probe: &mut Probe| {
        let sent = frames(&probe.sent());
        sent.iter().filter(|(head, _)| head.kind == frame::DATA).map(|(head, _)| head.length).sum::<u32>()
    };
    data(&mut probe);
    let mut rest: Vec<Bytes> = Vec::new();
    for index in 0..2 {
        let capacity = probe.streams[index].poll_capacity(&cx);
        assert!(matches!(capacity, std::task::Poll::Ready(Ok(65_535))), "{capacity:?}");
        rest.push(vec![b'x'; 50_000].into());
    }
    assert!(probe.streams[0].poll_send(&cx, &mut rest[0]).is_ready());
    assert!(probe.streams[1].poll_send(&cx, &mut rest[1]).is_pending());
    assert_eq!((data(&mut probe), rest[1].len()), (65_535, 50_000 - 15_535));
    probe.receive(&of(frame::WINDOW_UPDATE, 0, 0, &number(100_000)));
    assert!(probe.streams[1].poll_send(&cx, &mut rest[1]).is_ready());
    assert_eq!(data(&mut probe), 50_000 - 15_535);
}

#[test]
fn what_is_sent_keeps_to_the_peers_windows_and_frames() {
    let mut probe = Probe::new(Role::Server);
    probe.receive(&[frame::PREFACE, &settings(4, 20_000), &connect(1), &connect(3)].concat());
    for _ in 0..2 {
        let (stream, _) = Stream::accepted(&probe.shared).unwrap();
        stream.respond(200, false).unwrap();
        probe.streams.push(stream);
    }
    let cx = std::task::Context::from_waker(std::task::Waker::noop());
    let send = |probe: &mut Probe, index: usize| {
        while let std::task::Poll::Ready(Ok(capacity)) = probe.streams[index].poll_capacity(&cx) {
            let sent = probe.streams[index].poll_send(&cx, &mut vec![b'x'; capacity].into());
            assert!(sent.is_ready());
        }
        let sent = frames(&probe.sent());
        assert!(sent.iter().all(|(head, _)| head.length <= 16_384));
        sent.iter().filter(|(head, _)| head.kind == frame::DATA).map(|(head, _)| head.length).sum::<u32>()
    };
    assert_eq!(send(&mut probe, 0), 20_000);
    assert_eq!(send(&mut probe, 0), 0);
    probe.receive(&of(frame::WINDOW_UPDATE, 0, 1, &number(10_000)));
    assert_eq!(send(&mut probe, 0), 10_000);
    // Smaller windows are owed first; then the connection's is the narrower one.
    probe.receive(&settings(4, 15_000));
    probe.receive(&of(frame::WINDOW_UPDATE, 0, 1, &number(5_000)));
    assert_eq!(send(&mut probe, 0), 0);
    probe.receive(&of(frame::WINDOW_UPDATE, 0, 1, &number(100_000)));
    assert_eq!(send(&mut probe, 0), 65_535 - 30_000);
    assert_eq!(send(&mut probe, 1), 0);
    probe.receive(&of(frame::WINDOW_UPDATE, 0, 0, &number(1_000_000)));
    assert_eq!(send(&mut probe, 1), 15_000);
}

/// A peer that gives as much window as it likes and takes nothing.
#[test]
fn what_waits_to_be_sent_is_bounded_for_each_stream() {
    let mut probe = Probe::new(Role::Server);
    let increment = of(frame::WINDOW_UPDATE, 0, 0, &number(1 << 30));
    probe.receive(&[frame::PREFACE, &settings(4, 1 << 30), &increment, &connect(1), &connect(3)].concat());
    for _ in 0..2 {
        let (stream, _) = Stream::accepted(&probe.shared).unwrap();
        stream.respond(200, false).unwrap();
        probe.streams.push(stream);
    }
    let cx = std::task::Context::from_waker(std::task::Waker::noop());
    let fill = |probe: &Probe, index: usize| {
        let mut data = Bytes::from(vec![b'x'; 10 * SEND_BUFFER]);
        assert!(probe.streams[index].poll_send(&cx, &mut data).is_pending());
        probe.check();
        10 * SEND_BUFFER - data.len()
    };
    assert_eq!((fill(&probe, 0), fill(&probe, 0)), (SEND_BUFFER, 0));
    assert_eq!(fill(&probe, 1), SEND_BUFFER, "the other stream has its own part");
    probe.sent();
    assert_eq!(fill(&probe, 0), SEND_BUFFER, "the peer has taken something");
}

#[test]
fn a_peer_that_takes_no_answers_is_not_listened_to() {
    let mut probe = Probe::new(Role::Server);
    probe.receive(&begun(&[]));
    probe.sent();
    let mut pings = 0;
    while !lock(&probe.shared).is_crowded() {
        probe.receive(&of(frame::PING, 0, 0, &[7; 8]));
        pings += 1;
    }
    assert!(pings > 1_000 && probe.ended.is_none(), "{pings}: {:?}", probe.ended);
    let waiting = probe.sent().len();
    assert!((64 * 1024..65 * 1024).contains(&waiting), "{waiting} bytes");
    assert!(!lock(&probe.shared).is_crowded(), "it has taken them");
}

#[test]
fn windows_grow_for_readers_that_keep_up_and_only_to_their_bounds() {
    let _alone = super::entry::tests::ALONE.lock().unwrap();
    let mut probe = Probe::new(Role::Server);
    let streams = 40;
    probe.receive(&begun(&(0..streams).map(|n| connect(n * 2 + 1)).collect::<Vec<_>>()));
    while let Some((stream, _)) = Stream::accepted(&probe.shared) {
        probe.streams.push(stream);
    }
    let cx = std::task::Context::from_waker(std::task::Waker::noop());
    let mut rooms = vec![BASE_WINDOW; streams as usize];
    for (index, room) in rooms.iter_mut().enumerate() {
        for _ in 0..8 {
            let id = u32::try_from(index).unwrap() * 2 + 1;
            // All of its window at once, all of which is taken.
            for part in vec![b'x'; *room as usize].chunks(40_000) {
                probe.receive(&of(frame::DATA, 0, id, part));
            }
            while let std::task::Poll::Ready(Some(Ok(data))) = probe.streams[index].poll_data(&cx) {
                *room -= u32::try_from(data.len()).unwrap();
                probe.streams[index].release(data.len());
            }
            for (head, payload) in frames(&probe.sent()) {
                if (head.kind, head.stream) == (frame::WINDOW_UPDATE, id) {
                    *room += frame::number(&payload).unwrap();
                }
            }
            probe.check();
        }
    }
    assert_eq!(probe.ended, None);
    let all = rooms.iter().map(|room| room - BASE_WINDOW.min(*room)).sum::<u32>();
    assert!(rooms[0] > 2_000_000 && rooms[0] <= crate::STREAM_WINDOW, "{rooms:?}");
    assert!(all <= crate::EXTRA_PER_TUNNEL && all > crate::EXTRA_PER_TUNNEL / 4, "{all}");
}

proptest! {
    #[test]
    fn whatever_peers_and_users_do_holds(parts in prop::collection::vec(part(), 0..60), is_server: bool) {
        drive(is_server, &parts.concat());
    }
}

/// A frame that is nearly well-formed, or an action.
fn part() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        Just(block()),
        Just(head::encode_response(200)),
        prop::collection::vec(any::<u8>(), 0..40),
        Just(vec![0; 300]),
    ];
    let frame = (0..11u8, any::<u8>(), 0..9u32, payload);
    let sent = frame.prop_map(|(kind, flags, stream, payload)| {
        let bytes = of(kind, flags & !2, stream, &payload);
        [&[0][..], &u16::try_from(bytes.len()).unwrap().to_be_bytes(), &bytes].concat()
    });
    prop_oneof![4 => sent, 1 => any::<u8>().prop_map(|what| vec![what | 1])]
}
