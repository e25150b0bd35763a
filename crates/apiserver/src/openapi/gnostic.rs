// SPDX-License-Identifier: Apache-2.0
//! The protobuf form of an OpenAPI v2 document (`openapi.v2.Document`), as far as definitions go.

use prost::Message;
use serde_json::Value;

#[derive(Clone, PartialEq, Message)]
struct Document {
    #[prost(string, tag = "1")]
    swagger: String,
    #[prost(message, optional, tag = "2")]
    info: Option<Info>,
    #[prost(message, optional, tag = "8")]
    paths: Option<Paths>,
    #[prost(message, optional, tag = "9")]
    definitions: Option<Named>,
}

#[derive(Clone, PartialEq, Message)]
struct Info {
    #[prost(string, tag = "1")]
    title: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct Paths {}

/// `Definitions` and `Properties` have the same shape.
#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(message, repeated, tag = "1")]
    additional_properties: Vec<NamedSchema>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedSchema {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Schema>,
}

#[derive(Clone, PartialEq, Message)]
struct Schema {
    #[prost(string, tag = "1")]
    reference: String,
    #[prost(string, tag = "2")]
    format: String,
    #[prost(string, tag = "4")]
    description: String,
    #[prost(string, repeated, tag = "19")]
    required: Vec<String>,
    #[prost(message, optional, boxed, tag = "21")]
    additional_properties: Option<Box<AdditionalProperties>>,
    #[prost(message, optional, tag = "22")]
    kind: Option<TypeItem>,
    #[prost(message, optional, tag = "23")]
    items: Option<Items>,
    #[prost(message, optional, tag = "25")]
    properties: Option<Named>,
    #[prost(message, repeated, tag = "31")]
    vendor_extension: Vec<NamedAny>,
}

#[derive(Clone, PartialEq, Message)]
struct AdditionalProperties {
    #[prost(message, optional, boxed, tag = "1")]
    schema: Option<Box<Schema>>,
    #[prost(bool, tag = "2")]
    boolean: bool,
}

#[derive(Clone, PartialEq, Message)]
struct TypeItem {
    #[prost(string, repeated, tag = "1")]
    value: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Items {
    #[prost(message, repeated, tag = "1")]
    schema: Vec<Schema>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedAny {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "2")]
    yaml: String,
}

pub(super) fn encode(document: &Value) -> Vec<u8> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Document {
        swagger: text(&document["swagger"]),
        info: Some(Info {
            title: text(&document["info"]["title"]),
            version: text(&document["info"]["version"]),
        }),
        paths: Some(Paths {}),
        definitions: Some(named(&document["definitions"])),
    }
    .encode_to_vec()
}

fn named(map: &Value) -> Named {
    let all = map.as_object().into_iter().flatten();
    Named {
        additional_properties: all
            .map(|(name, value)| NamedSchema { name: name.clone(), value: Some(schema(value)) })
            .collect(),
    }
}

fn schema(value: &Value) -> Schema {
    let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let additional = &value["additionalProperties"];
    let extensions =
        value.as_object().into_iter().flatten().filter(|(key, _)| key.starts_with("x-kubernetes-"));
    // A schema without a type takes anything; the older validator wants to be told so by an object that is open.
    let int_or_string = value["x-kubernetes-int-or-string"] == true;
    let kind = if int_or_string { "string".to_owned() } else { text("type") };
    let format = if int_or_string { "int-or-string".to_owned() } else { text("format") };
    Schema {
        reference: text("$ref"),
        format,
        description: text("description"),
        required: value["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|r| r.as_str().map(str::to_owned))
            .collect(),
        additional_properties: match additional {
            Value::Object(_) => Some(Box::new(AdditionalProperties {
                schema: Some(Box::new(schema(additional))),
                boolean: false,
            })),
            Value::Bool(allowed) => Some(Box::new(AdditionalProperties { schema: None, boolean: *allowed })),
            _ => None,
        },
        kind: (!kind.is_empty()).then(|| TypeItem { value: vec![kind] }),
        items: value["items"].is_object().then(|| Items { schema: vec![schema(&value["items"])] }),
        properties: value["properties"].is_object().then(|| named(&value["properties"])),
        vendor_extension: extensions
            .map(|(name, value)| NamedAny {
                name: name.clone(),
                value: Some(Any { yaml: value.to_string() }),
            })
            .collect(),
    }
}
