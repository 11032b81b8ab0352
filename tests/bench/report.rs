//! Tables on the terminal: what was to be reached, what was measured, and whether that is enough.

use std::time::Duration;

/// A table with its columns as wide as their widest cell.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(title: &str, columns: &[&str]) -> Self {
        println!("\n{title}\n");
        Self { rows: vec![columns.iter().map(ToString::to_string).collect()] }
    }

    /// A table of goals.
    pub fn of_goals(title: &str) -> Self {
        Self::new(title, &["what", "goal", "measured", "verdict"])
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// A figure that must not be above its goal; both are printed with the unit.
    pub fn at_most(&mut self, what: &str, goal: f64, measured: f64, unit: &str) {
        let cell = |value: f64| format!("{} {unit}", number(value)).trim_end().to_owned();
        self.row([
            what.to_owned(),
            format!("≤ {}", cell(goal)),
            cell(measured),
            verdict(measured <= goal).to_owned(),
        ]);
    }

    /// A figure without a goal.
    pub fn figure(&mut self, what: &str, measured: impl Into<String>) {
        self.row([what.to_owned(), String::new(), measured.into(), String::new()]);
    }

    pub fn print(&self) {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let line: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            println!("  {}", line.join("  ").trim_end());
        }
    }
}

pub fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

/// As many digits as say something.
pub fn number(value: f64) -> String {
    if value.fract() == 0.0 || value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

pub fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

/// The value that so many hundredths of all values do not exceed.
pub fn percentile<T: Copy + PartialOrd>(values: &[T], hundredths: usize) -> T {
    let mut sorted = values.to_vec();
    sorted.sort_by(|one, other| one.partial_cmp(other).expect("no value is not a number"));
    sorted[(sorted.len() * hundredths).div_ceil(100).clamp(1, sorted.len()) - 1]
}

pub fn median<T: Copy + PartialOrd>(values: &[T]) -> T {
    percentile(values, 50)
}
