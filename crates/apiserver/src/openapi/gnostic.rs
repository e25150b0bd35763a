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
struct Paths {
    #[prost(message, repeated, tag = "2")]
    path: Vec<NamedPathItem>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedPathItem {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<PathItem>,
}

#[derive(Clone, PartialEq, Message)]
struct PathItem {
    #[prost(message, optional, tag = "8")]
    patch: Option<Operation>,
}

#[derive(Clone, PartialEq, Message)]
struct Operation {
    #[prost(string, repeated, tag = "7")]
    consumes: Vec<String>,
    #[prost(message, repeated, tag = "8")]
    parameters: Vec<ParametersItem>,
    #[prost(message, optional, tag = "9")]
    responses: Option<Responses>,
    #[prost(message, repeated, tag = "13")]
    vendor_extension: Vec<NamedAny>,
}

#[derive(Clone, PartialEq, Message)]
struct Responses {}

/// One of several alternatives at each of three levels; only parameters of the query are written.
#[derive(Clone, PartialEq, Message)]
struct ParametersItem {
    #[prost(message, optional, tag = "1")]
    parameter: Option<Parameter>,
}

#[derive(Clone, PartialEq, Message)]
struct Parameter {
    #[prost(message, optional, tag = "2")]
    non_body: Option<NonBodyParameter>,
}

#[derive(Clone, PartialEq, Message)]
struct NonBodyParameter {
    #[prost(message, optional, tag = "3")]
    query: Option<QueryParameter>,
}

#[derive(Clone, PartialEq, Message)]
struct QueryParameter {
    #[prost(string, tag = "2")]
    place: String,
    #[prost(string, tag = "4")]
    name: String,
    #[prost(string, tag = "6")]
    kind: String,
}

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
        paths: Some(paths(&document["paths"])),
        definitions: Some(named(&document["definitions"])),
    }
    .encode_to_vec()
}

fn paths(map: &Value) -> Paths {
    let all = map.as_object().into_iter().flatten();
    let item = |value: &Value| PathItem { patch: Some(operation(&value["patch"])) };
    Paths {
        path: all
            .map(|(name, value)| NamedPathItem { name: name.clone(), value: Some(item(value)) })
            .collect(),
    }
}

fn operation(value: &Value) -> Operation {
    let list = |key: &str| value[key].as_array().into_iter().flatten();
    let parameter = |value: &Value| {
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let query = QueryParameter { place: text("in"), name: text("name"), kind: text("type") };
        let non_body = Some(NonBodyParameter { query: Some(query) });
        ParametersItem { parameter: Some(Parameter { non_body }) }
    };
    Operation {
        consumes: list("consumes").filter_map(|c| c.as_str().map(str::to_owned)).collect(),
        parameters: list("parameters").map(parameter).collect(),
        responses: Some(Responses {}),
        vendor_extension: extensions(value),
    }
}

fn extensions(value: &Value) -> Vec<NamedAny> {
    let all = value.as_object().into_iter().flatten();
    all.filter(|(key, _)| key.starts_with("x-kubernetes-"))
        .map(|(name, value)| NamedAny { name: name.clone(), value: Some(Any { yaml: value.to_string() }) })
        .collect()
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
        vendor_extension: extensions(value),
    }
}
