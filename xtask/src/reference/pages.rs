// SPDX-License-Identifier: Apache-2.0
//! The text of each page, and what is missing for it.

use std::fmt::Write as _;

use super::Table;
use super::source::Source;

const HEAD: &str = "<!-- Written by `cargo xtask reference`; change the code or xtask/reference.toml. -->\n";

/// Names and reasons that only the code or only the table has.
pub(crate) fn faults(table: &Table, source: &Source) -> Vec<String> {
    let mut faults = Vec::new();
    let has_row = |name: &String| table.names.contains_key(name) || table.conditions.contains_key(name);
    for name in source.names.iter().filter(|name| !has_row(name)) {
        faults.push(format!("xtask/reference.toml has no row for {name}, which the code knows"));
    }
    let prefixed = |name: &&String| name.contains('/');
    let rows = table.names.keys().chain(table.conditions.keys().filter(prefixed));
    for name in rows.filter(|name| !source.names.contains(*name)) {
        faults.push(format!("xtask/reference.toml has a row for {name}, which no code knows"));
    }
    for (condition, reasons) in &source.reasons {
        let row = table.conditions.get(condition);
        for reason in reasons.iter().filter(|reason| row.is_none_or(|row| !row.reasons.contains_key(*reason)))
        {
            faults.push(format!("xtask/reference.toml has no reason {reason} of condition {condition}"));
        }
    }
    for (condition, row) in &table.conditions {
        for reason in row.reasons.keys().filter(|reason| !source.words.contains(*reason)) {
            faults.push(format!(
                "xtask/reference.toml: no code knows reason {reason} of condition {condition}"
            ));
        }
    }
    faults
}

/// Every page with its file name.
pub(crate) fn all(table: &Table, source: &Source) -> Vec<(&'static str, String)> {
    vec![
        ("README.md", index()),
        ("labels.md", labels(table)),
        ("conditions.md", conditions(table)),
        ("findings.md", findings(source)),
        ("metrics.md", metrics(source)),
        ("environment.md", environment(source)),
        ("ports.md", ports(source)),
        ("exit-codes.md", exit_codes()),
    ]
}

fn index() -> String {
    format!(
        "{HEAD}# Reference\n\n\
         | page | what |\n|---|---|\n\
         | [labels](labels.md) | labels and annotations that change what the mesh does, or that it writes |\n\
         | [conditions](conditions.md) | types and reasons of the conditions in the status of objects |\n\
         | [findings](findings.md) | codes of `meltemi analyze` |\n\
         | [metrics](metrics.md) | what proxies and control plane count |\n\
         | [environment](environment.md) | settings of each role |\n\
         | [ports](ports.md) | which port is for what |\n\
         | [exit codes](exit-codes.md) | of the commands that scripts use |\n\n\
         Bounds of tables and queues: [bounds](../bounds.md). Commands and flags: `meltemi COMMAND --help`.\n"
    )
}

fn labels(table: &Table) -> String {
    let mut page =
        format!("{HEAD}# Labels and annotations\n\n| name | on | values | effect |\n|---|---|---|---|\n");
    for (name, row) in &table.names {
        let _ = writeln!(page, "| `{name}` | {} | {} | {} |", row.on, row.values, row.effect);
    }
    page
}

fn conditions(table: &Table) -> String {
    let mut page = format!("{HEAD}# Conditions\n");
    for (name, row) in &table.conditions {
        let _ = write!(page, "\n## `{name}`\n\nOn: {}. {}\n", row.on, row.meaning);
        if !row.reasons.is_empty() {
            page += "\n| reason | meaning |\n|---|---|\n";
            for (reason, meaning) in &row.reasons {
                let _ = writeln!(page, "| `{reason}` | {meaning} |");
            }
        }
    }
    page
}

fn findings(source: &Source) -> String {
    let mut page = format!(
        "{HEAD}# Findings of `meltemi analyze`\n\nThose about rules that match too little or too much are also in the \
         condition `meltemi.dev/Suspicious` of policies.\n\n\
         | code | level | what |\n|---|---|---|\n"
    );
    for (code, level, text) in &source.findings {
        let _ = writeln!(page, "| {code} | {level} | {text} |");
    }
    page
}

fn metrics(source: &Source) -> String {
    let mut page = format!(
        "{HEAD}# Metrics\n\nPrometheus' text format: proxies on port 15020 at `/stats/prometheus`, the control plane on 15014 at \
         `/metrics`, the API server of one machine on its own port at `/metrics`. Counters end with `_total`, histograms have `_bucket`, `_sum` and `_count`.\n\n\
         | name | what |\n|---|---|\n"
    );
    for (name, help) in &source.metrics {
        let _ = writeln!(page, "| `{name}` | {help} |");
    }
    page
}

fn environment(source: &Source) -> String {
    let mut page = format!(
        "{HEAD}# Environment\n\nEvery role takes `RUST_LOG` (levels, e.g. `info,meltemi_node=debug`) and `LOG_FORMAT` (`plain` or \
         `json`; of proxies the access log, too). The command line takes `KUBECONFIG`, and `MELTEMI_HOME` as the data \
         directory of the mesh of this machine.\n"
    );
    let mut last = "";
    for ((role, name), setting) in &source.environment {
        if role != last {
            let _ = write!(page, "\n## `meltemi serve {role}`\n\n| name | default | what |\n|---|---|---|\n");
        }
        last = role;
        let default = setting.default.as_ref().filter(|text| !text.is_empty());
        let default = default.map_or_else(|| "-".to_owned(), |text| format!("`{text}`"));
        let _ = writeln!(page, "| `{name}` | {default} | {} |", setting.text);
    }
    page
}

fn ports(source: &Source) -> String {
    let mut page = format!("{HEAD}# Ports\n\n| port | what |\n|---|---|\n");
    for (port, text) in &source.ports {
        let _ = writeln!(page, "| {port} | {text} |");
    }
    page
}

fn exit_codes() -> String {
    format!(
        "{HEAD}# Exit codes\n\n| command | 0 | 1 | 2 | other |\n|---|---|---|---|---|\n\
         | `authz explain` | ALLOW | DENY | UNKNOWN, or it could not be asked | |\n\
         | `authz diff` | the same | different; with `--no-new-access`: new access | undecided, or not comparable | |\n\
         | `authz test` | all rows hold | a row does not hold | a file cannot be read | |\n\
         | `authz simulate` | no verdict flips | a verdict flips | undecided, or a file cannot be read | |\n\
         | `authz who-can` | answered | | it could not be asked | |\n\
         | `analyze` | nothing at the threshold | it could not be asked | | 79: findings |\n\
         | every other | done | failed, with the reason on stderr | wrong usage | |\n"
    )
}
