// SPDX-License-Identifier: Apache-2.0
//! Bookinfo's services behind the page: details, ratings, reviews.

use std::time::Duration;

use anyhow::Context;
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

/// Longest wait for another service.
const LIMIT: Duration = Duration::from_secs(3);
/// Largest answer of another service.
const MAX_ANSWER: usize = 1024 * 1024;
/// Headers that are passed on, so that traces hang together.
const PASSED_ON: &[&str] =
    &["x-request-id", "traceparent", "tracestate", "b3", "end-user", "user-agent", "authorization"];

/// Where the other services are, by the variables that the well-known application has.
#[derive(Clone, Debug)]
pub(super) struct Upstreams {
    pub(super) details: String,
    pub(super) reviews: String,
    pub(super) ratings: String,
    pub(super) stars: Option<String>,
}

impl Upstreams {
    pub(super) fn from_env(env: impl Fn(&str) -> Option<String>) -> Self {
        let domain = env("SERVICES_DOMAIN").map(|d| format!(".{d}")).unwrap_or_default();
        let at = |name: &str, host: &str, port: &str| {
            let host = env(host).unwrap_or_else(|| name.to_owned());
            format!("{host}{domain}:{}", env(port).unwrap_or_else(|| "9080".into()))
        };
        let enabled = env("ENABLE_RATINGS").is_none_or(|v| v == "true");
        Self {
            details: at("details", "DETAILS_HOSTNAME", "DETAILS_SERVICE_PORT"),
            reviews: at("reviews", "REVIEWS_HOSTNAME", "REVIEWS_SERVICE_PORT"),
            ratings: at("ratings", "RATINGS_HOSTNAME", "RATINGS_SERVICE_PORT"),
            stars: enabled.then(|| env("STAR_COLOR").unwrap_or_default()),
        }
    }
}

/// Gets JSON from another service.
pub(super) async fn fetch(authority: &str, path: &str, headers: &HeaderMap) -> anyhow::Result<Value> {
    let exchange = async {
        let stream = tokio::net::TcpStream::connect(authority).await.with_context(|| authority.to_owned())?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let mut request = Request::get(path).header("host", authority);
        for name in PASSED_ON {
            if let Some(value) = headers.get(*name) {
                request = request.header(HeaderName::from_static(name), value);
            }
        }
        let request = request.body(Empty::<Bytes>::new())?;
        let answer = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER)
                .collect()
                .await
                .map_err(|e| anyhow::anyhow!(e))?;
            anyhow::ensure!(status == StatusCode::OK, "{authority}{path} answered {status}");
            Ok(serde_json::from_slice(&body.to_bytes())?)
        };
        tokio::pin!(connection);
        tokio::select! {
            answer = answer => answer,
            ended = connection => Err(anyhow::anyhow!("{authority}: the connection ended: {ended:?}")),
        }
    };
    tokio::time::timeout(LIMIT, exchange).await.with_context(|| format!("{authority} does not answer"))?
}

async fn health() -> Json<Value> {
    Json(json!({"status": "healthy"}))
}

/// `/details/<id>`
pub(super) fn details() -> Router {
    let one = |Path(id): Path<u32>| async move {
        Json(json!({
            "id": id, "author": "William Shakespeare", "year": 1595, "type": "paperback", "pages": 200,
            "publisher": "PublisherA", "language": "English", "ISBN-10": "1234567890", "ISBN-13": "123-1234567890",
        }))
    };
    Router::new().route("/details/{id}", get(one)).route("/health", get(health))
}

/// `/ratings/<id>`
pub(super) fn ratings() -> Router {
    let one = |Path(id): Path<u32>| async move {
        Json(json!({"id": id, "ratings": {"Reviewer1": 5, "Reviewer2": 4}}))
    };
    Router::new().route("/ratings/{id}", get(one)).route("/health", get(health))
}

/// `/reviews/<id>`; from v2 on with stars.
pub(super) fn reviews(version: &str, upstreams: Upstreams) -> Router {
    let stars = match (version, &upstreams.stars) {
        ("v1", _) | (_, None) => None,
        ("v2", Some(color)) => Some(if color.is_empty() { "black".to_owned() } else { color.clone() }),
        (_, Some(color)) => Some(if color.is_empty() { "red".to_owned() } else { color.clone() }),
    };
    let podname = std::env::var("HOSTNAME").unwrap_or_default();
    let one = move |Path(id): Path<u32>, headers: HeaderMap| async move {
        let rating = match &stars {
            None => None,
            Some(color) => {
                Some((color.clone(), fetch(&upstreams.ratings, &format!("/ratings/{id}"), &headers).await))
            }
        };
        Json(json!({"id": id, "podname": podname, "reviews": [
            review("Reviewer1", "An extremely entertaining play by Shakespeare. The slapstick humour is refreshing!", rating.as_ref()),
            review("Reviewer2", "Absolutely fun and entertaining. The play lacks thematic depth when compared to other plays by Shakespeare.", rating.as_ref()),
        ]}))
    };
    Router::new().route("/reviews/{id}", get(one)).route("/health", get(health))
}

fn review(reviewer: &str, text: &str, rating: Option<&(String, anyhow::Result<Value>)>) -> Value {
    let mut review = json!({"reviewer": reviewer, "text": text});
    match rating {
        None => {}
        Some((color, Ok(answer))) => {
            review["rating"] = json!({"stars": answer["ratings"][reviewer], "color": color});
        }
        Some((_, Err(_))) => review["rating"] = json!({"error": "Ratings service is currently unavailable"}),
    }
    review
}
