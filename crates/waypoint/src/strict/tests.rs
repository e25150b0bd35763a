// SPDX-License-Identifier: Apache-2.0
//! Framing: what passes and what does not, whole and in pieces.

use proptest::prelude::{any, proptest};

use super::*;

/// Where it is refused when it comes in parts of that size; the same for every size.
fn refused(bytes: &[u8]) -> Option<usize> {
    let in_parts = |size: usize| {
        let mut framing = Framing::new();
        for (index, part) in bytes.chunks(size).enumerate() {
            if let Err(at) = framing.feed(part) {
                return Some(index * size + at);
            }
        }
        None
    };
    let whole = in_parts(bytes.len());
    for size in [1, 2, 3, 7] {
        assert_eq!(in_parts(size), whole, "in parts of {size}: {:?}", String::from_utf8_lossy(bytes));
    }
    whole
}

#[test]
fn what_has_one_meaning_passes() {
    let cases: &[&str] = &[
        "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        "\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length:  3\r\n\r\na\nbGET / HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n3;a=\"b\"\r\na\nb\r\n0\r\nx: y\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.0\r\nContent-Length: 0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nUpgrade: WebSocket\r\n\r\n\n\0anything",
    ];
    for case in cases {
        assert_eq!(refused(case.as_bytes()), None, "{case:?}");
    }
}

#[test]
fn what_has_two_meanings_is_refused_where_it_begins_to() {
    let head = "POST / HTTP/1.1\r\n";
    let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    let cases: Vec<(String, &str)> = vec![
        (format!("{head}a: b\nc: d\r\n\r\n"), "bare line feed"),
        (format!("{head}a: b\rc: d\r\n\r\n"), "bare carriage return"),
        (format!("{head}a: b\0\r\n\r\n"), "NUL"),
        (format!("{head}a: b\r\n c\r\n\r\n"), "folded"),
        (format!("{head}a : b\r\n\r\n"), "space before the colon"),
        (format!("{head}: b\r\n\r\n"), "no name"),
        (format!("{head}a\r\n\r\n"), "no colon"),
        (format!("{head}content-length: 1\r\ncontent-length: 1\r\n\r\n"), "two lengths"),
        (format!("{head}content-length: +1\r\n\r\n"), "sign"),
        (format!("{head}content-length: 1, 1\r\n\r\n"), "list of lengths"),
        (format!("{head}content-length: 0x1\r\n\r\n"), "hexadecimal length"),
        (format!("{head}content-length:\r\n\r\n"), "empty length"),
        (format!("{head}content-length: 99999999999999999999\r\n\r\n"), "length over 64 bits"),
        (format!("{head}content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n"), "length, then encoding"),
        (format!("{head}transfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n"), "encoding, then length"),
        (format!("{head}transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n"), "two encodings"),
        (format!("{head}transfer-encoding: gzip, chunked\r\n\r\n"), "other encoding"),
        (format!("{head}transfer-encoding: chunked, identity\r\n\r\n"), "not last"),
        (format!("{head}transfer-encoding: xchunked\r\n\r\n"), "unknown encoding"),
        ("POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n".into(), "encoding in 1.0"),
        (format!("{chunked}\r\n"), "no size"),
        (format!("{chunked}1 \r\n"), "space after the size"),
        (format!("{chunked}0x1\r\n"), "prefix"),
        (format!("{chunked}-1\r\n"), "negative"),
        (format!("{chunked}ffffffffffffffff1\r\n"), "over 64 bits"),
        (format!("{chunked}1\na"), "bare line feed after the size"),
        (format!("{chunked}1;a\rb\r\n"), "carriage return in an extension"),
        (format!("{chunked}1;{}\r\n", "a".repeat(64 * 1024)), "long extension"),
        (format!("{chunked}1\r\nabc\r\n"), "more than its size"),
        (format!("{chunked}0\r\na: b\nc: d\r\n\r\n"), "bare line feed in trailers"),
        (format!("{chunked}0\r\na: b\r\n c\r\n\r\n"), "folded trailer"),
    ];
    for (bytes, why) in cases {
        assert!(refused(bytes.as_bytes()).is_some(), "{why}");
    }
}

proptest! {
    /// Whatever comes in, and however it is cut.
    #[test]
    fn nothing_panics_and_cuts_do_not_matter(noise in any::<Vec<u8>>(), prefix in 0..3usize) {
        let heads = ["", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "GET / HTTP/1.1\r\n"];
        let bytes = [heads[prefix].as_bytes(), &noise].concat();
        if !bytes.is_empty() {
            refused(&bytes);
        }
    }
}
