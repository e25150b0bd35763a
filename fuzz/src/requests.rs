// SPDX-License-Identifier: Apache-2.0
//! Paths, hosts, templates and identities.

use meltemi_model::{NamespacedHostname, NamespacedName, SpiffeId, TrustDomain};
use meltemi_policy::http::{
    Normalization, canonical_escapes, host_forms, method_is_clean, normalize, path_of, readings,
    template_matches,
};
use meltemi_resources::policies::validate;

/// A path, in every mode.
pub fn path(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = path_of(text);
    for mode in [
        Normalization::None,
        Normalization::Base,
        Normalization::MergeSlashes,
        Normalization::DecodeAndMergeSlashes,
    ] {
        let Ok(normal) = normalize(text, mode) else { continue };
        assert!(normal.starts_with('/') && !normal.contains(['?', '#', '\0']), "{normal:?}");
        let judged = readings(&normal);
        assert_eq!(judged[0], canonical_escapes(&normal), "what is forwarded is judged first");
        if mode != Normalization::None {
            let dots = |path: &str| path.split('/').any(|segment| segment == "." || segment == "..");
            assert!(!dots(&normal) && !normal.contains('\\'), "{normal:?}");
        }
        if mode == Normalization::DecodeAndMergeSlashes {
            assert!(!normal.contains("//"), "{normal:?}");
        }
    }
}

/// A template and a path, with a line feed between them: what is matched agrees with a matcher that tries everything.
pub fn template(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some((template, path)) = text.split_once('\n') else { return };
    let matched = template_matches(template, path);
    let operators = template.matches("{*}").count() + template.matches("{**}").count();
    if operators <= 4 && path.len() <= 48 && template.len() <= 48 && validate::is_template(template) {
        let admitted = validate::authorization_policy(&spec(template)).is_ok();
        if admitted && template.starts_with('/') && !template.trim_start_matches('/').is_empty() {
            assert_eq!(matched, slow(template, path), "{template:?} {path:?}");
        }
    }
}

fn spec(template: &str) -> meltemi_resources::policies::AuthorizationPolicySpec {
    let operation = serde_json::json!({"paths": [template]});
    serde_json::from_value(serde_json::json!({"rules": [{"to": [{"operation": operation}]}]}))
        .expect("a spec")
}

/// `{*}` is one segment with something in it, `{**}` is anything.
fn slow(template: &str, path: &str) -> bool {
    if let Some(rest) = template.strip_prefix("{**}") {
        return (0..=path.len()).filter(|at| path.is_char_boundary(*at)).any(|at| slow(rest, &path[at..]));
    }
    if let Some(rest) = template.strip_prefix("{*}") {
        let end = path.find('/').unwrap_or(path.len());
        return (1..=end).filter(|at| path.is_char_boundary(*at)).any(|at| slow(rest, &path[at..]));
    }
    match (template.chars().next(), path.chars().next()) {
        (None, None) => true,
        (Some(wanted), Some(got)) if wanted == got => {
            slow(&template[wanted.len_utf8()..], &path[got.len_utf8()..])
        }
        _ => false,
    }
}

/// Names: identities, hosts, methods, addresses.
pub fn identity(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(id) = SpiffeId::parse(text) {
        assert_eq!(id.to_string(), text, "an identity is written in one way");
        let again =
            format!("spiffe://{}/ns/{}/sa/{}", id.trust_domain(), id.namespace(), id.service_account());
        assert_eq!(again, text);
        assert!(!text.contains(['\0', '%', '?', '#']) && !text.contains("/../"), "{text:?}");
    }
    if let Ok(domain) = TrustDomain::parse(text) {
        assert_eq!(domain.as_str(), text);
    }
    let forms = host_forms(text);
    assert_eq!(forms.first().copied().flatten(), Some(text));
    for form in forms.into_iter().flatten() {
        assert!(text.starts_with(form), "a form is the beginning of the host");
    }
    if method_is_clean(text) {
        assert!(text.bytes().all(|b| b.is_ascii_graphic() && !b.is_ascii_lowercase()), "{text:?}");
    }
    if let Ok(net) = validate::range(text) {
        assert_eq!(net.trunc(), net);
        assert_eq!(validate::range(&net.to_string()), Ok(net));
    }
    if let Ok(port) = validate::port(text) {
        assert_eq!(text.trim_start_matches('0').parse::<u16>().unwrap_or(0), port);
    }
    let _ = (text.parse::<NamespacedName>(), text.parse::<NamespacedHostname>());
    let _ =
        (validate::key(text), validate::duration_ms(text), validate::jwks_uri(text), validate::dry_run(text));
}
