// SPDX-License-Identifier: Apache-2.0
//! `meltemi check`: whether a Kubernetes can take the mesh, and whether the mesh in it does what it should; each check with
//! its remedy.

mod cluster;
mod facts;
mod mesh;
mod network;
mod pods;

use std::process::ExitCode;

use serde::Serialize;

use self::facts::Facts;
use super::Global;
use super::install::refuse_machine;
use super::output::TableOrJson;

/// Names that a line lists before it says how many more there are.
const LISTED: usize = 5;

/// Check whether a Kubernetes can take the mesh (--pre), or how the mesh in it stands.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example: before the installation, after it, and only what is wrong\n  meltemi check --pre\n  meltemi check\n  \
                  meltemi check --output json | jq '.checks[] | select(.state != \"ok\")'"
)]
pub struct Args {
    /// Only what an installation needs
    #[arg(long)]
    pre: bool,
    /// Output form
    #[arg(short, long, value_enum, default_value = "table")]
    output: TableOrJson,
}

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// Something that may be meant, and changes what is protected or served.
    Warning,
    Failed,
    /// What it needs could not be read; a check of its own says so.
    Skipped,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Check {
    category: &'static str,
    name: &'static str,
    state: State,
    /// What was found.
    #[serde(skip_serializing_if = "String::is_empty")]
    detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    remedy: String,
}

/// What is wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fault {
    state: State,
    detail: String,
    remedy: String,
}

impl Fault {
    fn failed(detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { state: State::Failed, detail: detail.into(), remedy: remedy.into() }
    }

    fn warning(detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { state: State::Warning, ..Self::failed(detail, remedy) }
    }
}

/// A check as it is written down: its name, the facts that it needs, and the look at them, which says what was found.
struct Rule {
    category: &'static str,
    name: &'static str,
    needs: &'static [&'static str],
    look: fn(&Facts) -> Result<String, Fault>,
}

impl Rule {
    fn check(&self, facts: &Facts) -> Check {
        let unread: Vec<&str> =
            self.needs.iter().copied().filter(|need| facts.unread.contains_key(need)).collect();
        let (state, detail, remedy) = if unread.is_empty() {
            match (self.look)(facts) {
                Ok(detail) => (State::Ok, detail, String::new()),
                Err(fault) => (fault.state, fault.detail, fault.remedy),
            }
        } else {
            (State::Skipped, format!("{} could not be read", unread.join(", ")), String::new())
        };
        Check { category: self.category, name: self.name, state, detail, remedy }
    }
}

/// Runs the command: exit code 1 when a check has failed.
pub async fn run(args: &Args, global: &Global) -> anyhow::Result<ExitCode> {
    let client = global.client().await?;
    refuse_machine(&client, "check").await?;
    let facts = facts::read(&client, args.pre).await?;
    let checks = checks(&facts, args.pre);
    let is_well = checks.iter().all(|check| check.state != State::Failed);
    if args.output == TableOrJson::Json {
        let all = serde_json::json!({ "ok": is_well, "checks": checks });
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        print!("{}", table(&checks));
    }
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Every check of what was read.
fn checks(facts: &Facts, pre: bool) -> Vec<Check> {
    let unread = facts.unread.iter().map(|(what, error)| Check {
        category: "cluster",
        name: "what the checks look at can be read",
        state: State::Failed,
        detail: format!("{what}: {error}"),
        remedy: format!("use a kubeconfig whose user may list {what}"),
    });
    let after: &[&[Rule]] = if pre { &[cluster::PRE] } else { &[mesh::RULES, pods::RULES, network::RULES] };
    let rules = cluster::RULES.iter().chain(after.iter().copied().flatten());
    unread.chain(rules.map(|rule| rule.check(facts))).collect()
}

fn table(checks: &[Check]) -> String {
    let mut out = String::new();
    let mut category = "";
    for check in checks {
        if check.category != category {
            category = check.category;
            out.push_str(&format!("{}{category}\n", if out.is_empty() { "" } else { "\n" }));
        }
        let mark = match check.state {
            State::Ok => "ok  ",
            State::Warning => "warn",
            State::Failed => "FAIL",
            State::Skipped => "skip",
        };
        out.push_str(&format!("  {mark}  {}\n", check.name));
        let shown = [check.detail.as_str(), check.remedy.as_str()];
        for (text, lead) in shown.into_iter().zip(["", "remedy: "]).filter(|(text, _)| !text.is_empty()) {
            let indented = text.replace('\n', "\n          ");
            out.push_str(&format!("        {lead}{indented}\n"));
        }
    }
    let count = |state| checks.iter().filter(|check| check.state == state).count();
    let (failed, warned) = (count(State::Failed), count(State::Warning));
    out.push_str(&format!("\n{} checks: {failed} failed, {warned} to look at\n", checks.len()));
    out
}

/// The first names of a list, and how many more there are.
fn listed(names: &[String]) -> String {
    let shown = names.iter().take(LISTED).cloned().collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(LISTED) {
        None | Some(0) => shown,
        Some(more) => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_a_failure_and_what_needs_it_is_left_out() {
        let mut facts = Facts::default();
        facts.unread.insert("nodes", "forbidden".to_owned());
        let all = checks(&facts, false);
        assert_eq!((all[0].state, all[0].detail.as_str()), (State::Failed, "nodes: forbidden"));
        let skipped: Vec<&Check> = all.iter().filter(|check| check.state == State::Skipped).collect();
        assert!(!skipped.is_empty() && skipped.iter().all(|check| check.detail == "nodes could not be read"));
    }

    #[test]
    fn each_check_has_its_own_name_and_what_is_wrong_has_a_remedy() {
        for pre in [true, false] {
            let all = checks(&Facts::default(), pre);
            let mut names: Vec<&str> = all.iter().map(|check| check.name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), all.len());
            for check in all.iter().filter(|check| matches!(check.state, State::Failed | State::Warning)) {
                assert!(!check.remedy.is_empty() && !check.detail.is_empty(), "{check:?}");
            }
        }
    }

    #[test]
    fn the_table_says_what_was_found_and_what_to_do() {
        let check = |state, detail: &str, remedy: &str| Check {
            category: "nodes",
            name: "a thing",
            state,
            detail: detail.to_owned(),
            remedy: remedy.to_owned(),
        };
        let text =
            table(&[check(State::Ok, "2 of 2", ""), check(State::Failed, "1 of 2", "do this\nor that")]);
        let expected = "nodes\n  ok    a thing\n        2 of 2\n  FAIL  a thing\n        1 of 2\n        remedy: do this\n          \
                        or that\n\n2 checks: 1 failed, 0 to look at\n";
        assert_eq!(text, expected);
    }
}
