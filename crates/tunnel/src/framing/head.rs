// SPDX-License-Identifier: Apache-2.0
//! What the header blocks of a tunnel say: CONNECTs and their answers (RFC 9113 §8.2, §8.3 and §8.5).

use http::HeaderMap;

use super::hpack::{self, Decoder, HpackError};
use crate::MAX_HEADERS;

const AUTHORITY: u8 = 1;
const METHOD: u8 = 2;
const STATUS: u8 = 8;

/// A request.
#[derive(Debug, Default)]
pub(crate) struct Request {
    /// Whether it is a CONNECT; no other one is served.
    pub(crate) is_connect: bool,
    pub(crate) authority: String,
    fields: Vec<(Box<str>, Box<[u8]>)>,
}

impl Request {
    /// The first field of that name, if it is text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.fields.iter().find(|(known, _)| **known == *name)?;
        std::str::from_utf8(value).ok()
    }
}

/// What a block means. Malformed ones are an error of their stream only: the table was kept in step.
type Meaning<T> = Result<Option<T>, HpackError>;

#[derive(Default)]
struct Fields {
    method: Option<Vec<u8>>,
    authority: Option<Vec<u8>>,
    scheme: Option<Vec<u8>>,
    path: Option<Vec<u8>>,
    status: Option<Vec<u8>>,
    fields: Vec<(Box<str>, Box<[u8]>)>,
    is_malformed: bool,
}

impl Fields {
    fn read(decoder: &mut Decoder, block: &[u8]) -> Result<Self, HpackError> {
        let mut all = Self::default();
        decoder.decode(block, MAX_HEADERS as usize, |name, value| {
            all.is_malformed |= all.add(name, value).is_none();
        })?;
        Ok(all)
    }

    /// `None` if the message is malformed by this field.
    fn add(&mut self, name: &[u8], value: &[u8]) -> Option<()> {
        if !is_value(value) {
            return None;
        }
        if name.first() == Some(&b':') {
            let of = match name {
                b":method" => &mut self.method,
                b":authority" => &mut self.authority,
                b":scheme" => &mut self.scheme,
                b":path" => &mut self.path,
                b":status" => &mut self.status,
                _ => return None,
            };
            return (self.fields.is_empty() && of.replace(value.to_vec()).is_none()).then_some(());
        }
        let name = std::str::from_utf8(name).ok().filter(|name| is_name(name))?;
        match name {
            "connection" | "proxy-connection" | "keep-alive" | "transfer-encoding" | "upgrade" => {
                return None;
            }
            "te" if value != b"trailers" => return None,
            _ => {}
        }
        self.fields.push((name.into(), value.into()));
        Some(())
    }

    fn field(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.fields.iter().filter(move |(known, _)| **known == *name).map(|(_, value)| &**value)
    }
}

/// A token without capitals (RFC 9110 §5.6.2, RFC 9113 §8.2.1).
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(is_token_octet)
}

fn is_token_octet(octet: u8) -> bool {
    matches!(octet, b'a'..=b'z' | b'0'..=b'9') || b"!#$%&'*+-.^_`|~".contains(&octet)
}

/// No NUL, CR or LF, and no blank at either end (RFC 9113 §8.2.1); other control characters neither (RFC 9110 §5.5).
fn is_value(value: &[u8]) -> bool {
    !is_blank(value.first())
        && !is_blank(value.last())
        && value.iter().all(|b| !b.is_ascii_control() || *b == b'\t')
}

fn is_blank(octet: Option<&u8>) -> bool {
    matches!(octet, Some(b' ' | b'\t'))
}

/// Reads a request.
pub(super) fn request(decoder: &mut Decoder, block: &[u8]) -> Meaning<Request> {
    let all = Fields::read(decoder, block)?;
    let is_connect = all.method.as_deref() == Some(b"CONNECT");
    let authority = all.authority.as_deref().map(std::str::from_utf8);
    let authority = match authority {
        Some(Ok(authority)) => authority,
        None if !is_connect => "",
        _ => return Ok(None),
    };
    let is_whole = match is_connect {
        true => {
            let other_host = all.field("host").any(|host| host != authority.as_bytes());
            let has_content = all.field("content-length").next().is_some();
            all.scheme.is_none() && all.path.is_none() && !authority.is_empty() && !other_host && !has_content
        }
        false => {
            let method = all.method.as_deref().unwrap_or_default();
            let is_token = std::str::from_utf8(method).is_ok_and(|m| is_name(&m.to_ascii_lowercase()));
            is_token && all.scheme.is_some() && all.path.as_ref().is_some_and(|path| !path.is_empty())
        }
    };
    let is_well = is_whole && all.status.is_none() && !all.is_malformed;
    let request = Request { is_connect, authority: authority.to_owned(), fields: all.fields };
    Ok(is_well.then_some(request))
}

/// Reads the status of an answer.
pub(super) fn response(decoder: &mut Decoder, block: &[u8]) -> Meaning<u16> {
    let all = Fields::read(decoder, block)?;
    let foreign = [&all.method, &all.authority, &all.scheme, &all.path].into_iter().any(Option::is_some);
    let status = all.status.as_deref().filter(|status| status.len() == 3);
    let status = status.and_then(|status| std::str::from_utf8(status).ok()?.parse().ok());
    // 101 is for HTTP/1.1 (RFC 9113 §8.6).
    Ok(status.filter(|status| (100..600).contains(status) && *status != 101 && !foreign && !all.is_malformed))
}

/// A CONNECT.
pub(super) fn encode_connect(authority: &str, headers: &HeaderMap) -> Vec<u8> {
    let mut block = Vec::with_capacity(512);
    hpack::encode(METHOD, "", b"CONNECT", &mut block);
    hpack::encode(AUTHORITY, "", authority.as_bytes(), &mut block);
    for (name, value) in headers {
        hpack::encode(0, name.as_str(), value.as_bytes(), &mut block);
    }
    block
}

/// An answer.
pub(super) fn encode_response(status: u16) -> Vec<u8> {
    let mut block = Vec::new();
    if status == 200 {
        block.push(0x80 | STATUS);
    } else {
        hpack::encode(STATUS, "", status.to_string().as_bytes(), &mut block);
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(fields: &[(&str, &str)]) -> Vec<u8> {
        let mut block = Vec::new();
        fields.iter().for_each(|(name, value)| hpack::encode(0, name, value.as_bytes(), &mut block));
        block
    }

    #[test]
    fn what_is_a_request() {
        const M: (&str, &str) = (":method", "CONNECT");
        const A: (&str, &str) = (":authority", "10.0.0.1:80");
        const GET: [(&str, &str); 3] = [(":method", "GET"), (":scheme", "https"), (":path", "/")];
        for (fields, expected) in [
            (&[M, A][..], Some(true)),
            (&[A, M, ("forwarded", "for=x"), ("te", "trailers"), ("x", "")], Some(true)),
            (&[M, A, ("host", "10.0.0.1:80")], Some(true)),
            (&GET, Some(false)),
            (&[GET[0], GET[1], GET[2], A], Some(false)),
            (&[], None),
            (&[M], None),
            (&[A], None),
            (&[M, (":authority", "")], None),
            (&[M, A, A], None),
            (&[M, M, A], None),
            (&[M, A, (":scheme", "https")], None),
            (&[M, A, (":path", "/")], None),
            (&[M, A, (":protocol", "websocket")], None),
            (&[M, A, (":status", "200")], None),
            (&[M, ("x", "y"), A], None),
            (&[M, A, ("host", "10.0.0.2:80")], None),
            (&[M, A, ("content-length", "5")], None),
            (&[M, A, ("connection", "close")], None),
            (&[M, A, ("upgrade", "x")], None),
            (&[M, A, ("keep-alive", "x")], None),
            (&[M, A, ("proxy-connection", "x")], None),
            (&[M, A, ("transfer-encoding", "chunked")], None),
            (&[M, A, ("te", "gzip")], None),
            (&[M, A, ("X", "y")], None),
            (&[M, A, ("x y", "y")], None),
            (&[M, A, ("x:", "y")], None),
            (&[M, A, ("", "y")], None),
            (&[M, A, ("x", " y")], None),
            (&[M, A, ("x", "y\t")], None),
            (&[M, A, ("x", "y\r\nz: 1")], None),
            (&[M, A, ("x", "y\0")], None),
            (&[M, (":authority", "10.0.0.1:80\n")], None),
            (&[GET[0], GET[1]], None),
            (&[GET[0], GET[2]], None),
            (&[GET[0], GET[1], (":path", "")], None),
            (&[(":method", "G T"), GET[1], GET[2]], None),
        ] {
            let read = request(&mut Decoder::default(), &block(fields)).unwrap();
            assert_eq!(read.map(|request| request.is_connect), expected, "{fields:?}");
        }
    }

    #[test]
    fn a_connect_is_read_as_it_is_written() {
        let mut headers = HeaderMap::new();
        headers.insert("baggage", "a=b".parse().unwrap());
        let written = encode_connect("10.0.0.1:80", &headers);
        let read = request(&mut Decoder::default(), &written).unwrap().unwrap();
        assert!(read.is_connect && read.authority == "10.0.0.1:80");
        assert_eq!((read.header("baggage"), read.header("x")), (Some("a=b"), None));
    }

    #[test]
    fn what_is_an_answer() {
        for status in [200, 401, 503, 100] {
            let read = response(&mut Decoder::default(), &encode_response(status));
            assert_eq!(read, Ok(Some(status)));
        }
        for wrong in [
            &[][..],
            &[(":status", "20")],
            &[(":status", "+20")],
            &[(":status", "2000")],
            &[(":status", "101")],
            &[(":status", "600")],
            &[(":status", "200"), (":status", "200")],
            &[(":status", "200"), (":path", "/")],
            &[("x", "y"), (":status", "200")],
        ] {
            assert_eq!(response(&mut Decoder::default(), &block(wrong)), Ok(None), "{wrong:?}");
        }
    }
}
