// SPDX-License-Identifier: Apache-2.0
//! The protobuf form of request bodies, which clients written in Go prefer for built-in kinds, as JSON.
//!
//! The numbers of the fields stand in `protobuf/fields.txt`; a field that is not there is skipped, as protobuf has it.

mod special;
mod wire;

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use self::wire::{Payload, Reader};
use crate::bounds::{Elements, Extent, OverBound};

/// What every body begins with.
const MAGIC: &[u8] = b"k8s\0";

/// Why a body cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    /// It does not begin as Kubernetes' protobuf does.
    #[error("not Kubernetes' protobuf encoding")]
    Magic,
    /// A length or number runs over the end, or a wire type does not exist.
    #[error("malformed protobuf")]
    Malformed,
    /// A text is not UTF-8, or embedded JSON is not JSON.
    #[error("malformed text")]
    Text,
    /// A kind without a table of its fields.
    #[error("no such kind in protobuf form")]
    Kind,
    /// A bound is exceeded.
    #[error("{0}")]
    OverBound(#[from] OverBound),
}

/// Where the reader is, and what it has counted.
#[derive(Clone, Copy, Debug)]
struct At<'a> {
    depth: usize,
    elements: &'a Cell<Elements>,
}

impl At<'_> {
    fn count(self) -> Result<(), ProtobufError> {
        let mut elements = self.elements.get();
        let counted = elements.count(self.depth);
        self.elements.set(elements);
        Ok(counted?)
    }

    fn below(self) -> Self {
        Self { depth: self.depth + 1, ..self }
    }
}

/// How often a field occurs, and in which shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    One,
    List,
    Map,
    /// Its fields stand in the parent.
    Inline,
}

#[derive(Clone, Copy, Debug)]
struct Field {
    name: &'static str,
    kind: &'static str,
    shape: Shape,
    /// Zero is a value; otherwise it means absent.
    zero: bool,
}

type Tables = HashMap<&'static str, HashMap<u32, Field>>;

fn tables() -> &'static Tables {
    static TABLES: OnceLock<Tables> = OnceLock::new();
    TABLES.get_or_init(|| {
        include_str!("protobuf/fields.txt").lines().filter(|line| !line.starts_with('#')).map(table).collect()
    })
}

fn table(line: &'static str) -> (&'static str, HashMap<u32, Field>) {
    let mut words = line.split(' ');
    let message = words.next().unwrap_or_default();
    (message, words.filter_map(field).collect())
}

fn field(word: &'static str) -> Option<(u32, Field)> {
    let mark = word.find([':', '!', '='])?;
    let number = word[..mark].parse().ok()?;
    let (name, kind) = word[mark + 1..].split_once(':')?;
    let shape = match (&word[mark..=mark], kind.as_bytes().first()?) {
        ("=", _) => Shape::Inline,
        (_, b'*') => Shape::List,
        (_, b'%') => Shape::Map,
        _ => Shape::One,
    };
    let zero = &word[mark..=mark] == "!";
    Some((number, Field { name, kind: kind.trim_start_matches(['*', '%']), shape, zero }))
}

/// The object in a body of `application/vnd.kubernetes.protobuf`.
///
/// # Errors
/// See [`ProtobufError`].
pub fn decode(body: &[u8]) -> Result<Value, ProtobufError> {
    let envelope = body.strip_prefix(MAGIC).ok_or(ProtobufError::Magic)?;
    let (mut api_version, mut kind, mut raw): (&str, &str, &[u8]) = ("", "", &[]);
    let mut reader = Reader(envelope);
    while let Some((number, payload)) = reader.next()? {
        match number {
            1 => {
                let mut meta = Reader(payload.bytes()?);
                while let Some((number, payload)) = meta.next()? {
                    match number {
                        1 => api_version = payload.text()?,
                        2 => kind = payload.text()?,
                        _ => {}
                    }
                }
            }
            2 => raw = payload.bytes()?,
            _ => {}
        }
    }
    let name = message_name(api_version, kind).ok_or(ProtobufError::Kind)?;
    let mut object = message(name, raw, At { depth: 0, elements: &Cell::default() })?;
    object["apiVersion"] = api_version.into();
    object["kind"] = kind.into();
    // JSON inside of it was counted by itself.
    Extent::of(&object)?;
    Ok(object)
}

/// `rbac.authorization.k8s.io/v1` `Role` → `rbac.v1.Role`; options of requests are the machinery's in every group.
fn message_name(api_version: &str, kind: &str) -> Option<&'static str> {
    let (group, version) = api_version.split_once('/').unwrap_or(("core", api_version));
    let package = group.split('.').next()?;
    let own = format!("{package}.{version}.{kind}");
    let common = format!("meta.v1.{kind}");
    let found = tables().get_key_value(own.as_str()).or_else(|| tables().get_key_value(common.as_str()));
    found.map(|(name, _)| *name)
}

fn message(name: &str, bytes: &[u8], at: At<'_>) -> Result<Value, ProtobufError> {
    at.count()?;
    if let Some(value) = special::decode(name, bytes, at)? {
        return Ok(value);
    }
    let mut object = Map::new();
    let Some(table) = tables().get(name) else { return Ok(Value::Object(object)) };
    let mut reader = Reader(bytes);
    while let Some((number, payload)) = reader.next()? {
        if let Some(field) = table.get(&number) {
            put(&mut object, field, payload, at)?;
        }
    }
    Ok(Value::Object(object))
}

fn put(
    object: &mut Map<String, Value>,
    field: &Field,
    payload: Payload<'_>,
    at: At<'_>,
) -> Result<(), ProtobufError> {
    match field.shape {
        Shape::List => {
            let list = object.entry(field.name).or_insert_with(|| json!([]));
            let value = scalar(field.kind, payload, at)?;
            list.as_array_mut().ok_or(ProtobufError::Malformed)?.push(value);
        }
        Shape::Map => {
            let (key, value) = entry(field.kind, payload.bytes()?, at)?;
            let map = object.entry(field.name).or_insert_with(|| json!({}));
            map.as_object_mut().ok_or(ProtobufError::Malformed)?.insert(key, value);
        }
        Shape::Inline => {
            let value = scalar(field.kind, payload, at)?;
            object.extend(value.as_object().cloned().unwrap_or_default());
        }
        Shape::One => {
            let value = scalar(field.kind, payload, at)?;
            if !value.is_null() && (field.zero || !is_zero(&value)) {
                object.insert(field.name.to_owned(), value);
            }
        }
    }
    Ok(())
}

fn entry(kind: &str, bytes: &[u8], at: At<'_>) -> Result<(String, Value), ProtobufError> {
    let (mut key, mut value) = (String::new(), None);
    let mut reader = Reader(bytes);
    while let Some((number, payload)) = reader.next()? {
        match number {
            1 => payload.text()?.clone_into(&mut key),
            2 => value = Some(scalar(kind, payload, at)?),
            _ => {}
        }
    }
    let value = match value {
        Some(value) => value,
        None => scalar(kind, Payload::Bytes(&[]), at)?,
    };
    Ok((key, value))
}

fn scalar(kind: &str, payload: Payload<'_>, at: At<'_>) -> Result<Value, ProtobufError> {
    at.count()?;
    Ok(match kind {
        "s" => payload.text()?.into(),
        "y" => STANDARD.encode(payload.bytes()?).into(),
        "i" => payload.integer()?.into(),
        "b" => (payload.integer()? != 0).into(),
        "d" => payload.double()?.into(),
        name => message(name, payload.bytes()?, at.below())?,
    })
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Array(_) | Value::Bool(true) => false,
    }
}

#[cfg(test)]
mod tests;
