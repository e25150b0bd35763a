// SPDX-License-Identifier: Apache-2.0
//! The dependency table (`xtask/deps.toml`) held against cargo's metadata.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use anyhow::Context;
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// The binary: the composition root may use everything.
const ROOT: &str = "meltemi";
const PREFIX: &str = "meltemi-";

#[derive(serde::Deserialize)]
struct Table {
    crates: BTreeMap<String, Row>,
}

#[derive(serde::Deserialize)]
struct Row {
    level: u8,
    uses: BTreeSet<String>,
    never: BTreeSet<String>,
    #[serde(default)]
    dev_only: bool,
}

/// Compares the table with every edge between the workspace's crates; prints each disagreement.
pub(crate) fn check() -> anyhow::Result<ExitCode> {
    let table: Table = toml::from_str(include_str!("../deps.toml")).context("xtask/deps.toml")?;
    let metadata = MetadataCommand::new().no_deps().exec()?;
    let faults: Vec<String> =
        table_faults(&table).into_iter().chain(edge_faults(&table, &metadata)).collect();
    for fault in &faults {
        eprintln!("deps: {fault}");
    }
    if faults.is_empty() {
        println!("deps: {} crates agree with the table", table.crates.len());
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("deps: change the code, or the table in xtask/deps.toml and ARCHITECTURE.md with a reason");
    Ok(ExitCode::FAILURE)
}

/// The table itself: every dependency goes to a lower level, except from the dev-only test kit.
fn table_faults(table: &Table) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, row) in table.crates.iter().filter(|(_, row)| !row.dev_only) {
        for used in &row.uses {
            match table.crates.get(used) {
                None => faults.push(format!("table: {name} uses {used}, which is not in the table")),
                Some(other) if other.level >= row.level => {
                    faults.push(format!(
                        "table: {name} (level {}) uses {used} (level {})",
                        row.level, other.level
                    ));
                }
                Some(_) => {}
            }
        }
    }
    faults
}

/// Cargo's edges, dev-dependencies too, against the table.
fn edge_faults(table: &Table, metadata: &Metadata) -> Vec<String> {
    let mut faults = Vec::new();
    for package in metadata.workspace_packages() {
        let Some(name) = package.name.strip_prefix(PREFIX) else { continue };
        let Some(row) = table.crates.get(name) else {
            faults.push(format!("crate {} is not in the table", package.name));
            continue;
        };
        for dependency in &package.dependencies {
            let dev = dependency.kind == DependencyKind::Development;
            if dependency.name == ROOT {
                faults.push(format!("{name} uses the binary {ROOT}"));
            }
            if let Some(used) = dependency.name.strip_prefix(PREFIX) {
                let dev_only = table.crates.get(used).is_some_and(|r| r.dev_only);
                if dev_only && !dev {
                    faults.push(format!("{name} uses the test kit {used} outside its tests"));
                } else if !dev_only && !row.uses.contains(used) {
                    let kind = if dev { "tests use" } else { "uses" };
                    faults.push(format!("{name} {kind} {used}, which the table does not allow"));
                }
            } else if !dev && row.never.contains(dependency.name.as_str()) {
                faults.push(format!("{name} links {}, which it must never see", dependency.name));
            }
        }
    }
    faults
}
