// SPDX-License-Identifier: Apache-2.0
//! The certificate service: client and server stubs under names of their own.

pub use crate::proto::auth::istio_certificate_service_client::IstioCertificateServiceClient as CaClient;
pub use crate::proto::auth::istio_certificate_service_server::{
    IstioCertificateService as CaService, IstioCertificateServiceServer as CaServer,
};
pub use crate::proto::auth::{IstioCertificateRequest as CaRequest, IstioCertificateResponse as CaResponse};

/// Metadata key with which a node proxy names the identity that it asks for.
pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

/// A request for a certificate; `identity` only when the caller asks for another identity than its own.
pub fn request(csr_pem: String, validity: std::time::Duration, identity: Option<&str>) -> CaRequest {
    let metadata = identity.map(|identity| {
        let kind = Some(prost_types::value::Kind::StringValue(identity.to_owned()));
        let fields = [(IMPERSONATED_IDENTITY.to_owned(), prost_types::Value { kind })];
        prost_types::Struct { fields: fields.into_iter().collect() }
    });
    CaRequest {
        csr: csr_pem,
        validity_duration: i64::try_from(validity.as_secs()).unwrap_or(i64::MAX),
        metadata,
    }
}

/// The identity that a request names, if it names one.
pub fn impersonated(request: &CaRequest) -> Option<&str> {
    let value = request.metadata.as_ref()?.fields.get(IMPERSONATED_IDENTITY)?;
    match value.kind.as_ref()? {
        prost_types::value::Kind::StringValue(text) => Some(text),
        _ => None,
    }
}
