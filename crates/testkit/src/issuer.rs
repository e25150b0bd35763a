// SPDX-License-Identifier: Apache-2.0
//! An issuer of tokens: a key of its own for each, and tokens as its clients get them.

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaEncoding, RsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// Bytes as base64url.
pub fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

enum Secret {
    Rsa(RsaKeyPair, &'static dyn RsaEncoding),
    Ec(EcdsaKeyPair, &'static str),
    Ed(Ed25519KeyPair),
    Shared(hmac::Algorithm, Vec<u8>),
}

/// A key and the algorithm that it signs by.
pub struct Issuer {
    /// Its algorithm.
    pub name: &'static str,
    secret: Secret,
}

impl Issuer {
    /// One for each algorithm.
    pub fn all() -> Vec<Self> {
        let names =
            ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"];
        let shared = ["HS256", "HS384", "HS512"];
        names
            .into_iter()
            .map(Self::new)
            .chain(shared.into_iter().map(|name| Self::secret(name, name.as_bytes())))
            .collect()
    }

    /// One with a shared secret.
    pub fn secret(name: &'static str, secret: &[u8]) -> Self {
        let algorithm = match name {
            "HS256" => hmac::HMAC_SHA256,
            "HS384" => hmac::HMAC_SHA384,
            _ => hmac::HMAC_SHA512,
        };
        Self { name, secret: Secret::Shared(algorithm, secret.to_vec()) }
    }

    /// One with a new key for this algorithm.
    ///
    /// # Panics
    /// The algorithm has no pair of keys.
    pub fn new(name: &'static str) -> Self {
        let ec = |with, curve| Secret::Ec(EcdsaKeyPair::generate(with).expect("a key"), curve);
        let rsa = |with| Secret::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).expect("a key"), with);
        let secret = match name {
            "RS256" => rsa(&signature::RSA_PKCS1_SHA256),
            "RS384" => rsa(&signature::RSA_PKCS1_SHA384),
            "RS512" => rsa(&signature::RSA_PKCS1_SHA512),
            "PS256" => rsa(&signature::RSA_PSS_SHA256),
            "PS384" => rsa(&signature::RSA_PSS_SHA384),
            "PS512" => rsa(&signature::RSA_PSS_SHA512),
            "ES256" => ec(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, "P-256"),
            "ES384" => ec(&signature::ECDSA_P384_SHA384_FIXED_SIGNING, "P-384"),
            "ES512" => ec(&signature::ECDSA_P521_SHA512_FIXED_SIGNING, "P-521"),
            "EdDSA" => Secret::Ed(Ed25519KeyPair::generate().expect("a key")),
            other => panic!("{other}"),
        };
        Self { name, secret }
    }

    /// The kind of its key (`kty`).
    pub fn kind(&self) -> &'static str {
        match &self.secret {
            Secret::Rsa(..) => "RSA",
            Secret::Ec(..) => "EC",
            Secret::Ed(_) => "OKP",
            Secret::Shared(..) => "oct",
        }
    }

    /// `kid` of its key.
    pub fn id(&self) -> String {
        format!("key of {}", self.name)
    }

    /// The modulus of an RSA key, as it stands in its set.
    ///
    /// # Panics
    /// It is of another kind.
    pub fn modulus(&self) -> String {
        self.key()["n"].as_str().expect("a key").to_owned()
    }

    /// The public key; the shared secret, where there is no other.
    pub fn key(&self) -> Value {
        let mut key = match &self.secret {
            Secret::Rsa(pair, _) => {
                let (n, e) = (pair.public_key().modulus(), pair.public_key().exponent());
                json!({"n": b64(n.big_endian_without_leading_zero()), "e": b64(e.big_endian_without_leading_zero())})
            }
            Secret::Ec(pair, curve) => {
                let point = &pair.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                json!({"crv": curve, "x": b64(x), "y": b64(y)})
            }
            Secret::Ed(pair) => json!({"crv": "Ed25519", "x": b64(pair.public_key().as_ref())}),
            Secret::Shared(_, secret) => json!({"k": b64(secret)}),
        };
        key["kty"] = self.kind().into();
        key["kid"] = self.id().into();
        key
    }

    /// Its key set.
    pub fn keys(&self) -> String {
        json!({"keys": [self.key()]}).to_string()
    }

    /// Signs header and payload as they are.
    ///
    /// # Panics
    /// The key cannot sign.
    pub fn sign(&self, message: &str) -> String {
        let (random, bytes) = (SystemRandom::new(), message.as_bytes());
        let signature = match &self.secret {
            Secret::Rsa(pair, with) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(*with, &random, bytes, &mut signature).expect("a key");
                signature
            }
            Secret::Ec(pair, _) => pair.sign(&random, bytes).expect("a key").as_ref().to_vec(),
            Secret::Ed(pair) => pair.sign(bytes).as_ref().to_vec(),
            Secret::Shared(with, secret) => {
                hmac::sign(&hmac::Key::new(*with, secret), bytes).as_ref().to_vec()
            }
        };
        format!("{message}.{}", b64(signature))
    }

    /// A token; `header` is added to the usual one.
    ///
    /// # Panics
    /// Header or claims are no objects.
    pub fn token(&self, header: &Value, claims: &Value) -> String {
        let mut whole = json!({"alg": self.name});
        whole.as_object_mut().expect("a key").extend(header.as_object().expect("a key").clone());
        self.sign(&format!("{}.{}", b64(whole.to_string()), b64(claims.to_string())))
    }
}
