// SPDX-License-Identifier: Apache-2.0
//! Random policies from YAML's shape through the model and the wire: whoever receives them decides as who sent them, and a
//! node proxy, told less, never lets through what the whole policy denies.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use meltemi_model::authz::Policy;
use meltemi_model::l7::{HttpPolicy, Target};
use meltemi_model::{NamespacedName, SpiffeId};
use meltemi_policy::{Claims, Decision, Facts, Headers, HttpFacts, PolicySet, decide};
use meltemi_resources::policies::AuthorizationPolicySpec;
use meltemi_translate::MeshConfig;
use meltemi_translate::security::authorization::{self, Authorization};
use meltemi_translate::security::layer4;
use meltemi_wire::convert;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Map, Value, json};

const IDENTITIES: &[&str] = &["td/ns/a/sa/x", "td/ns/a/sa/y", "td/ns/b/sa/x", "old/ns/a/sa/x"];
const ADDRESSES: &[&str] = &["10.0.0.1", "10.0.1.1", "fd00::1"];
const PORTS: &[&str] = &["80", "81"];
const METHODS: &[&str] = &["GET", "PUT"];
const PATHS: &[&str] = &["/a", "/a/b", "/c"];
const HOSTS: &[&str] = &["web.shop", "other.com"];

/// Values of a field that often match.
fn values(all: &'static [&'static str]) -> BoxedStrategy<Value> {
    subsequence(all.to_vec(), 1..=all.len().min(2)).prop_map(|v| json!(v)).boxed()
}

/// Some of these fields, at least one.
fn some(fields: Vec<(&'static str, BoxedStrategy<Value>)>) -> BoxedStrategy<Value> {
    let most = fields.len();
    subsequence(fields, 1..=most.min(3))
        .prop_flat_map(|chosen| {
            let (names, values): (Vec<_>, Vec<_>) = chosen.into_iter().unzip();
            values.prop_map(move |values| {
                let pairs = names.iter().map(|n| (*n).to_owned()).zip(values);
                Value::Object(pairs.collect::<Map<_, _>>())
            })
        })
        .boxed()
}

fn source() -> BoxedStrategy<Value> {
    let identities =
        || values(&["td/ns/a/sa/x", "td/ns/a/*", "*/sa/x", "*", "td/ns/b/sa/x", "cluster.local/ns/a/sa/y"]);
    let blocks = || values(&["10.0.0.0/24", "10.0.1.1", "fd00::/8", "0.0.0.0/0"]);
    let accounts = json!({"serviceAccounts": ["a/x", "y"]});
    let fields = some(vec![
        ("principals", identities()),
        ("notPrincipals", identities()),
        ("namespaces", values(&["a", "b", "*"])),
        ("notNamespaces", values(&["a", "b*"])),
        ("ipBlocks", blocks()),
        ("notIpBlocks", blocks()),
        ("remoteIpBlocks", blocks()),
        ("requestPrincipals", values(&["i/s", "*"])),
        ("notRequestPrincipals", values(&["i/s", "*"])),
        ("trustDomains", values(&["td", "old"])),
        ("notTrustDomains", values(&["td"])),
    ]);
    prop_oneof![9 => fields, 1 => Just(accounts)].boxed()
}

fn operation() -> BoxedStrategy<Value> {
    some(vec![
        ("ports", values(PORTS)),
        ("notPorts", values(PORTS)),
        ("methods", values(METHODS)),
        ("notMethods", values(METHODS)),
        ("paths", values(&["/a", "/a/*", "*", "/{*}/b", "/a/{**}"])),
        ("notPaths", values(&["/a", "*b"])),
        ("hosts", values(HOSTS)),
        ("notHosts", values(&["*.com"])),
    ])
}

fn condition() -> BoxedStrategy<Value> {
    let keyed = [
        ("source.ip", values(&["10.0.0.0/24", "fd00::1"])),
        ("source.namespace", values(&["a", "*"])),
        ("source.principal", values(IDENTITIES)),
        ("source.serviceAccount", values(&["a/x", "y"])),
        ("source.trustDomain", values(&["td"])),
        ("destination.ip", values(&["10.0.1.0/24"])),
        ("destination.port", values(PORTS)),
        ("remote.ip", values(&["10.0.0.0/24"])),
        ("connection.sni", values(&["web"])),
        ("request.headers[X-A]", values(&["1", "*"])),
        ("request.auth.claims[a][b]", values(&["1"])),
        ("request.auth.audiences", values(&["1"])),
        ("experimental.envoy.filters.a[b]", values(&["1"])),
    ];
    let all: BTreeMap<&str, BoxedStrategy<Value>> = keyed.into();
    let of = select(all.keys().copied().collect::<Vec<_>>());
    let field = select(vec!["values", "notValues"]);
    (of, field)
        .prop_flat_map(move |(key, field)| {
            all[key].clone().prop_map(move |values| json!({"key": key, field: values}))
        })
        .boxed()
}

fn list(item: BoxedStrategy<Value>, wrap: &'static str) -> BoxedStrategy<Value> {
    let wrapped = item.prop_map(move |i| if wrap.is_empty() { i } else { json!({wrap: i}) });
    proptest::collection::vec(wrapped, 1..3).prop_map(Value::Array).boxed()
}

fn rule() -> BoxedStrategy<Value> {
    let part =
        |name, strategy: BoxedStrategy<Value>| proptest::option::of(strategy).prop_map(move |v| (name, v));
    (
        part("from", list(source(), "source")),
        part("to", list(operation(), "operation")),
        part("when", list(condition(), "")),
    )
        .prop_map(|(from, to, when)| {
            let parts = [from, to, when].into_iter().filter_map(|(name, v)| Some((name.to_owned(), v?)));
            Value::Object(parts.collect())
        })
        .boxed()
}

fn policy() -> impl Strategy<Value = Authorization> {
    let rules = proptest::collection::vec(rule(), 1..4);
    (select(vec!["ALLOW", "DENY"]), rules).prop_map(|(action, rules)| {
        let spec: AuthorizationPolicySpec =
            serde_json::from_value(json!({"action": action, "rules": rules})).unwrap();
        let mesh = MeshConfig::default().configured("{trustDomain: td, trustDomainAliases: [old]}").unwrap();
        let name = NamespacedName::new("a", "p");
        authorization::read(&name, &spec, &BTreeMap::new(), &mesh).unwrap()
    })
}

/// A request, or only its connection.
#[derive(Clone, Debug)]
struct Asked {
    source: Option<SpiffeId>,
    source_ip: IpAddr,
    destination_ip: IpAddr,
    port: u16,
    method: &'static str,
    path: String,
    host: &'static str,
    header: Option<&'static str>,
    claims: Option<Token>,
}

#[derive(Clone, Debug)]
struct Token(&'static str);

impl Claims for Token {
    fn each(&self, path: &[Arc<str>], with: &mut dyn FnMut(&str)) {
        if path.last().is_some_and(|last| matches!(&**last, "b" | "aud")) {
            with("1");
        }
    }
    fn principal(&self) -> Option<&str> {
        Some(self.0)
    }
}

struct Header(Option<&'static str>);

impl Headers for Header {
    fn each(&self, name: &str, with: &mut dyn FnMut(&str)) {
        if name == "x-a" {
            self.0.into_iter().for_each(with);
        }
    }
}

fn asked() -> impl Strategy<Value = Asked> {
    let identity = proptest::option::weighted(0.8, select(IDENTITIES.to_vec()));
    let address = || select(ADDRESSES.to_vec()).prop_map(|a| a.parse::<IpAddr>().unwrap());
    let port = select(vec![80_u16, 81, 82]);
    let http = (select(METHODS.to_vec()), select(PATHS.to_vec()), select(HOSTS.to_vec()));
    let header = proptest::option::of(select(vec!["1", "2"]));
    let token = proptest::option::of(select(vec!["i/s", "i/t"])).prop_map(|t| t.map(Token));
    (identity, address(), address(), port, http, header, token).prop_map(
        |(identity, source_ip, destination_ip, port, (method, path, host), header, claims)| Asked {
            source: identity.map(|i| SpiffeId::parse(&format!("spiffe://{i}")).unwrap()),
            source_ip,
            destination_ip,
            port,
            method,
            path: path.to_owned(),
            host,
            header,
            claims,
        },
    )
}

fn decision(policy: &Policy, asked: &Asked, with_http: bool) -> Decision {
    let set = PolicySet::compile([Arc::new(policy.clone())]).expect("what was read is valid");
    let (paths, header) = ([asked.path.clone()], Header(asked.header));
    let http = HttpFacts {
        method: asked.method,
        host: asked.host,
        paths: &paths,
        headers: &header,
        remote_ip: Some(asked.source_ip),
        claims: asked.claims.as_ref().map(|c| c as &dyn Claims),
    };
    let facts = Facts {
        source: asked.source.as_ref(),
        source_ip: asked.source_ip,
        destination_ip: asked.destination_ip,
        destination_port: asked.port,
        sni: None,
        http: with_http.then_some(http),
    };
    decide(&set, &facts)
}

proptest! {
    #[test]
    fn who_receives_a_policy_decides_as_who_sent_it(policy in policy(), asked in proptest::collection::vec(asked(), 8)) {
        // To a gateway: whole.
        let target = Target::Gateway(NamespacedName::new("a", "gw"));
        let whole = HttpPolicy { policy: (**policy.policy.policy()).clone(), targets: vec![target] };
        let bytes = convert::encode_l7(&whole).unwrap();
        prop_assert_eq!(&convert::decode_l7::<HttpPolicy>(&bytes).unwrap(), &whole);

        // To a node proxy: what it can evaluate, in the same bytes every time.
        let projected = layer4::project(&policy).policy.expect("ALLOW and DENY without targets are for node proxies");
        let bytes = convert::authorization(&projected).unwrap();
        prop_assert_eq!(&bytes, &convert::authorization(&projected).unwrap());
        let received = convert::policy(&bytes).unwrap();
        prop_assert_eq!(&bytes, &convert::authorization(&received).unwrap());
        for asked in &asked {
            let sent = decision(&projected, asked, false);
            prop_assert_eq!(&sent, &decision(&received, asked, false), "{:?}", asked);
            // Told less, it denies more: never less.
            let full = decision(&policy.policy, asked, true);
            prop_assert!(full.is_allow() || !sent.is_allow(), "{:?}: {:?} here, {:?} in full", asked, sent, full);
        }
    }

    #[test]
    fn a_policy_with_one_thing_more_is_refused(policy in policy(), field in 14_u32..2000, at_end in any::<bool>()) {
        let projected = layer4::project(&policy).policy.unwrap();
        let bytes = convert::authorization(&projected).unwrap();
        let mut more = Vec::new();
        prost_like(field, &mut more);
        let longer = if at_end { [bytes, more].concat() } else { [more, bytes].concat() };
        let refused = convert::policy(&longer).unwrap_err();
        prop_assert_eq!(refused.field, format!("field {field}"));
    }
}

/// A field of that number with a text of one byte.
fn prost_like(field: u32, out: &mut Vec<u8>) {
    let mut key = u64::from(field) << 3 | 2;
    loop {
        let byte = u8::try_from(key & 0x7f).unwrap();
        key >>= 7;
        out.push(if key == 0 { byte } else { byte | 0x80 });
        if key == 0 {
            break;
        }
    }
    out.extend([1, b'x']);
}
