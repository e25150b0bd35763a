// SPDX-License-Identifier: Apache-2.0
//! Figures of all rounds, as JSON and as a table of medians.

use std::path::Path;
use std::process::Command;

use anyhow::Context;
use serde::Serialize;

use super::paths::Measured;

/// One path in one round.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Run {
    pub(crate) path: String,
    /// The path that this one is compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) against: Option<String>,
    pub(crate) round: u32,
    #[serde(flatten)]
    pub(crate) measured: Measured,
}

/// Everything that was measured, and on what.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    version: String,
    kernel: String,
    cores: usize,
    seconds: u64,
    rounds: u32,
    /// Requests per second of the fixed rate.
    rate: u32,
    pub(crate) runs: Vec<Run>,
}

/// Medians over all rounds of one path.
pub(crate) struct Row {
    pub(crate) path: String,
    pub(crate) per_second: f64,
    pub(crate) fixed_rate_p50_us: f64,
    pub(crate) fixed_rate_p99_us: f64,
    cells: Vec<String>,
}

impl Report {
    /// An empty report of this machine and this commit.
    pub(crate) fn new(seconds: u64, rounds: u32, rate: u32) -> anyhow::Result<Self> {
        let version = Command::new("git").args(["describe", "--always", "--dirty"]).output();
        let version = version.map(|ran| String::from_utf8_lossy(&ran.stdout).trim().to_owned());
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel's version")?;
        Ok(Self {
            version: version.unwrap_or_default(),
            kernel: kernel.trim().to_owned(),
            cores: std::thread::available_parallelism()?.get(),
            seconds,
            rounds,
            rate,
            runs: Vec::new(),
        })
    }

    /// Requests without an answer of 200, over all runs.
    pub(crate) fn failed_requests(&self) -> u64 {
        let of = |run: &Run| {
            let measured = &run.measured;
            [Some(&measured.requests), Some(&measured.fixed_rate), Some(&measured.single_connection)]
                .into_iter()
                .chain([measured.new_connections.as_ref()])
                .flatten()
                .map(|requests| requests.failed)
                .sum::<u64>()
        };
        self.runs.iter().map(of).sum()
    }

    /// Medians of each path, in the order of the first round.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let first = self.runs.iter().filter(|run| run.round == 1);
        first.map(|run| self.row(&run.path, run.against.as_deref())).collect()
    }

    fn row(&self, path: &str, against: Option<&str>) -> Row {
        let median_of = |path: &str, figure: &dyn Fn(&Measured) -> Option<f64>| {
            let runs = self.runs.iter().filter(|run| run.path == path);
            median(runs.filter_map(|run| figure(&run.measured)).collect())
        };
        let of = |figure: &dyn Fn(&Measured) -> Option<f64>| median_of(path, figure);
        let per_second = |measured: &Measured| Some(measured.requests.per_second);
        let latency =
            |name: &'static str| move |measured: &Measured| measured.fixed_rate.latency_us.get(name).copied();
        let rate = of(&per_second);
        let ratio = against.and_then(|other| Some(rate? / median_of(other, &per_second)?));
        let cell = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
        };
        let cells = vec![
            path.to_owned(),
            cell(rate, 0),
            cell(ratio, 2),
            cell(of(&|m| m.single_connection.latency_us.get("p50").copied()), 0),
            cell(of(&latency("p50")), 0),
            cell(of(&latency("p99")), 0),
            cell(of(&|m| Some(m.new_connections.as_ref()?.per_second)), 0),
            cell(of(&|m| m.gigabits_per_second), 2),
            cell(of(&|m| m.cpu_us_per_request), 1),
            cell(of(&|m| m.cpu_ms_per_gigabyte), 0),
            cell(of(&|m| Some(m.resident_bytes? as f64 / 1e6)), 1),
        ];
        Row {
            path: path.to_owned(),
            per_second: rate.unwrap_or_default(),
            fixed_rate_p50_us: of(&latency("p50")).unwrap_or_default(),
            fixed_rate_p99_us: of(&latency("p99")).unwrap_or_default(),
            cells,
        }
    }

    /// The table of medians, with a line on what its columns mean.
    pub(crate) fn table(&self) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_header([
            "PATH",
            "REQUESTS/S",
            "RATIO",
            "P50 AT 1 (µs)",
            "P50 AT RATE",
            "P99 AT RATE",
            "NEW CONN/S",
            "GBIT/S",
            "CPU µs/REQUEST",
            "CPU ms/GB",
            "RESIDENT MB",
        ]);
        for row in self.rows() {
            table.add_row(row.cells);
        }
        format!(
            "{table}\nMedians of {} rounds of {} s at {} on {} cores, Linux {}. REQUESTS/S: 32 kept connections. RATIO: to \
             the path it is\ncompared with (layer 4: no proxy; waypoint: mesh without; others: gateway with 1 rule). AT \
             RATE: {} requests/s, latency\ncounted from when a request was due. CPU and RESIDENT: of all proxies on the \
             path.\n",
            self.rounds, self.seconds, self.version, self.cores, self.kernel, self.rate
        )
    }

    /// Writes `results.json` into `dir`.
    pub(crate) fn write(&self, dir: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(dir)?;
        let file = dir.join("results.json");
        std::fs::write(&file, serde_json::to_string_pretty(self)? + "\n")
            .with_context(|| file.display().to_string())
    }

    /// Requests per second at which latency was measured.
    pub(crate) fn rate(&self) -> u32 {
        self.rate
    }
}

/// The middle of `values`; of an even number the mean of the two in the middle.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        even if even % 2 == 0 => Some(f64::midpoint(values[middle - 1], values[middle])),
        _ => Some(values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn median_of_none_one_two_and_three() {
        for (values, expected) in [
            (vec![], None),
            (vec![3.0], Some(3.0)),
            (vec![4.0, 2.0], Some(3.0)),
            (vec![9.0, 1.0, 2.0], Some(2.0)),
        ] {
            assert_eq!(median(values.clone()), expected, "{values:?}");
        }
    }
}
