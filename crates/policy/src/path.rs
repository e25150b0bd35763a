// SPDX-License-Identifier: Apache-2.0
//! Paths: normalisation in the mesh's four modes, the notation in which they are forwarded, and every path that a server
//! may read in one. Pure.

use std::borrow::Cow;

/// `meshConfig.pathNormalization.normalization`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Normalization {
    /// As received, but for the notation of escapes ([`canonical_escapes`]).
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

/// The path without query and fragment, normalised. Its [`canonical_escapes`] are what is forwarded.
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
        Normalization::DecodeAndMergeSlashes => {
            merge_slashes(&dots(&slashes(&decode(path, Decode::Slashes))))
        }
    })
}

fn base(path: &str) -> String {
    dots(&slashes(&decode(path, Decode::Unreserved)))
}

/// The path in the notation in which it is forwarded: the digits of escapes in upper case (RFC 3986 §6.2.2.1).
pub fn canonical_escapes(path: &str) -> Cow<'_, str> {
    let lower = |at: usize| path.as_bytes().get(at).is_some_and(|b| matches!(b, b'a'..=b'f'));
    let escapes =
        path.match_indices('%').map(|(at, _)| at).filter(|at| escaped(path.as_bytes(), *at).is_some());
    let wrong: Vec<usize> = escapes.flat_map(|at| [at + 1, at + 2]).filter(|at| lower(*at)).collect();
    if wrong.is_empty() {
        return Cow::Borrowed(path);
    }
    let mut bytes = path.as_bytes().to_vec();
    wrong.into_iter().for_each(|at| bytes[at] = bytes[at].to_ascii_uppercase());
    // ASCII took the place of ASCII.
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether a path holds a character in more bytes of UTF-8 than it needs (RFC 3629 §3): old decoders take `%C0%AE` for a
/// dot.
pub fn has_overlong(path: &str) -> bool {
    let bytes = decode_bytes(path, Decode::All);
    let continues = |byte: u8| (0x80..=0xbf).contains(&byte);
    bytes.windows(2).any(|pair| match pair[0] {
        0xc0 | 0xc1 => continues(pair[1]),
        0xe0 => (0x80..=0x9f).contains(&pair[1]),
        0xf0 => (0x80..=0x8f).contains(&pair[1]),
        _ => false,
    })
}

fn slashes(path: &str) -> String {
    path.replace('\\', "/")
}

/// Which escapes a server decodes, each of them once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decode {
    /// Those of unreserved characters (RFC 3986 §2.3).
    Unreserved,
    /// Those of slashes and backslashes as well.
    Slashes,
    /// All but those of slashes and backslashes.
    NoSlashes,
    /// All.
    All,
}

impl Decode {
    fn takes(self, byte: u8) -> bool {
        let slash = matches!(byte, b'/' | b'\\');
        let unreserved = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
        match self {
            Self::Unreserved => unreserved,
            Self::Slashes => unreserved || slash,
            Self::NoSlashes => !slash,
            Self::All => true,
        }
    }
}

/// The byte that is escaped at a place.
fn escaped(bytes: &[u8], at: usize) -> Option<u8> {
    let digit = |b: u8| char::from(b).to_digit(16);
    let pair = bytes.get(at + 1..at + 3).filter(|_| bytes[at] == b'%')?;
    u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()
}

fn decode_bytes(path: &str, how: Decode) -> Vec<u8> {
    let bytes = path.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match escaped(bytes, at).filter(|byte| how.takes(*byte)) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    out
}

fn decode(path: &str, how: Decode) -> String {
    String::from_utf8_lossy(&decode_bytes(path, how)).into_owned()
}

/// Everything decoded once, but for slashes and backslashes: what a policy's text says if escapes are only a notation.
/// `None` when that is no text.
pub(crate) fn decoded_but_slashes(text: &str) -> Option<String> {
    String::from_utf8(decode_bytes(text, Decode::NoSlashes)).ok()
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

fn without_parameters(path: &str) -> String {
    let segments: Vec<&str> = path.split('/').map(|s| s.split(';').next().unwrap_or_default()).collect();
    segments.join("/")
}

/// What stands behind the host where `//host/rest` is taken for a reference to another host (RFC 3986 §4.2), as by
/// `new URL(target, base)`. `None` when it is not.
fn behind_host(path: &str) -> Option<&str> {
    let slash = ['/', '\\'];
    let rest = path.trim_start_matches(slash);
    (path.len() - rest.len() > 1).then(|| rest.find(slash).map_or("/", |at| &rest[at..]))
}

/// What a server does with slashes and dot segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Segments {
    /// Removes dot segments.
    Dots,
    /// Removes dot segments, then merges slashes.
    DotsMerge,
    /// Merges slashes, then removes dot segments.
    MergeDots,
}

impl Segments {
    const ALL: [Self; 3] = [Self::Dots, Self::DotsMerge, Self::MergeDots];

    fn resolve(self, path: &str) -> String {
        match self {
            Self::Dots => dots(path),
            Self::DotsMerge => merge_slashes(&dots(path)),
            Self::MergeDots => dots(&merge_slashes(path)),
        }
    }
}

const DECODES: [Decode; 3] = [Decode::Unreserved, Decode::Slashes, Decode::All];

/// A way in which a server reads paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    /// `//host/rest` is `/rest`.
    host: bool,
    decode: Decode,
    /// Parameters behind `;` are no part of a segment.
    parameters: bool,
    segments: Segments,
}

/// All ways.
pub(crate) const WAYS: [Way; 36] = ways();

const fn ways() -> [Way; 36] {
    let first = Way { host: false, decode: DECODES[0], parameters: false, segments: Segments::Dots };
    let mut all = [first; 36];
    let mut at = 0;
    while at < all.len() {
        all[at] = Way {
            host: at % 2 == 1,
            decode: DECODES[at / 2 % 3],
            parameters: at / 6 % 2 == 1,
            segments: Segments::ALL[at / 12],
        };
        at += 1;
    }
    all
}

impl Way {
    /// What is read in a path.
    pub(crate) fn of_path(self, path: &str) -> String {
        let path = if self.host { behind_host(path).unwrap_or(path) } else { path };
        let mut out = slashes(&decode(path, self.decode));
        if self.parameters {
            out = without_parameters(&out);
        }
        self.segments.resolve(&out)
    }

    /// What is read in the text of a policy, which may be the end of a path only.
    pub(crate) fn of_pattern(self, text: &str) -> String {
        if text.starts_with(['/', '\\']) {
            return self.of_path(text);
        }
        let whole = self.of_path(&format!("/{text}"));
        whole.strip_prefix('/').unwrap_or(&whole).to_owned()
    }
}

/// The path as it is forwarded first; then as it was sent, where its escapes were in another notation; then what servers
/// of other habits could read in it, by all `WAYS`. Judged, never forwarded.
pub fn readings(path: &str) -> Vec<String> {
    let forwarded = canonical_escapes(path).into_owned();
    let mut all = vec![forwarded.clone()];
    if forwarded != path {
        all.push(path.to_owned());
    }
    let pair = |pair: &[u8]| matches!(pair, b"//" | b"/.");
    if !path.contains(['%', '\\', ';']) && !path.as_bytes().windows(2).any(pair) {
        // Most paths are plain: all read the same in them.
        return all;
    }
    let behind = behind_host(&forwarded);
    let mut starts: Vec<String> = Vec::new();
    for start in [Some(&*forwarded), behind].into_iter().flatten() {
        for how in DECODES {
            let decoded = slashes(&decode(start, how));
            let bare = decoded.contains(';').then(|| without_parameters(&decoded));
            for start in bare.into_iter().chain([decoded]) {
                if !starts.contains(&start) {
                    starts.push(start);
                }
            }
        }
    }
    for (start, segments) in starts.iter().flat_map(|start| Segments::ALL.map(|segments| (start, segments))) {
        let reading = segments.resolve(start);
        if !all.contains(&reading) {
            all.push(reading);
        }
    }
    all
}

#[cfg(test)]
mod tests;
