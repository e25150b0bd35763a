// SPDX-License-Identifier: Apache-2.0
//! Key sets (RFC 7517): the keys of an issuer, and the tokens that they have verified.

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{ED25519, RsaPublicKeyComponents, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};

use crate::algorithm::{Algorithm, Curve};
use crate::cache::Cache;
use crate::error::{Invalid, InvalidKeys};
use crate::json;

/// Bytes of a key set at most.
pub const MAX_SET: usize = 256 * 1024;
/// Keys of a set at most: a token without `kid` is compared with each of its kind.
pub const MAX_KEYS: usize = 100;
/// Bytes of the modulus of an RSA key: 2048 to 8192 bits, as aws-lc takes them.
const MODULUS: std::ops::RangeInclusive<usize> = 256..=1024;

enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    Ec { curve: Curve, point: Vec<u8> },
    Ed25519(Vec<u8>),
    Secret(Vec<u8>),
}

struct Key {
    id: Option<String>,
    /// The only algorithm that it is for; any of its kind without one.
    algorithm: Option<String>,
    material: Material,
}

/// The keys of an issuer that can be used, and the tokens that they have verified.
pub struct KeySet {
    keys: Vec<Key>,
    pub(crate) cache: Cache,
}

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeySet").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

/// A member that is a string, decoded.
fn decode_member(key: &Map<String, Value>, member: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(key.get(member)?.as_str()?.trim_end_matches('=')).ok()
}

/// Whether a key is for signatures (RFC 7517 §4.2, §4.3).
fn is_for_signatures(key: &Map<String, Value>) -> bool {
    let uses = key.get("use").is_none_or(|usage| usage == "sig");
    let operations = key.get("key_ops").and_then(Value::as_array);
    uses && operations.is_none_or(|all| all.iter().any(|operation| operation == "verify"))
}

impl Key {
    /// Reads a key; `None` when it is of no known kind, for encryption, or broken.
    fn read(key: &Map<String, Value>) -> Option<Self> {
        if !is_for_signatures(key) {
            return None;
        }
        let text = |member: &str| match key.get(member) {
            None => Some(None),
            Some(Value::String(text)) => Some(Some(text.clone()).filter(|t| !t.is_empty())),
            Some(_) => None,
        };
        let material = match key.get("kty")?.as_str()? {
            "RSA" => {
                let strip = |number: Vec<u8>| number.into_iter().skip_while(|b| *b == 0).collect::<Vec<u8>>();
                let (n, e) = (strip(decode_member(key, "n")?), strip(decode_member(key, "e")?));
                (MODULUS.contains(&n.len()) && !e.is_empty()).then_some(Material::Rsa { n, e })?
            }
            "EC" => {
                let curve = Curve::parse(key.get("crv")?.as_str()?)?;
                let (x, y) = (decode_member(key, "x")?, decode_member(key, "y")?);
                if x.len() != curve.coordinate() || y.len() != curve.coordinate() {
                    return None;
                }
                Material::Ec { curve, point: [&[4][..], &x, &y].concat() }
            }
            "OKP" if key.get("crv")? == "Ed25519" => {
                Material::Ed25519(decode_member(key, "x").filter(|x| x.len() == 32)?)
            }
            "oct" => Material::Secret(decode_member(key, "k").filter(|k| !k.is_empty())?),
            _ => return None,
        };
        let key = Self { id: text("kid")?, algorithm: text("alg")?, material };
        // A key that says an algorithm of another kind is none.
        let fits =
            key.algorithm.as_deref().is_none_or(|name| Algorithm::parse(name).is_some_and(|a| key.fits(a)));
        fits.then_some(key)
    }

    /// Whether the key is of the kind of an algorithm.
    fn fits(&self, algorithm: Algorithm) -> bool {
        match (&self.material, algorithm) {
            (Material::Rsa { .. }, Algorithm::Rsa(_))
            | (Material::Ed25519(_), Algorithm::Ed25519)
            | (Material::Secret(_), Algorithm::Hmac(_)) => true,
            (Material::Ec { curve, .. }, Algorithm::Ecdsa(of)) => *curve == of,
            _ => false,
        }
    }

    fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        match (&self.material, algorithm) {
            (Material::Rsa { n, e }, Algorithm::Rsa(parameters)) => {
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signature).is_ok()
            }
            (Material::Ec { curve, point }, Algorithm::Ecdsa(of)) if *curve == of => {
                UnparsedPublicKey::new(curve.verification(), point).verify(message, signature).is_ok()
            }
            (Material::Ed25519(x), Algorithm::Ed25519) => {
                UnparsedPublicKey::new(&ED25519, x).verify(message, signature).is_ok()
            }
            (Material::Secret(secret), Algorithm::Hmac(with)) => {
                hmac::verify(&hmac::Key::new(with, secret), message, signature).is_ok()
            }
            _ => false,
        }
    }

    /// The key with its public parts only; `None` for a shared secret.
    fn public(&self) -> Option<Value> {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let mut key = match &self.material {
            Material::Rsa { n, e } => json!({"kty": "RSA", "n": text(n), "e": text(e)}),
            Material::Ec { curve, point } => {
                let (x, y) = point.get(1..)?.split_at_checked(curve.coordinate())?;
                let name = match curve {
                    Curve::P256 => "P-256",
                    Curve::P384 => "P-384",
                    Curve::P521 => "P-521",
                };
                json!({"kty": "EC", "crv": name, "x": text(x), "y": text(y)})
            }
            Material::Ed25519(x) => json!({"kty": "OKP", "crv": "Ed25519", "x": text(x)}),
            Material::Secret(_) => return None,
        };
        for (member, value) in [("kid", &self.id), ("alg", &self.algorithm)] {
            if let Some(value) = value {
                key[member] = value.as_str().into();
            }
        }
        Some(key)
    }
}

impl KeySet {
    /// Reads a JWK set, or a single key. Keys that cannot be used are left out.
    ///
    /// # Errors
    /// The text is too long, no JSON, or has no key that can be used.
    pub fn parse(text: &str) -> Result<Self, InvalidKeys> {
        if text.len() > MAX_SET {
            return Err(InvalidKeys::TooLong);
        }
        let set = json::read_object(text.as_bytes()).ok_or(InvalidKeys::Json)?;
        let keys: Vec<&Map<String, Value>> = match set.get("keys") {
            Some(Value::Array(keys)) => keys.iter().filter_map(Value::as_object).collect(),
            None if set.contains_key("kty") => vec![&set],
            _ => return Err(InvalidKeys::NoKeys),
        };
        if keys.len() > MAX_KEYS {
            return Err(InvalidKeys::TooMany);
        }
        let keys: Vec<Key> = keys.into_iter().filter_map(Key::read).collect();
        if keys.is_empty() {
            return Err(InvalidKeys::NoValidKeys);
        }
        Ok(Self { keys, cache: Cache::default() })
    }

    /// The set with what verification needs and nothing else, as JSON; of a set that was fetched, since what is published is
    /// no shared secret.
    ///
    /// # Errors
    /// The set has no public key.
    pub fn public(&self) -> Result<String, InvalidKeys> {
        let keys: Vec<Value> = self.keys.iter().filter_map(Key::public).collect();
        if keys.is_empty() {
            return Err(InvalidKeys::NoValidKeys);
        }
        Ok(json!({ "keys": keys }).to_string())
    }

    /// Checks a signature by the keys that fit the header.
    pub(crate) fn verify(
        &self,
        (name, algorithm): (&str, Algorithm),
        id: Option<&str>,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), Invalid> {
        let fits = |key: &&Key| {
            let same_id = match (id, key.id.as_deref()) {
                (Some(id), Some(of)) => id == of,
                _ => true,
            };
            same_id && key.algorithm.as_deref().is_none_or(|only| only == name) && key.fits(algorithm)
        };
        let mut fitting = self.keys.iter().filter(fits).peekable();
        if fitting.peek().is_none() {
            return Err(Invalid::NoMatchingKey);
        }
        match fitting.any(|key| key.verifies(algorithm, message, signature)) {
            true => Ok(()),
            false => Err(Invalid::BadSignature),
        }
    }
}
