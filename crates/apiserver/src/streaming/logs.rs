// SPDX-License-Identifier: Apache-2.0
//! `pods/log`: checks the parameters and streams what the node sends.

use axum::body::Body;
use http::{HeaderValue, Response, header};
use serde_json::Value;

use super::kubelet::Place;
use super::{Query, Streaming, container, encoded};
use crate::status::Refusal;

pub(super) async fn serve(
    streaming: &Streaming,
    place: &Place,
    pod: &Value,
    query: &Query,
) -> Result<Response<Body>, Refusal> {
    let container = container(pod, query, &["containers", "initContainers", "ephemeralContainers"])?;
    let path = format!("/containerLogs/{}/{container}?{}", place.pod, parameters(query)?);
    let response = streaming.kubelet.get(place, &path).await?;
    let (_, body) = response.into_parts();
    let mut response = Response::new(Body::new(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(response)
}

/// The parameters that the node gets; a value that is none is refused here, in one place.
fn parameters(query: &Query) -> Result<String, Refusal> {
    let mut out = Vec::new();
    for (key, value) in &query.0 {
        let wrong = |why: &str| Refusal::bad_request(format!("invalid log option {key}={value:?}: {why}"));
        match key.as_str() {
            "follow" | "timestamps" | "previous" => {
                let value: bool = match value.as_str() {
                    "" | "1" => true,
                    "0" => false,
                    other => other.parse().map_err(|_| wrong("must be true or false"))?,
                };
                out.push(format!("{key}={value}"));
            }
            "tailLines" => {
                let value: u64 = value.parse().map_err(|_| wrong("must be greater than or equal to 0"))?;
                out.push(format!("{key}={value}"));
            }
            "sinceSeconds" | "limitBytes" => {
                let value: u64 = value.parse().map_err(|_| wrong("must be greater than 0"))?;
                if value == 0 {
                    return Err(wrong("must be greater than 0"));
                }
                out.push(format!("{key}={value}"));
            }
            "sinceTime" => {
                let time: jiff::Timestamp = value.parse().map_err(|_| wrong("must be an RFC 3339 time"))?;
                out.push(format!("{key}={}", encoded(&time.to_string())));
            }
            "stream" if value != "All" => return Err(wrong("only All is supported")),
            // The node's certificate is always verified.
            "container" | "pretty" | "insecureSkipTLSVerifyBackend" | "stream" => {}
            _ => return Err(wrong("unknown")),
        }
    }
    if query.get("sinceTime").is_some() && query.get("sinceSeconds").is_some() {
        return Err(Refusal::bad_request("at most one of `sinceTime` or `sinceSeconds` may be specified"));
    }
    Ok(out.join("&"))
}

#[cfg(test)]
mod tests {
    use super::{Query, parameters};

    #[test]
    fn parameters_are_checked_and_forwarded() {
        let cases = [
            ("follow=true&tailLines=10&container=c", Ok("follow=true&tailLines=10")),
            (
                "sinceSeconds=5&timestamps=true&previous=false",
                Ok("sinceSeconds=5&timestamps=true&previous=false"),
            ),
            (
                "sinceTime=2026-01-01T00%3A00%3A00Z&limitBytes=9",
                Ok("sinceTime=2026%2D01%2D01T00%3A00%3A00Z&limitBytes=9"),
            ),
            ("tailLines=-1", Err(())),
            ("sinceSeconds=0", Err(())),
            ("sinceTime=yesterday", Err(())),
            ("follow=perhaps", Err(())),
            ("sinceTime=2026-01-01T00:00:00Z&sinceSeconds=1", Err(())),
        ];
        for (query, expected) in cases {
            let got = parameters(&Query::parse(query)).map_err(|_| ());
            assert_eq!(got, expected.map(str::to_owned), "{query}");
        }
    }
}
