// SPDX-License-Identifier: Apache-2.0
//! A client whose connections notice within seconds that their peer is gone.

use std::time::Duration;

use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt as _;
use kube::client::retry::RetryPolicy;
use tower::ServiceBuilder;
use tower::retry::RetryLayer;

/// Longest time for a connection to the API to be accepted. SYNs are sent again after 1 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A silent connection (a watch without changes) asks its peer after this time whether it is still there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(4);
/// Interval between two such questions.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// Questions without an answer that end the connection.
const KEEPALIVE_RETRIES: u32 = 2;
/// Longest time for sent bytes to be acknowledged by the peer's kernel (TCP_USER_TIMEOUT). Without it a connection that
/// has outlived a partition waits for a retransmission timer that has grown as long as the partition.
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);

/// A client as `kube::Client::try_from` makes it, but over connections that fail when their peer has been unreachable
/// for `UNACKNOWLEDGED`. A peer that is only slow keeps its connection: its kernel answers for it.
///
/// # Errors
/// The configuration's certificates or credentials cannot be used.
pub fn client(config: kube::Config) -> kube::Result<kube::Client> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(CONNECT_TIMEOUT));
    http.set_keepalive(Some(KEEPALIVE_IDLE));
    http.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    http.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    http.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let https = config.rustls_https_connector_with_connector(http)?;
    let connections: HttpClient<_, kube::client::Body> =
        HttpClient::builder(TokioExecutor::new()).build(https);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.default_retry.then(|| RetryLayer::new(RetryPolicy::server_retry())))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(tower::BoxError::from)
        .service(connections);
    Ok(kube::Client::new(service, config.default_namespace))
}
