// SPDX-License-Identifier: Apache-2.0
//! OIDC discovery: the issuer's description and public key, for those who verify tokens without the API.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::ISSUER;
use super::token::Tokens;

pub(super) fn configuration() -> Value {
    json!({
        "issuer": ISSUER,
        "jwks_uri": format!("{ISSUER}/openid/v1/jwks"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    })
}

pub(super) fn keys(tokens: &Tokens) -> Value {
    let key = tokens.coordinates().map(|(x, y)| {
        json!({
            "use": "sig", "kty": "EC", "kid": tokens.key_id(), "crv": "P-256", "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        })
    });
    json!({"keys": key.into_iter().collect::<Vec<_>>()})
}
