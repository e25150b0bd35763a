// SPDX-License-Identifier: Apache-2.0
//! What who operates a cluster looks at: budgets of disruptions, metrics, watches of clients of long ago.

use std::time::{Duration, Instant};

use super::server::Server;

/// Waits for what follows from a write on its own time.
fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn set_ready(server: &Server, pod: &str, ready: &str) {
    let patch =
        format!(r#"{{"status":{{"phase":"Running","conditions":[{{"type":"Ready","status":"{ready}"}}]}}}}"#);
    server.kubectl(&["patch", "pod", pod, "--subresource=status", "--type=merge", "-p", &patch]);
}

#[test]
fn a_budget_shows_how_many_pods_may_go() {
    let server = Server::start();
    let columns = || {
        let shown = server.kubectl(&["get", "pdb", "web", "--no-headers"]);
        shown.split_whitespace().skip(1).take(3).map(str::to_owned).collect::<Vec<_>>().join(" ")
    };
    server.kubectl(&["create", "pdb", "web", "--selector=app=web", "--min-available=1"]);
    until("no Pods, nothing may go", || server.value("pdb/web", ".status.expectedPods") == "0");
    assert_eq!(columns(), "1 N/A 0");
    for pod in ["one", "two", "other"] {
        let app = if pod == "other" { "app=other" } else { "app=web" };
        server.kubectl(&["run", pod, "--image=x", "--labels", app]);
        set_ready(&server, pod, "True");
    }
    until("one of two may go", || columns() == "1 N/A 1");
    let counts = ".status['currentHealthy','desiredHealthy','expectedPods','observedGeneration']";
    assert_eq!(server.value("pdb/web", counts), "2 1 2 1");
    server.kubectl(&["wait", "pdb/web", "--for=condition=DisruptionAllowed", "--timeout=30s"]);
    set_ready(&server, "two", "False");
    until("the other one must stay", || columns() == "1 N/A 0");
    server.kubectl(&["wait", "pdb/web", "--for=condition=DisruptionAllowed=False", "--timeout=30s"]);
    // What somebody else writes there does not stay when something changes.
    let forged = r#"{"status":{"disruptionsAllowed":9}}"#;
    server.kubectl(&["patch", "pdb", "web", "--subresource=status", "--type=merge", "-p", forged]);
    until("it is put right", || columns() == "1 N/A 0");
    // When nothing changes, nothing is written.
    let revision = server.value("pdb/web", ".metadata.resourceVersion");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(server.value("pdb/web", ".metadata.resourceVersion"), revision);
}

#[test]
fn metrics_say_what_was_asked_and_what_is_stored() {
    let server = Server::start();
    for name in ["a", "b"] {
        server.kubectl(&["create", "configmap", name]);
    }
    server.refused(&["get", "configmap", "c"], "");
    let text = server.kubectl(&["get", "--raw", "/metrics"]);
    for (line, least) in [
        (
            r#"apiserver_request_total{verb="create",group="",version="v1",resource="configmaps",code="201"} "#,
            2,
        ),
        (r#"apiserver_request_total{verb="get",group="",version="v1",resource="configmaps",code="404"} "#, 1),
        (r#"apiserver_storage_objects{resource="configmaps"} "#, 2),
        (r#"apiserver_current_inflight_requests{request_kind="privileged"} "#, 0),
        ("apiserver_storage_revision ", 2),
    ] {
        let value = text.lines().find_map(|found| found.strip_prefix(line)?.parse::<u64>().ok());
        assert!(value.is_some_and(|value| value >= least), "{line}{value:?}\n{text}");
    }
    assert!(text.contains("apiserver_request_duration_seconds_bucket{"), "{text}");
    let said = server.refused(&["get", "--raw", "/metrics", "--as", "nobody"], "");
    assert!(said.contains("forbidden"), "{said}");
}

#[test]
fn a_watch_may_be_asked_for_in_the_path() {
    let server = Server::start();
    for name in ["a", "b"] {
        server.kubectl(&["create", "configmap", name]);
    }
    let watched = |path: &str| server.kubectl(&["get", "--raw", &format!("{path}?timeoutSeconds=1")]);
    let all = watched("/api/v1/watch/namespaces/default/configmaps");
    assert_eq!(all.matches(r#""type":"ADDED""#).count(), 2, "{all}");
    let one = watched("/api/v1/watch/namespaces/default/configmaps/b");
    assert!(one.contains(r#""name":"b""#) && !one.contains(r#""name":"a""#), "{one}");
    server.refused(&["get", "--raw", "/api/v1/watch"], "");
    server.refused(&["get", "--raw", "/api/v1/watch/namespaces/default/nothing"], "");
    server.refused(&["delete", "--raw", "/api/v1/watch/namespaces/default/configmaps/b"], "");
    server.kubectl(&["get", "configmap", "b"]);
}
