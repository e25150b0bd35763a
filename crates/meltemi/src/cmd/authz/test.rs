// SPDX-License-Identifier: Apache-2.0
//! `meltemi authz test`: policies against a table of requests with expected verdicts.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use meltemi_analysis::table::{self, Outcome, Table};

use super::objects;
use crate::cmd::Global;
use crate::cmd::output::TextOrJson;

/// Runs a table of requests.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
A table is YAML. `from`, `to`, `method` and `path` take one value or a list; every combination is tried.

  policies: [../kagenti]                  # beside -f; relative to the table
  tests:
    - name: only the collector posts traces
      from: kagenti-system/otel-collector # NAMESPACE/SERVICEACCOUNT, a principal, or `plaintext`
      to: mlflow.kagenti-system           # SERVICE or SERVICE.NAMESPACE
      method: POST
      path: [/v1/traces]
      expect: ALLOW                       # ALLOW, DENY or UNKNOWN
      policy: kagenti-system/mlflow-api-access # optional: the policy that has to decide
    - from: default/portal
      to: shop                            # or toPod: NAMESPACE/KEY=VALUE,..., or toGateway: GATEWAY.NAMESPACE
      # All that follows is optional; what the policies look at and is not there makes UNKNOWN.
      at: waypoint                        # waypoint or node-proxy
      port: 5000                          # of the Service, or of the Pod
      fromIP: 10.0.0.7
      remoteIP: 192.0.2.1
      toIP: 10.96.0.7
      method: GET
      path: /
      host: shop.example
      sni: shop.example
      headers: {x-tenant: a}
      requestPrincipal: https://idp.example/alice
      audiences: [shop]
      presenter: portal
      claims: {groups: [admin, staff], '[realm_access][roles]': editor}
      expect: UNKNOWN

Without -f and `policies`, the policies of the cluster are held against the table. A row that names a Service, port,
ServiceAccount or Pod of which nothing says that it exists fails; --assume takes what the files say nothing about as there.
Exit code 0 when every row holds, 1 when one does not.

Examples:
  meltemi authz test samples/authz-tests/kagenti.yaml
  meltemi authz test table.yaml -f policies/ --junit report.xml --sarif report.sarif")]
pub(crate) struct Args {
    /// The table, `-` for standard input (its `policies` are then relative to the working directory)
    file: PathBuf,
    /// Files or folders of policies instead of the cluster's
    #[arg(short, long = "filename", value_name = "POLICIES")]
    files: Vec<PathBuf>,
    /// Take objects that the files have nothing about as there: a Service, a ServiceAccount, a Pod, a Gateway
    #[arg(long)]
    assume: bool,
    /// Write a report in JUnit's form
    #[arg(long, value_name = "OUT")]
    junit: Option<PathBuf>,
    /// Write the failures in SARIF's form
    #[arg(long, value_name = "OUT")]
    sarif: Option<PathBuf>,
    /// Output form
    #[arg(short, long, value_enum, default_value = "text")]
    output: TextOrJson,
}

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let text = objects::text(&args.file)?;
    let table: Table =
        serde_yaml_ng::from_str(&text).with_context(|| format!("reading {}", args.file.display()))?;
    // Reject an empty table: a CI gate without tests would always pass.
    if table.tests.is_empty() {
        bail!("{}: the table has no tests", args.file.display());
    }
    let beside = args.file.parent().unwrap_or(Path::new("."));
    let files: Vec<PathBuf> =
        args.files.iter().cloned().chain(table.policies.iter().map(|p| beside.join(p))).collect();
    let (namespace, found) = objects::from(&files, global).await?;
    let world = objects::world(&found, files.is_empty())?;
    let outcomes = table::run(&world, &table, &namespace, args.assume);
    let name = args.file.display().to_string();
    if let Some(out) = &args.junit {
        write(out, &table::junit(&name, &outcomes))?;
    }
    if let Some(out) = &args.sarif {
        let report = table::sarif(&name, &outcomes, &lines(&text));
        write(out, &serde_json::to_string_pretty(&report)?)?;
    }
    if args.output == TextOrJson::Json {
        println!("{}", serde_json::to_string_pretty(&outcomes)?);
    } else {
        print(&outcomes);
    }
    Ok(ExitCode::from(u8::from(outcomes.iter().any(|o| !o.passed))))
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// The line of each row: of the items of the list below `tests:`, which all begin at the same column.
fn lines(text: &str) -> Vec<usize> {
    let begin = text.lines().position(|l| l.trim_end() == "tests:").map_or(0, |at| at + 1);
    let items = text.lines().enumerate().skip(begin).filter(|(_, l)| l.trim_start().starts_with("- "));
    let indent = |line: &str| line.len() - line.trim_start().len();
    let items: Vec<(usize, usize)> = items.map(|(at, line)| (at + 1, indent(line))).collect();
    let least = items.iter().map(|(_, indent)| *indent).min().unwrap_or(0);
    items.into_iter().filter(|(_, indent)| *indent == least).map(|(at, _)| at).collect()
}

fn print(outcomes: &[Outcome]) {
    for outcome in outcomes {
        let word = if outcome.passed { "ok  " } else { "FAIL" };
        println!("{word} {}", outcome.name);
        if !outcome.passed {
            println!("     {}", outcome.message);
        }
        for assumed in &outcome.assumed {
            println!("     assumed: {assumed}");
        }
        for warning in &outcome.warnings {
            println!("     warning: {warning}");
        }
    }
    let failed = outcomes.iter().filter(|o| !o.passed).count();
    println!("{} passed, {failed} failed", outcomes.len() - failed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_lines() {
        let text = "policies:\n- a\ntests:\n  - name: x\n    from:\n      - a\n    to: b\n  - to: c\n";
        assert_eq!(lines(text), [4, 8]);
    }
}
