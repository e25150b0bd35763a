// SPDX-License-Identifier: Apache-2.0
//! Reports: JUnit's XML, and SARIF 2.1.0 (OASIS).

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::Outcome;

/// JUnit's XML.
pub fn junit(file: &str, outcomes: &[Outcome]) -> String {
    let failures = outcomes.iter().filter(|o| !o.passed).count();
    let counts = format!("tests=\"{}\" failures=\"{failures}\" errors=\"0\" skipped=\"0\"", outcomes.len());
    let file = escaped(file);
    let mut out = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites {counts}>\n  <testsuite name=\"{file}\" {counts}>\n"
    );
    for outcome in outcomes {
        let name = escaped(&outcome.name);
        let case = format!("    <testcase classname=\"{file}\" name=\"{name}\"");
        if outcome.passed {
            let _ = writeln!(out, "{case}/>");
        } else {
            let message = escaped(&outcome.message);
            let _ = writeln!(
                out,
                "{case}>\n      <failure message=\"{message}\">{message}</failure>\n    </testcase>"
            );
        }
    }
    out.push_str("  </testsuite>\n</testsuites>\n");
    out
}

/// XML 1.0 has no place for most control characters, escaped or not.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push_str("&#10;"),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// SARIF 2.1.0: a result for each failure. `lines` are those of the rows, from 1.
pub fn sarif(file: &str, outcomes: &[Outcome], lines: &[usize]) -> Value {
    let results: Vec<Value> = outcomes
        .iter()
        .filter(|o| !o.passed)
        .map(|outcome| {
            let line = lines.get(outcome.row).copied().unwrap_or(1);
            json!({
                "ruleId": "authz-test",
                "level": "error",
                "message": { "text": format!("{}: {}", outcome.name, outcome.message) },
                "locations": [{ "physicalLocation": {
                    "artifactLocation": { "uri": file },
                    "region": { "startLine": line },
                } }],
            })
        })
        .collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "meltemi",
                "rules": [{
                    "id": "authz-test",
                    "shortDescription": { "text": "A request is not decided as its table expects" },
                }],
            } },
            "results": results,
        }],
    })
}
