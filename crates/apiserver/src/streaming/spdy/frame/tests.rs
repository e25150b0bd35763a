// SPDX-License-Identifier: Apache-2.0
use bytes::{Bytes, BytesMut};
use flate2::Compress;

use super::super::dictionary::{CHECKSUM, DICTIONARY};
use super::{CHUNK, Decoder, Encoder, Frame, data_head, go_away, ping, settings, window_update};

fn headers(pairs: &[(&str, &str)]) -> super::Headers {
    pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
}

async fn decode(bytes: &[u8]) -> std::io::Result<Vec<Frame>> {
    let mut decoder = Decoder::new(bytes);
    let mut frames = Vec::new();
    while let Some(frame) = decoder.next().await? {
        frames.push(frame);
    }
    Ok(frames)
}

#[test]
fn the_dictionary_is_the_protocols() {
    let mut deflate = Compress::new(flate2::Compression::best(), true);
    assert_eq!(deflate.set_dictionary(&DICTIONARY).unwrap(), CHECKSUM);
    assert_eq!(DICTIONARY.len(), 1423);
}

#[tokio::test]
async fn frames_survive_the_wire() {
    let mut encoder = Encoder::new().unwrap();
    let mut out = BytesMut::new();
    let first = headers(&[("streamtype", "stdin"), ("port", "8080")]);
    let long = headers(&[("streamtype", &"x".repeat(20_000))]);
    encoder.syn_stream(&mut out, 1, false, &first);
    encoder.syn_stream(&mut out, 3, true, &long);
    encoder.syn_reply(&mut out, 1, &first).unwrap();
    let big = vec![7; CHUNK + 5];
    data_head(&mut out, 1, true, big.len());
    out.extend_from_slice(&big);
    ping(&mut out, 9);
    settings(&mut out, 1000);
    window_update(&mut out, 1, 77);
    go_away(&mut out, 3);
    let expected = [
        Frame::SynStream { stream: 1, fin: false, headers: first },
        Frame::SynStream { stream: 3, fin: true, headers: long },
        Frame::SynReply { stream: 1, fin: false },
        Frame::Data { stream: 1, fin: false, bytes: Bytes::from(vec![7; CHUNK]) },
        Frame::Data { stream: 1, fin: true, bytes: Bytes::from(vec![7; 5]) },
        Frame::Ping(9),
        Frame::Settings(Some(1000)),
        Frame::WindowUpdate { stream: 1, delta: 77 },
        Frame::GoAway,
    ];
    assert_eq!(decode(&out).await.unwrap(), expected);
}

#[tokio::test]
async fn hostile_bytes_are_an_error() {
    let mut bomb = BytesMut::new();
    Encoder::new().unwrap().syn_stream(&mut bomb, 1, false, &headers(&[("a", &"x".repeat(10_000_000))]));
    let cases: [(&str, &[u8]); 6] = [
        ("another version", &[0x80, 2, 0, 1, 0, 0, 0, 0]),
        ("a huge control frame", &[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]),
        ("a short SYN_STREAM", &[0x80, 3, 0, 1, 0, 0, 0, 4, 0, 0, 0, 1]),
        ("headers that are no zlib", &[0x80, 3, 0, 1, 0, 0, 0, 14, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]),
        ("a cut data frame", &[0, 0, 0, 1, 0, 0, 0, 9, 1]),
        ("headers that unpack to megabytes", &bomb),
    ];
    for (what, bytes) in cases {
        assert!(decode(bytes).await.is_err(), "{what}");
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic_or_hang(bytes: Vec<u8>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut framed = vec![0x80, 3, 0, 1, 0, 0, 0, u8::try_from(bytes.len().min(200)).unwrap()];
        framed.extend_from_slice(&bytes);
        let _ = runtime.block_on(decode(&bytes));
        let _ = runtime.block_on(decode(&framed));
    }
}
