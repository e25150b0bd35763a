// SPDX-License-Identifier: Apache-2.0
//! Lines of access logs: node proxies' (text and JSON), waypoints' (the usual text form of HTTP proxies, and JSON).

use std::net::SocketAddr;

use serde_json::Value;

use super::{Flow, Target, client};

/// How a node proxy says that a policy closed a connection.
const REJECTED: &str = "policy rejection";
/// How a waypoint says that a policy denied a request.
const DENIED: &str = "rbac_access_denied";

/// The decision that a line records; none when it records none. `namespace` is that of the proxy.
pub fn parse(line: &str, namespace: Option<&str>) -> Option<Flow> {
    let line = line.trim();
    if line.starts_with('{') {
        let value: Value = serde_json::from_str(line).ok()?;
        let get = |name: &str| match value.get(name)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        return connection(&get).or_else(|| request(&get, namespace));
    }
    if line.starts_with('[') {
        return http(line, namespace);
    }
    let (_, fields) = line.split_once("access\tconnection complete")?;
    let pairs = pairs(fields);
    connection(&|name: &str| pairs.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone()))
}

/// A connection, seen by the node proxy of its destination.
fn connection(get: &dyn Fn(&str) -> Option<String>) -> Option<Flow> {
    if get("direction")? != "inbound" {
        return None;
    }
    let error = get("error").unwrap_or_default();
    let allowed = !error.contains(REJECTED);
    // It failed for another reason: nobody decided, or it does not matter.
    if allowed && !error.is_empty() {
        return None;
    }
    let address = |name: &str| get(name).and_then(|a| a.parse::<SocketAddr>().ok());
    Some(Flow {
        from: Some(client(&get("src.identity").unwrap_or_default())),
        from_ip: address("src.addr").map(|a| a.ip()),
        to: Target::Pod(get("dst.namespace")?, get("dst.workload")?),
        port: address("dst.addr").map(|a| a.port()),
        http: None,
        allowed,
    })
}

/// A request in JSON.
fn request(get: &dyn Fn(&str) -> Option<String>, namespace: Option<&str>) -> Option<Flow> {
    let code: u16 = get("response_code")?.parse().ok()?;
    let details = get("response_code_details").unwrap_or_default();
    let identity = get("source_principal").or_else(|| get("downstream_peer_uri_san"));
    decision(
        (get("method")?, get("path")?),
        get("authority")?,
        (code, &details),
        identity.map(|i| client(&i)),
        namespace,
    )
}

/// `[time] "METHOD path HTTP/x" code flags details … "authority" "upstream" … source …`
fn http(line: &str, namespace: Option<&str>) -> Option<Flow> {
    let rest = line.split_once("] ")?.1;
    let words = words(rest);
    let first: Vec<&str> = words.first()?.split(' ').collect();
    let [method, path, _] = first.as_slice() else { return None };
    let code: u16 = words.get(1)?.parse().ok()?;
    // Where the authority and the client stand, counted from the start line.
    let authority = words.get(13)?.clone();
    let source = words.get(18)?;
    let known = source.starts_with("spiffe://") || source.parse::<SocketAddr>().is_ok();
    decision(
        ((*method).to_owned(), (*path).to_owned()),
        authority,
        (code, words.get(3)?),
        known.then(|| client(source)),
        namespace,
    )
}

fn decision(
    (method, path): (String, String),
    authority: String,
    (code, details): (u16, &str),
    from: Option<String>,
    namespace: Option<&str>,
) -> Option<Flow> {
    let denied = code == 403 && details.starts_with(DENIED);
    // Refused before any policy was asked.
    if !denied && (code == 400 || code == 401 || method == "-") {
        return None;
    }
    Some(Flow {
        from,
        from_ip: None,
        to: Target::Host(authority, namespace.map(str::to_owned)),
        port: None,
        http: Some((method, path)),
        allowed: !denied,
    })
}

/// `a=b c="d e"`; quoted values are unescaped.
fn pairs(text: &str) -> Vec<(String, String)> {
    words(text)
        .into_iter()
        .filter_map(|word| word.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())))
        .collect()
}

/// Words between blanks; a quoted part is of one word, without its quotes.
fn words(text: &str) -> Vec<String> {
    let (mut out, mut word, mut quoted, mut some) = (Vec::new(), String::new(), false, false);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                quoted = !quoted;
                some = true;
            }
            '\\' if quoted => word.extend(chars.next()),
            ' ' | '\t' if !quoted => {
                if some {
                    out.push(std::mem::take(&mut word));
                }
                some = false;
            }
            other => {
                word.push(other);
                some = true;
            }
        }
    }
    if some {
        out.push(word);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_decision_and_what_is_not() {
        let inbound = r#"{"level":"info","scope":"access","src.addr":"10.0.0.1:1","dst.addr":"10.0.0.2:80","dst.workload":"w","dst.namespace":"n","direction":"inbound"}"#;
        let flow = parse(inbound, None).unwrap();
        assert!(flow.allowed && flow.from.as_deref() == Some("plaintext") && flow.port == Some(80));
        assert_eq!(parse(&inbound.replace("inbound", "outbound"), None), None);
        assert_eq!(parse(&inbound.replace('}', r#","error":"connection refused"}"#), None), None);
        let json = r#"{"method":"GET","path":"/","authority":"web","response_code":403,"response_code_details":"rbac_access_denied_matched_policy[none]","source_principal":"spiffe://td/ns/a/sa/b"}"#;
        let flow = parse(json, Some("ns")).unwrap();
        assert!(!flow.allowed && flow.from.as_deref() == Some("td/ns/a/sa/b"));
        assert_eq!(flow.to, Target::Host("web".into(), Some("ns".into())));
        assert_eq!(parse(&json.replace("403", "400"), None), None);
        assert_eq!(parse("2026 info xds ready", None), None);
    }
}
