// SPDX-License-Identifier: Apache-2.0
//! Local replies: denials, redirects and errors that the proxy generates itself.

use http::header::{CONTENT_TYPE, LOCATION, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use meltemi_tokens::Invalid;

use crate::body::{Body, full};

/// What a client sees of a denial; 19 bytes, as clients compare it.
const DENIED: &str = "RBAC: access denied";

/// What a request is answered with instead of being forwarded.
pub(crate) enum Instead {
    Status(StatusCode, &'static str),
    Redirect(StatusCode, HeaderValue),
    /// The answer to a preflight request of CORS.
    Preflight(HeaderMap),
}

impl Instead {
    pub(crate) fn answer(self) -> Response<Body> {
        match self {
            Self::Status(status, text) => plain(status, text),
            Self::Redirect(status, location) => {
                let mut response = plain(status, "");
                response.headers_mut().insert(LOCATION, location);
                response
            }
            Self::Preflight(headers) => {
                let mut response = plain(StatusCode::NO_CONTENT, "");
                *response.headers_mut() = headers;
                response
            }
        }
    }
}

/// A status and a short text.
pub(crate) fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(full(text));
    *response.status_mut() = status;
    if !text.is_empty() {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    response
}

/// The refusal of a token, with the reason as the body.
pub(crate) fn invalid_token(reason: Invalid, grpc: bool, challenge: HeaderValue) -> Response<Body> {
    let text = reason.to_string();
    if grpc {
        // 16 is UNAUTHENTICATED.
        let code = if reason.status() == 403 { "7" } else { "16" };
        let mut response = plain(StatusCode::OK, "");
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from_static(code));
        if let Ok(message) = HeaderValue::from_str(&text) {
            headers.insert("grpc-message", message);
        }
        return response;
    }
    let mut response = Response::new(full(text));
    *response.status_mut() = StatusCode::from_u16(reason.status()).unwrap_or(StatusCode::UNAUTHORIZED);
    let is_unauthorized = response.status() == StatusCode::UNAUTHORIZED;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    if is_unauthorized {
        headers.insert(WWW_AUTHENTICATE, challenge);
    }
    response
}

/// The denial of a request. gRPC tells failures in its own status: 7 is PERMISSION_DENIED.
pub(crate) fn denial(grpc: bool) -> Response<Body> {
    if !grpc {
        return plain(StatusCode::FORBIDDEN, DENIED);
    }
    let mut response = plain(StatusCode::OK, "");
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from_static("7"));
    headers.insert("grpc-message", HeaderValue::from_static(DENIED));
    response
}
