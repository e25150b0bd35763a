// SPDX-License-Identifier: Apache-2.0
//! OpenAPI documents: v2 as JSON and in the protobuf form that older kubectls demand, v3 one document a group version.

mod gnostic;

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Map, Value, json};

use crate::answer::json_response;
use crate::registry::{Registry, ResourceInfo};
use crate::schema;

const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// `/openapi/v2` in the form that the client accepts; nothing when the client has it already.
pub fn v2(registry: &Registry, headers: &HeaderMap) -> Response<Body> {
    let text =
        |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or_default();
    let tag = format!("\"{:016X}\"", registry.digest(None));
    if text(header::IF_NONE_MATCH) == tag {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return tagged(response, &tag);
    }
    tagged(v2_formed(registry, text(header::ACCEPT)), &tag)
}

fn tagged(mut response: Response<Body>, tag: &str) -> Response<Body> {
    let headers = response.headers_mut();
    if let Ok(tag) = HeaderValue::from_str(tag) {
        headers.insert(header::ETAG, tag);
    }
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

fn v2_formed(registry: &Registry, accept: &str) -> Response<Body> {
    let document = v2_document(registry);
    if !accept.contains("proto-openapi.spec.v2") {
        return json_response(StatusCode::OK, &document);
    }
    let mut response = Response::new(Body::from(gnostic::encode(&document)));
    // Written without the `@`, which a client's media type parser does not take.
    let kind = PROTOBUF.replace('@', "_");
    let kind = HeaderValue::from_str(&kind).unwrap_or(HeaderValue::from_static("application/octet-stream"));
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn v2_document(registry: &Registry) -> Value {
    let mut definitions = Map::new();
    for (name, definition) in all_definitions(registry) {
        definitions.insert(name, rewritten(&definition, "#/definitions/"));
    }
    let paths: Map<String, Value> =
        registry.all().iter().filter(|i| !i.virtual_only).map(|i| v2_path(i)).collect();
    json!({"swagger": "2.0", "info": info(), "paths": paths, "definitions": definitions})
}

/// Only the patch of one object: clients read from it whether a kind can be tried without being stored.
fn v2_path(info: &ResourceInfo) -> (String, Value) {
    let query = |name: &str| json!({"name": name, "in": "query", "type": "string", "uniqueItems": true});
    let patch = json!({
        "x-kubernetes-action": "patch", "x-kubernetes-group-version-kind": kind_extension(info),
        "consumes": ["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"],
        "parameters": [query("dryRun"), query("fieldManager"), query("fieldValidation"), query("force")],
        "responses": {"200": {"description": "OK"}},
    });
    (format!("{}/{{name}}", collection_path(info)), json!({"patch": patch}))
}

/// `/openapi/v3`: where the documents are.
pub fn v3_index(registry: &Registry) -> Value {
    let mut paths = Map::new();
    for (group, versions) in registry.groups() {
        for version in versions {
            let path =
                if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
            let hash = registry.digest(Some((&group, &version)));
            let url = format!("/openapi/v3/{path}?hash={hash:016X}");
            paths.insert(path, json!({"serverRelativeURL": url}));
        }
    }
    json!({"paths": paths})
}

/// The document of a group version; none when nothing serves it. One that was asked for by its hash may be kept.
pub fn v3(registry: &Registry, group: &str, version: &str, query: Option<&str>) -> Option<Response<Body>> {
    let mut response = json_response(StatusCode::OK, &v3_document(registry, group, version)?);
    let hash = format!("hash={:016X}", registry.digest(Some((group, version))));
    if query.is_some_and(|query| query.split('&').any(|pair| pair == hash)) {
        let headers = response.headers_mut();
        headers
            .insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable, max-age=31536000"));
    }
    Some(response)
}

fn v3_document(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let resources = registry.all();
    let mine: Vec<_> = resources.iter().filter(|r| r.group == group && r.version == version).collect();
    if mine.is_empty() {
        return None;
    }
    let all = all_definitions(registry);
    let mut schemas = Map::new();
    let mut wanted: Vec<String> = mine.iter().map(|info| name_of(info)).collect();
    while let Some(name) = wanted.pop() {
        if schemas.contains_key(&name) {
            continue;
        }
        if let Some(definition) = all.get(&name) {
            references(definition, &mut wanted);
            schemas.insert(name, rewritten(definition, "#/components/schemas/"));
        }
    }
    let mut paths = Map::new();
    for info in mine {
        paths.extend(v3_paths(info));
    }
    Some(json!({"openapi": "3.0.0", "info": info(), "paths": paths, "components": {"schemas": schemas}}))
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": format!("v{}.{}.0", crate::answer::VERSION.0, crate::answer::VERSION.1)})
}

fn kind_extension(info: &ResourceInfo) -> Value {
    json!({"group": info.group, "version": info.version, "kind": info.kind})
}

fn collection_path(info: &ResourceInfo) -> String {
    let base = if info.group.is_empty() {
        format!("/api/{}", info.version)
    } else {
        format!("/apis/{}/{}", info.group, info.version)
    };
    let scope = if info.namespaced { "/namespaces/{namespace}" } else { "" };
    format!("{base}{scope}/{}", info.plural)
}

/// Paths with the operations on them: kubectl reads from them which parameters a resource takes.
fn v3_paths(info: &ResourceInfo) -> Map<String, Value> {
    let path = collection_path(info);
    let schema = json!({"$ref": format!("#/components/schemas/{}", name_of(info))});
    let query =
        |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}});
    let operation = |action: &str| {
        json!({
            "x-kubernetes-action": action, "x-kubernetes-group-version-kind": kind_extension(info),
            "parameters": [query("dryRun"), query("fieldManager"), query("fieldValidation")],
            "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": schema}}}},
        })
    };
    let mut paths = Map::new();
    paths.insert(path.clone(), json!({"get": operation("list"), "post": operation("post")}));
    if !info.virtual_only {
        let one = json!({"get": operation("get"), "put": operation("put"), "patch": operation("patch"), "delete": operation("delete")});
        paths.insert(format!("{path}/{{name}}"), one);
    }
    paths
}

/// `io.istio.security.v1.AuthorizationPolicy`, as Kubernetes names the definitions of custom resources.
fn name_of(info: &ResourceInfo) -> String {
    if let Some(name) = schema::definition_name(&info.group, &info.version, &info.kind) {
        return name.to_owned();
    }
    let reversed: Vec<&str> = info.group.rsplit('.').collect();
    format!("{}.{}.{}", reversed.join("."), info.version, info.kind)
}

fn all_definitions(registry: &Registry) -> Map<String, Value> {
    let mut all = schema::definitions().clone();
    for info in registry.all() {
        let name = name_of(&info);
        if let Some(custom) = &info.custom {
            let mut definition = custom.schema.clone();
            definition["type"] = "object".into();
            if let Some(properties) = definition["properties"].as_object_mut() {
                properties.insert("apiVersion".into(), json!({"type": "string"}));
                properties.insert("kind".into(), json!({"type": "string"}));
                let metadata = json!({"$ref": "#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"});
                properties.insert("metadata".into(), metadata);
            }
            all.insert(name.clone(), definition);
        }
        if let Some(definition) = all.get_mut(&name) {
            let list = definition["x-kubernetes-group-version-kind"].as_array().cloned().unwrap_or_default();
            definition["x-kubernetes-group-version-kind"] =
                list.into_iter().chain([kind_extension(&info)]).collect();
        }
    }
    all
}

fn references(value: &Value, all: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match (key.as_str(), value.as_str()) {
                    ("$ref", Some(target)) => all.extend(target.strip_prefix("#/$defs/").map(str::to_owned)),
                    _ => references(value, all),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|item| references(item, all)),
        _ => {}
    }
}

/// References point into this document, beside nothing else (OpenAPI allows no siblings).
fn rewritten(value: &Value, prefix: &str) -> Value {
    match value {
        Value::Object(map) => {
            if let Some(name) =
                map.get("$ref").and_then(Value::as_str).and_then(|t| t.strip_prefix("#/$defs/"))
            {
                let reference = json!({"$ref": format!("{prefix}{name}")});
                return match map.get("description") {
                    Some(description) if prefix.contains("components") => {
                        json!({"allOf": [reference], "description": description})
                    }
                    _ => reference,
                };
            }
            Value::Object(map.iter().map(|(k, v)| (k.clone(), rewritten(v, prefix))).collect())
        }
        Value::Array(list) => Value::Array(list.iter().map(|item| rewritten(item, prefix)).collect()),
        other => other.clone(),
    }
}
