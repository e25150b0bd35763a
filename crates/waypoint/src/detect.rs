// SPDX-License-Identifier: Apache-2.0
//! Detect: whether a client speaks HTTP on a port that declares no protocol, by its first bytes.
//!
//! A client that passes HTTP off as TCP gets past no policy: a connection without HTTP fulfils nothing that an ALLOW says of
//! HTTP, and everything that a DENY says of it.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::limits::{Limits, MAX_HEAD_BYTES};

/// Methods after which the rest of a request line need not be looked at (RFC 9110 §9.3, and PATCH of RFC 5789): what is
/// malformed behind them is refused as HTTP. OPTIONS is not among them, for it is a method of SIP and RTSP as well.
const METHODS: [&[u8]; 8] = [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"TRACE", b"PATCH"];
/// Bytes of any other method, and of the white space before it, at most.
const MAX_METHOD: usize = 32;
/// What the version of a request line begins with; HTTP/2's preface has it as well (RFC 9113 §3.4).
const VERSION: &[u8] = b"HTTP/";

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speech {
    /// HTTP of any version.
    Http,
    /// Anything else, or nothing: the server may have to speak first.
    Tcp,
}

/// Where in a request line (RFC 9112 §3) the next byte is. White space is taken as the most lenient servers take it, so that
/// what one of them reads as a request is refused or judged as a request here.
#[derive(Clone, Copy, Debug, Default)]
enum Part {
    /// Before the method: empty lines and white space.
    #[default]
    Start,
    /// In the method, which begins at this byte.
    Method(usize),
    /// Between method and target.
    BeforeTarget,
    Target,
    /// Behind the target, and after so many bytes of [`VERSION`].
    Version(usize),
}

/// Reads a request line as it arrives; each byte once.
#[derive(Debug, Default)]
struct RequestLine {
    part: Part,
    /// Bytes that were looked at.
    read: usize,
}

impl RequestLine {
    /// Goes on with `bytes`, which begin with those that were looked at before. `None` as long as both are possible.
    fn decide(&mut self, bytes: &[u8]) -> Option<Speech> {
        for (at, &byte) in bytes.iter().enumerate().skip(self.read) {
            self.part = match self.part {
                Part::Start if at < MAX_METHOD && (is_blank(byte) || b"\r\n".contains(&byte)) => Part::Start,
                Part::Start if is_token(byte) => Part::Method(at),
                Part::Method(from) if is_blank(byte) && METHODS.contains(&&bytes[from..at]) => {
                    return Some(Speech::Http);
                }
                Part::Method(_) | Part::BeforeTarget if is_blank(byte) => Part::BeforeTarget,
                Part::Method(from) if at < from + MAX_METHOD && is_token(byte) => self.part,
                Part::Target | Part::Version(0) if is_blank(byte) => Part::Version(0),
                Part::BeforeTarget | Part::Target if !byte.is_ascii_control() => Part::Target,
                Part::Version(n) if VERSION[n].eq_ignore_ascii_case(&byte) => {
                    if n + 1 == VERSION.len() {
                        return Some(Speech::Http);
                    }
                    Part::Version(n + 1)
                }
                _ => return Some(Speech::Tcp),
            };
        }
        self.read = bytes.len();
        // A target of this length is refused as HTTP that is too large.
        (bytes.len() >= MAX_HEAD_BYTES).then_some(Speech::Http)
    }
}

/// White space within a line.
fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | 0x0b | 0x0c)
}

/// A byte of a token (RFC 9110 §5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Reads until it is known what the client speaks; `bytes` gets what was read, which has to be handed on, also when this is
/// given up. A client that says nothing for [`Limits::detect`], pauses for that time in its first bytes, or takes
/// [`Limits::head`] for them, speaks TCP.
///
/// # Errors
/// The connection failed.
pub(crate) async fn detect<IO>(io: &mut IO, bytes: &mut Vec<u8>, limits: &Limits) -> io::Result<Speech>
where
    IO: AsyncRead + Unpin,
{
    let mut line = RequestLine::default();
    let decided = async {
        loop {
            let read = tokio::time::timeout(limits.detect, io.read_buf(bytes)).await;
            let Ok(read) = read else { return Ok::<_, io::Error>(Speech::Tcp) };
            if read? == 0 {
                return Ok(Speech::Tcp);
            }
            if let Some(speech) = line.decide(bytes) {
                return Ok(speech);
            }
        }
    };
    tokio::time::timeout(limits.head, decided).await.unwrap_or(Ok(Speech::Tcp))
}

/// As [`detect`], of a client that has said nothing so far: its first byte is waited for.
///
/// # Errors
/// The connection failed.
pub(crate) async fn detect_late<IO>(io: &mut IO, bytes: &mut Vec<u8>, limits: &Limits) -> io::Result<Speech>
where
    IO: AsyncRead + Unpin,
{
    if io.read_buf(bytes).await? == 0 {
        return Ok(Speech::Tcp);
    }
    let mut known = RequestLine::default();
    match known.decide(bytes) {
        Some(speech) => Ok(speech),
        // The line is read again with what follows; it is short.
        None => detect(io, bytes, limits).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_decide_however_they_are_cut() {
        let cases: [(&[u8], Option<Speech>); 28] = [
            (b"", None),
            (b"GET", None),
            (b"GET ", Some(Speech::Http)),
            (b"GET\t/", Some(Speech::Http)),
            (b"GET  / HTTP/1.1\r\n", Some(Speech::Http)),
            (b"PATCH \x00", Some(Speech::Http)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Speech::Http)),
            (b"PRI * HTT", None),
            (b"PRI * SMTP/1", Some(Speech::Tcp)),
            (b"PROPFIND /x HTTP/1.1\r\n", Some(Speech::Http)),
            (b"PROPFIND  /\xc3\xa9 \t HTTP/1.1\r\n", Some(Speech::Http)),
            (b"get /x http/1.1\r\n", Some(Speech::Http)),
            (b"\r\n \nGET / HTTP/1.1\r\n", Some(Speech::Http)),
            (b"\r\n", None),
            (b"get key\r\n", Some(Speech::Tcp)),
            (b"FOO HTTP/1.1\r\n", Some(Speech::Tcp)),
            (b"FOO a b HTTP/1.1\r\n", Some(Speech::Tcp)),
            (b"EHLO client.example\r\n", Some(Speech::Tcp)),
            (b"USER a\r\n", Some(Speech::Tcp)),
            (b"PING\r\n", Some(Speech::Tcp)),
            (b"OPTIONS * HTTP/1.1\r\n", Some(Speech::Http)),
            (b"OPTIONS sip:a SIP/2.0\r\n", Some(Speech::Tcp)),
            (b"/ HTTP/1.1", Some(Speech::Tcp)),
            (b"GE(T / HTTP/1.1", Some(Speech::Tcp)),
            (b"*1\r\n$4\r\nPING\r\n", Some(Speech::Tcp)),
            // SSLRequest of PostgreSQL, a TLS ClientHello and a greeting of SSH.
            (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Some(Speech::Tcp)),
            (b"\x16\x03\x01\x02\x00\x01", Some(Speech::Tcp)),
            (b"SSH-2.0-x\r\n", Some(Speech::Tcp)),
        ];
        for (bytes, expected) in cases {
            let text = String::from_utf8_lossy(bytes);
            assert_eq!(RequestLine::default().decide(bytes), expected, "{text:?} at once");
            let mut line = RequestLine::default();
            let slow = (0..=bytes.len()).find_map(|n| line.decide(&bytes[..n]));
            assert_eq!(slow, expected, "{text:?} byte by byte");
        }
    }

    #[test]
    fn what_has_no_end_is_decided() {
        for byte in [b'A', b' ', b'\n'] {
            assert_eq!(RequestLine::default().decide(&[byte; MAX_METHOD + 1]), Some(Speech::Tcp), "{byte}");
        }
        let long = [b"FOO /".as_slice(), &[b'a'; MAX_HEAD_BYTES]].concat();
        assert_eq!(RequestLine::default().decide(&long), Some(Speech::Http));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_silent_or_stops_speaks_tcp() {
        let limits = Limits::default();
        for said in ["", "PROPFI"] {
            let (mut client, mut proxy) = tokio::io::duplex(64);
            tokio::io::AsyncWriteExt::write_all(&mut client, said.as_bytes()).await.unwrap();
            let begun = tokio::time::Instant::now();
            let mut first = Vec::new();
            let speech = detect(&mut proxy, &mut first, &limits).await.unwrap();
            assert_eq!((speech, first.as_slice()), (Speech::Tcp, said.as_bytes()));
            assert_eq!(begun.elapsed(), limits.detect, "{said:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_silent_is_waited_for_and_then_decided_as_ever() {
        let limits = Limits::default();
        for (parts, expected, known) in [
            (&["GET /x HTTP/1.1"][..], Speech::Http, "GET /x HTTP/1.1"),
            (&["REPO", "RT /x HT", "TP/1.1"], Speech::Http, "REPORT /x HTTP/1.1"),
            (&["REPORT /x"], Speech::Tcp, "REPORT /x"),
            (&["PING\r\n"], Speech::Tcp, "PING\r\n"),
            (&[], Speech::Tcp, ""),
        ] {
            let (mut client, mut proxy) = tokio::io::duplex(64);
            let speaking = async move {
                tokio::time::sleep(limits.head * 10).await;
                for part in parts {
                    tokio::io::AsyncWriteExt::write_all(&mut client, part.as_bytes()).await.unwrap();
                    tokio::time::sleep(limits.detect / 2).await;
                }
                // One that stops keeps its connection, and one that says nothing ends it.
                tokio::time::sleep(limits.detect * u32::try_from(parts.len() * 2).unwrap()).await;
            };
            let mut first = Vec::new();
            let (speech, ()) = tokio::join!(detect_late(&mut proxy, &mut first, &limits), speaking);
            assert_eq!((speech.unwrap(), &*String::from_utf8_lossy(&first)), (expected, known), "{parts:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn slow_bytes_are_waited_for_as_long_as_a_head_may_take() {
        let limits = Limits::default();
        let pause = limits.detect * 9 / 10;
        for (line, expected) in [("REPORT /x HTTP/1.1", Speech::Http), (&"R".repeat(30), Speech::Tcp)] {
            let (mut client, mut proxy) = tokio::io::duplex(64);
            let begun = tokio::time::Instant::now();
            let slow = async {
                for byte in line.bytes() {
                    tokio::time::sleep(pause).await;
                    tokio::io::AsyncWriteExt::write_all(&mut client, &[byte]).await.unwrap();
                }
                std::future::pending::<()>().await;
            };
            let mut first = Vec::new();
            let speech = tokio::select! {
                found = detect(&mut proxy, &mut first, &limits) => found.unwrap(),
                () = slow => unreachable!("it never ends"),
            };
            assert_eq!(speech, expected, "{line}");
            assert!(line.as_bytes().starts_with(&first) && !first.is_empty(), "{line}: {first:?}");
            assert!(begun.elapsed() <= limits.head, "{line}: {:?}", begun.elapsed());
        }
    }
}
