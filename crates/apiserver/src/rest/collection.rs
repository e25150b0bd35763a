// SPDX-License-Identifier: Apache-2.0
//! Lists, whole or in pages.

use std::sync::Arc;

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::read::{Form, metadata, shown};
use crate::answer::json_response;
use crate::call::Call;
use crate::status::Refusal;
use crate::store::ObjectName;
use crate::table;

pub(super) fn list(call: &Call) -> Result<Response<Body>, Refusal> {
    let (items, revision, next) = page(call)?;
    let mut list_meta = json!({"resourceVersion": revision.to_string()});
    if let Some((token, remaining)) = next {
        list_meta["continue"] = token.into();
        list_meta["remainingItemCount"] = remaining.into();
    }
    let value = match Form::of(&call.headers) {
        Form::Object => json!({
            "kind": call.info.list_kind(), "apiVersion": call.info.api_version(), "metadata": list_meta,
            "items": items.iter().map(|v| (**v).clone()).collect::<Vec<Value>>(),
        }),
        Form::Metadata => json!({
            "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": list_meta,
            "items": items.iter().map(|v| metadata(v)).collect::<Vec<Value>>(),
        }),
        Form::Table => {
            let mut table = table::render(&call.info, &items, call.options.include_object, None);
            table["metadata"] = list_meta;
            table
        }
    };
    Ok(json_response(StatusCode::OK, &value))
}

type Page = (Vec<Arc<Value>>, u64, Option<(String, usize)>);

fn page(call: &Call) -> Result<Page, Refusal> {
    let namespace = if call.info.namespaced { call.target.namespace.as_deref() } else { None };
    let after = call.options.continue_token.as_deref().map(parse_token).transpose()?;
    let (stored, revision) = call.api.store.list(&call.info.key, namespace, after.as_ref());
    let mut matching = stored
        .into_iter()
        .filter(|s| call.options.labels.matches(&s.value) && call.options.fields.matches(&s.value));
    let limit = if call.options.limit == 0 { usize::MAX } else { call.options.limit };
    let items: Vec<Arc<Value>> = matching.by_ref().take(limit).map(|s| shown(&call.info, &s.value)).collect();
    let remaining = matching.count();
    let next = (remaining > 0).then(|| items.last().map(|last| (token(last), remaining))).flatten();
    Ok((items, revision, next))
}

/// A page begins after an object, whatever has changed since: nothing that stays is skipped or shown twice.
fn token(last: &Value) -> String {
    let text = |key: &str| last["metadata"][key].as_str().unwrap_or_default().to_owned();
    URL_SAFE_NO_PAD.encode(json!([text("namespace"), text("name")]).to_string())
}

fn parse_token(token: &str) -> Result<ObjectName, Refusal> {
    let wrong = || Refusal::bad_request("continue key is not valid");
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| wrong())?;
    serde_json::from_slice(&bytes).map_err(|_| wrong())
}
