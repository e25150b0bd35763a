// SPDX-License-Identifier: Apache-2.0
//! `meltemi authz` and `meltemi analyze` on files: exit codes, and the words that other programs read.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const POLICY: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web, namespace: default}
spec:
  targetRefs: [{kind: Service, group: "", name: web}]
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/curl]}}]
    to: [{operation: {methods: [METHODS], paths: [/a*]}}]
"#;

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../samples")
}

/// Exit code and standard output.
fn run(args: &[&str]) -> (i32, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_meltemi")).args(args).output().unwrap();
    (out.status.code().unwrap(), String::from_utf8(out.stdout).unwrap())
}

fn json(args: &[&str]) -> (i32, Value) {
    let (code, out) = run(&[args, &["-o", "json"]].concat());
    (code, serde_json::from_str(&out).unwrap())
}

struct Files(tempfile::TempDir);

impl Files {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        Self(dir)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }
}

#[test]
fn a_difference_has_a_condition_and_a_witness_that_explain_confirms() {
    let (get, both) = (POLICY.replace("METHODS", "GET"), POLICY.replace("METHODS", "GET, PUT"));
    let custom = format!(
        "{get}---\n{}",
        get.replace("name: web,", "name: ask,")
            .replace("rules:", "action: CUSTOM\n  provider: {name: opa}\n  rules:")
            .replace("from: [{source: {principals: [cluster.local/ns/default/sa/curl]}}]\n    ", "")
    );
    let files = Files::new(&[("old.yaml", &get), ("new.yaml", &both), ("custom.yaml", &custom)]);
    let (old, new) = (files.path("old.yaml"), files.path("new.yaml"));
    assert_eq!(run(&["authz", "diff", &old, &old]).0, 0);
    let (code, found) = json(&["authz", "diff", &old, &new, "--no-new-access"]);
    assert_eq!(code, 1);
    let one = &found["newlyAllowed"][0];
    assert_eq!(one["target"], "Service default/web");
    assert_eq!(one["enforcedAt"], "waypoint default/waypoint");
    assert_eq!(one["condition"], "principals=[cluster.local/ns/default/sa/curl] methods=[PUT] paths=[/a*]");
    assert_eq!(one["witness"]["method"], "PUT");
    let command: Vec<&str> = one["explain"].as_str().unwrap().split(' ').collect();
    assert_eq!(command[0], "meltemi");
    for (file, expected) in [(&old, 1), (&new, 0)] {
        let (code, out) = run(&[&command[1..], &["-f", file.as_str()]].concat());
        assert_eq!(code, expected, "{file}: {out}");
    }
    // The other way round nothing is newly allowed.
    assert_eq!(run(&["authz", "diff", &new, &old, "--no-new-access"]).0, 0);
    assert_eq!(run(&["authz", "diff", &new, &old]).0, 1);
    let (code, found) = json(&["authz", "diff", &old, &files.path("custom.yaml")]);
    assert_eq!((code, &found["unknown"][0]["policy"]), (2, &Value::from("default/ask")), "{found}");
}

/// Words of a command as a shell reads them.
fn words(command: &str) -> Vec<String> {
    let (mut out, mut word, mut quoted) = (vec![], String::new(), false);
    for c in command.chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => out.push(std::mem::take(&mut word)),
            other => word.push(other),
        }
    }
    out.push(word);
    out
}

#[test]
fn every_difference_has_a_command_that_confirms_it() {
    let policy = |name: &str, spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: default}}\nspec: {spec}\n---\n"
        )
    };
    let web = "targetRefs: [{kind: Service, group: '', name: web}]";
    let when = |key: &str, value: &str| {
        policy("p", &format!("{{{web}, rules: [{{when: [{{key: '{key}', values: ['{value}']}}]}}]}}"))
    };
    let rules = |action: &str, from: &str| {
        policy(
            "p",
            &format!(
                "{{action: {action}, selector: {{matchLabels: {{app.kubernetes.io/name: web}}}}, rules: [{{from: [{{source: {{{from}}}}}]}}]}}"
            ),
        )
    };
    let gateway = "targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: gw}], rules: [{to: [{operation: {hosts: [a.example]}}]}]";
    // What is there before, what comes instead; each difference is at one of the places.
    let cases = [
        (when("request.auth.claims[groups]", "admin"), when("request.auth.claims[groups]", "ad*")),
        (when("request.auth.claims[realm][roles]", "a"), when("request.auth.claims[realm][roles]", "b")),
        (when("request.auth.principal", "https://a/b"), when("request.auth.principal", "https://a/*")),
        (when("request.auth.audiences", "a"), when("request.auth.presenter", "a")),
        (when("request.headers[x-h]", "a b"), when("request.headers[x-h]", "*")),
        (when("connection.sni", "a.example"), when("remote.ip", "10.0.0.0/8")),
        (when("destination.ip", "10.0.0.0/8"), when("source.ip", "fd00::/8")),
        (rules("DENY", "ipBlocks: [10.0.0.0/8]"), rules("DENY", "ipBlocks: [10.1.0.0/16]")),
        (rules("ALLOW", "namespaces: [a]"), rules("ALLOW", "namespaces: [b]")),
        (
            policy("p", &format!("{{{gateway}}}")),
            policy("p", &format!("{{{}}}", gateway.replace("a.example", "b.example"))),
        ),
    ];
    for (old, new) in cases {
        let files = Files::new(&[("old.yaml", &old), ("new.yaml", &new)]);
        let (before, after) = (files.path("old.yaml"), files.path("new.yaml"));
        let (code, found) = json(&["authz", "diff", &before, &after]);
        assert_eq!(code, 1, "{found}");
        let list = |name: &str| found[name].as_array().unwrap().clone();
        let mut count = 0;
        for (difference, allowed) in list("newlyAllowed")
            .iter()
            .map(|d| (d, true))
            .chain(list("newlyDenied").iter().map(|d| (d, false)))
        {
            let command = words(difference["explain"].as_str().unwrap_or_else(|| panic!("{difference}")));
            for (file, allow) in [(&before, !allowed), (&after, allowed)] {
                let args: Vec<&str> = command[1..].iter().map(String::as_str).chain(["-f", file]).collect();
                let (code, out) = run(&args);
                assert_eq!(code, i32::from(!allow), "{args:?}: {out}");
            }
            count += 1;
        }
        assert!(count > 0, "{found}");
    }
}

#[test]
fn a_request_is_told_by_flags_and_by_rows() {
    let policy = POLICY.replace("METHODS", "GET").replace(
        "    to:",
        "    when: [{key: 'request.auth.claims[groups]', values: [admin]}, {key: request.auth.audiences, values: [shop]}]\n    to:",
    );
    let row =
        "from: default/curl, at: waypoint, method: GET, path: /a, requestPrincipal: i/s, audiences: [shop]";
    let table = format!(
        "tests:\n- {{{row}, to: web, claims: {{groups: [x, admin]}}, expect: ALLOW}}\n- {{{row}, to: web, claims: {{groups: x}}, expect: DENY}}\n- {{{row}, expect: DENY}}\n"
    );
    let files = Files::new(&[("p.yaml", &policy), ("t.yaml", &table)]);
    let (code, out) = run(&["authz", "test", "--assume", &files.path("t.yaml"), "-f", &files.path("p.yaml")]);
    assert!(code == 1 && out.contains("2 passed, 1 failed") && out.contains("says what is reached"), "{out}");
    let file = files.path("p.yaml");
    let ask = |more: &[&str]| {
        let args =
            "authz explain --at waypoint --from default/curl --method GET --path /a --request-principal i/s";
        run(&[&args.split(' ').collect::<Vec<_>>()[..], &["-f", &file], more].concat()).0
    };
    let claims = ["--audience", "shop", "--claim", "groups=x", "--claim", "groups=admin"];
    assert_eq!(ask(&[&["--to", "web"][..], &claims].concat()), 0);
    assert_eq!(ask(&["--to", "web", "--audience", "shop", "--claim", "groups=x"]), 1);
    // No verdict: a claim without a value, a principal that the claims contradict, nothing that is reached, two things.
    for wrong in [
        &["--to", "web", "--claim", "groups"][..],
        &["--to", "web", "--claim", "iss=j"],
        &[],
        &["--to", "web", "--to-gateway", "gw"],
        &["--to-pod", "app=web"],
    ] {
        assert_eq!(ask(wrong), 2, "{wrong:?}");
    }
}

#[test]
fn the_tables_of_the_samples_hold_and_a_false_row_does_not() {
    let tables = samples().join("authz-tests");
    for table in ["bookinfo.yaml", "kagenti.yaml"] {
        let (code, out) = run(&["authz", "test", &tables.join(table).display().to_string()]);
        assert_eq!(code, 0, "{out}");
    }
    let table = "tests:\n- {from: default/curl, to: web, method: PUT, path: /a, expect: ALLOW}\n";
    let files = Files::new(&[("p.yaml", &POLICY.replace("METHODS", "GET")), ("t.yaml", table)]);
    let (junit, sarif) = (files.path("j.xml"), files.path("s.json"));
    let args = [
        "authz",
        "test",
        &files.path("t.yaml"),
        "-f",
        &files.path("p.yaml"),
        "--junit",
        &junit,
        "--sarif",
        &sarif,
    ];
    let (code, out) = run(&args);
    assert!(code == 1 && out.contains("0 passed, 1 failed"), "{out}");
    assert!(std::fs::read_to_string(junit).unwrap().contains("failures=\"1\""));
    let report: Value = serde_json::from_str(&std::fs::read_to_string(sarif).unwrap()).unwrap();
    assert_eq!(report["runs"][0]["results"][0]["ruleId"], "authz-test");
}

#[test]
fn objects_without_a_namespace_are_of_the_one_that_is_said() {
    let files =
        Files::new(&[("p.yaml", &POLICY.replace("METHODS", "GET").replace(", namespace: default", ""))]);
    let (code, found) = json(&["-n", "shop", "authz", "diff", &files.path("p.yaml"), "/dev/null"]);
    assert_eq!((code, &found["newlyAllowed"][0]["target"]), (1, &"Service shop/web".into()), "{found}");
}

#[test]
fn what_holds_nothing_is_an_error_and_no_answer() {
    let files = Files::new(&[
        ("empty.yaml", "---\n"),
        ("p.yaml", &POLICY.replace("METHODS", "GET")),
        ("t.yaml", "tests: []\n"),
        ("junk.yaml", "hello: world\n"),
        ("typo.yaml", &POLICY.replace("kind: AuthorizationPolicy", "kind: AuthorisationPolicy")),
    ]);
    let (empty, policy, table) = (files.path("empty.yaml"), files.path("p.yaml"), files.path("t.yaml"));
    let explain = ["authz", "explain", "--from", "default/a", "--to", "web", "-f"];
    let (junk, typo) = (files.path("junk.yaml"), files.path("typo.yaml"));
    let cases = [
        ([&explain[..], &[&junk]].concat(), 2, "it has no kind"),
        ([&explain[..], &[&typo]].concat(), 2, "AuthorisationPolicy is no kind of security.istio.io"),
        ([&explain[..], &[&empty]].concat(), 2, "there is no object"),
        ([&explain[..], &["-"]].concat(), 2, "standard input: there is no object"),
        ([&explain[..], &["https://example.com/p.yaml"]].concat(), 2, "a URL is not fetched"),
        (vec!["authz", "test", &table, "-f", &policy], 2, "the table has no tests"),
        (vec!["analyze", &empty], 1, "there is no object"),
    ];
    for (args, code, text) in cases {
        let out = Command::new(env!("CARGO_BIN_EXE_meltemi"))
            .args(&args)
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        let error = String::from_utf8(out.stderr).unwrap();
        assert!(out.status.code() == Some(code) && error.contains(text), "{args:?}: {error}");
    }
}

#[test]
fn findings_have_istioctls_form_and_exit_code() {
    let kagenti = samples().join("kagenti").display().to_string();
    let (code, out) = run(&["analyze", &kagenti]);
    assert!(
        code == 0 && out.starts_with("Warning [MLT0106] (Service kagenti-system/mlflow) "),
        "{code} {out}"
    );
    assert_eq!(run(&["analyze", &kagenti, "--failure-threshold", "Warning"]).0, 79);
    let files = Files::new(&[("bad.yaml", &POLICY.replace("rules:", "action: DENY\n  rulez:"))]);
    let (code, found) = json(&["analyze", &files.path("bad.yaml")]);
    assert_eq!(
        (code, &found[0]["code"], &found[0]["level"]),
        (79, &"IST0106".into(), &"Error".into()),
        "{found}"
    );
}

#[test]
fn who_can_and_what_would_flip() {
    let policies = samples().join("authz-tests/bookinfo-policies.yaml").display().to_string();
    let (code, found) =
        json(&["authz", "who-can", "--to", "productpage", "--method", "GET", "-f", &policies]);
    assert_eq!((code, &found["waypointAdmitted"]), (0, &true.into()), "{found}");
    assert_eq!(found["doors"][0]["grants"][0]["identities"][0], "cluster.local/ns/default/sa/curl");
    let log = r#"{"method":"PUT","path":"/","authority":"productpage:9080","response_code":200,"source_principal":"spiffe://cluster.local/ns/default/sa/curl"}"#;
    let files = Files::new(&[("flows.log", log)]);
    let (code, found) = json(&["authz", "simulate", "-f", &policies, "--flows", &files.path("flows.log")]);
    assert_eq!(
        (code, &found["flips"][0]["is"], &found["flips"][0]["count"]),
        (1, &"DENY".into(), &1.into()),
        "{found}"
    );
}

/// A Service behind a waypoint, an account, a Deployment, and policies of both layers.
const SHOP: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: cli, namespace: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: x, ports: [{containerPort: 8080}]}]}
"#;

fn shop(policies: &[(&str, &str)]) -> String {
    let policy = |(name, spec): &(&str, &str)| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
        )
    };
    SHOP.to_owned() + &policies.iter().map(policy).collect::<String>()
}

const L7: (&str, &str) = (
    "l7",
    "{targetRefs: [{kind: Service, group: '', name: web}], rules: [{to: [{operation: {methods: [GET]}}]}]}",
);
const L4: (&str, &str) = (
    "l4",
    "{selector: {matchLabels: {app: web}}, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/wp]}}]}]}",
);

#[test]
fn an_allow_names_the_policy_and_the_rule_at_every_proxy_on_the_way() {
    // The policies; what is said at the waypoint and at the node proxy: policy, rule; and at the top.
    type Case<'a> = (&'a [(&'a str, &'a str)], [Option<&'a str>; 2], Option<&'a str>);
    let cases: [Case<'_>; 4] = [
        (&[L7, L4], [Some("shop/l7"), Some("shop/l4")], Some("shop/l7")),
        (&[L7], [Some("shop/l7"), None], Some("shop/l7")),
        (&[L4], [None, Some("shop/l4")], Some("shop/l4")),
        (&[], [None, None], None),
    ];
    for (policies, halves, top) in cases {
        let files = Files::new(&[("k8s.yaml", &shop(policies))]);
        let file = files.path("k8s.yaml");
        let args = "authz explain --from shop/cli --to web.shop --port 80 --method GET --path / -f";
        let args: Vec<&str> = args.split(' ').chain([file.as_str()]).collect();
        let (code, answer) = json(&args);
        assert_eq!((code, &answer["verdict"]), (0, &"ALLOW".into()), "{answer}");
        assert_eq!(answer["policy"].as_str(), top, "{answer}");
        assert_eq!(answer["rule"].as_u64(), top.map(|_| 0), "{answer}");
        for (half, (policy, port)) in halves.iter().zip([80, 8080]).enumerate() {
            let said = &answer["halves"][half];
            assert_eq!(
                (said["policy"].as_str(), said["rule"].as_u64()),
                (*policy, policy.map(|_| 0)),
                "{said}"
            );
            assert_eq!(said["port"], port, "{said}");
            let reason = said["reason"].as_str().unwrap();
            assert!(reason.contains(policy.unwrap_or("no ALLOW policy applies")), "{said}");
        }
        let (_, text) = run(&args);
        let line = top.map_or("policy: none: no ALLOW policy applies".to_owned(), |p| format!("policy: {p}"));
        assert!(text.contains(&line), "{text}");
        for policy in halves.iter().flatten() {
            assert!(text.contains(&format!("allowed by {policy} rule[0]")), "{text}");
        }
        assert!(text.contains("at node proxy: ALLOW") && text.contains("port 8080"), "{text}");
    }
    let files = Files::new(&[("k8s.yaml", &shop(&[L7]))]);
    let args = "authz explain --from shop/cli --to web.shop --port 80 --at waypoint --method GET --path / -f";
    let (_, text) = run(&args.split(' ').chain([files.path("k8s.yaml").as_str()]).collect::<Vec<_>>());
    assert!(text.contains("port: 80 (the Service's)") && text.contains("clause: methods=[GET]"), "{text}");
}

#[test]
fn names_that_the_files_do_not_have_are_no_answer() {
    let files = Files::new(&[("k8s.yaml", &shop(&[L7]))]);
    let file = files.path("k8s.yaml");
    let missing = [
        ("a Service", "--from shop/cli --to wbe.shop", "Service shop/wbe is not among the objects"),
        (
            "a port",
            "--from shop/cli --to web.shop --port 8080",
            "Service shop/web has no port 8080, it has 80",
        ),
        ("an account", "--from shop/cil --to web.shop", "ServiceAccount shop/cil is not among the objects"),
        ("a Gateway", "--from shop/cli --to-gateway pw.shop", "Gateway shop/pw is not among the objects"),
    ];
    for (what, args, reason) in missing {
        let args: Vec<&str> =
            "authz explain --method GET --path /".split(' ').chain(args.split(' ')).collect();
        let (code, answer) = json(&[&args[..], &["-f", &file]].concat());
        assert_eq!((code, &answer["verdict"]), (2, &"UNKNOWN".into()), "{what}: {answer}");
        assert!(answer["missing"][0].as_str().unwrap().contains(reason), "{what}: {answer}");
    }
    for args in ["--to wbe.shop", "--to web.shop --port 8080"] {
        let args: Vec<&str> = ["authz", "who-can", "-f", &file].into_iter().chain(args.split(' ')).collect();
        assert_eq!(run(&args).0, 2, "{args:?}");
    }
    // A table's rows, and whether they hold without and with --assume.
    let rows = [
        (
            "{from: shop/cli, to: web.shop, at: waypoint, port: 80, method: GET, path: /, expect: ALLOW}",
            true,
            true,
        ),
        ("{from: shop/cli, to: wbe.shop, at: waypoint, method: PUT, path: /, expect: DENY}", false, false),
        ("{from: shop/cli, to: wbe.shop, at: waypoint, method: PUT, path: /, expect: UNKNOWN}", false, false),
        (
            "{from: shop/cli, to: web.shop, port: 8081, at: waypoint, method: PUT, path: /, expect: DENY}",
            false,
            false,
        ),
        ("{from: shop/cil, to: web.shop, at: waypoint, method: GET, path: /, expect: ALLOW}", false, false),
        ("{from: shop/cli, to: web.shpo, method: GET, path: /, expect: ALLOW}", false, true),
        ("{from: shop/cli, toPod: shop/app=wbe, port: 8080, expect: ALLOW}", false, true),
        ("{from: shop/cli, toPod: shpo, port: 8080, expect: ALLOW}", false, true),
        ("{from: shop/cli, toPod: shop, port: 8080, expect: ALLOW}", true, true),
        ("{from: other/cli, toPod: shop/app=web, port: 8080, expect: ALLOW}", false, true),
        ("{from: cluster.local/ns/shop/sa/new, toPod: shop/app=web, port: 8080, expect: ALLOW}", false, true),
        ("{from: other.example/ns/a/sa/b, toPod: shop/app=web, port: 8080, expect: ALLOW}", true, true),
        ("{from: shop/default, toPod: shop/app=web, port: 8080, expect: ALLOW}", true, true),
        ("{from: shop/wp, toPod: shop/app=web, port: 8080, expect: ALLOW}", true, true),
    ];
    let table = rows.iter().map(|(row, ..)| format!("- {row}\n")).collect::<String>();
    let tables = Files::new(&[("t.yaml", &format!("tests:\n{table}"))]);
    for (flags, at) in [(&[][..], 0), (&["--assume"][..], 1)] {
        let (code, all) = json(&[&["authz", "test", &tables.path("t.yaml"), "-f", &file], flags].concat());
        assert_eq!(code, 1);
        for (row, (text, strict, assumed)) in rows.iter().enumerate() {
            let outcome = &all[row];
            assert_eq!(outcome["passed"], [*strict, *assumed][at], "{text}: {outcome}");
        }
        assert!(all[5]["assumed"][0].as_str().unwrap().contains("Service shpo/web exists"), "{all}");
    }
}

#[test]
fn what_is_not_modelled_is_unknown_and_what_is_proven_is_listed() {
    let files = Files::new(&[
        ("old.yaml", &shop(&[L7])),
        ("new.yaml", &shop(&[L7]).replace("targetPort: 8080", "targetPort: 9090")),
    ]);
    let (old, new) = (files.path("old.yaml"), files.path("new.yaml"));
    let (code, out) = run(&["authz", "diff", &old, &new, "--no-new-access"]);
    assert!(
        code == 2 && out.contains("Service shop/web") && out.contains("has another targetPort"),
        "{code} {out}"
    );
    let (code, out) = run(&["authz", "diff", &old, &old, "--no-new-access"]);
    assert!(
        code == 0 && out.contains("proven of\n") && out.contains("  Service shop/web at waypoint shop/wp\n"),
        "{out}"
    );
}
