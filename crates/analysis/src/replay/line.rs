// SPDX-License-Identifier: Apache-2.0
//! Lines of access logs: node proxies' (text and JSON), waypoints' (the usual text form of HTTP proxies, and JSON).

use std::net::SocketAddr;

use serde_json::Value;

use super::{Flow, Target, Writer, client};

/// How a node proxy says that a policy closed a connection.
const REJECTED: &str = "policy rejection";
/// How a waypoint says that a policy denied a request.
const DENIED: &str = "rbac_access_denied";
/// How a waypoint says that an answer is the application's.
const UPSTREAM: &str = "via_upstream";
/// How it says that a request came to no policy.
const BEFORE: &[&str] = &["malformed_request", "request_is_ambiguous", "overload"];
/// Paths of this length may have been cut.
const CUT: usize = 1000;

/// What a line of a log is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// It records a decision.
    Decision(Flow),
    /// It is of an access log and records no decision of policies: the client's side, a connection that failed, a request
    /// that was not understood, something else altogether.
    Other,
    /// It is of an access log, and what it says cannot be told.
    Unreadable(&'static str),
}

/// Reads a line; `writer` is the proxy that wrote it, where it is known.
pub fn parse(line: &str, writer: Option<&Writer>) -> Line {
    let line = line.trim();
    // `kubectl logs --prefix` puts the Pod in front.
    let line =
        line.strip_prefix("[pod/").and_then(|rest| rest.split_once("] ")).map_or(line, |(_, line)| line);
    if line.starts_with('{') {
        let Ok(value) = serde_json::from_str::<Value>(line) else { return Line::Other };
        let get = |name: &str| match value.get(name)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        if get("direction").is_some() {
            return connection(&get, writer);
        }
        // Only who writes down identities says by their absence that there was none.
        let names = value.get("source_principal").is_some();
        return request(&get, names, writer);
    }
    if line.starts_with('[') {
        return http(line, writer);
    }
    let Some((_, fields)) = line.split_once("access\tconnection complete") else { return Line::Other };
    let pairs = pairs(fields);
    connection(&|name: &str| pairs.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone()), writer)
}

/// A connection, seen by the node proxy of its destination, or by a waypoint that reads no requests on the port.
fn connection(get: &dyn Fn(&str) -> Option<String>, writer: Option<&Writer>) -> Line {
    if get("direction").as_deref() != Some("inbound") {
        return Line::Other;
    }
    let error = get("error").unwrap_or_default();
    // A waypoint names the policy at once.
    let allowed = !error.contains(REJECTED) && !error.starts_with("policy=");
    // It failed for another reason: nobody decided, or it does not matter.
    if allowed && !error.is_empty() {
        return Line::Other;
    }
    let address = |name: &str| get(name).and_then(|a| a.parse::<SocketAddr>().ok());
    let to = match (get("dst.namespace"), get("dst.workload"), get("dst.service")) {
        (Some(namespace), Some(pod), _) => Target::Pod(namespace, pod),
        (_, _, Some(service)) => Target::Host(service, writer.cloned()),
        _ => return Line::Unreadable("a connection without its destination"),
    };
    // What is dialled of a Pod is the tunnel; what is meant is inside of it.
    let Some(destination) = address("dst.hbone_addr").or_else(|| address("dst.addr")) else {
        return Line::Unreadable("a connection without its destination's address");
    };
    Line::Decision(Flow {
        from: Some(client(&get("src.identity").unwrap_or_default())),
        from_ip: address("src.addr").map(|a| a.ip()),
        to,
        to_ip: Some(destination.ip()),
        port: Some(destination.port()),
        http: None,
        allowed,
    })
}

/// A request in JSON; `names`: its writer would have told the client's identity.
fn request(get: &dyn Fn(&str) -> Option<String>, names: bool, writer: Option<&Writer>) -> Line {
    let Some(code) = get("response_code").and_then(|c| c.parse::<u16>().ok()) else { return Line::Other };
    let (Some(method), Some(path), Some(authority)) = (get("method"), get("path"), get("authority")) else {
        return Line::Unreadable("a request without its method, path or authority");
    };
    let details = get("response_code_details").unwrap_or_default();
    let identity = get("source_principal").or_else(|| get("downstream_peer_uri_san"));
    let identity = identity.or_else(|| get("downstream_remote_address").filter(|_| names));
    decision((method, path), authority, (code, &details), identity.as_deref(), writer)
}

/// `[time] "METHOD path HTTP/x" code flags details … "authority" "upstream" … source …`
fn http(line: &str, writer: Option<&Writer>) -> Line {
    let Some((_, rest)) = line.split_once("] \"") else { return Line::Other };
    let words = words(&format!("\"{rest}"));
    let start: Vec<&str> = words.first().map(|w| w.split(' ').collect()).unwrap_or_default();
    // Where the authority and the client stand, counted from the start line.
    let ([method, path, _], Some(code), Some(details), Some(authority), Some(source)) = (
        &*start,
        words.get(1).and_then(|c| c.parse::<u16>().ok()),
        words.get(3),
        words.get(13),
        words.get(18),
    ) else {
        return Line::Unreadable("a request in another form");
    };
    let request = ((*method).to_owned(), (*path).to_owned());
    decision(request, authority.clone(), (code, details), Some(source), writer)
}

fn decision(
    (method, path): (String, String),
    authority: String,
    (code, details): (u16, &str),
    source: Option<&str>,
    writer: Option<&Writer>,
) -> Line {
    let denied = code == 403 && details.starts_with(DENIED);
    // Refused before any policy was asked; an application may answer so, too.
    let before =
        BEFORE.contains(&details) || (matches!(code, 400 | 401) && details != UPSTREAM) || method == "-";
    if !denied && before {
        return Line::Other;
    }
    if path.len() >= CUT && path.ends_with("...") {
        return Line::Unreadable("a path that was cut");
    }
    let address = source.and_then(|s| s.parse::<SocketAddr>().ok());
    let from = source.filter(|s| s.starts_with("spiffe://") || address.is_some()).map(client);
    Line::Decision(Flow {
        from,
        from_ip: address.map(|a| a.ip()),
        to: Target::Host(authority, writer.cloned()),
        to_ip: None,
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

    fn flow(line: &str) -> Flow {
        let writer = Writer { namespace: "ns".into(), gateway: None };
        match parse(line, Some(&writer)) {
            Line::Decision(flow) => flow,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn is_other(line: &str) -> bool {
        parse(line, None) == Line::Other
    }

    /// As proxies print them.
    const TUNNEL: &str = "2026-11-21T11:05:30.560193207Z\terror\taccess\tconnection complete\tsrc.addr=10.244.1.8:55078 src.workload=\"curl-x\" src.namespace=\"default\" src.identity=\"spiffe://cluster.local/ns/default/sa/curl\" dst.addr=10.244.1.2:15008 dst.hbone_addr=10.244.1.2:9080 dst.service=\"details.default.svc.cluster.local\" dst.workload=\"details-v1-y\" dst.namespace=\"default\" dst.identity=\"spiffe://cluster.local/ns/default/sa/bookinfo-details\" direction=\"inbound\" bytes_sent=0 bytes_recv=0 duration=\"0ms\" error=\"connection closed due to policy rejection: explicitly denied by: default/l4 rule[0]\"";
    const STREAM: &str = "2026-11-21T11:05:30Z\terror\taccess\tconnection complete\tsrc.addr=10.244.1.8:49376 src.identity=\"spiffe://cluster.local/ns/default/sa/curl\" dst.addr=10.96.89.224:5432 dst.service=\"db.default.svc.cluster.local\" direction=\"inbound\" bytes_sent=0 bytes_recv=0 duration=\"0ms\" error=\"policy=default/db rule=0 clause=from(principals=[cluster.local/ns/default/sa/bookinfo-reviews]); allow policies exist, but none allowed\"";
    const TRIAL: &str = "[2026-11-21T11:05:29Z] \"GET /productpage?a=%22 HTTP/1.1\" 200 - via_upstream - \"dry_run=deny policy=default/trial rule=0\" - - 44 - \"-\" \"curl/7.88.1\" \"-\" \"productpage:9080\" \"10.244.1.7:9080\" - - - spiffe://cluster.local/ns/default/sa/curl - -";

    #[test]
    fn lines_of_text_as_proxies_print_them() {
        let tunnel = flow(TUNNEL);
        assert!(!tunnel.allowed && tunnel.port == Some(9080), "the tunnel's port is not the application's");
        assert_eq!(tunnel.to, Target::Pod("default".into(), "details-v1-y".into()));
        assert_eq!(tunnel.to_ip, "10.244.1.2".parse().ok());
        let stream = flow(STREAM);
        assert!(!stream.allowed && stream.port == Some(5432) && stream.http.is_none());
        assert!(matches!(&stream.to, Target::Host(host, Some(_)) if host == "db.default.svc.cluster.local"));
        // What policies on trial say is no decision; the request was let through.
        let trial = flow(TRIAL);
        assert!(trial.allowed && trial.from.as_deref() == Some("cluster.local/ns/default/sa/curl"));
        assert_eq!(trial.http, Some(("GET".into(), "/productpage?a=%22".into())));
        let denied = TRIAL.replace("200 - via_upstream", "403 - rbac_access_denied_matched_policy[none]");
        assert!(!flow(&denied).allowed);
        let outside = flow(&TRIAL.replace("spiffe://cluster.local/ns/default/sa/curl", "10.0.0.9:1234"));
        assert_eq!((outside.from.as_deref(), outside.from_ip), (Some("plaintext"), "10.0.0.9".parse().ok()));
        assert_eq!(flow(&TRIAL.replace("spiffe://cluster.local/ns/default/sa/curl", "-")).from, None);
        assert_eq!(flow(&format!("[pod/ztunnel-x/istio-proxy] {TUNNEL}")), tunnel);
        assert_eq!(flow(&format!("[pod/waypoint-x/istio-proxy] {TRIAL}")), trial);
        // An application may answer what a proxy answers before policies are asked.
        assert!(flow(&TRIAL.replace(" 200 ", " 401 ")).allowed);
        assert!(is_other(&TRIAL.replace("200 - via_upstream", "400 - malformed_request")));
        assert!(is_other(&TRIAL.replace("200 - via_upstream", "503 - overload")));
        let unreadable = |line: &str| matches!(parse(line, None), Line::Unreadable(_));
        assert!(unreadable(&TRIAL.replace("/productpage?a=%22", &format!("/{}...", "a".repeat(1000)))));
        assert!(unreadable("[T] \"GET / HTTP/1.1\" 200"));
        assert!(unreadable(&TUNNEL.replace("dst.hbone_addr", "x").replace("dst.addr", "y")));
        assert!(is_other("[T] something") && is_other("2026-11-21 INFO xds: connected=true"));
    }

    #[test]
    fn what_is_a_decision_and_what_is_not() {
        let inbound = r#"{"level":"info","scope":"access","src.addr":"10.0.0.1:1","dst.addr":"10.0.0.2:80","dst.workload":"w","dst.namespace":"n","direction":"inbound"}"#;
        let plain = flow(inbound);
        assert!(plain.allowed && plain.from.as_deref() == Some("plaintext") && plain.port == Some(80));
        assert!(is_other(&inbound.replace("inbound", "outbound")));
        assert!(is_other(&inbound.replace('}', r#","error":"connection refused"}"#)));
        let json = r#"{"method":"GET","path":"/","authority":"web","response_code":403,"response_code_details":"rbac_access_denied_matched_policy[none]","source_principal":"spiffe://td/ns/a/sa/b"}"#;
        let denied = flow(json);
        assert!(!denied.allowed && denied.from.as_deref() == Some("td/ns/a/sa/b"));
        assert!(
            matches!(&denied.to, Target::Host(host, Some(writer)) if host == "web" && writer.namespace == "ns")
        );
        let address = r#""downstream_remote_address":"10.0.0.1:4""#;
        let unnamed = json.replace(r#""source_principal":"spiffe://td/ns/a/sa/b""#, address);
        assert_eq!(flow(&unnamed).from, None, "a log that never names identities");
        let none = unnamed.replace(address, &format!(r#""source_principal":null,{address}"#));
        assert_eq!(flow(&none).from.as_deref(), Some("plaintext"));
        assert!(is_other(&json.replace("403", "400")));
        assert!(is_other("2026 info xds ready") && is_other("{}") && is_other("{"));
        assert!(matches!(parse(&json.replace("path", "p"), None), Line::Unreadable(_)));
    }
}
