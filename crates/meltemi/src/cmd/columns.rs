// SPDX-License-Identifier: Apache-2.0
//! Columns as istioctl prints them: each as wide as its widest cell, a fixed gap, the last one unpadded.

/// Lays out `rows` (the first is the heading) with `gap` spaces between columns.
pub fn lay_out(rows: &[Vec<String>], gap: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter(|r| r.len() > column + 1).map(|r| r[column].chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            out.push_str(cell);
            if column + 1 < row.len() {
                let pad = widths[column] + gap - cell.chars().count();
                out.extend(std::iter::repeat_n(' ', pad));
            }
        }
        out.push('\n');
    }
    out
}

/// A row of texts.
pub fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_the_last_is_not_padded() {
        let rows = [row(["NAME", "REVISION", "PROGRAMMED"]), row(["waypoint", "default", "True"])];
        assert_eq!(
            lay_out(&rows, 5),
            "NAME         REVISION     PROGRAMMED\nwaypoint     default      True\n"
        );
    }
}
