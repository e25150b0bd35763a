// SPDX-License-Identifier: Apache-2.0
//! The load generators: `oha` for requests, `iperf3` for bytes.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::mesh::Mesh;

/// Where `oha` is seen inside of a client's container.
pub(crate) const LOAD_GENERATOR: &str = "/bench/bin";

/// How requests are sent.
#[derive(Clone, Copy)]
pub(crate) enum Shape {
    /// As fast as answers come, over `connections` kept connections.
    Closed { connections: u32 },
    /// At a fixed rate. Latency is counted from the moment at which a request was due, so that a server that stalls is
    /// charged for the requests that had to wait (no coordinated omission).
    Open { connections: u32, rate: u32 },
    /// As fast as answers come, a new connection for each request.
    NewConnections { at_once: u32 },
}

/// What a load generator saw.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Requests {
    /// Answers with status 200 per second.
    pub(crate) per_second: f64,
    /// Answers with status 200.
    pub(crate) succeeded: u64,
    /// Requests without an answer, and answers with another status.
    pub(crate) failed: u64,
    /// Latency in microseconds by percentile (`p50`, `p90`, `p99`, `p99.9`).
    pub(crate) latency_us: BTreeMap<String, f64>,
    /// Why requests failed, as the load generator says it, with counts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) errors: BTreeMap<String, u64>,
}

/// `oha --output-format json`, the part that is used.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    summary: Summary,
    #[serde(default)]
    latency_percentiles: BTreeMap<String, Option<f64>>,
    #[serde(default)]
    status_code_distribution: BTreeMap<String, u64>,
    #[serde(default)]
    error_distribution: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
struct Summary {
    /// Seconds that the run took.
    total: f64,
}

/// Sends requests from the client Pod of `namespace` to `url` for `span`.
///
/// # Errors
/// The load generator does not run, or its answer cannot be read.
pub(crate) fn send(
    mesh: &Mesh,
    namespace: &str,
    url: &str,
    shape: Shape,
    span: Duration,
) -> anyhow::Result<Requests> {
    let program = format!("{LOAD_GENERATOR}/oha");
    let span = format!("{}s", span.as_secs());
    let mut words = vec![
        program,
        "--no-tui".into(),
        "--no-color".into(),
        "--output-format=json".into(),
        "--wait-ongoing-requests-after-deadline".into(),
        // A request that takes longer than this failed, for any path.
        "-t=10s".into(),
        "-z".into(),
        span,
    ];
    match shape {
        Shape::Closed { connections } => words.push(format!("-c={connections}")),
        Shape::Open { connections, rate } => {
            words.extend([format!("-c={connections}"), format!("-q={rate}")]);
            words.push("--latency-correction".into());
        }
        Shape::NewConnections { at_once } => {
            words.extend([format!("-c={at_once}"), "--disable-keepalive".into()]);
        }
    }
    words.push(url.into());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let text = mesh.exec(namespace, &words)?;
    read(&text).with_context(|| format!("answer of the load generator: {text}"))
}

fn read(text: &str) -> anyhow::Result<Requests> {
    let answer: Answer = serde_json::from_str(text)?;
    let succeeded = answer.status_code_distribution.get("200").copied().unwrap_or(0);
    let answered: u64 = answer.status_code_distribution.values().sum();
    let broken: u64 = answer.error_distribution.values().sum();
    let mut errors = answer.error_distribution;
    for (status, count) in answer.status_code_distribution {
        if status != "200" {
            errors.insert(format!("status {status}"), count);
        }
    }
    let latency_us = ["p50", "p90", "p99", "p99.9"]
        .iter()
        .filter_map(|name| {
            let seconds = answer.latency_percentiles.get(*name).copied().flatten()?;
            Some(((*name).to_owned(), seconds * 1e6))
        })
        .collect();
    Ok(Requests {
        per_second: succeeded as f64 / answer.summary.total.max(f64::MIN_POSITIVE),
        succeeded,
        failed: answered - succeeded + broken,
        latency_us,
        errors,
    })
}

/// Bytes per second that one TCP stream carries from the client Pod of `namespace` to `address`.
///
/// # Errors
/// `iperf3` does not run, or its answer cannot be read.
pub(crate) fn stream(mesh: &Mesh, namespace: &str, address: &str, span: Duration) -> anyhow::Result<Bytes> {
    let seconds = span.as_secs().to_string();
    let text = mesh.exec(namespace, &["iperf3", "-J", "-t", &seconds, "-c", address])?;
    let answer: serde_json::Value = serde_json::from_str(&text)?;
    let received = &answer["end"]["sum_received"];
    Ok(Bytes {
        bits_per_second: received["bits_per_second"].as_f64().context("iperf3: no rate")?,
        bytes: received["bytes"].as_u64().context("iperf3: no bytes")?,
    })
}

/// What a stream carried.
pub(crate) struct Bytes {
    pub(crate) bits_per_second: f64,
    pub(crate) bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn answers_other_than_200_and_broken_requests_are_failures() {
        let text = r#"{"summary": {"successRate": 0.9, "total": 2.0, "requestsPerSec": 50.0},
            "latencyPercentiles": {"p10": 0.001, "p50": 0.002, "p99": 0.5, "p99.9": null},
            "statusCodeDistribution": {"200": 80, "503": 5},
            "errorDistribution": {"connection refused": 3}}"#;
        let seen = read(text).expect("an answer of the load generator");
        assert_eq!((seen.succeeded, seen.failed), (80, 8));
        assert!((seen.per_second - 40.0).abs() < 1e-9, "only answers with 200 count: {}", seen.per_second);
        assert_eq!(seen.latency_us.keys().collect::<Vec<_>>(), ["p50", "p99"]);
        assert_eq!(seen.errors["status 503"], 5);
    }
}
