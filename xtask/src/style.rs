// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask style`: figures of the sources that may only fall. `xtask/style.toml` holds how far they have come.

mod circles;
mod count;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

use self::count::Counts;

const TABLE: &str = "xtask/style.toml";

/// One figure: what is counted, where it shall arrive, and where it is.
struct Figure {
    /// Key in the table.
    name: &'static str,
    what: &'static str,
    target: f64,
    value: f64,
}

/// Counts, and compares with the table; a figure over its limit is a failure.
///
/// # Errors
/// A source file or the table cannot be read.
pub(crate) fn check() -> anyhow::Result<ExitCode> {
    let limits: toml::Table = toml::from_str(&std::fs::read_to_string(TABLE)?).context(TABLE)?;
    let counts = Counts::of(Path::new("crates"))?;
    let mut failed = false;
    for figure in figures(&counts) {
        let limit = limits
            .get(figure.name)
            .and_then(|value| value.as_float().or_else(|| value.as_integer().map(|whole| whole as f64)));
        let limit = limit.with_context(|| format!("{TABLE} has no {}", figure.name))?;
        let verdict = if figure.value > limit {
            failed = true;
            "FAIL: over the limit"
        } else if figure.value < limit * 0.98 {
            "lower the limit"
        } else {
            ""
        };
        println!(
            "style: {:<58} {:>7.2}  limit {limit:>7.2}  target {:>6.2}  {verdict}",
            figure.what, figure.value, figure.target
        );
    }
    if failed {
        let (source, circle) = &counts.largest_circle;
        eprintln!("style: the largest circle is in {}: {}", source.display(), circle.join(" "));
        eprintln!(
            "style: these figures may only fall; CONTRIBUTING.md says how names, comments and types are written"
        );
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn figures(counts: &Counts) -> Vec<Figure> {
    let share = |part: usize, all: usize| 100.0 * part as f64 / all.max(1) as f64;
    let per_thousand = |count: usize| 1000.0 * count as f64 / counts.lines.max(1) as f64;
    let figure = |name, what, target, value| Figure { name, what, target, value };
    vec![
        figure(
            "one_word_functions",
            "functions with a name of one word, %",
            55.0,
            share(counts.one_word_functions, counts.functions),
        ),
        figure(
            "short_docs",
            "doc comments of at most three words, %",
            5.0,
            share(counts.short_docs, counts.docs),
        ),
        figure("closures", "closures bound by `let`, per 1,000 lines", 2.0, per_thousand(counts.closures)),
        figure(
            "tuples",
            "tuple types of three members and more, per 1,000 lines",
            0.3,
            per_thousand(counts.tuples),
        ),
        figure("text_errors", "`Result<_, String>`", 20.0, counts.text_errors as f64),
        figure("circle", "files in the largest circle of modules", 3.0, counts.largest_circle.1.len() as f64),
    ]
}
