// SPDX-License-Identifier: Apache-2.0
//! What is known of a connection or request when it is judged; borrowed, so that judging allocates nothing.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use meltemi_model::SpiffeId;

/// Values of headers, by lower-case name.
pub trait Headers {
    /// Calls `with` for every value of the header, in order: the values that the client sent, and those that are forwarded.
    fn each(&self, name: &str, with: &mut dyn FnMut(&str));

    /// Whether the header is also seen to be absent although [`Headers::each`] has values of it: it was sent and is not
    /// forwarded, is forwarded and was not sent, or is there under a name that only some servers take for this one. A
    /// DENY then matches what holds with or without the header, and an ALLOW needs both.
    fn may_lack(&self, _name: &str) -> bool {
        false
    }
}

/// Claims of a verified token.
pub trait Claims {
    /// Calls `with` for every text at the path: the claim itself, or the elements of its list. A claim that is a list in
    /// one string by default (`scope`) is cut by the engine, one that a JwtRule declares to be so by the implementation.
    fn each(&self, path: &[Arc<str>], with: &mut dyn FnMut(&str));
    /// `<iss>/<sub>`, both present.
    fn principal(&self) -> Option<&str>;
    /// `iss` and `sub` apart; both may hold a `/`. Without better knowledge, the principal is split at its last one.
    fn issuer_and_subject(&self) -> Option<(&str, &str)> {
        self.principal()?.rsplit_once('/')
    }
}

/// The HTTP part.
#[derive(Clone, Copy)]
pub struct HttpFacts<'a> {
    /// Method, as received.
    pub method: &'a str,
    /// Host of the request, as the client sent it (`:authority`, or the Host header).
    pub host: &'a str,
    /// The path as forwarded first, then what else a backend could read in it ([`crate::http::readings`]); never empty.
    pub paths: &'a [String],
    /// Headers.
    pub headers: &'a dyn Headers,
    /// Address of the original client, when trusted hops say it.
    pub remote_ip: Option<IpAddr>,
    /// Claims of a verified token.
    pub claims: Option<&'a dyn Claims>,
}

impl std::fmt::Debug for HttpFacts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpFacts")
            .field("method", &self.method)
            .field("host", &self.host)
            .field("paths", &self.paths)
            .finish_non_exhaustive()
    }
}

/// A connection, or a request on it.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Who the peer has proven to be; none for plaintext.
    pub source: Option<&'a SpiffeId>,
    /// Address of the direct peer.
    pub source_ip: IpAddr,
    /// Address that is addressed.
    pub destination_ip: IpAddr,
    /// Port: the workload's at a node proxy, the Service's at a waypoint.
    pub destination_port: u16,
    /// Server name of TLS.
    pub sni: Option<&'a str>,
    /// The HTTP part; none at layer 4.
    pub http: Option<HttpFacts<'a>>,
}

/// Claims that are lists in one string, between spaces (RFC 8693 §4.2), wherever tokens come from.
const SPACE_DELIMITED: [&str; 2] = ["scope", "permission"];

/// Whether a claim holds a list in one string.
pub fn is_space_delimited(path: &[Arc<str>]) -> bool {
    matches!(path, [name] if SPACE_DELIMITED.contains(&&**name))
}

/// Calls `with` for every text of a claim, one by one.
pub(crate) fn each_claim(claims: &dyn Claims, path: &[Arc<str>], with: &mut dyn FnMut(&str)) {
    if is_space_delimited(path) {
        claims.each(path, &mut |text| text.split(' ').filter(|one| !one.is_empty()).for_each(&mut *with));
    } else {
        claims.each(path, with);
    }
}

/// Path of the claim `aud`.
pub(crate) fn audiences() -> &'static [Arc<str>] {
    static PATH: LazyLock<[Arc<str>; 1]> = LazyLock::new(|| ["aud".into()]);
    &*PATH
}

/// Path of the claim `azp`.
pub(crate) fn presenter() -> &'static [Arc<str>] {
    static PATH: LazyLock<[Arc<str>; 1]> = LazyLock::new(|| ["azp".into()]);
    &*PATH
}
