// SPDX-License-Identifier: Apache-2.0
//! Lists, whole or in pages; all pages of a list are of one revision. A large list is read from the store and made into
//! JSON while the client reads it.

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::read::{Form, metadata, shown};
use super::{flow, revision};
use crate::answer::json_response;
use crate::call::Call;
use crate::status::Refusal;
use crate::store::{ObjectName, Slice};
use crate::table;

/// Memory in bytes of the objects that are answered in one piece. More than that is made while it is read.
const ONE_PIECE: usize = 1024 * 1024;

pub(super) fn list(call: &Call) -> Result<Response<Body>, Refusal> {
    let start = revision::of_list(call)?;
    let store = &call.api.store;
    let slice = store
        .slice(&call.info.key, call.listed_namespace(), start.revision, start.after.as_ref(), usize::MAX)
        .map_err(|why| revision::out_of_history(call, &start, why))?;
    let limit = if call.options.limit == 0 { usize::MAX } else { call.options.limit };
    let mut found = slice.items.iter().filter(|item| is_selected(call, &item.value));
    let items: Vec<_> = found.by_ref().take(limit).collect();
    let remaining = found.count();
    let last = items.last().map(|item| item.name.clone());
    let mut list_meta = json!({"resourceVersion": slice.revision.to_string()});
    if let Some(last) = last.as_ref().filter(|_| remaining > 0) {
        list_meta["continue"] = revision::token(Some(slice.revision), last).into();
        list_meta["remainingItemCount"] = remaining.into();
    }
    let form = Form::of(&call.headers);
    if items.iter().map(|item| item.memory).sum::<usize>() <= ONE_PIECE {
        let mut value = envelope(call, form, list_meta);
        let values: Vec<Arc<Value>> = items.iter().map(|item| shown(&call.info, &item.value)).collect();
        value[list_key(form)] = entries(call, form, &values).into();
        return Ok(json_response(StatusCode::OK, &value));
    }
    let range = Range { revision: slice.revision, after: start.after, last };
    let (tasks, call) = (call.api.tasks.clone(), call.clone());
    Ok(flow::respond(&tasks, "list", |writer| async move {
        if write_list(&call, form, list_meta, range, &writer).await.is_some() {
            writer.complete();
        }
    }))
}

fn is_selected(call: &Call, value: &Value) -> bool {
    call.options.labels.matches(value) && call.options.fields.matches(value)
}

fn list_key(form: Form) -> &'static str {
    if form == Form::Table { "rows" } else { "items" }
}

/// A list without its entries, which are the last member.
fn envelope(call: &Call, form: Form, list_meta: Value) -> Value {
    match form {
        Form::Object => json!({
            "kind": call.info.list_kind(), "apiVersion": call.info.api_version(), "metadata": list_meta, "items": [],
        }),
        Form::Metadata => json!({
            "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": list_meta, "items": [],
        }),
        Form::Table => {
            let mut table = table::render(&call.info, &[], call.options.include_object, None);
            table["metadata"] = list_meta;
            if let Some(table) = table.as_object_mut() {
                table.shift_remove("rows");
                table.insert("rows".into(), json!([]));
            }
            table
        }
    }
}

/// Objects as entries of a list.
fn entries(call: &Call, form: Form, values: &[Arc<Value>]) -> Vec<Value> {
    match form {
        Form::Object => values.iter().map(|value| (**value).clone()).collect(),
        Form::Metadata => values.iter().map(|value| metadata(value)).collect(),
        Form::Table => {
            let mut table = table::render(&call.info, values, call.options.include_object, None);
            match table["rows"].take() {
                Value::Array(rows) => rows,
                _ => Vec::new(),
            }
        }
    }
}

/// The objects of a page.
struct Range {
    revision: u64,
    after: Option<ObjectName>,
    last: Option<ObjectName>,
}

/// Writes a list piece by piece. `None` if the client is gone, or if the history has lost the revision meanwhile: then
/// the answer ends with an error, and the client lists again.
async fn write_list(
    call: &Call,
    form: Form,
    list_meta: Value,
    range: Range,
    writer: &flow::Writer,
) -> Option<()> {
    let whole = envelope(call, form, list_meta).to_string();
    let head = whole.strip_suffix("]}")?.to_owned();
    writer.write(head.into()).await.ok()?;
    let (mut after, mut first) = (range.after, true);
    loop {
        let Slice { items, more, .. } = call
            .api
            .store
            .slice(&call.info.key, call.listed_namespace(), Some(range.revision), after.as_ref(), ONE_PIECE)
            .ok()?;
        after = items.last().map(|item| item.name.clone());
        let is_inside = |name: &ObjectName| range.last.as_ref().is_some_and(|last| name <= last);
        for item in items.iter().filter(|item| is_inside(&item.name) && is_selected(call, &item.value)) {
            let mut text = if first { String::new() } else { ",".to_owned() };
            first = false;
            for entry in entries(call, form, &[shown(&call.info, &item.value)]) {
                text.push_str(&entry.to_string());
            }
            writer.write(Bytes::from(text)).await.ok()?;
        }
        if !more || !after.as_ref().is_some_and(is_inside) {
            break;
        }
    }
    writer.write(Bytes::from_static(b"]}")).await.ok()
}
