// SPDX-License-Identifier: Apache-2.0
//! A check over gRPC: `envoy.service.auth.v3.Authorization/Check`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HOST, TE};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Version};
use meltemi_model::l7::Provider;
use meltemi_wire::proto::ext_authz as proto;
use prost::Message;

use super::{Allowed, Answer, Check, NoVerdict, Verdict, Written, denied, exchange, may_change};
use crate::body::{Body, full};
use crate::context::Context;
use crate::pool::HttpVersion;

/// The call.
const METHOD: &str = "/envoy.service.auth.v3.Authorization/Check";
/// What stands before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

fn peer(address: std::net::SocketAddr, principal: &str) -> proto::Peer {
    let socket_address =
        proto::SocketAddress { address: address.ip().to_string(), port_value: address.port().into() };
    proto::Peer {
        address: Some(proto::Address { socket_address: Some(socket_address) }),
        service: String::new(),
        principal: principal.to_owned(),
    }
}

/// The headers as text; `None` when one is none. Several of one name are one list.
fn text_headers(check: &Check<'_>) -> Option<BTreeMap<String, String>> {
    let mut out = BTreeMap::new();
    for (name, value) in check.headers {
        let value = std::str::from_utf8(value.as_bytes()).ok()?;
        let all: &mut String = out.entry(name.to_string()).or_default();
        if !all.is_empty() {
            all.push(',');
        }
        all.push_str(value);
    }
    let path = check.path_and_query();
    for (name, value) in
        [(":method", check.method), (":path", &path), (":authority", check.host), (":scheme", check.scheme)]
    {
        out.insert(name.to_owned(), value.to_owned());
    }
    if let Some((_, partial)) = &check.body {
        out.insert("x-envoy-auth-partial-body".to_owned(), partial.to_string());
    }
    Some(out)
}

fn build_check(provider: &Provider, check: &Check<'_>) -> Option<proto::CheckRequest> {
    let as_bytes = provider.body.is_some_and(|body| body.as_bytes);
    let (mut body, mut raw_body) = (String::new(), Vec::new());
    let mut size = -1;
    if let Some((read, partial)) = &check.body {
        match as_bytes {
            true => raw_body = read.to_vec(),
            false => body = String::from_utf8_lossy(read).into_owned(),
        }
        if !partial {
            size = i64::try_from(read.len()).unwrap_or(i64::MAX);
        }
    }
    let headers = text_headers(check)?;
    let http = proto::HttpRequest {
        id: headers.get("x-request-id").cloned().unwrap_or_default(),
        method: check.method.to_owned(),
        path: check.path_and_query(),
        host: check.host.to_owned(),
        scheme: check.scheme.to_owned(),
        query: String::new(),
        size,
        protocol: if check.version == Version::HTTP_2 { "HTTP/2" } else { "HTTP/1.1" }.to_owned(),
        headers,
        body,
        raw_body,
    };
    let principal = check.source.map_or_else(String::new, ToString::to_string);
    let attributes = proto::AttributeContext {
        source: Some(peer(check.from, &principal)),
        destination: Some(peer(check.to, "")),
        request: Some(proto::Request { time: Some(SystemTime::now().into()), http: Some(http) }),
    };
    Some(proto::CheckRequest { attributes: Some(attributes) })
}

fn build_request(provider: &Provider, message: &proto::CheckRequest) -> Result<Request<Body>, http::Error> {
    let mut body = BytesMut::with_capacity(PREFIX + message.encoded_len());
    body.put_u8(0);
    body.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    body.extend_from_slice(&message.encode_to_vec());
    Request::post(METHOD)
        .header(HOST, format!("{}:{}", provider.service.hostname, provider.port))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header("grpc-timeout", format!("{}m", provider.timeout_ms.min(99_999_999)))
        .body(full(body.freeze()))
}

pub(super) async fn ask_by_grpc(context: &Arc<Context>, provider: &Provider, check: &Check<'_>) -> Verdict {
    // What a client can bring about never opens anything.
    let Some(message) = build_check(provider, check) else {
        return Verdict::Failed { reason: "a header is no UTF-8".to_owned(), never_open: true };
    };
    let request = match build_request(provider, &message) {
        Ok(request) => request,
        Err(error) => return Verdict::Failed { reason: error.to_string(), never_open: true },
    };
    match exchange(context, provider, request, Some(HttpVersion::Http2)).await {
        Ok(answer) => match read_message(&answer).and_then(read_response) {
            Ok(verdict) => verdict,
            Err(reason) => Verdict::failed(reason),
        },
        Err(reason) => Verdict::failed(reason),
    }
}

/// The one message of an answer.
fn read_message(answer: &Answer) -> Result<proto::CheckResponse, NoVerdict> {
    if answer.status != StatusCode::OK {
        return Err(NoVerdict::Status(answer.status));
    }
    // An answer without a message has its status in front.
    let status = answer.trailers.get("grpc-status").or_else(|| answer.headers.get("grpc-status"));
    let status = status.ok_or(NoVerdict::NotWhole)?.as_bytes();
    if status != b"0" {
        return Err(NoVerdict::GrpcStatus(String::from_utf8_lossy(status).into_owned()));
    }
    let (prefix, message) = answer.body.split_at_checked(PREFIX).ok_or(NoVerdict::NotWhole)?;
    let length = prefix[1..].iter().fold(0usize, |length, byte| (length << 8) | usize::from(*byte));
    if prefix[0] != 0 || length != message.len() {
        return Err(NoVerdict::NotWhole);
    }
    proto::CheckResponse::decode(message).map_err(|_| NoVerdict::NotWhole)
}

fn read_header(option: &proto::HeaderValueOption) -> Option<Written> {
    let header = option.header.as_ref()?;
    let name = HeaderName::from_bytes(header.key.as_bytes()).ok().filter(may_change)?;
    let raw = if header.raw_value.is_empty() { header.value.as_bytes() } else { &header.raw_value };
    let value = HeaderValue::from_bytes(raw).ok()?;
    Some(Written { name, value, is_added: option.append.unwrap_or_default() })
}

/// All headers of a list.
///
/// # Errors
/// One of them is none, or may not be changed.
fn read_headers(options: &[proto::HeaderValueOption]) -> Result<Vec<Written>, NoVerdict> {
    options.iter().map(|option| read_header(option).ok_or(NoVerdict::Header)).collect()
}

fn collect_headers(options: &[proto::HeaderValueOption]) -> Result<HeaderMap, NoVerdict> {
    let mut out = HeaderMap::new();
    for Written { name, value, .. } in read_headers(options)? {
        out.append(name, value);
    }
    Ok(out)
}

fn read_response(response: proto::CheckResponse) -> Result<Verdict, NoVerdict> {
    let proto::CheckResponse { status, denied_response, ok_response } = response;
    // Envoy takes an answer without a status for OK; one that was cut off looks the same.
    let status = status.ok_or(NoVerdict::NotWhole)?;
    if status.code == 0 {
        if denied_response.is_some() {
            return Err(NoVerdict::Contradiction);
        }
        let ok = ok_response.unwrap_or_default();
        if !ok.query_parameters_to_set.is_empty() || !ok.query_parameters_to_remove.is_empty() {
            return Err(NoVerdict::Query);
        }
        let removed = ok.headers_to_remove.iter().map(|name| {
            let name = HeaderName::from_bytes(name.as_bytes()).ok();
            name.filter(may_change).ok_or(NoVerdict::Header)
        });
        return Ok(Verdict::Allowed(Allowed {
            written: read_headers(&ok.headers)?,
            removed: removed.collect::<Result<_, _>>()?,
            for_client: collect_headers(&ok.response_headers_to_add)?,
        }));
    }
    let answer = denied_response.unwrap_or_default();
    let code = answer.status.and_then(|status| u16::try_from(status.code).ok());
    let code = code.and_then(|code| StatusCode::from_u16(code).ok()).filter(|code| code.as_u16() >= 200);
    let code = code.unwrap_or(StatusCode::FORBIDDEN);
    Ok(Verdict::Denied(denied(code, collect_headers(&answer.headers)?, Bytes::from(answer.body))))
}
