// SPDX-License-Identifier: Apache-2.0
//! ServiceAccount tokens: JWTs that are bound to live objects and judged against them at every use.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::authenticate::service_account_groups;
use super::rbac::text;
use super::{ISSUER, Objects, User};
use crate::pki::PkiError;

/// After its grace period has passed, a Pod's tokens live this much longer: the last calls of its shutdown.
const DELETED_LEEWAY: u64 = 60;

/// An object that a token names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reference {
    pub(super) name: String,
    pub(super) uid: String,
}

/// The claim `kubernetes.io`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Bound {
    pub(super) namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) node: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pod: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) secret: Option<Reference>,
    pub(super) serviceaccount: Reference,
}

/// All claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claims {
    pub(super) aud: Vec<String>,
    pub(super) exp: u64,
    pub(super) iat: u64,
    pub(super) iss: String,
    pub(super) jti: String,
    #[serde(rename = "kubernetes.io")]
    pub(super) bound: Bound,
    pub(super) nbf: u64,
    pub(super) sub: String,
}

/// Signs and verifies.
pub(super) struct Tokens {
    signing: EncodingKey,
    verifying: DecodingKey,
    key_id: String,
    /// The uncompressed point of the public key.
    point: Vec<u8>,
}

impl Tokens {
    pub(super) fn new(private: &str, public: &str) -> Result<Self, PkiError> {
        let wrong = |e: &dyn std::fmt::Display| PkiError::Tls(format!("token signing key: {e}"));
        let signing = EncodingKey::from_ec_pem(private.as_bytes()).map_err(|e| wrong(&e))?;
        let verifying = DecodingKey::from_ec_pem(public.as_bytes()).map_err(|e| wrong(&e))?;
        let spki = SubjectPublicKeyInfoDer::from_pem_slice(public.as_bytes()).map_err(|e| wrong(&e))?;
        let key_id = URL_SAFE_NO_PAD.encode(Sha256::digest(&spki));
        // The SubjectPublicKeyInfo of P-256 ends with the point: 04, x, y.
        let point = spki.len().checked_sub(65).map(|at| spki[at..].to_vec()).unwrap_or_default();
        Ok(Self { signing, verifying, key_id, point })
    }

    pub(super) fn key_id(&self) -> &str {
        &self.key_id
    }

    /// x and y of the public key.
    pub(super) fn coordinates(&self) -> Option<(&[u8], &[u8])> {
        Some((self.point.get(1..33)?, self.point.get(33..65)?))
    }

    pub(super) fn sign(&self, claims: &Claims) -> Result<String, jsonwebtoken::errors::Error> {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.key_id.clone());
        header.typ = None;
        jsonwebtoken::encode(&header, claims, &self.signing)
    }

    /// The user of a token and those of `audiences` that the token is for.
    ///
    /// The error says why not; it is for logs and TokenReviews.
    pub(super) fn verify(
        &self,
        objects: &dyn Objects,
        token: &str,
        audiences: &[&str],
        now: u64,
    ) -> Result<(User, Vec<String>), String> {
        // Times are judged below, by the caller's clock; signature and algorithm here.
        let mut validation = Validation::new(Algorithm::ES256);
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let claims = jsonwebtoken::decode::<Claims>(token, &self.verifying, &validation)
            .map_err(|_| "invalid bearer token".to_owned())?
            .claims;
        if claims.iss != ISSUER {
            return Err("token issuer is not this cluster".into());
        }
        if claims.exp <= now {
            return Err("service account token has expired".into());
        }
        if claims.nbf > now {
            return Err("service account token is not valid yet".into());
        }
        let matching: Vec<String> = audiences
            .iter()
            .filter(|a| claims.aud.iter().any(|have| have == *a))
            .map(|&a| a.to_owned())
            .collect();
        if matching.is_empty() {
            return Err(format!(
                "token audiences {:?} is invalid for the target audiences {audiences:?}",
                claims.aud
            ));
        }
        let account = &claims.bound.serviceaccount;
        if claims.sub != user_name(&claims.bound.namespace, &account.name) {
            return Err("subject and claims disagree".into());
        }
        check_live(objects, &claims.bound, now)?;
        Ok((user(&claims), matching))
    }
}

/// The user name of a ServiceAccount.
pub(super) fn user_name(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

fn check_live(objects: &dyn Objects, bound: &Bound, now: u64) -> Result<(), String> {
    let live = |resource: &str, namespace: &str, reference: &Reference| {
        let object = objects
            .get("", resource, namespace, &reference.name)
            .ok_or_else(|| format!("{resource} {}/{} has been deleted", bound.namespace, reference.name))?;
        if text(&object, "/metadata/uid") != reference.uid {
            return Err(format!(
                "{resource} {}/{} has been deleted and made again",
                bound.namespace, reference.name
            ));
        }
        match deletion_time(&object) {
            Some(deleted) if deleted.saturating_add(DELETED_LEEWAY) <= now => {
                Err(format!("{resource} {}/{} is being deleted", bound.namespace, reference.name))
            }
            _ => Ok(()),
        }
    };
    live("serviceaccounts", &bound.namespace, &bound.serviceaccount)?;
    if let Some(pod) = &bound.pod {
        live("pods", &bound.namespace, pod)?;
    }
    if let Some(secret) = &bound.secret {
        live("secrets", &bound.namespace, secret)?;
    }
    // A token of a Pod names its node for information; one bound to the node itself depends on it.
    if let (Some(node), None) = (&bound.node, &bound.pod) {
        live("nodes", "", node)?;
    }
    Ok(())
}

fn deletion_time(object: &Value) -> Option<u64> {
    let at: jiff::Timestamp = object.pointer("/metadata/deletionTimestamp")?.as_str()?.parse().ok()?;
    u64::try_from(at.as_second()).ok()
}

fn user(claims: &Claims) -> User {
    let bound = &claims.bound;
    let mut extra = BTreeMap::new();
    let mut say = |key: &str, value: &str| {
        extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
    };
    say("credential-id", &format!("JTI={}", claims.jti));
    if let Some(node) = &bound.node {
        say("node-name", &node.name);
        say("node-uid", &node.uid);
    }
    if let Some(pod) = &bound.pod {
        say("pod-name", &pod.name);
        say("pod-uid", &pod.uid);
    }
    User {
        name: claims.sub.clone(),
        uid: bound.serviceaccount.uid.clone(),
        groups: service_account_groups(&bound.namespace),
        extra,
    }
}
