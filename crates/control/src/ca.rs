// SPDX-License-Identifier: Apache-2.0
//! The certificate endpoint, and where the authority's key lives.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, Client};
use meltemi_identity::{CaCore, CaMaterial};
use meltemi_model::TrustDomain;
use meltemi_wire::ca::{CaRequest, CaResponse, CaServer, CaService, impersonated};
use tonic::{Request, Response, Status};

use crate::Error;
use crate::access::Access;
use crate::auth::Authenticator;
use crate::metrics::ControlMetrics;

/// Secret with the authority's certificate and key.
const SECRET: &str = "istio-ca-secret";
const CERTIFICATE: &str = "ca-cert.pem";
const KEY: &str = "ca-key.pem";
const ROOT: &str = "root-cert.pem";
/// A certificate request with a large key is well below this.
const LARGEST_REQUEST: usize = 64 << 10;

/// Loads the authority from its Secret, or makes one: the first replica that creates the Secret wins.
///
/// # Errors
/// The Secret cannot be read or created, or what it holds is no authority.
pub async fn authority(
    client: &Client,
    namespace: &str,
    trust_domain: &TrustDomain,
) -> Result<CaCore, Error> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let ca = |e: meltemi_identity::CaError| Error::Ca(e.to_string());
    loop {
        if let Some(found) = secrets.get_opt(SECRET).await? {
            return CaCore::new(&load(&found)?).map_err(|e| Error::Ca(format!("secret {SECRET}: {e}")));
        }
        let fresh = CaMaterial::generate(trust_domain.as_str(), SystemTime::now()).map_err(ca)?;
        match secrets.create(&PostParams::default(), &secret(&fresh)).await {
            Ok(_) => {
                tracing::info!(namespace, secret = SECRET, "a new root certificate was made");
                return CaCore::new(&fresh).map_err(ca);
            }
            // Another replica was first: its root is the mesh's.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn secret(material: &CaMaterial) -> Secret {
    let text = |t: &str| ByteString(t.as_bytes().to_vec());
    let mut secret = Secret::default();
    secret.metadata.name = Some(SECRET.to_owned());
    secret.type_ = Some("istio.io/ca-root".to_owned());
    secret.data = Some(BTreeMap::from([
        (CERTIFICATE.to_owned(), text(&material.certificate)),
        (KEY.to_owned(), text(&material.key)),
        (ROOT.to_owned(), text(&material.root)),
    ]));
    secret
}

fn load(secret: &Secret) -> Result<CaMaterial, Error> {
    let part = |key: &str| -> Result<String, Error> {
        let bytes = secret.data.as_ref().and_then(|d| d.get(key));
        let bytes = bytes.filter(|b| !b.0.is_empty());
        let bytes = bytes.ok_or_else(|| Error::Ca(format!("secret {SECRET} has no {key}")))?;
        String::from_utf8(bytes.0.clone())
            .map_err(|_| Error::Ca(format!("secret {SECRET}: {key} is not PEM")))
    };
    let certificate = part(CERTIFICATE)?;
    let root = part(ROOT).unwrap_or_else(|_| certificate.clone());
    Ok(CaMaterial { certificate, key: part(KEY)?, intermediates: String::new(), root })
}

/// A serving certificate for the names of the control plane, as rustls takes it.
///
/// # Errors
/// Nothing could be signed, or the key is not one that rustls takes.
pub fn serving(
    core: &CaCore,
    names: &[String],
    validity: Duration,
) -> Result<Arc<rustls::sign::CertifiedKey>, Error> {
    use rustls::pki_types::pem::PemObject as _;
    let (chain, key) =
        core.server(names, validity, SystemTime::now()).map_err(|e| Error::Ca(e.to_string()))?;
    let chain = chain
        .iter()
        .flat_map(|pem| rustls::pki_types::CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Vec<_>>())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| Error::Ca(e.to_string()))?;
    let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(key.as_bytes())
        .map_err(|e| Error::Ca(e.to_string()))?;
    let key =
        rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).map_err(|e| Error::Ca(e.to_string()))?;
    Ok(Arc::new(rustls::sign::CertifiedKey::new(chain, key)))
}

/// The service.
#[derive(Debug)]
pub struct Endpoint {
    /// The authority.
    pub core: Arc<CaCore>,
    /// Who calls.
    pub authenticator: Arc<Authenticator>,
    /// Whose certificate callers get.
    pub access: Access,
    /// What is counted.
    pub metrics: ControlMetrics,
}

impl Endpoint {
    /// The tonic service.
    pub fn into_service(self) -> CaServer<Self> {
        CaServer::new(self).max_decoding_message_size(LARGEST_REQUEST)
    }

    async fn sign(&self, request: Request<CaRequest>) -> Result<CaResponse, Status> {
        let authorization = request.metadata().get("authorization").and_then(|v| v.to_str().ok());
        let caller = self.authenticator.authenticate(authorization).await.map_err(|error| {
            tracing::warn!(%error, "certificate refused");
            Status::unauthenticated(format!("request authenticate failure: {error}"))
        })?;
        let request = request.into_inner();
        let identity = self.access.identity(&caller, impersonated(&request)).await.map_err(|error| {
            tracing::warn!(caller = %format!("{}/{}", caller.namespace, caller.service_account), %error, "certificate refused");
            Status::unauthenticated(format!("request impersonation authentication failure: {error}"))
        })?;
        let validity =
            u64::try_from(request.validity_duration).ok().filter(|s| *s > 0).map(Duration::from_secs);
        let signed = self.core.sign(&request.csr, &identity, validity, SystemTime::now());
        let cert_chain = signed.map_err(|error| {
            tracing::warn!(%identity, %error, "certificate refused");
            Status::invalid_argument(error.to_string())
        })?;
        tracing::debug!(%identity, "certificate signed");
        Ok(CaResponse { cert_chain })
    }
}

#[tonic::async_trait]
impl CaService for Endpoint {
    async fn create_certificate(&self, request: Request<CaRequest>) -> Result<Response<CaResponse>, Status> {
        let answer = self.sign(request).await;
        self.metrics.certificate(answer.is_ok());
        answer.map(Response::new)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tower::Service as _;

    use super::*;

    /// A message of gRPC that says how long it is, with as much of it as there is.
    pub(crate) fn message(length: usize, bytes: &[u8]) -> axum::body::Body {
        let head = [&[0][..], &u32::try_from(length).unwrap().to_be_bytes(), bytes];
        axum::body::Body::from(head.concat())
    }

    #[tokio::test]
    async fn a_request_that_is_too_large_is_refused_before_it_is_read() {
        let core = CaCore::new(&CaMaterial::generate("cluster.local", SystemTime::now()).unwrap()).unwrap();
        let endpoint = Endpoint {
            core: Arc::new(core),
            authenticator: Arc::new(crate::auth::tests::reviews(true).authenticator),
            access: crate::access::tests::access(),
            metrics: ControlMetrics::default(),
        };
        let mut service = endpoint.into_service();
        let mut code = async |length: usize, bytes: &[u8]| {
            let request =
                axum::http::Request::post("/istio.v1.auth.IstioCertificateService/CreateCertificate")
                    .header("content-type", "application/grpc")
                    .body(message(length, bytes))
                    .unwrap();
            let answer = service.call(request).await.unwrap();
            answer.headers()["grpc-status"]
                .to_str()
                .unwrap()
                .parse::<i32>()
                .map(tonic::Code::from_i32)
                .unwrap()
        };
        // Refused by its length alone: nothing of it has come.
        assert_eq!(code(LARGEST_REQUEST + 1, b"").await, tonic::Code::OutOfRange);
        // Read as a whole; what it says is looked at only with a token.
        let csr = "x".repeat(LARGEST_REQUEST - 4);
        let length = csr.len();
        let head =
            [0x0a, (length & 0x7f) as u8 | 0x80, (length >> 7 & 0x7f) as u8 | 0x80, (length >> 14) as u8];
        let largest = [&head[..], csr.as_bytes()].concat();
        assert_eq!(largest.len(), LARGEST_REQUEST);
        assert_eq!(code(LARGEST_REQUEST, &largest).await, tonic::Code::Unauthenticated);
    }

    #[test]
    fn the_authority_survives_in_its_secret() {
        let material = CaMaterial::generate("cluster.local", SystemTime::now()).unwrap();
        let again = load(&secret(&material)).unwrap();
        assert_eq!((again.root, again.key), (material.root.clone(), material.key.clone()));
        let mut broken = secret(&material);
        broken.data.as_mut().unwrap().remove(KEY);
        let error = load(&broken).unwrap_err().to_string();
        assert_eq!(error, "certificate authority: secret istio-ca-secret has no ca-key.pem");
    }
}
