// SPDX-License-Identifier: Apache-2.0
//! Tables of requests with the verdicts that are expected, and reports on them for programs that run tests.

mod report;

use std::collections::BTreeMap;
use std::net::IpAddr;

use meltemi_model::NamespacedName;
use meltemi_translate::facts::Labels;
use serde::{Deserialize, Serialize};

use crate::error::QueryError;
use crate::explain::{Answer, At, Client, Request, To, Token, Verdict, explain};
use crate::world::World;

pub use report::{junit, sarif};

/// One value or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// One.
    One(String),
    /// Several: each is tried.
    Many(Vec<String>),
}

impl OneOrMany {
    fn all(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

/// A row: requests and their verdict.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Row {
    /// What it is about.
    #[serde(default)]
    pub name: Option<String>,
    /// Clients: `NAMESPACE/SERVICEACCOUNT`, principals, or `plaintext`.
    pub from: OneOrMany,
    /// Address of the client.
    #[serde(default, rename = "fromIP")]
    pub from_ip: Option<IpAddr>,
    /// The address of the original client, where trusted proxies say another one.
    #[serde(default, rename = "remoteIP")]
    pub remote_ip: Option<IpAddr>,
    /// Services: `SERVICE` or `SERVICE.NAMESPACE`.
    #[serde(default)]
    pub to: Option<OneOrMany>,
    /// Pods in place of Services: `NAMESPACE/KEY=VALUE,KEY=VALUE`.
    #[serde(default)]
    pub to_pod: Option<OneOrMany>,
    /// Gateways in place of Services: `GATEWAY` or `GATEWAY.NAMESPACE`.
    #[serde(default)]
    pub to_gateway: Option<OneOrMany>,
    /// The address that is addressed.
    #[serde(default, rename = "toIP")]
    pub to_ip: Option<IpAddr>,
    /// `waypoint` or `node-proxy`: the only enforcement point that is asked.
    #[serde(default)]
    pub at: Option<Place>,
    /// Port of the Service, or of the Pod.
    #[serde(default)]
    pub port: Option<u16>,
    /// HTTP methods.
    #[serde(default)]
    pub method: Option<OneOrMany>,
    /// HTTP paths.
    #[serde(default)]
    pub path: Option<OneOrMany>,
    /// HTTP host.
    #[serde(default)]
    pub host: Option<String>,
    /// HTTP headers.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Server name of TLS.
    #[serde(default)]
    pub sni: Option<String>,
    /// `ISSUER/SUBJECT` of the token.
    #[serde(default)]
    pub request_principal: Option<String>,
    /// Audiences of the token.
    #[serde(default)]
    pub audiences: Vec<String>,
    /// Authorized presenter of the token.
    #[serde(default)]
    pub presenter: Option<String>,
    /// Claims of the token by name, or by `[outer][inner]`.
    #[serde(default)]
    pub claims: BTreeMap<String, OneOrMany>,
    /// `ALLOW`, `DENY` or `UNKNOWN`.
    pub expect: Expect,
    /// The policy that has to decide, `NAMESPACE/NAME`.
    #[serde(default)]
    pub policy: Option<String>,
}

/// An enforcement point in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// The waypoint.
    Waypoint,
    /// The node proxy.
    NodeProxy,
}

/// An expected verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Expect {
    /// It may.
    Allow,
    /// It may not.
    Deny,
    /// It depends.
    Unknown,
}

impl Expect {
    fn verdict(self) -> Verdict {
        match self {
            Self::Allow => Verdict::Allow,
            Self::Deny => Verdict::Deny,
            Self::Unknown => Verdict::Unknown,
        }
    }
}

/// A table.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Files and folders of policies (and of what they are attached to), beside the table.
    #[serde(default)]
    pub policies: Vec<String>,
    /// Rows.
    pub tests: Vec<Row>,
}

/// What came of one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// Its row in the table, from 0.
    pub row: usize,
    /// What it is about.
    pub name: String,
    /// It came out as expected.
    pub passed: bool,
    /// What was expected.
    pub expected: Verdict,
    /// What came out.
    pub verdict: Verdict,
    /// Why it failed, or why it is so.
    pub message: String,
    /// What the objects lack and was assumed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub assumed: Vec<String>,
    /// What is probably not meant.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Reads a client as it is written on the command line and in tables.
///
/// # Errors
/// It is none of the three forms.
pub fn client(text: &str) -> Result<Client, QueryError> {
    // As logs and certificates write a principal.
    let principal = text.strip_prefix("spiffe://").unwrap_or(text);
    Ok(match principal.split('/').collect::<Vec<_>>().as_slice() {
        ["plaintext"] => Client::Plaintext,
        [namespace, account] => Client::Account((*namespace).to_owned(), (*account).to_owned()),
        [_, "ns", _, "sa", _] => Client::Principal(principal.to_owned()),
        _ => {
            return Err(QueryError::NoClient(text.to_owned()));
        }
    })
}

/// Reads `SERVICE` or `SERVICE.NAMESPACE`; `NAMESPACE/SERVICE`, as answers write it, is the same.
pub fn service(text: &str, namespace: &str) -> NamespacedName {
    if let Some((namespace, service)) = text.split_once('/') {
        return NamespacedName::new(namespace, service);
    }
    match text.split_once('.') {
        Some((service, rest)) => NamespacedName::new(rest.split('.').next().unwrap_or(rest), service),
        None => NamespacedName::new(namespace, text),
    }
}

/// Reads a Pod by its namespace and labels, `NAMESPACE/KEY=VALUE,KEY=VALUE`.
///
/// # Errors
/// It is something else.
pub fn pod(text: &str) -> Result<To, QueryError> {
    let (namespace, rest) = text.split_once('/').unwrap_or((text, ""));
    let pair = |text: &str| text.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
    let labels: Option<Labels> = rest.split(',').filter(|l| !l.is_empty()).map(pair).collect();
    match labels.filter(|_| !namespace.is_empty() && !namespace.contains('=')) {
        Some(labels) => Ok(To::Pod(namespace.to_owned(), labels)),
        None => Err(QueryError::NoPod(text.to_owned())),
    }
}

/// Reads a claim, `NAME=VALUE`; the name may be `[outer][inner]`.
///
/// # Errors
/// It is something else.
pub fn claim(text: &str) -> Result<(String, String), QueryError> {
    let split = if text.starts_with('[') {
        text.split_once("]=").map(|(name, value)| (format!("{name}]"), value.to_owned()))
    } else {
        text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()))
    };
    split.ok_or_else(|| QueryError::NoClaim(text.to_owned()))
}

/// The token that a row or a command line tells of.
///
/// # Errors
/// It contradicts itself.
pub fn token(
    principal: Option<&str>,
    audiences: &[String],
    presenter: Option<&str>,
    claims: impl IntoIterator<Item = (String, String)>,
) -> Result<Option<Token>, QueryError> {
    let named = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    let all = audiences.iter().map(|a| named("aud", a)).chain(presenter.map(|p| named("azp", p)));
    Token::told(principal, all.chain(claims))
}

/// Runs every request of a table. `namespace` is that of Services that are written without. `assume`: objects that
/// nothing says to exist are taken as there; a request that names one fails otherwise.
pub fn run(world: &World, table: &Table, namespace: &str, assume: bool) -> Vec<Outcome> {
    let mut out = Vec::new();
    for (index, row) in table.tests.iter().enumerate() {
        for request in requests(row, namespace) {
            let name = title(row, &request);
            let result = request.and_then(|(_, request)| explain(world, &request));
            out.push(outcome(index, row, name, result, assume));
        }
    }
    out
}

type Named = (String, Request);

/// What a row reaches: as it is written, and what that means.
fn reached(row: &Row, namespace: &str) -> Result<Vec<(String, To)>, QueryError> {
    match (&row.to, &row.to_pod, &row.to_gateway) {
        (Some(to), None, None) => {
            Ok(to.all().iter().map(|t| (t.clone(), To::Service(service(t, namespace)))).collect())
        }
        (None, Some(to), None) => to.all().iter().map(|t| Ok((t.clone(), pod(t)?))).collect(),
        (None, None, Some(to)) => {
            Ok(to.all().iter().map(|t| (t.clone(), To::Gateway(service(t, namespace)))).collect())
        }
        _ => Err(QueryError::NoDestination),
    }
}

fn requests(row: &Row, namespace: &str) -> Vec<Result<Named, QueryError>> {
    let optional = |list: &Option<OneOrMany>| match list {
        None => vec![None],
        Some(list) => list.all().iter().cloned().map(Some).collect::<Vec<_>>(),
    };
    let all = match reached(row, namespace) {
        Ok(all) => all,
        Err(why) => return vec![Err(why)],
    };
    let mut out = Vec::new();
    for from in row.from.all() {
        for (name, to) in &all {
            for method in optional(&row.method) {
                for path in optional(&row.path) {
                    let words = [
                        Some(from.clone()),
                        Some("to".into()),
                        Some(name.clone()),
                        method.clone(),
                        path.clone(),
                    ];
                    let text = words.into_iter().flatten().collect::<Vec<_>>().join(" ");
                    let request = request(row, from, to, (method.clone(), path));
                    out.push(request.map(|request| (text, request)));
                }
            }
        }
    }
    out
}

fn request(
    row: &Row,
    from: &str,
    to: &To,
    (method, path): (Option<String>, Option<String>),
) -> Result<Request, QueryError> {
    let claims = row.claims.iter().flat_map(|(k, all)| all.all().iter().map(|v| (k.clone(), v.clone())));
    Ok(Request {
        from: client(from)?,
        from_ip: row.from_ip,
        remote_ip: row.remote_ip,
        to: to.clone(),
        to_ip: row.to_ip,
        at: row.at.map(|at| if at == Place::Waypoint { At::Waypoint } else { At::NodeProxy }),
        port: row.port,
        method,
        path,
        host: row.host.clone(),
        headers: row.headers.clone().into_iter().collect(),
        sni: row.sni.clone(),
        token: token(row.request_principal.as_deref(), &row.audiences, row.presenter.as_deref(), claims)?,
    })
}

fn title(row: &Row, request: &Result<Named, QueryError>) -> String {
    match (&row.name, request) {
        (Some(name), Ok((text, _))) => format!("{name}: {text}"),
        (None, Ok((text, _))) => text.clone(),
        (name, Err(_)) => name.clone().unwrap_or_else(|| "a row".to_owned()),
    }
}

fn outcome(
    row: usize,
    wanted: &Row,
    name: String,
    result: Result<Answer, QueryError>,
    assume: bool,
) -> Outcome {
    let expected = wanted.expect.verdict();
    let failed = |verdict, message| Outcome {
        row,
        name: name.clone(),
        passed: false,
        expected,
        verdict,
        message,
        assumed: Vec::new(),
        warnings: Vec::new(),
    };
    let answer = match result {
        Ok(answer) => answer,
        Err(fault) => return failed(Verdict::Unknown, format!("the request means nothing: {fault}")),
    };
    let fault = fault(wanted, &answer, assume);
    let message = fault.clone().unwrap_or_else(|| answer.reason.clone());
    let (assumed, warnings) = (answer.assumed, answer.warnings);
    Outcome { passed: fault.is_none(), assumed, warnings, ..failed(answer.verdict, message) }
}

/// Why an answer is not what a row wants; `None` when it is.
fn fault(wanted: &Row, answer: &Answer, assume: bool) -> Option<String> {
    let (expected, verdict) = (wanted.expect.verdict(), answer.verdict);
    if !answer.missing.is_empty() {
        return Some(format!("the request names what is not there: {}", answer.missing.join("; ")));
    }
    if verdict != expected {
        return Some(format!("expected {expected}, got {verdict}: {}", answer.reason));
    }
    if !assume && !answer.presumed.is_empty() {
        let presumed = answer.presumed.join("; ");
        return Some(format!("nothing says that {presumed} (give its object, or --assume it)"));
    }
    let policy = wanted.policy.as_ref()?;
    // Of an ALLOW each proxy on the way decides.
    let halves = answer.halves.iter().filter(|_| verdict == Verdict::Allow).map(|half| &half.policy);
    if halves.chain([&answer.policy]).any(|decided| decided.as_ref() == Some(policy)) {
        return None;
    }
    let decided = answer.policy.as_deref().unwrap_or("no policy");
    Some(format!("expected {policy} to decide, {decided} did: {}", answer.reason))
}

#[cfg(test)]
mod tests {
    use meltemi_translate::MeshConfig;
    use serde_json::json;

    use super::*;

    #[test]
    fn clients_and_services_are_read_as_answers_and_logs_write_them() {
        assert_eq!(client("spiffe://td/ns/a/sa/b"), client("td/ns/a/sa/b"));
        assert_eq!(service("shop/web", "default"), service("web.shop.svc.cluster.local", "default"));
        assert!(client("curl.default").is_err());
    }

    #[test]
    fn rows_are_multiplied_and_judged() {
        let objects = [
            json!({"kind": "AuthorizationPolicy", "metadata": {"name": "l7", "namespace": "default"}, "spec": {
            "targetRefs": [{"kind": "Service", "group": "", "name": "web"}],
            "rules": [{"from": [{"source": {"principals": ["cluster.local/ns/default/sa/curl"]}}],
                       "to": [{"operation": {"methods": ["GET"]}}]}]}}),
        ];
        let world = World::read(&objects, MeshConfig::default());
        let table: Table = serde_json::from_value(json!({"tests": [
            {"from": "default/curl", "to": "web", "method": "GET", "path": ["/", "/a"], "expect": "ALLOW"},
            {"name": "others", "from": ["default/x", "default/y"], "to": "web.default", "method": ["GET", "PUT"], "path": "/",
             "expect": "DENY", "policy": "default/l7"},
            {"name": "wrong", "from": "default/x", "to": "web", "method": "GET", "path": "/", "expect": "ALLOW"},
            {"name": "other policy", "from": "default/x", "to": "web", "method": "GET", "path": "/", "expect": "DENY",
             "policy": "default/l4"},
            {"name": "no client", "from": "x", "to": "web", "expect": "DENY"},
        ]}))
        .unwrap();
        let all = run(&world, &table, "default", true);
        let failed: Vec<&str> = all.iter().filter(|o| !o.passed).map(|o| &*o.name).collect();
        assert_eq!(all.len(), 9);
        assert_eq!(
            failed,
            ["wrong: default/x to web GET /", "other policy: default/x to web GET /", "no client"]
        );
        let xml = junit("table.yaml", &all);
        assert!(xml.contains("tests=\"9\" failures=\"3\"") && xml.matches("<failure").count() == 3, "{xml}");
        let sarif = sarif("table.yaml", &all, &[1, 2, 3, 4, 5]);
        assert_eq!(sarif["runs"][0]["results"].as_array().map(Vec::len), Some(3));
        assert_eq!(
            sarif["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["region"]["startLine"],
            3
        );
        let typo = json!({"tests": [{"form": "a/b", "to": "web", "expect": "DENY"}]});
        assert!(serde_json::from_value::<Table>(typo).is_err());
    }
}
