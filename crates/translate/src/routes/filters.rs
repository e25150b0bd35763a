// SPDX-License-Identifier: Apache-2.0
//! From the filters of an HTTPRoute to what a layer 7 proxy does.

use gateway_api::experimental::httproutes::{
    HttpRouteRules, HttpRouteRulesBackendRefs, HttpRouteRulesFilters, HttpRouteRulesFiltersCors,
    HttpRouteRulesFiltersRequestMirror, HttpRouteRulesFiltersRequestMirrorBackendRef,
    HttpRouteRulesFiltersType,
};
use meltemi_model::{NamespacedHostname, l7};
use serde_json::Value;

/// A service that a filter names.
pub(super) type Reference<'a> = &'a HttpRouteRulesFiltersRequestMirrorBackendRef;
/// Finds the service and port of a reference; none when it leads nowhere, which the route's status says.
pub(super) type Resolve<'a> = &'a dyn Fn(Reference<'_>) -> Option<(NamespacedHostname, u16)>;

/// Seconds that browsers keep the answer to a preflight request when the route does not say it (Gateway API,
/// `HTTPCORSFilter.maxAge`).
const DEFAULT_MAX_AGE: u32 = 5;

/// What of a rule no proxy can carry out, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RuleError {
    #[error("a {0} filter without its settings")]
    Incomplete(&'static str),
    #[error("an {0} filter is not supported")]
    Unsupported(&'static str),
    #[error("a CORS filter of a single backend is not supported")]
    CorsOfBackend,
    #[error("{kind}: {why}")]
    Filter { kind: String, why: l7::InvalidFilter },
    #[error("RequestMirror: percent and fraction exclude each other")]
    TwoShares,
    #[error("RequestMirror: {0} of {1} requests is no share")]
    Share(i32, i32),
    #[error("CORS: maxAge {0} is negative")]
    NegativeAge(i32),
    #[error("backendRefs[].filters: {0}")]
    Unreadable(String),
    #[error("retry.attempts {0} is not between 0 and {MAX_RETRIES}")]
    Attempts(i64),
    #[error("retry.codes {0} is not between 400 and 599")]
    Code(i64),
    #[error("{field} {text:?} is not supported")]
    Duration { field: &'static str, text: String },
    #[error("sessionPersistence is not supported")]
    SessionPersistence,
    #[error("replacePrefixMatch needs matches of type PathPrefix")]
    NoPrefix,
}

/// How often a request may be sent again at most: each attempt holds the request, and may be one too many for a backend
/// that fails.
pub(super) const MAX_RETRIES: i64 = 10;

/// The filters of a rule.
///
/// # Errors
/// Names the filter that no proxy can carry out, and why.
pub(super) fn of_rule(rule: &HttpRouteRules, resolve: Resolve<'_>) -> Result<Vec<l7::Filter>, RuleError> {
    convert_all(rule.filters.iter().flatten(), resolve)
}

/// The filters of one backend of a rule.
///
/// # Errors
/// As [`of_rule`].
pub(super) fn of_backend(
    backend: &HttpRouteRulesBackendRefs,
    resolve: Resolve<'_>,
) -> Result<Vec<l7::Filter>, RuleError> {
    let filters = rule_filters(backend)?;
    if filters.iter().any(|filter| matches!(filter.r#type, HttpRouteRulesFiltersType::Cors)) {
        // Browsers ask before the request, when no backend has been chosen.
        return Err(RuleError::CorsOfBackend);
    }
    convert_all(filters.iter(), resolve)
}

/// The filters of a backend in the types of those of a rule: they are written in the same way.
fn rule_filters(backend: &HttpRouteRulesBackendRefs) -> Result<Vec<HttpRouteRulesFilters>, RuleError> {
    let written = serde_json::to_value(backend.filters.as_deref().unwrap_or_default());
    written.and_then(serde_json::from_value).map_err(|e| RuleError::Unreadable(e.to_string()))
}

/// Every reference of a rule to a service that gets copies, also of the rule's backends.
pub(super) fn mirrors(rule: &HttpRouteRules) -> Vec<HttpRouteRulesFiltersRequestMirrorBackendRef> {
    let of_backends = rule.backend_refs.iter().flatten().filter_map(|backend| rule_filters(backend).ok());
    let all = rule.filters.iter().flatten().cloned().chain(of_backends.flatten());
    all.filter_map(|filter| Some(filter.request_mirror?.backend_ref)).collect()
}

fn convert_all<'a>(
    written: impl Iterator<Item = &'a HttpRouteRulesFilters>,
    resolve: Resolve<'_>,
) -> Result<Vec<l7::Filter>, RuleError> {
    let mut filters = Vec::new();
    for filter in written {
        let Some(converted) = convert(filter, resolve)? else { continue };
        let kind = || word(&filter.r#type).unwrap_or_default();
        converted.check().map_err(|why| RuleError::Filter { kind: kind(), why })?;
        filters.push(converted);
    }
    Ok(filters)
}

/// Whether a filter replaces the prefix that the rule matched.
pub(super) fn is_prefix_change(filter: &l7::Filter) -> bool {
    let (l7::Filter::Rewrite { path, .. } | l7::Filter::Redirect { path, .. }) = filter else { return false };
    matches!(path, Some(l7::PathChange::Prefix(_)))
}

/// An enum of the API as the word that is written in YAML.
pub(super) fn word(value: &impl serde::Serialize) -> Option<String> {
    match serde_json::to_value(value) {
        Ok(Value::String(text)) => Some(text),
        _ => None,
    }
}

/// None for a copy that goes nowhere.
fn convert(filter: &HttpRouteRulesFilters, resolve: Resolve<'_>) -> Result<Option<l7::Filter>, RuleError> {
    let missing = RuleError::Incomplete;
    let converted = match filter.r#type {
        HttpRouteRulesFiltersType::RequestHeaderModifier => {
            let m = filter.request_header_modifier.as_ref();
            let m = m.ok_or_else(|| missing("RequestHeaderModifier"))?;
            let changes = l7::HeaderChanges {
                set: m.set.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect(),
                add: m.add.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect(),
                remove: m.remove.clone().unwrap_or_default(),
            };
            l7::Filter::RequestHeaders { changes }
        }
        HttpRouteRulesFiltersType::ResponseHeaderModifier => {
            let m = filter.response_header_modifier.as_ref();
            let m = m.ok_or_else(|| missing("ResponseHeaderModifier"))?;
            let changes = l7::HeaderChanges {
                set: m.set.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect(),
                add: m.add.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect(),
                remove: m.remove.clone().unwrap_or_default(),
            };
            l7::Filter::ResponseHeaders { changes }
        }
        HttpRouteRulesFiltersType::RequestRedirect => {
            redirect(filter).ok_or_else(|| missing("RequestRedirect"))?
        }
        HttpRouteRulesFiltersType::UrlRewrite => {
            let m = filter.url_rewrite.as_ref().ok_or_else(|| missing("URLRewrite"))?;
            let path = m
                .path
                .as_ref()
                .and_then(|p| path_change(p.replace_full_path.as_ref(), p.replace_prefix_match.as_ref()));
            l7::Filter::Rewrite { host: m.hostname.clone(), path }
        }
        HttpRouteRulesFiltersType::RequestMirror => {
            let m = filter.request_mirror.as_ref().ok_or_else(|| missing("RequestMirror"))?;
            let (numerator, denominator) = share(m)?;
            let Some((service, port)) = resolve(&m.backend_ref) else { return Ok(None) };
            l7::Filter::Mirror { service, port, denominator, numerator }
        }
        HttpRouteRulesFiltersType::Cors => {
            l7::Filter::Cors { cors: cors(filter.cors.as_ref().ok_or_else(|| missing("CORS"))?)? }
        }
        HttpRouteRulesFiltersType::ExtensionRef => {
            return Err(RuleError::Unsupported("ExtensionRef"));
        }
        HttpRouteRulesFiltersType::ExternalAuth => {
            return Err(RuleError::Unsupported("ExternalAuth"));
        }
    };
    Ok(Some(converted))
}

/// How many of how many requests are copied; all when nothing is said.
fn share(mirror: &HttpRouteRulesFiltersRequestMirror) -> Result<(u32, u32), RuleError> {
    let (numerator, denominator) = match (mirror.percent, &mirror.fraction) {
        (Some(_), Some(_)) => return Err(RuleError::TwoShares),
        (Some(percent), None) => (percent, 100),
        (None, Some(fraction)) => (fraction.numerator, fraction.denominator.unwrap_or(100)),
        (None, None) => (1, 1),
    };
    match (u32::try_from(numerator), u32::try_from(denominator)) {
        (Ok(numerator), Ok(denominator)) => Ok((numerator, denominator)),
        _ => Err(RuleError::Share(numerator, denominator)),
    }
}

fn cors(written: &HttpRouteRulesFiltersCors) -> Result<l7::Cors, RuleError> {
    let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let max_age = match written.max_age {
        None => DEFAULT_MAX_AGE,
        Some(seconds) => u32::try_from(seconds).map_err(|_| RuleError::NegativeAge(seconds))?,
    };
    Ok(l7::Cors {
        origins: list(&written.allow_origins),
        methods: list(&written.allow_methods),
        headers: list(&written.allow_headers),
        exposed: list(&written.expose_headers),
        credentials: written.allow_credentials.unwrap_or(false),
        max_age,
    })
}

fn redirect(filter: &HttpRouteRulesFilters) -> Option<l7::Filter> {
    let m = filter.request_redirect.as_ref()?;
    let path = m
        .path
        .as_ref()
        .and_then(|p| path_change(p.replace_full_path.as_ref(), p.replace_prefix_match.as_ref()));
    Some(l7::Filter::Redirect {
        scheme: m.scheme.as_ref().and_then(word),
        host: m.hostname.clone(),
        port: m.port.and_then(|p| u16::try_from(p).ok()),
        path,
        code: m.status_code.and_then(|code| u16::try_from(code).ok()).unwrap_or(302),
    })
}

fn path_change(full: Option<&String>, prefix: Option<&String>) -> Option<l7::PathChange> {
    match (full, prefix) {
        (Some(full), _) => Some(l7::PathChange::Full(full.clone())),
        (None, Some(prefix)) => Some(l7::PathChange::Prefix(prefix.clone())),
        (None, None) => None,
    }
}
