// SPDX-License-Identifier: Apache-2.0
//! How HTTP is read before it is judged: values of headers, hosts, methods, path templates. Pure.

use std::borrow::Cow;

pub use crate::path::{BadPath, Normalization, canonical_escapes, has_overlong, normalize, readings};

/// The value of a header without the white space around it (RFC 9110 §5.5), which HTTP/2 does not take off.
pub fn header_value(value: &str) -> &str {
    value.trim_matches([' ', '\t'])
}

/// The elements of a header that is a list (RFC 9110 §5.6.1); none when there is no comma. `a: 0` and `a: 1` may reach a
/// backend as `a: 0, 1`, and a client may send them so.
pub fn list_elements(value: &str) -> impl Iterator<Item = &str> {
    let elements = value.contains(',').then(|| value.split(',').map(header_value).filter(|e| !e.is_empty()));
    elements.into_iter().flatten()
}

/// Headers of one hop (RFC 9110 §7.6.1) in which a client tells the proxy itself something. Policies see them where the
/// proxy does something about them ([`is_seen`]).
pub const HOP_HEADERS: [&str; 6] =
    ["connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"];

/// Whether policies see a header with a value that a client sends; `name` in lower case. Of the [`HOP_HEADERS`] they see a
/// change of protocol, a body in chunks, and that trailers are accepted.
pub fn is_seen(name: &str, value: &str) -> bool {
    let value = header_value(value);
    match name {
        "connection" => value == "upgrade",
        "te" => value == "trailers",
        "transfer-encoding" => value == "chunked",
        "upgrade" => true,
        _ => !HOP_HEADERS.contains(&name),
    }
}

/// Whether a header that is seen may be gone all the same, so that a request has it and lacks it; `name` in lower case.
/// How a body is framed is a matter of each hop: HTTP/2 has no `transfer-encoding`, and Envoy judges requests without it.
pub fn is_of_framing(name: &str) -> bool {
    name == "transfer-encoding"
}

/// Whether policies never see a header, whatever a client sends; `name` in lower case.
pub fn is_never_seen(name: &str) -> bool {
    matches!(name, "keep-alive" | "proxy-connection")
}

/// The name in a host: without the port.
pub fn host_name(host: &str) -> &str {
    if host.starts_with('[') {
        // An IPv6 literal has colons of its own.
        host.find(']').map_or(host, |end| &host[..=end])
    } else {
        host.split(':').next().unwrap_or(host)
    }
}

/// The forms in which a route compares a host: as written, without its port, without a trailing dot.
pub fn host_forms(host: &str) -> [Option<&str>; 3] {
    let bare = host_name(host);
    let dotless = bare.strip_suffix('.');
    [Some(host), (bare != host).then_some(bare), dotless]
}

/// The host as it is forwarded: without a dot at the end of its name and without the port that plain HTTP has by default.
pub fn canonical_host(host: &str) -> Cow<'_, str> {
    let name = host_name(host);
    let port = Some(&host[name.len()..]).filter(|port| *port != ":80").unwrap_or_default();
    let dotless = name.strip_suffix('.').unwrap_or(name);
    if dotless.len() + port.len() == host.len() {
        return Cow::Borrowed(host);
    }
    Cow::Owned(format!("{dotless}{port}"))
}

/// Whether a path matches a template: `{*}` is one segment, not empty; `{**}` any number of characters.
pub fn template_matches(template: &str, path: &str) -> bool {
    let Some(open) = template.find('{') else { return template == path };
    let (literal, rest) = template.split_at(open);
    let Some(path) = path.strip_prefix(literal) else { return false };
    if let Some(tail) = rest.strip_prefix("{**}") {
        // The last operator: what follows is literal. At least one segment where something follows it.
        if tail.is_empty() {
            return true;
        }
        return path.strip_suffix(tail).is_some_and(|middle| tail.starts_with('/') || !middle.is_empty());
    }
    let Some(tail) = rest.strip_prefix("{*}") else { return false };
    let end = path.find('/').unwrap_or(path.len());
    end > 0 && template_matches(tail, &path[end..])
}

/// A method token that may be forwarded: as in RFC 9110, and upper case. Other cases were a way around method rules.
pub fn method_is_clean(method: &str) -> bool {
    !method.is_empty()
        && method
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b"-_.!#$%&'*+^`|~".contains(&b))
}

/// The path of a request target: of `/a?b`, of `http://host/a`.
pub fn path_of(target: &str) -> Cow<'_, str> {
    match target.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or(Cow::Borrowed("/"), |at| Cow::Borrowed(&rest[at..])),
        None => Cow::Borrowed(target),
    }
}
