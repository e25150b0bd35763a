// SPDX-License-Identifier: Apache-2.0
//! TLSRoutes as HTTPRoutes without conditions: their hostnames are compared with the host that a client names in its handshake,
//! and everything else is written alike in both.

use gateway_api::experimental::httproutes::HttpRoute;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value};

/// Fields that mean the same in both kinds.
const ALIKE: [&str; 3] = ["parentRefs", "hostnames", "useDefaultGateways"];
/// The same of a rule.
const ALIKE_IN_RULES: [&str; 2] = ["name", "backendRefs"];

/// The HTTPRoute that leads connections where a TLSRoute does.
///
/// # Errors
/// A field has another type than the API's.
pub fn as_http(metadata: &ObjectMeta, spec: &Value) -> Result<HttpRoute, serde_json::Error> {
    let mut converted = only(spec, &ALIKE);
    let rules: Vec<Value> = spec["rules"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|rule| only(rule, &ALIKE_IN_RULES).into())
        .collect();
    converted.insert("rules".to_owned(), rules.into());
    let spec = serde_json::from_value(converted.into())?;
    Ok(HttpRoute { metadata: metadata.clone(), spec, status: None })
}

fn only(object: &Value, fields: &[&str]) -> Map<String, Value> {
    let field = |name: &&str| Some(((*name).to_owned(), object.get(*name)?.clone()));
    fields.iter().filter_map(field).collect()
}
