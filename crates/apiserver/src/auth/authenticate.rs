// SPDX-License-Identifier: Apache-2.0
//! From a certificate or a bearer token to a user, and from a user to the one it impersonates.

use std::collections::BTreeMap;

use http::{HeaderMap, header};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Attributes, Auth, ISSUER, ResourceTarget, Target, User};
use crate::status::Refusal;

const AUTHENTICATED: &str = "system:authenticated";

pub(super) fn authenticate(auth: &Auth, headers: &HeaderMap, peer: Option<&User>) -> Result<User, Refusal> {
    let user = match (bearer(headers)?, peer) {
        (Some(token), _) => {
            let verified = auth.tokens.verify(&*auth.objects, token, &[ISSUER], super::now());
            verified.map(|(user, _)| user).map_err(|reason| {
                tracing::debug!(%reason, "bearer token refused");
                Refusal::unauthorized()
            })?
        }
        (None, Some(peer)) => peer.clone(),
        (None, None) => return Ok(User::anonymous()),
    };
    impersonated(auth, headers, user)
}

/// The user that a verified client certificate names.
pub(super) fn peer_user(chain: &[CertificateDer<'_>]) -> Option<User> {
    let (_, cert) = X509Certificate::from_der(chain.first()?).ok()?;
    let name = cert.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    let mut groups: Vec<String> =
        cert.subject().iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    groups.push(AUTHENTICATED.into());
    (!name.is_empty()).then(|| User { name, groups, ..User::default() })
}

/// The groups of a ServiceAccount.
pub(super) fn service_account_groups(namespace: &str) -> Vec<String> {
    vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}"), AUTHENTICATED.into()]
}

fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Refusal::unauthorized());
    }
    let value = value.to_str().map_err(|_| Refusal::unauthorized())?;
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() => {
            Ok(Some(token.trim()))
        }
        _ => Err(Refusal::unauthorized()),
    }
}

fn impersonated(auth: &Auth, headers: &HeaderMap, user: User) -> Result<User, Refusal> {
    let text = |value: &http::HeaderValue| {
        value
            .to_str()
            .map(str::to_owned)
            .map_err(|_| Refusal::bad_request("impersonation header is not text"))
    };
    let groups: Vec<String> =
        headers.get_all("impersonate-group").iter().map(text).collect::<Result<_, _>>()?;
    let Some(name) = headers.get("impersonate-user").map(text).transpose()? else {
        let other = headers.keys().find(|key| key.as_str().starts_with("impersonate-"));
        return match other {
            Some(key) => Err(Refusal::bad_request(format!("{key} without Impersonate-User"))),
            None => Ok(user),
        };
    };
    let known = ["impersonate-user", "impersonate-group"];
    if let Some(key) =
        headers.keys().find(|k| k.as_str().starts_with("impersonate-") && !known.contains(&k.as_str()))
    {
        return Err(Refusal::bad_request(format!(
            "{key} is not supported: only Impersonate-User and -Group are"
        )));
    }
    let may = |resource, namespace, name| {
        let target = ResourceTarget { resource, namespace, name, ..ResourceTarget::default() };
        auth.authorize(&user, &Attributes { verb: "impersonate", target: Target::Resource(target) })
    };
    let mut all = groups.clone();
    match name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':')) {
        Some((namespace, account)) => {
            may("serviceaccounts", namespace, account)?;
            if all.is_empty() {
                all = service_account_groups(namespace);
            }
        }
        None => may("users", "", &name)?,
    }
    for group in &groups {
        may("groups", "", group)?;
    }
    if name != "system:anonymous" && !all.iter().any(|g| g == AUTHENTICATED) {
        all.push(AUTHENTICATED.into());
    }
    Ok(User { name, uid: String::new(), groups: all, extra: BTreeMap::new() })
}
