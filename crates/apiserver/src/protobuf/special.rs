// SPDX-License-Identifier: Apache-2.0
//! Messages whose JSON is not an object of their fields: times, quantities, alternatives, embedded JSON.

use serde_json::{Value, json};

use super::wire::Reader;
use super::{At, ProtobufError, message};
use crate::document::{self, DocumentError};

/// The value of a message that has a form of its own; none for all others.
pub(super) fn decode(name: &str, bytes: &[u8], at: At<'_>) -> Result<Option<Value>, ProtobufError> {
    const SCHEMA: &str = "apiextensions.v1.JSONSchemaProps";
    let value = match name {
        "meta.v1.Time" => time(bytes, "%Y-%m-%dT%H:%M:%SZ")?,
        "meta.v1.MicroTime" => time(bytes, "%Y-%m-%dT%H:%M:%S%.6fZ")?,
        "api.resource.Quantity" => text(bytes)?,
        "util.intstr.IntOrString" => int_or_string(bytes)?,
        "runtime.RawExtension" | "meta.v1.FieldsV1" | "apiextensions.v1.JSON" => raw(bytes)?,
        "meta.v1.Verbs" | "authentication.v1.ExtraValue" | "authorization.v1.ExtraValue" => {
            let mut items = Vec::new();
            let mut reader = Reader(bytes);
            while let Some((_, payload)) = reader.next()? {
                at.count()?;
                items.push(Value::from(payload.text()?));
            }
            Value::Array(items)
        }
        "apiextensions.v1.JSONSchemaPropsOrBool" => {
            let mut value = Value::Bool(false);
            let mut reader = Reader(bytes);
            while let Some((number, payload)) = reader.next()? {
                match number {
                    1 if value.is_boolean() => value = (payload.integer()? != 0).into(),
                    2 => value = message(SCHEMA, payload.bytes()?, at.below())?,
                    _ => {}
                }
            }
            value
        }
        "apiextensions.v1.JSONSchemaPropsOrArray" => {
            let (mut one, mut all) = (None, Vec::new());
            let mut reader = Reader(bytes);
            while let Some((number, payload)) = reader.next()? {
                let schema = message(SCHEMA, payload.bytes()?, at.below())?;
                if number == 1 {
                    one = Some(schema);
                } else {
                    all.push(schema);
                }
            }
            one.unwrap_or(Value::Array(all))
        }
        _ => return Ok(None),
    };
    Ok(Some(value))
}

/// Seconds and nanoseconds; nothing at all is no time.
fn time(bytes: &[u8], format: &str) -> Result<Value, ProtobufError> {
    let (mut seconds, mut nanos) = (0, 0);
    let mut reader = Reader(bytes);
    while let Some((number, payload)) = reader.next()? {
        match number {
            1 => seconds = payload.integer()?,
            2 => nanos = i32::try_from(payload.integer()?).map_err(|_| ProtobufError::Malformed)?,
            _ => {}
        }
    }
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let at = jiff::Timestamp::new(seconds, nanos).map_err(|_| ProtobufError::Malformed)?;
    Ok(at.strftime(format).to_string().into())
}

fn text(bytes: &[u8]) -> Result<Value, ProtobufError> {
    let mut value = Value::Null;
    let mut reader = Reader(bytes);
    while let Some((_, payload)) = reader.next()? {
        value = payload.text()?.into();
    }
    Ok(value)
}

fn int_or_string(bytes: &[u8]) -> Result<Value, ProtobufError> {
    let (mut is_text, mut number_value, mut text_value) = (false, 0, "");
    let mut reader = Reader(bytes);
    while let Some((number, payload)) = reader.next()? {
        match number {
            1 => is_text = payload.integer()? == 1,
            2 => number_value = payload.integer()?,
            3 => text_value = payload.text()?,
            _ => {}
        }
    }
    Ok(if is_text { json!(text_value) } else { json!(number_value) })
}

fn raw(bytes: &[u8]) -> Result<Value, ProtobufError> {
    let mut reader = Reader(bytes);
    while let Some((number, payload)) = reader.next()? {
        if number == 1 && !payload.bytes()?.is_empty() {
            return document::json(payload.bytes()?).map_err(|error| match error {
                DocumentError::OverBound(over) => ProtobufError::OverBound(over),
                DocumentError::Duplicates(_) | DocumentError::Malformed { .. } => ProtobufError::Text,
            });
        }
    }
    Ok(Value::Null)
}
