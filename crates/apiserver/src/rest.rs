// SPDX-License-Identifier: Apache-2.0
//! From an HTTP request to its answer: authenticate, authorize, find the resource, and hand over to the verb's room.

mod body;
mod collection;
mod delete;
mod flow;
mod read;
mod revision;
mod sub;
mod watch;
mod write;

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::response::IntoResponse;
use http::{Method, Request, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::answer::{aggregated_response, json_response, version};
use crate::api::Api;
use crate::auth::{self, Attributes, User};
use crate::call::{Call, unserved};
use crate::metrics::Counted;
use crate::options::Options;
use crate::path::Verb;
use crate::registry::Subresource;
use crate::status::Refusal;
use crate::warnings::Warnings;
use crate::{discovery, limits, openapi, path, schema};

/// Answers a request.
pub async fn handle(api: Api, peer: Option<Arc<User>>, request: Request<Body>) -> Response<Body> {
    let head = request.method() == Method::HEAD;
    let (metrics, counted, begun) =
        (api.metrics.clone(), Counted::of(&request, &api.registry), Instant::now());
    let response = match answer(api, peer, request).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(),
    };
    metrics.answered(&counted, response.status().as_u16(), begun.elapsed());
    if head { without_body(response) } else { response }
}

/// The answer to HEAD: over HTTP/2, hyper sends the body that it gets.
fn without_body(mut response: Response<Body>) -> Response<Body> {
    let body = std::mem::replace(response.body_mut(), Body::empty());
    if let Some(length) = http_body::Body::size_hint(&body).exact() {
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    response
}

async fn answer(
    api: Api,
    peer: Option<Arc<User>>,
    request: Request<Body>,
) -> Result<Response<Body>, Refusal> {
    let user = Arc::new(api.auth.authenticate(request.headers(), peer.as_deref())?);
    let path = request.uri().path().to_owned();
    let Some(target) = path::target(&path) else {
        return other(&api, &user, &path, &request);
    };
    let Some(info) = api.registry.find(&target.group, &target.version, &target.resource) else {
        let verb = path::verb(request.method(), &target, false)?;
        api.auth.authorize(&user, &unserved(&target, verb))?;
        return Err(Refusal::no_such_path());
    };
    let mut options = Options::parse(request.uri().query().unwrap_or_default())?;
    options.watch |= target.is_watch;
    let verb = path::verb(request.method(), &target, options.watch)?;
    let headers = request.headers().clone();
    let mut call = Call {
        api,
        user,
        target,
        info,
        options,
        headers,
        duplicates: Vec::new(),
        warnings: Warnings::default(),
    };
    if !call.is_served() {
        return Err(Refusal::no_such_path());
    }
    // Held from here on, so that what is refused counts as well.
    let slot = call.api.in_flight.take(&call.user, kind_of(request.method(), &call.target, &call.options))?;
    call.api.auth.authorize(&call.user, &call.attributes(verb))?;
    if matches!(verb, Verb::List | Verb::Watch | Verb::DeleteCollection) {
        call.options.fields = std::mem::take(&mut call.options.fields).for_resource(&call.info)?;
    }
    let (warnings, tasks) = (call.warnings.clone(), call.api.tasks.clone());
    let response = dispatch(call, verb, request).await.unwrap_or_else(IntoResponse::into_response);
    let mut response = limits::hold(flow::paced(&tasks, response), slot);
    warnings.write(response.headers_mut());
    Ok(response)
}

/// What a request takes of the server.
fn kind_of(method: &Method, target: &path::Target, options: &Options) -> limits::Kind {
    let session =
        matches!(target.subresource.as_deref(), Some("log" | "exec" | "attach" | "portforward" | "proxy"));
    if session || options.watch {
        limits::Kind::Stream
    } else if matches!(*method, Method::GET | Method::HEAD) {
        limits::Kind::Read
    } else {
        limits::Kind::Write
    }
}

async fn dispatch(mut call: Call, verb: Verb, request: Request<Body>) -> Result<Response<Body>, Refusal> {
    if !call.subresource().is_empty() {
        let sub = call.info.subresource(call.subresource()).ok_or_else(Refusal::no_such_path)?;
        if !sub.verbs().contains(&verb.as_str()) {
            return Err(Refusal::method_not_allowed());
        }
        // These are the object itself, of which a write changes one part.
        if !matches!(sub, Subresource::Status | Subresource::EphemeralContainers) {
            return sub::dispatch(call, sub, verb, request).await;
        }
    } else if !call.info.verbs().contains(&verb.as_str()) {
        return Err(Refusal::method_not_allowed());
    }
    if call.info.virtual_only {
        return review(&call, request).await;
    }
    match verb {
        Verb::Get => read::get(&call),
        Verb::List => collection::list(&call),
        Verb::Watch => watch::watch(call),
        Verb::Create => {
            let body = body::read_document(request).await?;
            call.duplicates = body.duplicates;
            write::create(&call, body.value).await
        }
        Verb::Update => {
            let body = body::read_document(request).await?;
            call.duplicates = body.duplicates;
            write::update(&call, body.value).await
        }
        Verb::Patch => {
            let (kind, patch) = body::patch(request).await?;
            call.duplicates = patch.duplicates;
            write::patch(&call, kind, patch.value).await
        }
        Verb::Delete | Verb::DeleteCollection => {
            let body = body::read_optional(request).await?;
            let options = delete::DeleteOptions::new(&call.options, body)?;
            if verb == Verb::Delete {
                delete::delete(&call, &options).await
            } else {
                delete::collection(&call, &options).await
            }
        }
    }
}

/// Answers a resource that is computed: the reviews of authentication and authorization.
async fn review(call: &Call, request: Request<Body>) -> Result<Response<Body>, Refusal> {
    if !read::accepts_object(&call.headers) {
        return Err(Refusal::not_acceptable());
    }
    let (group, resource) = (&call.info.group, &call.info.plural);
    let kind = (group.as_str(), call.info.version.as_str(), call.info.kind.as_str());
    let body = schema::review_body(body::read(request).await?, kind, call.options.field_validation)?;
    let answer = call
        .api
        .auth
        .review(&call.user, group, resource, call.namespace(), &body)
        .ok_or_else(Refusal::no_such_path)??;
    Ok(json_response(StatusCode::CREATED, &answer))
}

/// Paths that are no resource: health, version, discovery, OpenAPI, keys.
fn other(api: &Api, user: &User, path: &str, request: &Request<Body>) -> Result<Response<Body>, Refusal> {
    let verb = request.method().as_str().to_lowercase();
    let attributes = Attributes { verb: &verb, target: auth::Target::Path(path) };
    api.auth.authorize(user, &attributes)?;
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Refusal::method_not_allowed());
    }
    let accept = request.headers().get(header::ACCEPT).and_then(|a| a.to_str().ok()).unwrap_or_default();
    let query = request.uri().query();
    let aggregated = accept.contains("as=APIGroupDiscoveryList") && accept.contains("v=v2");
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        ["readyz"] if query.is_some_and(|query| query.split('&').any(|part| part.starts_with("verbose"))) => {
            Ok(readiness(api).into_response())
        }
        ["healthz" | "readyz" | "livez", ..] => Ok("ok".into_response()),
        ["metrics"] => {
            let kind = [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
            Ok((kind, api.metrics.encode(api)).into_response())
        }
        ["version"] => Ok(json_response(StatusCode::OK, &version())),
        ["api"] if aggregated => Ok(aggregated_response(&discovery::aggregated(&api.registry, true))),
        ["apis"] if aggregated => Ok(aggregated_response(&discovery::aggregated(&api.registry, false))),
        ["api"] => Ok(json_response(StatusCode::OK, &discovery::core_versions())),
        ["apis"] => Ok(json_response(StatusCode::OK, &discovery::groups(&api.registry))),
        ["api", version] => found(discovery::resources(&api.registry, "", version)),
        ["apis", group] => found(discovery::group(&api.registry, group)),
        ["apis", group, version] => found(discovery::resources(&api.registry, group, version)),
        ["openapi", "v2"] => Ok(openapi::v2(&api.registry, request.headers())),
        ["openapi", "v3"] => Ok(json_response(StatusCode::OK, &openapi::v3_index(&api.registry))),
        ["openapi", "v3", "api", version] => {
            openapi::v3(&api.registry, "", version, query).ok_or_else(Refusal::no_such_path)
        }
        ["openapi", "v3", "apis", group, version] => {
            openapi::v3(&api.registry, group, version, query).ok_or_else(Refusal::no_such_path)
        }
        [".well-known", "openid-configuration"] => {
            Ok(json_response(StatusCode::OK, &api.auth.openid_configuration()))
        }
        ["openid", "v1", "jwks"] => Ok(json_response(StatusCode::OK, &api.auth.openid_keys())),
        [""] => Ok(json_response(
            StatusCode::OK,
            &json!({"paths": ["/api", "/apis", "/healthz", "/metrics", "/openapi/v2", "/openapi/v3", "/version"]}),
        )),
        _ => Err(Refusal::no_such_path()),
    }
}

/// `/readyz?verbose`: the server is ready although some rows cannot be read; they are named.
fn readiness(api: &Api) -> String {
    let mut text = String::from("[+]ping ok\n");
    for row in api.store.unreadable() {
        let (resource, (namespace, name)) = (row.resource.trim_start_matches('/'), &row.name);
        text.push_str(&format!("[-]store: {resource} {namespace}/{name} cannot be read: {}\n", row.reason));
    }
    text.push_str("readyz check passed\n");
    text
}

fn found(value: Option<Value>) -> Result<Response<Body>, Refusal> {
    value.map(|value| json_response(StatusCode::OK, &value)).ok_or_else(Refusal::no_such_path)
}
