// SPDX-License-Identifier: Apache-2.0
//! Bar charts of a report as SVG.

use std::path::Path;

use anyhow::{Context, anyhow};
use plotters::prelude::{
    BLACK, Color, IntoDrawingArea, IntoFont, RGBColor, Rectangle, SVGBackend, Text, WHITE,
};

use super::report::Report;

const WIDTH: u32 = 960;
/// Height of one bar with the space below it, pixels.
const LINE: i32 = 26;
/// Space above the first bar, for the title.
const TOP: i32 = 48;
/// Where bars begin, behind the names.
const LEFT: i32 = 260;
/// Where the longest bar ends; its figure stands behind it.
const RIGHT: i32 = 840;
const BAR: RGBColor = RGBColor(46, 110, 164);
const BAR_TAIL: RGBColor = RGBColor(158, 194, 226);

/// One line of a chart: a name, a figure, and a longer bar behind it where there is one.
struct Bar {
    name: String,
    value: f64,
    tail: Option<f64>,
}

/// Writes `requests.svg` and `latency.svg` into `dir`.
///
/// # Errors
/// A file that cannot be written.
pub(crate) fn write(report: &Report, dir: &Path) -> anyhow::Result<()> {
    let rows = report.rows();
    let requests = rows.iter().map(|row| Bar { name: row.path.clone(), value: row.per_second, tail: None });
    draw(
        &dir.join("requests.svg"),
        "Requests per second, 32 kept connections",
        &requests.collect::<Vec<_>>(),
    )?;
    let latency = rows.iter().map(|row| Bar {
        name: row.path.clone(),
        value: row.fixed_rate_p50_us,
        tail: Some(row.fixed_rate_p99_us),
    });
    let title = format!("Latency at {} requests per second, µs: p50 (dark), p99 (light)", report.rate());
    draw(&dir.join("latency.svg"), &title, &latency.collect::<Vec<_>>())
}

fn draw(file: &Path, title: &str, bars: &[Bar]) -> anyhow::Result<()> {
    let lines = i32::try_from(bars.len())?;
    let height = u32::try_from(TOP + LINE * lines + 8)?;
    let failed = |error: &dyn std::fmt::Display| anyhow!("{}: {error}", file.display());
    let area = SVGBackend::new(file, (WIDTH, height)).into_drawing_area();
    area.fill(&WHITE).map_err(|error| failed(&error))?;
    let write = |text: String, at: (i32, i32), size: i32| {
        let font = ("sans-serif", size).into_font().color(&BLACK);
        area.draw(&Text::new(text, at, font)).map_err(|error| failed(&error))
    };
    write(title.to_owned(), (12, 14), 18)?;
    let longest = bars.iter().map(|bar| bar.tail.unwrap_or(bar.value)).fold(f64::MIN_POSITIVE, f64::max);
    for (line, bar) in (0..lines).zip(bars) {
        let top = TOP + LINE * line;
        write(bar.name.clone(), (12, top + 2), 14)?;
        let end = |value: f64| LEFT + (value / longest * f64::from(RIGHT - LEFT)) as i32;
        for (value, color) in [(bar.tail, BAR_TAIL), (Some(bar.value), BAR)] {
            let Some(value) = value else { continue };
            let corners = [(LEFT, top), (end(value), top + LINE - 8)];
            area.draw(&Rectangle::new(corners, color.filled())).map_err(|error| failed(&error))?;
        }
        let label = match bar.tail {
            Some(tail) => format!("{:.0} / {tail:.0}", bar.value),
            None => format!("{:.0}", bar.value),
        };
        write(label, (end(bar.tail.unwrap_or(bar.value)) + 8, top + 2), 14)?;
    }
    area.present().with_context(|| file.display().to_string())
}
