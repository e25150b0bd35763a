// SPDX-License-Identifier: Apache-2.0
//! The reasons for which a token or a key set is refused.

/// Why a token is refused. The texts are Envoy's where it has one: clients and their tests compare them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Longer than [`crate::MAX_TOKEN`].
    #[error("Jwt is too long")]
    TooLong,
    /// Not three parts, or something around them.
    #[error("Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections")]
    BadFormat,
    /// The header is not base64url.
    #[error("Jwt header is an invalid Base64url encoded")]
    HeaderBase64,
    /// The header is no JSON object, or has a member twice.
    #[error("Jwt header is an invalid JSON")]
    HeaderJson,
    /// `alg` is missing or no string.
    #[error("Jwt header [alg] field is required and must be a string")]
    HeaderAlg,
    /// `alg` is `none` or another one that nothing here verifies.
    #[error("Jwt header [alg] is not supported")]
    UnsupportedAlg,
    /// `kid` is no string.
    #[error("Jwt header [kid] field is not a string")]
    HeaderKid,
    /// The header has extensions that must be understood (RFC 7515 §4.1.11).
    #[error("Jwt header [crit] is not supported")]
    Critical,
    /// The payload is not base64url.
    #[error("Jwt payload is an invalid Base64url encoded")]
    PayloadBase64,
    /// The payload is no JSON object, or has a member twice.
    #[error("Jwt payload is an invalid JSON")]
    PayloadJson,
    /// `iss` is no string.
    #[error("Jwt payload [iss] field is not a string")]
    Iss,
    /// `sub` is no string.
    #[error("Jwt payload [sub] field is not a string")]
    Sub,
    /// `aud` is neither a string nor a list of strings.
    #[error("Jwt payload [aud] field is not a string or string list")]
    Aud,
    /// `exp` is no integer.
    #[error("Jwt payload [exp] field is not an integer")]
    ExpNotInteger,
    /// `exp` is negative.
    #[error("Jwt payload [exp] field is not a positive integer")]
    ExpNotPositive,
    /// `nbf` is no integer.
    #[error("Jwt payload [nbf] field is not an integer")]
    NbfNotInteger,
    /// `nbf` is negative.
    #[error("Jwt payload [nbf] field is not a positive integer")]
    NbfNotPositive,
    /// The signature is not base64url.
    #[error("Jwt signature is an invalid Base64url encoded")]
    SignatureBase64,
    /// `exp` has passed.
    #[error("Jwt is expired")]
    Expired,
    /// `nbf` has not come.
    #[error("Jwt not yet valid")]
    NotYetValid,
    /// No rule is for its issuer at the place where the token was.
    #[error("Jwt issuer is not configured")]
    UnknownIssuer,
    /// None of its audiences is one of the rule's.
    #[error("Audiences in Jwt are not allowed")]
    AudienceNotAllowed,
    /// The keys of its issuer are not there.
    #[error("Jwks remote fetch is failed")]
    NoKeys,
    /// The issuer's key set has no key that can be used.
    #[error("Jwks doesn't have any valid public key")]
    NoValidKeys,
    /// No key of the issuer fits its header.
    #[error("Jwks doesn't have key to match kid or alg from Jwt")]
    NoMatchingKey,
    /// The signature is not one of the issuer's keys.
    #[error("Jwt verification fails")]
    BadSignature,
    /// The request carries different tokens.
    #[error("Found multiple Jwt tokens")]
    Multiple,
    /// A claim that is handed on as a header is none.
    #[error("Jwt payload has a claim that cannot be a header")]
    ClaimNotHeader,
}

impl Invalid {
    /// The HTTP status of the answer: a token for somebody else is a good one, and is forbidden.
    pub fn status(self) -> u16 {
        if self == Self::AudienceNotAllowed { 403 } else { 401 }
    }
}

/// Why a key set cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKeys {
    /// Longer than [`crate::MAX_SET`].
    #[error("the key set is longer than {} bytes", crate::MAX_SET)]
    TooLong,
    /// No JSON object, or one with a member twice.
    #[error("Jwks is an invalid JSON")]
    Json,
    /// Neither a set nor a key.
    #[error("Jwks does not have [keys] field")]
    NoKeys,
    /// More keys than [`crate::MAX_KEYS`].
    #[error("the key set has more than {} keys", crate::MAX_KEYS)]
    TooMany,
    /// No key of a kind that is known, or none for signatures.
    #[error("Jwks doesn't have any valid public key")]
    NoValidKeys,
}
