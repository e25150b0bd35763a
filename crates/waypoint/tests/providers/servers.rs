// SPDX-License-Identifier: Apache-2.0
//! Authorizers that answer by the path they are asked about, some of them wrongly.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use meltemi_wire::proto::ext_authz as proto;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::world::message_end;

/// The requests that an authorizer over HTTP has got.
pub(crate) type Asked = Arc<Mutex<Vec<String>>>;

/// An authorizer over HTTP that answers by the path; it writes down what it was asked.
pub(crate) async fn http_server(asked: Asked) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve_http(stream, asked.clone()));
        }
    });
    address
}

async fn serve_http(mut stream: TcpStream, asked: Asked) {
    let mut bytes = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = message_end(&bytes) {
                break end;
            }
            if !matches!(stream.read_buf(&mut bytes).await, Ok(1..)) {
                return;
            }
        };
        let request = String::from_utf8_lossy(&bytes[..end]).into_owned();
        bytes.drain(..end);
        let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
        asked.lock().unwrap().push(request);
        let answer = match path.trim_start_matches("/check").split('?').next().unwrap_or_default() {
            "/deny" => {
                "HTTP/1.1 401 Unauthorized\r\nlocation: /login\r\nx-why: no\r\nset-cookie: a=b\r\ncontent-length: 5\r\n\r\nlogin"
            }
            "/moved" => "HTTP/1.1 302 Found\r\nlocation: /login\r\ncontent-length: 0\r\n\r\n",
            "/broken" => "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
            "/half" => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").await;
                return;
            }
            "/closed" => return,
            "/noise" => "SSH-2.0-x\r\n\r\n",
            "/silent" => return std::future::pending().await,
            "/huge" => {
                let body = "x".repeat(100_000);
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n{body}");
                let _ = stream.write_all(answer.as_bytes()).await;
                return;
            }
            "/smuggle" => {
                "HTTP/1.1 200 OK\r\nx-user: bob\r\nhost: evil\r\nconnection: x-user\r\ncontent-length: 0\r\n\r\n"
            }
            _ => {
                "HTTP/1.1 200 OK\r\nx-user: alice\r\nx-other: 1\r\nx-seen: yes\r\ncontent-length: 2\r\n\r\nok"
            }
        };
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// An authorizer over gRPC that answers by the path.
pub(crate) async fn grpc_server(asked: Arc<Mutex<Vec<proto::CheckRequest>>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let asked = asked.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(serve_grpc(request, respond, asked.clone()));
                }
            });
        }
    });
    address
}

fn option(key: &str, value: &str, append: bool) -> proto::HeaderValueOption {
    let header = proto::HeaderValue { key: key.into(), value: value.into(), raw_value: Vec::new() };
    proto::HeaderValueOption { header: Some(header), append: Some(append) }
}

fn framed(response: &proto::CheckResponse) -> Vec<u8> {
    let message = response.encode_to_vec();
    let mut out = vec![0];
    out.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    out.extend_from_slice(&message);
    out
}

async fn serve_grpc(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    asked: Arc<Mutex<Vec<proto::CheckRequest>>>,
) {
    assert_eq!(request.uri().path(), "/envoy.service.auth.v3.Authorization/Check");
    let mut body = request.into_body();
    let mut read = Vec::new();
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        read.extend_from_slice(&data);
    }
    let check = proto::CheckRequest::decode(&read[5..]).unwrap();
    let path =
        check.attributes.as_ref().unwrap().request.as_ref().unwrap().http.as_ref().unwrap().path.clone();
    asked.lock().unwrap().push(check);
    let code = |code| Some(proto::Status { code, message: String::new() });
    let ok = proto::OkHttpResponse {
        headers: vec![option("x-user", "alice", false), option("x-list", "b", true)],
        headers_to_remove: vec!["x-secret".into()],
        response_headers_to_add: vec![option("x-seen", "yes", false)],
        ..proto::OkHttpResponse::default()
    };
    let allow = proto::CheckResponse { status: code(0), denied_response: None, ok_response: Some(ok) };
    let deny = proto::DeniedHttpResponse {
        status: Some(proto::HttpStatus { code: 418 }),
        headers: vec![option("x-why", "tea", false)],
        body: "teapot".into(),
    };
    let (mut bytes, mut grpc_status) = (framed(&allow), "0");
    match &*path {
        "/deny" => {
            bytes = framed(&proto::CheckResponse {
                status: code(7),
                denied_response: Some(deny),
                ok_response: None,
            })
        }
        "/plain" => bytes = framed(&proto::CheckResponse { status: code(16), ..Default::default() }),
        "/both" => bytes = framed(&proto::CheckResponse { denied_response: Some(deny), ..allow }),
        // A message that was cut off before its status would be one of Envoy's that allows.
        "/empty" => bytes = framed(&proto::CheckResponse::default()),
        "/nothing" => bytes = Vec::new(),
        "/half" => drop(bytes.pop()),
        "/two" => bytes = [bytes.clone(), bytes].concat(),
        "/garbage" => bytes = [&[0, 0, 0, 0, 3][..], b"\xff\xff\xff"].concat(),
        "/failed" => grpc_status = "14",
        "/host" => {
            let ok =
                proto::OkHttpResponse { headers: vec![option("host", "evil", false)], ..Default::default() };
            bytes = framed(&proto::CheckResponse { ok_response: Some(ok), ..allow });
        }
        "/silent" => return std::future::pending().await,
        _ => {}
    }
    let head = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let mut stream = respond.send_response(head, false).unwrap();
    stream.send_data(bytes.into(), false).unwrap();
    if path != "/no-status" {
        let trailers =
            http::HeaderMap::from_iter([("grpc-status".parse().unwrap(), grpc_status.parse().unwrap())]);
        stream.send_trailers(trailers).unwrap();
    } else {
        stream.send_data(Bytes::new(), true).unwrap();
    }
}
