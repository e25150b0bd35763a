// SPDX-License-Identifier: Apache-2.0
//! Subresources other than the status. All of them read their bodies strictly, check that the body means the object of
//! the path, and store nothing on a dry run.

mod binding;
mod eviction;
mod scale;

use axum::body::Body;
use http::{Request, Response, StatusCode};
use serde_json::{Value, json};

use super::{body, write};
use crate::admission::{self, Operation};
use crate::answer::json_response;
use crate::call::Call;
use crate::path::Verb;
use crate::registry::Subresource;
use crate::schema;
use crate::status::{Cause, Refusal};
use crate::streaming::PodStream;

pub(super) async fn dispatch(
    call: Call,
    sub: Subresource,
    verb: Verb,
    request: Request<Body>,
) -> Result<Response<Body>, Refusal> {
    match sub {
        Subresource::Scale => scale::serve(&call, verb, request).await,
        Subresource::Binding => binding::bind(&call, body::read(request).await?).await,
        Subresource::Eviction => eviction::evict(call, body::read(request).await?).await,
        Subresource::Token => create_token(&call, body::read(request).await?).await,
        Subresource::Finalize => finalize(call, body::read(request).await?).await,
        Subresource::Attach | Subresource::Exec | Subresource::Log | Subresource::PortForward => {
            stream(&call, sub, verb, request).await
        }
        Subresource::Status | Subresource::EphemeralContainers => Err(Refusal::no_such_path()),
    }
}

/// Refuses a body that names another object than the path.
fn check_names(call: &Call, body: &Value) -> Result<(), Refusal> {
    for (field, of_path) in [("name", call.name()), ("namespace", call.namespace())] {
        let given = body["metadata"][field].as_str().unwrap_or_default();
        if !given.is_empty() && given != of_path {
            return Err(Refusal::bad_request(format!(
                "metadata.{field}: the {field} in the URL ({of_path}) does not match the {field} in the object ({given})"
            )));
        }
    }
    Ok(())
}

/// Refuses a body that means another object of that name, or another revision of it.
fn check_preconditions(call: &Call, body: &Value, live: &Value) -> Result<(), Refusal> {
    for field in ["uid", "resourceVersion"] {
        let given = body["metadata"][field].as_str().unwrap_or_default();
        let found = live["metadata"][field].as_str().unwrap_or_default();
        if !given.is_empty() && given != found {
            let why = format!(
                "Precondition failed: {field} in precondition: {given}, {field} in object meta: {found}"
            );
            return Err(Refusal::conflict(&call.info.qualified(), call.name(), &why));
        }
    }
    Ok(())
}

/// The object of the path.
fn live(call: &Call) -> Result<crate::store::Stored, Refusal> {
    call.api.store.get(&call.info.key, call.namespace(), call.name()).ok_or_else(|| call.not_found())
}

/// Answers the creation of a token for a ServiceAccount.
async fn create_token(call: &Call, body: Value) -> Result<Response<Body>, Refusal> {
    let body = schema::strict_body(body, &[("authentication.k8s.io", "v1", "TokenRequest")])?;
    check_names(call, &body)?;
    call.api.auth.admit_node(&call.user, &call.attributes(Verb::Create), &body, None)?;
    admission::validate(call, Operation::Create, Some(&body), None).await?;
    let mut token = call.api.auth.create_token(&call.user, call.namespace(), call.name(), &body)?;
    if call.options.dry_run {
        // A token that is handed out cannot be taken back.
        token["status"]["token"] = "".into();
    }
    Ok(json_response(StatusCode::CREATED, &token))
}

/// Sets the finalizers of a Namespace's specification, and nothing else.
async fn finalize(mut call: Call, body: Value) -> Result<Response<Body>, Refusal> {
    let body = schema::strict_body(body, &[("", "v1", "Namespace")])?;
    check_names(&call, &body)?;
    let live = live(&call)?;
    check_preconditions(&call, &body, &live.value)?;
    let mut namespace = (*live.value).clone();
    namespace["spec"]["finalizers"] = match &body["spec"]["finalizers"] {
        Value::Null => json!([]),
        finalizers => finalizers.clone(),
    };
    admission::validate(&call, Operation::Update, Some(&namespace), Some(&live.value)).await?;
    call.target.subresource = None;
    write::finalize(&call, &live, namespace)
}

/// Serves a stream of a Pod. Who may only read is refused what acts, whatever method asks for it: the upgrade to a
/// WebSocket is a GET, for which `get` was authorized.
async fn stream(
    call: &Call,
    sub: Subresource,
    verb: Verb,
    request: Request<Body>,
) -> Result<Response<Body>, Refusal> {
    let stream = PodStream::of(sub.name()).ok_or_else(Refusal::no_such_path)?;
    if sub.acts_in_a_pod() && verb != Verb::Create {
        call.api.auth.authorize(&call.user, &call.attributes(Verb::Create))?;
    }
    if sub.acts_in_a_pod() && call.options.dry_run {
        let cause = Cause {
            field: "dryRun".into(),
            reason: "FieldValueForbidden",
            message: "Forbidden: a stream cannot be tried without being opened".into(),
        };
        return Err(Refusal::invalid(sub.kind(&call.info), "", call.name(), &[cause]));
    }
    if sub.acts_in_a_pod() {
        // The Pod is looked for first: webhooks are asked about what there is.
        live(call)?;
        admission::validate(call, Operation::Connect, Some(&stream_options(call, sub)), None).await?;
    }
    call.api.streaming.serve(stream, call.namespace(), call.name(), request).await
}

/// The query of a stream as the object that admission judges, e.g. `PodExecOptions`.
fn stream_options(call: &Call, sub: Subresource) -> Value {
    let mut options = json!({"kind": sub.kind(&call.info), "apiVersion": "v1"});
    let of = |key: &'static str| {
        call.options.raw.iter().filter(move |(name, _)| name == key).map(|(_, value)| value)
    };
    for flag in ["stdin", "stdout", "stderr", "tty"] {
        if of(flag).any(|value| !matches!(value.as_str(), "0" | "false" | "False" | "FALSE")) {
            options[flag] = true.into();
        }
    }
    if let Some(container) = of("container").next() {
        options["container"] = container.as_str().into();
    }
    let command: Vec<Value> = of("command").map(|word| word.as_str().into()).collect();
    if !command.is_empty() {
        options["command"] = command.into();
    }
    let ports: Vec<Value> = of("ports")
        .flat_map(|list| list.split(','))
        .filter_map(|port| port.trim().parse::<u16>().ok())
        .map(Value::from)
        .collect();
    if !ports.is_empty() {
        options["ports"] = ports.into();
    }
    options
}

/// The answer of what makes no object.
fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}
