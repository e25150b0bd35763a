// SPDX-License-Identifier: Apache-2.0
//! Requests as frames of HTTP/2, which say what no client library would.

use meltemi_testkit::h2::kind::{GOAWAY, HEADERS, RST_STREAM, SETTINGS};
use meltemi_testkit::h2::{END_HEADERS, END_STREAM, frame, literal, preface};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::requests::Request;

/// Acknowledges settings.
const ACK: u8 = 1;

/// Sends it, and returns the status of the answer; `None` when the stream or the connection ends instead.
pub(crate) async fn send<IO: AsyncRead + AsyncWrite + Unpin>(request: &Request, mut io: IO) -> Option<u16> {
    let block: Vec<u8> = fields(request).iter().flat_map(|(name, value)| literal(name, value)).collect();
    let headers = frame(HEADERS, END_STREAM | END_HEADERS, 1, &block);
    // A proxy may close before it has taken everything.
    let _ = io.write_all(&[preface(), headers].concat()).await;
    loop {
        let mut head = [0; 9];
        io.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        io.read_exact(&mut payload).await.ok()?;
        match (head[3], head[4]) {
            (SETTINGS, 0) => drop(io.write_all(&frame(SETTINGS, ACK, 0, &[])).await),
            (HEADERS, _) => return Some(status(&payload)),
            (RST_STREAM | GOAWAY, _) => return None,
            _ => {}
        }
    }
}

/// The status, which comes first (RFC 9113 §8.3.2): 200, 403, or 1 for another one.
fn status(block: &[u8]) -> u16 {
    let changes_table = |byte: &&u8| **byte & 0xe0 == 0x20;
    let after: &[u8] = &block[block.iter().take_while(changes_table).count()..];
    match after {
        // Of the static table (RFC 7541 appendix A).
        [0x88, ..] => 200,
        // A literal: plain, or in Huffman's code.
        [0x08 | 0x18 | 0x48, 3, b'4', b'0', b'3', ..] => 403,
        [_, 0x83, 0x68, 0x0c, 0xff, ..] => 403,
        _ => 1,
    }
}

/// Names and values, in order.
fn fields(request: &Request) -> Vec<(String, String)> {
    let pseudo = [
        (":method", request.method),
        (":scheme", "http"),
        (":authority", request.host),
        (":path", &*request.target),
    ];
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let mut fields: Vec<(String, String)> = pseudo.iter().map(own).collect();
    // A header's name is in lower case, and a value has no spaces around it, unless a client means harm.
    let plain = request.headers.iter().map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()));
    fields.extend(plain);
    if let Some(spelling) = request.spelling {
        spell(spelling, &mut fields);
    }
    fields
}

fn spell(how: u8, fields: &mut Vec<(String, String)>) {
    let add = |fields: &mut Vec<(String, String)>, name: &str, value: &str| {
        fields.push((name.to_owned(), value.to_owned()));
    };
    let last = fields.len() - 1;
    match how % 32 {
        0 => add(fields, "host", "secret.com"),
        1 => add(fields, "host", "ok.com"),
        // Without authority.
        2 => drop(fields.remove(2)),
        3 => fields[2].0 = "host".to_owned(),
        4 => add(fields, ":path", "/admin"),
        5 => add(fields, ":authority", "secret.com"),
        6 => fields.insert(0, ("x-a".to_owned(), "a".to_owned())),
        7 => fields[3].1 += "#x",
        8 => fields[3].1 += " x",
        9 => fields[3].1.replace_range(..1, ""),
        10 => fields[3].1 = "*".to_owned(),
        11 => fields[3].1 += "\u{e9}",
        12 => fields[0].1 = fields[0].1.to_lowercase(),
        13 => fields[1].1 = "https".to_owned(),
        14 => fields[1].1 = "HTTP".to_owned(),
        15 => fields[2].1.insert_str(0, "u@"),
        16 => fields[2].1 += "/admin",
        17 => fields[last].0 = fields[last].0.to_uppercase(),
        18 => fields[last].1 += " ",
        19 => fields[last].1.insert(0, '\t'),
        20 => fields[last].1 += "\r\nx-b: b",
        21 => fields[last].1 += "\u{0}",
        22 => [("cookie", "a"), ("cookie", "b")].iter().for_each(|(n, v)| add(fields, n, v)),
        23 => [("x-a", "a"), ("x-a", "b")].iter().for_each(|(n, v)| add(fields, n, v)),
        24 => [("x-b", ""), ("x-b", "b")].iter().for_each(|(n, v)| add(fields, n, v)),
        25 => add(fields, "connection", "upgrade"),
        26 => add(fields, "transfer-encoding", "chunked"),
        27 => add(fields, "content-length", "0"),
        28 => add(fields, "te", "trailers, gzip"),
        29 => fields[3].1 = "http://secret.com/admin".to_owned(),
        30 => fields[last].1 += "\u{e9}",
        _ => fields[3].1.insert(0, '/'),
    }
}
