// SPDX-License-Identifier: Apache-2.0
//! The policies: made at random once, kept as YAML, read as the control plane reads them.

use std::collections::BTreeMap;

use meltemi_model::NamespacedName;
use meltemi_model::authz::Policy;
use meltemi_resources::policies::AuthorizationPolicySpec;
use meltemi_translate::facts::Labels;
use meltemi_translate::mesh::MeshConfig;
use meltemi_translate::security::authorization;
use proptest::prelude::{Just, any, prop_oneof};
use proptest::sample::{select, subsequence};
use proptest::strategy::{BoxedStrategy, Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Map, Value, json};

/// How many groups of policies are made.
const GROUPS: usize = 100;
/// Chooses other policies than those of the test data.
const SEED: &str = "JUDGE_SEED";

/// Policies that apply together.
pub(crate) struct Group {
    pub(crate) name: String,
    /// As they are written.
    pub(crate) text: String,
    pub(crate) policies: Vec<Policy>,
}

fn policy(name: &str, spec: &Value) -> Result<Policy, String> {
    let spec: AuthorizationPolicySpec = serde_json::from_value(spec.clone()).map_err(|e| e.to_string())?;
    let name = NamespacedName::new("default", name);
    authorization::read(&name, &spec, &Labels::new(), &MeshConfig::default())
        .map(|read| Policy::clone(&read.policy))
}

/// Reads a stream of policies. Those whose names are the same before `-` are a group.
pub(crate) fn read(yaml: &str) -> Vec<Group> {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for text in yaml.split("\n---\n") {
        let document: Value = serde_yaml_ng::from_str(text).unwrap();
        let name = document["metadata"]["name"].as_str().unwrap();
        let group = name.split('-').next().unwrap().to_owned();
        let new = Group { name: group.clone(), text: String::new(), policies: Vec::new() };
        let group = groups.entry(group).or_insert(new);
        group.text += &format!("{}\n", document["spec"]);
        group.policies.push(policy(name, &document["spec"]).unwrap());
    }
    groups.into_values().collect()
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
const ACCOUNTS: &[&str] = &["client", "default/client", "other/client", "default/x"];
const TRUST_DOMAINS: &[&str] = &["cluster.local", "cluster*", "*.local", "other", "*"];
/// The client is 127.0.0.1; what it calls, 10.96.0.0. Without IPv4-mapped ones: ours mean the IPv4 address, Envoy's nothing.
const ADDRESSES: &[&str] =
    &["127.0.0.1", "127.0.0.0/8", "10.96.0.0/24", "10.96.0.0", "0.0.0.0/0", "::1", "::/0"];
/// Port 81 is what clients call.
const PORTS: &[&str] = &["81", "80", "8080"];
/// Nobody has a token.
const TOKENS: &[&str] = &["*", "i/s", "i/*", "*/s"];
const CLAIMS: &[&str] = &[
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "request.auth.claims[a]",
    "request.auth.claims[a][b]",
];
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

/// A condition whose key is made of one of the names.
fn keyed(
    names: &'static [&'static str],
    values: &'static [&'static str],
    key: fn(&str) -> String,
) -> impl Strategy<Value = Value> {
    (select(names), lists("values", values)).prop_map(move |(name, mut out)| {
        out.insert("key".to_owned(), key(name).into());
        Value::Object(out)
    })
}

fn condition() -> impl Strategy<Value = Value> {
    let header = |names, values| keyed(names, values, |name| format!("request.headers[{name}]"));
    let attribute = |names, values| keyed(names, values, ToOwned::to_owned);
    const HOST: &[&str] = &["host", "Host", ":authority"];
    let peer = prop_oneof![
        attribute(&["source.principal"], PRINCIPALS),
        attribute(&["source.namespace"], NAMESPACES),
        attribute(&["source.serviceAccount"], ACCOUNTS),
        attribute(&["source.trustDomain"], TRUST_DOMAINS),
        attribute(&["source.ip", "destination.ip"], ADDRESSES),
        attribute(&["destination.port"], PORTS),
        attribute(&["connection.sni"], HOSTS),
        attribute(CLAIMS, TOKENS),
    ];
    prop_oneof![
        4 => header(HEADERS, VALUES),
        2 => header(HOST, HOSTS),
        1 => header(&[":method"], METHODS),
        3 => peer,
    ]
}

fn rule() -> impl Strategy<Value = Value> {
    let source = object(vec![
        lists("principals", PRINCIPALS),
        lists("namespaces", NAMESPACES),
        lists("serviceAccounts", ACCOUNTS),
        lists("trustDomains", TRUST_DOMAINS),
        lists("ipBlocks", ADDRESSES),
        lists("requestPrincipals", TOKENS),
    ])
    .prop_map(|source| json!({ "source": source }));
    let operation = object(vec![
        lists("hosts", HOSTS),
        lists("methods", METHODS),
        lists("ports", PORTS),
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

/// Policies that are valid, as a YAML stream; the same for the same seed.
pub(crate) fn generate() -> String {
    let spec = (any::<bool>(), proptest::collection::vec(rule(), 1..3))
        .prop_map(|(allow, rules)| json!({ "action": if allow { "ALLOW" } else { "DENY" }, "rules": rules }))
        .boxed();
    let group = prop_oneof![
        3 => proptest::collection::vec(spec.clone(), 1),
        2 => proptest::collection::vec(spec, 2..4),
    ];
    let seed: u64 = std::env::var(SEED).map_or(0, |seed| seed.parse().unwrap());
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_be_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config { failure_persistence: None, ..Config::default() }, rng);
    let mut out: Vec<String> = Vec::new();
    let mut groups = 0;
    while groups < GROUPS {
        let specs = group.new_tree(&mut runner).unwrap().current();
        let name = |at: usize| format!("p{groups:02}-{at}");
        if specs.iter().enumerate().any(|(at, spec)| policy(&name(at), spec).is_err()) {
            continue;
        }
        for (at, spec) in specs.iter().enumerate() {
            let metadata = json!({ "name": name(at), "namespace": "default" });
            let kind = "AuthorizationPolicy";
            let document = json!({ "apiVersion": "security.istio.io/v1", "kind": kind, "metadata": metadata, "spec": spec });
            out.push(document.to_string());
        }
        groups += 1;
    }
    out.join("\n---\n") + "\n"
}
