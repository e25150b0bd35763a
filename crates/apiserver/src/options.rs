// SPDX-License-Identifier: Apache-2.0
//! Query parameters of a request.

use std::collections::HashMap;

use crate::selector::{Fields, Labels};
use crate::status::Refusal;

/// How unknown fields of built-in kinds are treated (`fieldValidation`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// Refused.
    Strict,
    /// Dropped with a warning; the default.
    #[default]
    Warn,
    /// Dropped.
    Ignore,
}

/// What becomes of the dependents of a deleted object (`propagationPolicy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// They are deleted after it.
    Background,
    /// They are deleted before it.
    Foreground,
    /// They stay.
    Orphan,
}

impl Propagation {
    /// All values, by name.
    pub const ALL: [(&'static str, Self); 3] =
        [("Background", Self::Background), ("Foreground", Self::Foreground), ("Orphan", Self::Orphan)];
}

/// What a row of a table carries beside its cells (`includeObject`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    /// The object's metadata; the default.
    #[default]
    Metadata,
    /// The whole object: kubectl sorts by its fields.
    Object,
    /// Nothing.
    None,
}

/// The parameters that the API knows; others are ignored, as in Kubernetes.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `labelSelector`
    pub labels: Labels,
    /// `fieldSelector`
    pub fields: Fields,
    /// `fieldSelector` as it was written.
    pub field_selector_text: Option<String>,
    /// `watch`
    pub watch: bool,
    /// `resourceVersion`
    pub resource_version: Option<String>,
    /// `limit`, 0 for none.
    pub limit: usize,
    /// `continue`
    pub continue_token: Option<String>,
    /// `timeoutSeconds`
    pub timeout_seconds: Option<u64>,
    /// `allowWatchBookmarks`
    pub bookmarks: bool,
    /// `sendInitialEvents`
    pub send_initial_events: bool,
    /// `dryRun=All`
    pub dry_run: bool,
    /// `fieldManager`
    pub field_manager: Option<String>,
    /// `fieldValidation`
    pub field_validation: FieldValidation,
    /// `includeObject`
    pub include_object: IncludeObject,
    /// `force`
    pub force: bool,
    /// `gracePeriodSeconds`
    pub grace_period: Option<i64>,
    /// `propagationPolicy`
    pub propagation: Option<Propagation>,
    /// `orphanDependents`, the older form of `propagationPolicy`.
    pub orphan: Option<bool>,
    /// Every parameter as written, in order, for streams.
    pub raw: Vec<(String, String)>,
}

impl Options {
    /// Parses a query.
    ///
    /// # Errors
    /// 400 naming the parameter that cannot be read.
    pub fn parse(query: &str) -> Result<Self, Refusal> {
        let raw: Vec<(String, String)> = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                Ok((decode(key)?, decode(value)?))
            })
            .collect::<Result<_, Refusal>>()?;
        let map: HashMap<&str, &str> = raw.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let text = |key: &str| map.get(key).filter(|v| !v.is_empty()).map(|v| (*v).to_owned());
        let flag = |key: &str| Ok::<_, Refusal>(boolean(&map, key)?.unwrap_or(false));
        let dry_run = one_of(&map, "dryRun", &[("All", true)])?.unwrap_or(false);
        let field_validation = one_of(
            &map,
            "fieldValidation",
            &[
                ("Ignore", FieldValidation::Ignore),
                ("Warn", FieldValidation::Warn),
                ("Strict", FieldValidation::Strict),
            ],
        )?;
        let include_object = one_of(
            &map,
            "includeObject",
            &[
                ("None", IncludeObject::None),
                ("Metadata", IncludeObject::Metadata),
                ("Object", IncludeObject::Object),
            ],
        )?;
        Ok(Self {
            labels: Labels::parse(map.get("labelSelector").copied().unwrap_or_default())?,
            fields: Fields::parse(map.get("fieldSelector").copied().unwrap_or_default())?,
            field_selector_text: text("fieldSelector"),
            watch: flag("watch")?,
            resource_version: text("resourceVersion"),
            limit: number(&map, "limit")?.unwrap_or(0),
            continue_token: text("continue"),
            timeout_seconds: number(&map, "timeoutSeconds")?,
            bookmarks: flag("allowWatchBookmarks")?,
            send_initial_events: flag("sendInitialEvents")?,
            dry_run,
            field_manager: text("fieldManager").map(manager_name).transpose()?,
            field_validation: field_validation.unwrap_or_default(),
            include_object: include_object.unwrap_or_default(),
            force: flag("force")?,
            grace_period: number(&map, "gracePeriodSeconds")?,
            propagation: one_of(&map, "propagationPolicy", &Propagation::ALL)?,
            orphan: boolean(&map, "orphanDependents")?,
            raw,
        })
    }
}

/// One of the values that a parameter can have; none when it is absent or empty.
fn one_of<T: Copy>(map: &HashMap<&str, &str>, key: &str, values: &[(&str, T)]) -> Result<Option<T>, Refusal> {
    let Some(given) = map.get(key).filter(|v| !v.is_empty()) else { return Ok(None) };
    let found = values.iter().find(|(name, _)| name == given);
    found.map(|(_, value)| Some(*value)).ok_or_else(|| {
        let supported: Vec<String> = values.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        Refusal::bad_request(format!(
            "{key}: Unsupported value: \"{given}\": supported values: {}",
            supported.join(", ")
        ))
    })
}

/// A flag that is there without a value is set, as in Kubernetes; any other value than these is a slip.
fn boolean(map: &HashMap<&str, &str>, key: &str) -> Result<Option<bool>, Refusal> {
    match map.get(key).map(|value| value.to_ascii_lowercase()).as_deref() {
        None => Ok(None),
        Some("" | "1" | "true") => Ok(Some(true)),
        Some("0" | "false") => Ok(Some(false)),
        Some(given) => {
            let why = format!("{key}: Invalid value: \"{given}\": must be true or false");
            Err(Refusal::bad_request(why))
        }
    }
}

/// Longest name of a field manager, as in Kubernetes.
const MAX_MANAGER: usize = 128;

fn manager_name(name: String) -> Result<String, Refusal> {
    if name.chars().count() <= MAX_MANAGER && !name.chars().any(char::is_control) {
        return Ok(name);
    }
    Err(Refusal::bad_request(format!(
        "fieldManager: Invalid value: {name:?}: must be printable and no longer than {MAX_MANAGER} characters"
    )))
}

fn number<N: std::str::FromStr>(map: &HashMap<&str, &str>, key: &str) -> Result<Option<N>, Refusal> {
    match map.get(key).filter(|v| !v.is_empty()) {
        None => Ok(None),
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|_| Refusal::bad_request(format!("{key}: Invalid value: \"{text}\": not a number"))),
    }
}

fn decode(text: &str) -> Result<String, Refusal> {
    let text = text.replace('+', " ");
    percent_encoding::percent_decode_str(&text)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| Refusal::bad_request("the query is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_an_option_does_not_have_are_refused_by_name() {
        let cases = [
            ("propagationPolicy=orphan", Some("propagationPolicy")),
            ("propagationPolicy=Orphan", None),
            ("fieldValidation=strict", Some("fieldValidation")),
            ("dryRun=all", Some("dryRun")),
            ("dryRun=All", None),
            ("dryRun=", None),
            ("allowWatchBookmarks=maybe", Some("allowWatchBookmarks")),
            ("watch=yes", Some("watch")),
            ("watch=True", None),
            ("watch", None),
            ("limit=abc", Some("limit")),
            ("limit=-1", Some("limit")),
            ("timeoutSeconds=x", Some("timeoutSeconds")),
            ("includeObject=all", Some("includeObject")),
            ("orphanDependents=2", Some("orphanDependents")),
            ("fieldManager=a%0Ab", Some("fieldManager")),
            ("labelSelector=a%3D%3D%3D", Some("a===")),
            ("labelSelector=a b", Some("a b")),
            ("fieldSelector=metadata.name", Some("metadata.name")),
            ("unknownParameter=x", None),
        ];
        for (query, expected) in cases {
            match (Options::parse(query), expected) {
                (Ok(_), None) => {}
                (Err(refusal), Some(name)) => {
                    assert_eq!(refusal.code, 400, "{query}");
                    assert!(refusal.message.contains(name), "{query}: {}", refusal.message);
                }
                (parsed, _) => panic!("{query}: {parsed:?}"),
            }
        }
        let named = |length: usize| Options::parse(&format!("fieldManager={}", "x".repeat(length)));
        assert!(named(MAX_MANAGER).is_ok() && named(MAX_MANAGER + 1).is_err());
    }
}
