// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask bounds`: each row of `docs/bounds.md` names in `xtask/bounds.toml` the tests that fill the bound. A row
//! without a test fails the check, and so do a test that is not there or that is ignored, and a name without a row.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use syn::visit::{self, Visit};

const PAGE: &str = "docs/bounds.md";
const TABLE: &str = "xtask/bounds.toml";
/// Columns of the page's table.
const COLUMNS: usize = 4;

/// `xtask/bounds.toml`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    /// Tests (`<file below crates/>: <name>`) by `<where> | <what>` of the page.
    tests: BTreeMap<String, Vec<String>>,
}

/// Compares the page, the table and the tests; prints each disagreement.
///
/// # Errors
/// The page or the table cannot be read.
pub(crate) fn check() -> anyhow::Result<ExitCode> {
    let page = std::fs::read_to_string(PAGE).context(PAGE)?;
    let table: Table = toml::from_str(&std::fs::read_to_string(TABLE)?).context(TABLE)?;
    let faults: Vec<String> =
        row_faults(&page, &table).into_iter().chain(test_faults(Path::new("crates"), &table)).collect();
    for fault in &faults {
        eprintln!("bounds: {fault}");
    }
    if faults.is_empty() {
        println!("bounds: each of {} rows of {PAGE} has a test", table.tests.len());
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("bounds: each row of {PAGE} has a test that fills the bound; {TABLE} says which");
    Ok(ExitCode::FAILURE)
}

/// Rows without an entry, entries without a row, entries without a test.
fn row_faults(page: &str, table: &Table) -> Vec<String> {
    let mut faults = Vec::new();
    let mut rows = BTreeMap::new();
    for line in page.lines().filter(|line| line.starts_with("| ")).skip(1) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [place, what, ..] = cells.as_slice() else { continue };
        if cells.len() != COLUMNS {
            faults.push(format!("{PAGE}: {line:?} does not have {COLUMNS} columns"));
        }
        if rows.insert(format!("{place} | {what}"), ()).is_some() {
            faults.push(format!("{PAGE}: {place} | {what} stands there twice"));
        }
    }
    let missing = rows.keys().filter(|row| table.tests.get(*row).is_none_or(Vec::is_empty));
    faults.extend(missing.map(|row| format!("no test for {row:?}")));
    let unknown = table.tests.keys().filter(|row| !rows.contains_key(*row));
    faults.extend(unknown.map(|row| format!("{TABLE}: {PAGE} has no row {row:?}")));
    faults
}

/// Tests of the table that are not in their files.
fn test_faults(crates: &Path, table: &Table) -> Vec<String> {
    let mut faults = Vec::new();
    let mut read: BTreeMap<String, Result<Tests, String>> = BTreeMap::new();
    for test in table.tests.values().flatten() {
        let Some((file, name)) = test.split_once(": ") else {
            faults.push(format!("{TABLE}: {test:?} is not `<file>: <name>`"));
            continue;
        };
        let tests = read.entry(file.to_owned()).or_insert_with(|| Tests::read(&crates.join(file)));
        match tests {
            Ok(tests) if tests.names.iter().any(|known| known == name) => {}
            Ok(_) => faults.push(format!("crates/{file} has no test {name:?}")),
            Err(error) => faults.push(error.clone()),
        }
    }
    faults
}

/// The tests of a file that are run: functions with an attribute whose name ends with `test`, those in `proptest!`, and
/// the named cases of a file with a `main` of its own.
#[derive(Default)]
struct Tests {
    names: Vec<String>,
    /// Texts that begin a tuple: names of cases, if the file has a `main`.
    cases: Vec<String>,
    has_main: bool,
}

impl Tests {
    fn read(path: &Path) -> Result<Self, String> {
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let text = std::fs::read_to_string(path).map_err(|e| failed(&e))?;
        let file = syn::parse_file(&text).map_err(|e| failed(&e))?;
        let mut tests = Self::default();
        tests.visit_file(&file);
        if tests.has_main {
            tests.names.append(&mut tests.cases);
        }
        Ok(tests)
    }
}

fn has_attribute(function: &syn::ItemFn, name: &str) -> bool {
    let last = |attribute: &syn::Attribute| attribute.path().segments.last().map(|s| s.ident.to_string());
    function.attrs.iter().any(|attribute| last(attribute).as_deref() == Some(name))
}

impl<'ast> Visit<'ast> for Tests {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        if has_attribute(function, "test") && !has_attribute(function, "ignore") {
            self.names.push(function.sig.ident.to_string());
        }
        self.has_main |= function.sig.ident == "main";
        visit::visit_item_fn(self, function);
    }

    fn visit_item_macro(&mut self, item: &'ast syn::ItemMacro) {
        if item.mac.path.segments.last().is_some_and(|segment| segment.ident == "proptest") {
            let tokens = item.mac.tokens.to_string();
            let names = tokens.split("fn ").skip(1).filter_map(|rest| rest.split('(').next());
            self.names.extend(names.map(|name| name.trim().to_owned()));
        }
    }

    fn visit_expr_tuple(&mut self, tuple: &'ast syn::ExprTuple) {
        if let Some(syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. })) = tuple.elems.first() {
            self.cases.push(text.value());
        }
        visit::visit_expr_tuple(self, tuple);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "| where | what | bound | over |\n|---|---|---|---|\n| a | b, c | 1 | refused |\n";

    fn table(row: &str, tests: &[&str]) -> Table {
        let tests = tests.iter().map(|test| (*test).to_owned()).collect();
        Table { tests: BTreeMap::from([(row.to_owned(), tests)]) }
    }

    #[test]
    fn a_row_without_a_test_and_a_test_without_a_row_are_faults() {
        assert!(row_faults(PAGE, &table("a | b, c", &["x: y"])).is_empty());
        assert_eq!(row_faults(PAGE, &table("a | b, c", &[])), ["no test for \"a | b, c\""]);
        assert_eq!(row_faults(PAGE, &table("a | b", &["x: y"])).len(), 2);
        assert_eq!(
            row_faults(&format!("{PAGE}| a | b, c | 2 | x |\n"), &table("a | b, c", &["x: y"])).len(),
            1
        );
        assert_eq!(row_faults(&format!("{PAGE}| a | b, c | 2 |\n"), &table("a | b, c", &["x: y"])).len(), 2);
    }

    #[test]
    fn only_a_test_that_is_run_counts() {
        let folder = tempfile::tempdir().unwrap();
        let source = "#[test] fn plain() {}\n#[tokio::test(start_paused = true)] async fn timed() {}\n\
             #[test] #[ignore] fn never() {}\nfn helper() {}\n\
             proptest! { #[test] fn property(a in 0..3) { helper(a) } }\nfn case() { run((\"a case\", 1)) }\n";
        std::fs::write(folder.path().join("a.rs"), source).unwrap();
        std::fs::write(folder.path().join("b.rs"), format!("{source}fn main() {{}}\n")).unwrap();
        let faults = |test: &str| test_faults(folder.path(), &table("a", &[test])).len();
        for (test, expected) in [
            ("a.rs: plain", 0),
            ("a.rs: timed", 0),
            ("a.rs: property", 0),
            ("b.rs: a case", 0),
            ("a.rs: a case", 1),
            ("a.rs: never", 1),
            ("a.rs: helper", 1),
            ("c.rs: plain", 1),
            ("a.rs", 1),
        ] {
            assert_eq!(faults(test), expected, "{test}");
        }
    }
}
