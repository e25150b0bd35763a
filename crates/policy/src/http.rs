// SPDX-License-Identifier: Apache-2.0
//! How HTTP is read before it is judged: normalisation of paths in the mesh's four modes, what else a backend could read
//! in a path, forms of a host, path templates. Pure.

use std::borrow::Cow;

/// `meshConfig.pathNormalization.normalization`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Normalization {
    /// As received.
    None,
    /// RFC 3986 dot segments and unreserved characters, `\` as `/`. Istio's default.
    #[default]
    Base,
    /// [`Normalization::Base`], and runs of `/` as one.
    MergeSlashes,
    /// Escaped slashes and backslashes are decoded first, then [`Normalization::MergeSlashes`].
    DecodeAndMergeSlashes,
}

/// A path that is refused outright (400).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// Does not begin with `/`.
    #[error("path does not begin with /")]
    NotAbsolute,
    /// An escaped or literal NUL.
    #[error("path contains a NUL")]
    Nul,
}

/// The path as it is judged and forwarded: without query and fragment, normalised.
///
/// # Errors
/// See [`BadPath`].
pub fn normalize(path: &str, mode: Normalization) -> Result<String, BadPath> {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    if !path.starts_with('/') {
        return Err(BadPath::NotAbsolute);
    }
    if path.contains('\0') || path.contains("%00") {
        return Err(BadPath::Nul);
    }
    Ok(match mode {
        Normalization::None => path.to_owned(),
        Normalization::Base => base(path),
        Normalization::MergeSlashes => merge_slashes(&base(path)),
        Normalization::DecodeAndMergeSlashes => merge_slashes(&dots(&slashes(&decode(path, true)))),
    })
}

fn base(path: &str) -> String {
    dots(&slashes(&decode(path, false)))
}

fn slashes(path: &str) -> String {
    path.replace('\\', "/")
}

/// Decodes escapes of unreserved characters (RFC 3986 §2.3), and of slashes when asked to; one pass only.
fn decode(path: &str, with_slashes: bool) -> String {
    let bytes = path.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%').then(|| bytes.get(at + 1..at + 3)).flatten().and_then(hex);
        match escaped {
            Some(byte) if unreserved(byte) || (with_slashes && matches!(byte, b'/' | b'\\')) => {
                out.push(byte);
                at += 3;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    // Only ASCII bytes were put in place of ASCII escapes.
    String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

fn hex(pair: &[u8]) -> Option<u8> {
    let digit = |b: u8| char::from(b).to_digit(16);
    u8::try_from(digit(*pair.first()?)? * 16 + digit(*pair.get(1)?)?).ok()
}

fn unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Removes dot segments (RFC 3986 §5.2.4).
fn dots(path: &str) -> String {
    let mut out: Vec<&str> = Vec::new();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let last = segments.len().saturating_sub(1);
    for (index, segment) in segments.into_iter().enumerate() {
        match segment {
            "." | ".." => {
                if segment == ".." {
                    out.pop();
                }
                if index == last {
                    out.push("");
                }
            }
            other => out.push(other),
        }
    }
    format!("/{}", out.join("/"))
}

fn merge_slashes(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !out.ends_with('/') {
            out.push(c);
        }
    }
    out
}

/// The normalised path first; then what backends of other habits could read in it: slashes merged (before dot segments
/// are removed, or after), escaped slashes decoded, parameters after `;` dropped. Judged, never forwarded.
pub fn readings(path: &str) -> Vec<String> {
    let mut all = vec![path.to_owned()];
    let pair = |pair: &[u8]| matches!(pair, b"//" | b"/.");
    if !path.contains(['%', '\\', ';']) && !path.as_bytes().windows(2).any(pair) {
        // Most paths are plain: all read the same in them.
        return all;
    }
    let mut add = |reading: String| {
        if !all.contains(&reading) {
            all.push(reading);
        }
    };
    for decoded in [decode(path, false), decode(path, true)] {
        let decoded = slashes(&decoded);
        add(merge_slashes(&dots(&decoded)));
        add(dots(&merge_slashes(&decoded)));
        if decoded.contains(';') {
            let plain: Vec<&str> =
                decoded.split('/').map(|s| s.split(';').next().unwrap_or_default()).collect();
            let plain = plain.join("/");
            add(dots(&plain));
            add(merge_slashes(&dots(&plain)));
            add(dots(&merge_slashes(&plain)));
        }
    }
    all
}

/// Whether the text of a policy holds what paths are read in several ways for. It then means it literally: the path as
/// forwarded is compared with it, and no other reading.
pub fn is_literal(text: &str) -> bool {
    let escaped = |pair: &[u8]| pair.eq_ignore_ascii_case(b"2f") || pair.eq_ignore_ascii_case(b"5c");
    text.contains([';', '\\'])
        || text.contains("//")
        || text
            .bytes()
            .enumerate()
            .any(|(at, byte)| byte == b'%' && text.as_bytes().get(at + 1..at + 3).is_some_and(escaped))
}

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

/// The forms in which a host is compared: as written, without its port, without a trailing dot.
pub fn host_forms(host: &str) -> [Option<&str>; 3] {
    let bare = if host.starts_with('[') {
        // An IPv6 literal has colons of its own.
        host.find(']').map_or(host, |end| &host[..=end])
    } else {
        host.split(':').next().unwrap_or(host)
    };
    let dotless = bare.strip_suffix('.');
    [Some(host), (bare != host).then_some(bare), dotless]
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

#[cfg(test)]
mod tests;
