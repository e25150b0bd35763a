// SPDX-License-Identifier: Apache-2.0
//! A check over HTTP: 200 allows, 5xx says nothing, every other status denies.

use std::sync::Arc;

use http::header::{AUTHORIZATION, HOST, LOCATION, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Request, StatusCode};
use meltemi_model::l7::{HeaderMatch, HttpAuthorizer, Provider, check_header_name};

use super::{Allowed, Answer, Check, NoVerdict, Verdict, Written, denied, exchange, may_change};
use crate::body::{Body, full};
use crate::context::Context;

/// Whether the authorizer has got the first part of a body only.
const PARTIAL: HeaderName = HeaderName::from_static("x-envoy-auth-partial-body");

fn is_listed(list: &[HeaderMatch], name: &HeaderName) -> bool {
    list.iter().any(|one| one.matches(name.as_str()))
}

fn build_request(settings: &HttpAuthorizer, check: &Check<'_>) -> Result<Request<Body>, http::Error> {
    let body = check.body.as_ref().map(|(body, _)| body.clone()).unwrap_or_default();
    let mut request = Request::builder()
        .method(check.method)
        .uri(format!("{}{}", settings.path_prefix, check.path_and_query()))
        .header(HOST, check.host)
        .body(full(body))?;
    let headers = request.headers_mut();
    for (name, value) in check.headers {
        let wanted = *name == AUTHORIZATION || is_listed(&settings.include, name);
        if wanted && check_header_name(name.as_str()).is_ok() {
            headers.append(name.clone(), value.clone());
        }
    }
    for (name, value) in &settings.additional {
        headers.insert(HeaderName::from_bytes(name.as_bytes())?, HeaderValue::from_str(value)?);
    }
    if let Some((_, partial)) = &check.body {
        headers.insert(PARTIAL, HeaderValue::from_static(if *partial { "true" } else { "false" }));
    }
    Ok(request)
}

pub(super) async fn ask_by_http(
    context: &Arc<Context>,
    provider: &Provider,
    settings: &HttpAuthorizer,
    check: &Check<'_>,
) -> Verdict {
    let request = match build_request(settings, check) {
        Ok(request) => request,
        Err(error) => return Verdict::Failed { reason: error.to_string(), never_open: true },
    };
    match exchange(context, provider, request, None).await {
        Ok(answer) => read_answer(settings, answer),
        Err(reason) => Verdict::failed(reason),
    }
}

fn read_answer(settings: &HttpAuthorizer, answer: Answer) -> Verdict {
    let Answer { status, mut headers, body, .. } = answer;
    if status == StatusCode::OK {
        let mut allowed = Allowed::default();
        for (name, value) in headers.iter().filter(|(name, _)| may_change(name)) {
            if is_listed(&settings.to_upstream, name) {
                let (name, value) = (name.clone(), value.clone());
                allowed.written.push(Written { name, value, is_added: false });
            }
            if is_listed(&settings.on_allow, name) {
                allowed.for_client.append(name.clone(), value.clone());
            }
        }
        return Verdict::Allowed(allowed);
    }
    if status.is_server_error() {
        return Verdict::failed(NoVerdict::Status(status));
    }
    if !settings.on_deny.is_empty() {
        let always = [WWW_AUTHENTICATE, LOCATION];
        let kept = |name: &HeaderName| always.contains(name) || is_listed(&settings.on_deny, name);
        let unwanted: Vec<HeaderName> = headers.keys().filter(|name| !kept(name)).cloned().collect();
        unwanted.into_iter().for_each(|name| drop(headers.remove(name)));
    }
    Verdict::Denied(denied(status, headers, body))
}
