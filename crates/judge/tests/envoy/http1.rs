// SPDX-License-Identifier: Apache-2.0
//! Requests as raw bytes of HTTP/1.1.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::requests::Request;

/// Sends it, and returns the status of the first answer. A 403 without a body is 1: Envoy itself answers so to what it takes
/// for no request of HTTP, whatever the policies say.
pub(crate) async fn send<IO: AsyncRead + AsyncWrite + Unpin>(request: &Request, mut io: IO) -> Option<u16> {
    // A proxy may answer before it has taken everything.
    let _ = io.write_all(&bytes(request)).await;
    let mut answer = Vec::new();
    let is_whole = |answer: &[u8]| answer.windows(4).any(|end| end == b"\r\n\r\n");
    while !is_whole(&answer) && io.read_buf(&mut answer).await.is_ok_and(|read| read > 0) {}
    let text = String::from_utf8_lossy(&answer).to_lowercase();
    let status = text.split(' ').nth(1)?.parse().ok()?;
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
    Some(if status == 403 && length.is_none_or(|length| length == "0") { 1 } else { status })
}

/// The request, and a body that ends.
fn bytes(request: &Request) -> Vec<u8> {
    let Request { method, target, host, .. } = request;
    let mut line = format!("{method} {target} HTTP/1.1");
    let mut headers: Vec<String> = vec![format!("host: {host}")];
    if request.absolute {
        line = format!("{method} http://{host}{target} HTTP/1.1");
        headers.clear();
    }
    headers.extend(request.headers.iter().map(|(name, value)| format!("{name}: {value}")));
    let body = match (request.chunked, *method) {
        (true, _) => {
            headers.push("transfer-encoding: chunked".to_owned());
            "0\r\n\r\n"
        }
        (false, "GET") => "",
        (false, _) => {
            headers.push("content-length: 0".to_owned());
            ""
        }
    };
    let mut end = "\r\n";
    let mut before = "";
    if let Some(spelling) = request.spelling {
        match spelling % 4 {
            0 => (line, headers) = spell_line(request, spelling / 4, headers),
            1 => headers = spell_host(request, spelling / 4, headers),
            2 => spell_header(spelling / 4, &mut headers),
            _ if spelling % 8 == 3 => end = "\n",
            _ => before = "\r\n",
        }
    }
    let head: String = headers.iter().map(|header| format!("{header}{end}")).collect();
    format!("{before}{line}{end}{head}{end}{body}").into_bytes()
}

/// The request line, and what it needs.
fn spell_line(request: &Request, how: u8, mut headers: Vec<String>) -> (String, Vec<String>) {
    let Request { method, target, host, .. } = request;
    let lower = method.to_lowercase();
    let line = match how % 16 {
        0 => format!("{method}  {target} HTTP/1.1"),
        1 => format!("{method}\t{target}\tHTTP/1.1"),
        2 => format!("{method} {target}  HTTP/1.1"),
        3 => format!("{lower} {target} HTTP/1.1"),
        4 => format!("{method} {target} HTTP/1.0"),
        5 => format!("{method} {target}#x HTTP/1.1"),
        6 => format!("{method} {target}#/../public/x HTTP/1.1"),
        7 => format!("{method} {} HTTP/1.1", &target[1..]),
        8 => format!("{method} http://u@{host}{target} HTTP/1.1"),
        9 => format!("{method} HTTP://{host}{target} HTTP/1.1"),
        10 => format!("{method} https://{host}{target} HTTP/1.1"),
        11 => format!("{method} {target}\u{e9} HTTP/1.1"),
        12 => format!("{method} {target} HTTP/1.2"),
        13 => format!("{method} http://{host}?{target} HTTP/1.1"),
        14 => format!("{method} {target}\u{1} HTTP/1.1"),
        _ => format!("{method} * HTTP/1.1"),
    };
    if (8..11).contains(&(how % 16)) {
        headers.retain(|header| !header.starts_with("host:"));
    }
    (line, headers)
}

/// The host, twice or otherwise.
fn spell_host(request: &Request, how: u8, mut headers: Vec<String>) -> Vec<String> {
    let host = request.host;
    let other = if host.contains("secret") { "ok.com" } else { "secret.com" };
    match how % 7 {
        0 => headers.push(format!("host: {other}")),
        1 => headers.insert(0, format!("Host: {other}")),
        2 => headers.retain(|header| !header.starts_with("host:")),
        // With a target in absolute form, the header that counts for nothing.
        3 => headers.push(format!("HOST: {host}")),
        4 => headers.push(format!("host : {other}")),
        5 => headers.push(format!("host:\t{other}\t")),
        _ => headers.push(format!("x: y\rhost: {other}")),
    }
    headers
}

/// The last header.
fn spell_header(how: u8, headers: &mut Vec<String>) {
    let last = headers.pop().unwrap_or_else(|| "x-a: a".to_owned());
    let (name, value) = last.split_once(": ").unwrap_or((&last, ""));
    let upper = name.to_uppercase();
    headers.push(match how % 14 {
        0 => format!("{name} : {value}"),
        1 => format!("{name}:\t{value}\t "),
        2 => format!("{name}:{value}"),
        3 => format!("{name}:\r\n {value}"),
        4 => format!("{upper}: {value}"),
        5 => format!("{name}: {value}\r\n{upper}: {value}x"),
        6 => format!("{name}: {value},a"),
        7 => format!("{name}: \u{b}{value}"),
        8 => format!("{name}: {value}\u{0}"),
        9 => format!("{name}: {value}\r\ncontent-length: 0\r\ntransfer-encoding: chunked"),
        10 => format!("{name}: {value}\r\ntransfer-encoding: chunked, identity"),
        11 => format!("{name}: \u{e9}{value}"),
        12 => format!(" {name}: {value}"),
        _ => format!("{}: {value}", name.replace('-', "_")),
    });
}
