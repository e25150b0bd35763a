// SPDX-License-Identifier: Apache-2.0
//! One fetch: no redirects, a bounded answer, and a connection to an address that was checked after the name was resolved.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, HOST, USER_AGENT};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use meltemi_tokens::{InvalidKeys, KeySet, MAX_SET};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use super::Source;
use super::address::Permitted;

/// Addresses of one name that are tried.
const ADDRESSES: usize = 4;
/// Path below an issuer of its discovery document.
const DISCOVERY: &str = "/.well-known/openid-configuration";

/// Why keys could not be fetched. The text is for the status of an object: it holds nothing of what a server has answered.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Neither `http` nor `https`, or not an address at all.
    #[error("{0:?} is no address of keys: http or https, without user and password")]
    Address(String),
    /// The name has no address.
    #[error("{host} cannot be resolved: {source}")]
    Resolve {
        /// The name.
        host: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The name means this machine, its link or its cloud.
    #[error(
        "{host} has no address that keys may be fetched from: loopback, link-local and metadata addresses are refused (JWKS_ALLOWED_CIDRS)"
    )]
    Refused {
        /// The name.
        host: String,
    },
    /// No address could be connected to.
    #[error("{host} cannot be reached: {source}")]
    Connect {
        /// The name.
        host: String,
        /// Why not, of the last one.
        source: std::io::Error,
    },
    /// The server is not who it should be, or does not speak HTTP.
    #[error("{host} does not speak HTTP as it should: {source}")]
    Http {
        /// The name.
        host: String,
        /// What went wrong.
        source: hyper::Error,
    },
    /// Another status than 200.
    #[error("{host} answers {status}{}", if .status.is_redirection() { ": redirects are not followed" } else { "" })]
    Status {
        /// The name.
        host: String,
        /// The status.
        status: StatusCode,
    },
    /// The answer is longer than a key set may be.
    #[error("{host} answers with more than {MAX_SET} bytes")]
    TooLong {
        /// The name.
        host: String,
    },
    /// The discovery document does not say where the keys are.
    #[error("{host} has no discovery document with a jwks_uri that is as safe as its issuer")]
    Discovery {
        /// The name.
        host: String,
    },
    /// The answer is no key set.
    #[error("{host}: {source}")]
    Keys {
        /// The name.
        host: String,
        /// What is wrong.
        source: InvalidKeys,
    },
    /// It took too long.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

/// Fetches key sets.
#[derive(Clone)]
pub struct Fetcher {
    permitted: Permitted,
    tls: TlsConnector,
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetcher").field("permitted", &self.permitted).finish_non_exhaustive()
    }
}

/// An address of keys or of a discovery document.
fn parse_address(text: &str) -> Result<Url, FetchError> {
    let refused = || FetchError::Address(text.to_owned());
    let url = Url::parse(text).map_err(|_| refused())?;
    let is_plain = url.username().is_empty() && url.password().is_none();
    match url.scheme() {
        "http" | "https" if is_plain && url.has_host() => Ok(url),
        _ => Err(refused()),
    }
}

impl Fetcher {
    /// One that trusts these roots.
    pub fn new(permitted: Permitted, roots: RootCertStore) -> Self {
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        Self { permitted, tls: TlsConnector::from(Arc::new(config)) }
    }

    /// One that trusts what the machine trusts; `SSL_CERT_FILE` and `SSL_CERT_DIR` name other certificates.
    pub fn of_machine(permitted: Permitted) -> Self {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            tracing::warn!(
                "no root certificates are found: keys can be fetched by http only (SSL_CERT_FILE)"
            );
        }
        Self::new(permitted, roots)
    }

    /// Fetches a set: its public keys, as JSON.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub async fn fetch(&self, source: &Source, timeout: Duration) -> Result<String, FetchError> {
        match tokio::time::timeout(timeout, self.fetch_keys(source)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(FetchError::Timeout(timeout)),
        }
    }

    async fn fetch_keys(&self, source: &Source) -> Result<String, FetchError> {
        let url = match source {
            Source::Keys(uri) => parse_address(uri)?,
            Source::Issuer(issuer) => self.discover_keys(issuer).await?,
        };
        let text = self.get_bounded(&url).await?;
        let host = || url.host_str().unwrap_or_default().to_owned();
        let text = std::str::from_utf8(&text)
            .map_err(|_| FetchError::Keys { host: host(), source: InvalidKeys::Json })?;
        let keys = KeySet::parse(text).and_then(|keys| keys.public());
        keys.map_err(|source| FetchError::Keys { host: host(), source })
    }

    /// Where the keys of an issuer are.
    async fn discover_keys(&self, issuer: &str) -> Result<Url, FetchError> {
        let at = parse_address(&format!("{}{DISCOVERY}", issuer.trim_end_matches('/')))?;
        let document = self.get_bounded(&at).await?;
        let refused = || FetchError::Discovery { host: at.host_str().unwrap_or_default().to_owned() };
        let document: serde_json::Value = serde_json::from_slice(&document).map_err(|_| refused())?;
        let keys =
            parse_address(document["jwks_uri"].as_str().ok_or_else(refused)?).map_err(|_| refused())?;
        match (at.scheme(), keys.scheme()) {
            ("https", "http") => Err(refused()),
            _ => Ok(keys),
        }
    }

    async fn get_bounded(&self, url: &Url) -> Result<Bytes, FetchError> {
        let host = url.host_str().unwrap_or_default();
        let stream = self.connect(url).await?;
        if url.scheme() == "http" {
            return ask_once(stream, url).await;
        }
        let name = match url.host() {
            Some(Host::Domain(name)) => ServerName::try_from(name.to_owned()).ok(),
            Some(Host::Ipv4(ip)) => Some(ServerName::from(IpAddr::V4(ip))),
            Some(Host::Ipv6(ip)) => Some(ServerName::from(IpAddr::V6(ip))),
            None => None,
        };
        let name = name.ok_or_else(|| FetchError::Address(url.to_string()))?;
        let connected = self.tls.connect(name, stream).await;
        let stream = connected.map_err(|source| FetchError::Connect { host: host.to_owned(), source })?;
        ask_once(stream, url).await
    }

    /// Connects to one of the addresses that a name has now and that may be connected to: the name is not resolved again.
    async fn connect(&self, url: &Url) -> Result<TcpStream, FetchError> {
        let host = url.host_str().unwrap_or_default().to_owned();
        let port = url.port_or_known_default().unwrap_or(443);
        let found: Vec<SocketAddr> = match url.host() {
            Some(Host::Ipv4(ip)) => vec![(ip, port).into()],
            Some(Host::Ipv6(ip)) => vec![(ip, port).into()],
            Some(Host::Domain(name)) => match tokio::net::lookup_host((name, port)).await {
                Ok(found) => found.collect(),
                Err(source) => return Err(FetchError::Resolve { host, source }),
            },
            None => Vec::new(),
        };
        let mut last = None;
        for to in found.into_iter().filter(|to| self.permitted.permits(to.ip())).take(ADDRESSES) {
            match TcpStream::connect(to).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = Some(error),
            }
        }
        Err(match last {
            Some(source) => FetchError::Connect { host, source },
            None => FetchError::Refused { host },
        })
    }
}

/// Asks once, over a connection of its own.
async fn ask_once<S>(stream: S, url: &Url) -> Result<Bytes, FetchError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let host = url.host_str().unwrap_or_default().to_owned();
    let failed = |source| FetchError::Http { host: host.clone(), source };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let target = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let authority = url.port().map_or_else(|| host.clone(), |port| format!("{host}:{port}"));
    let request = Request::get(target)
        .header(HOST, authority)
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, concat!("meltemi/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())
        .map_err(|_| FetchError::Address(url.to_string()))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status { host: host.clone(), status: response.status() });
        }
        let (mut body, mut text) = (response.into_body(), BytesMut::new());
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.map_err(failed)?.into_data() {
                if text.len() + data.len() > MAX_SET {
                    return Err(FetchError::TooLong { host: host.clone() });
                }
                text.extend_from_slice(&data);
            }
        }
        Ok(text.freeze())
    };
    // The connection is driven here: when the fetch ends, or is given up, so does it.
    tokio::pin!(exchange);
    tokio::pin!(connection);
    tokio::select! {
        outcome = &mut exchange => outcome,
        ended = &mut connection => match ended {
            Ok(()) => exchange.await,
            Err(source) => Err(failed(source)),
        },
    }
}
