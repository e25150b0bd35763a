// SPDX-License-Identifier: Apache-2.0
//! The policies: made at random once, kept as YAML, read as the control plane reads them.

use meltemi_model::NamespacedName;
use meltemi_model::authz::Policy;
use meltemi_resources::policies::AuthorizationPolicySpec;
use meltemi_translate::facts::Labels;
use meltemi_translate::mesh::MeshConfig;
use meltemi_translate::security::authorization;
use proptest::prelude::{Just, any, prop_oneof};
use proptest::sample::{select, subsequence};
use proptest::strategy::{BoxedStrategy, Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use serde_json::{Map, Value, json};

/// How many policies are made.
const POLICIES: usize = 80;

/// A policy of the test data.
pub(crate) struct Case {
    pub(crate) name: String,
    /// As it is written.
    pub(crate) text: String,
    pub(crate) policy: Policy,
}

fn policy(name: &str, spec: &Value) -> Result<Policy, String> {
    let spec: AuthorizationPolicySpec = serde_json::from_value(spec.clone()).map_err(|e| e.to_string())?;
    let name = NamespacedName::new("default", name);
    authorization::read(&name, &spec, &Labels::new(), &MeshConfig::default()).map(|read| read.policy)
}

/// Reads a stream of policies.
pub(crate) fn read(yaml: &str) -> Vec<Case> {
    let documents = yaml.split("\n---\n").map(|text| serde_yaml_ng::from_str::<Value>(text).unwrap());
    documents
        .map(|document| {
            let name = document["metadata"]["name"].as_str().unwrap().to_owned();
            let policy = policy(&name, &document["spec"]).unwrap();
            Case { policy, text: document["spec"].to_string(), name }
        })
        .collect()
}

const HOSTS: &[&str] = &[
    "ok.com",
    "OK.com",
    "*.ok.com",
    "ok*",
    "*",
    "*.com",
    "ok.com.",
    "ok.com:80",
    "secret.com",
    "secret.com:8080",
    "*:8080",
];
const METHODS: &[&str] = &["GET", "POST", "G*", "*T", "*"];
const PATHS: &[&str] = &[
    "/admin",
    "/admin/*",
    "/public/*",
    "/pub*",
    "*/keys",
    "*",
    "/",
    "/a%2Fb",
    "/a%2fb",
    "/caf%C3%A9",
    "/api;v=1/*",
    "//x/*",
    "/v1/users:delete",
    "/a/{*}/b",
    "/p/{**}",
    "/p/{**}/keys",
    "/a%2Fb/{*}",
];
const PRINCIPALS: &[&str] = &[
    "cluster.local/ns/default/sa/client",
    "cluster.local/ns/default/*",
    "*/sa/client",
    "*",
    "cluster.local/ns/other/sa/x",
];
const NAMESPACES: &[&str] = &["default", "def*", "*ault", "other", "*"];
const HEADERS: &[&str] = &[
    "x-a",
    "X-A",
    "x-b",
    "x_a",
    "cookie",
    "upgrade",
    "connection",
    "te",
    "transfer-encoding",
    "keep-alive",
    "baggage",
    "forwarded",
    "x-forwarded-for",
    "x-envoy-original-path",
];
const VALUES: &[&str] =
    &["a", "b", "a*", "*a", "*", "*", "a,b", "a, b", "websocket", "trailers", "chunked", "k=v", "1.1.1.1"];

/// Values, not-values or both, under their names.
fn lists(name: &'static str, texts: &'static [&'static str]) -> BoxedStrategy<Map<String, Value>> {
    let not = format!("not{}{}", name[..1].to_uppercase(), &name[1..]);
    let some = || subsequence(texts, 1..3);
    (prop_oneof![3 => Just((true, false)), 2 => Just((false, true)), 1 => Just((true, true))], some(), some())
        .prop_map(move |((yes, no), values, not_values)| {
            let mut out = Map::new();
            if yes {
                out.insert(name.to_owned(), json!(values));
            }
            if no {
                out.insert(not.clone(), json!(not_values));
            }
            out
        })
        .boxed()
}

/// One to two of several fields in one object.
fn object(fields: Vec<BoxedStrategy<Map<String, Value>>>) -> impl Strategy<Value = Value> {
    let count = fields.len();
    (fields, subsequence((0..count).collect::<Vec<_>>(), 1..=2)).prop_map(|(all, chosen)| {
        Value::Object(chosen.into_iter().flat_map(|index| all[index].clone()).collect())
    })
}

fn condition() -> impl Strategy<Value = Value> {
    let header = |names, values| {
        (select(names), lists("values", values)).prop_map(|(name, mut out): (&str, Map<String, Value>)| {
            out.insert("key".to_owned(), json!(format!("request.headers[{name}]")));
            Value::Object(out)
        })
    };
    const HOST: &[&str] = &["host", "Host", ":authority"];
    prop_oneof![4 => header(HEADERS, VALUES), 2 => header(HOST, HOSTS), 1 => header(&[":method"], METHODS)]
}

fn rule() -> impl Strategy<Value = Value> {
    let source = object(vec![lists("principals", PRINCIPALS), lists("namespaces", NAMESPACES)])
        .prop_map(|source| json!({ "source": source }));
    let operation = object(vec![
        lists("hosts", HOSTS),
        lists("methods", METHODS),
        lists("paths", PATHS),
        lists("paths", PATHS),
    ])
    .prop_map(|operation| json!({ "operation": operation }));
    let list = |one: BoxedStrategy<Value>, weight: f64| {
        (proptest::bool::weighted(weight), proptest::collection::vec(one, 1..3))
    };
    (list(source.boxed(), 0.2), list(operation.boxed(), 0.6), list(condition().boxed(), 0.5)).prop_map(
        |(from, to, when)| {
            let parts = [("from", from), ("to", to), ("when", when)];
            let given = parts.into_iter().filter(|(_, (given, _))| *given);
            Value::Object(given.map(|(name, (_, list))| (name.to_owned(), json!(list))).collect())
        },
    )
}

/// Policies that are valid, as a YAML stream; always the same.
pub(crate) fn generate() -> String {
    let spec = (any::<bool>(), proptest::collection::vec(rule(), 1..3))
        .prop_map(|(allow, rules)| json!({ "action": if allow { "ALLOW" } else { "DENY" }, "rules": rules }));
    let mut runner = TestRunner::deterministic();
    let mut out: Vec<String> = Vec::new();
    while out.len() < POLICIES {
        let spec = spec.new_tree(&mut runner).unwrap().current();
        let name = format!("p{:02}", out.len());
        if policy(&name, &spec).is_ok() {
            let metadata = json!({ "name": name, "namespace": "default" });
            let kind = "AuthorizationPolicy";
            let document = json!({ "apiVersion": "security.istio.io/v1", "kind": kind, "metadata": metadata, "spec": spec });
            out.push(document.to_string());
        }
    }
    out.join("\n---\n") + "\n"
}
