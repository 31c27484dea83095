//! A run as a picture: rate and plan, pods, p95, knobs; bad minutes shaded.

use std::path::Path;

use plotters::style::RGBColor;

use crate::chart::{BLUE, Chart, GREEN, Line, ORANGE, Row};
use crate::fleet::{Ledger, Second};

/// Most points of a line: more are not told apart at a chart's width.
const POINTS: usize = 1200;

/// What is drawn.
pub struct Picture<'a> {
    /// Above it.
    pub title: String,
    /// The run.
    pub ledger: &'a Ledger,
    /// Pods of the clairvoyant, second by second.
    pub oracle: &'a [u32],
    /// Target of p95.
    pub slo_s: f64,
}

impl Picture<'_> {
    /// Draws it into the file `path`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn draw(&self, path: &Path) -> anyhow::Result<()> {
        let seconds = self.ledger.seconds.len();
        let stretch = stretch(seconds);
        let peaks = if stretch > 1 { format!("; points: the greatest of {stretch} s") } else { String::new() };
        let title = format!("{}{peaks}", self.title);
        Chart { title, seconds, rows: self.rows(), shaded: self.ledger.bad_spans().collect() }.draw(path)
    }

    fn rows(&self) -> Vec<Row> {
        let line = |label, color: RGBColor, value: &dyn Fn(&Second) -> f64| {
            let values = self.ledger.seconds.iter().map(value).collect::<Vec<_>>();
            Line { label, color, points: thinned(&values) }
        };
        let mut knobs = vec![line("batch cap", BLUE, &|second| f64::from(second.batch))];
        if self.ledger.seconds.iter().any(|second| second.cache_mib > 0) {
            knobs.push(line("cache of a pod, MiB", ORANGE, &|second| f64::from(second.cache_mib)));
        }
        let oracle: Vec<f64> = self.oracle.iter().map(|pods| f64::from(*pods)).collect();
        vec![
            Row {
                lines: vec![
                    line("λ_plan /s", ORANGE, &|second| f64::from(second.plan_rate)),
                    line("arrivals /s", BLUE, &|second| f64::from(second.arrivals)),
                ],
                limit: None,
            },
            Row {
                lines: vec![
                    line("pods ordered", ORANGE, &|second| f64::from(second.pods)),
                    line("pods ready", BLUE, &|second| f64::from(second.ready)),
                    Line { label: "clairvoyant", color: GREEN, points: thinned(&oracle) },
                ],
                limit: None,
            },
            Row {
                lines: vec![line("p95 of a minute, ms (target dashed)", BLUE, &|s| 1e3 * f64::from(s.p95_s))],
                limit: Some(1e3 * self.slo_s),
            },
            Row { lines: knobs, limit: None },
        ]
    }
}

/// Seconds behind a point of a run of `seconds`.
fn stretch(seconds: usize) -> usize {
    seconds.div_ceil(POINTS).max(1)
}

/// At most [`POINTS`] points: the greatest value of each stretch, so that no peak is lost.
fn thinned(values: &[f64]) -> Vec<(f64, f64)> {
    let stretch = stretch(values.len());
    let greatest = |part: &[f64]| part.iter().copied().fold(0.0, f64::max);
    values.chunks(stretch).enumerate().map(|(at, part)| ((at * stretch) as f64, greatest(part))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_the_peaks() {
        let mut values = vec![1.0; 10_000];
        values[7_777] = 9.0;
        let points = thinned(&values);
        assert!(points.len() <= POINTS);
        assert!(points.iter().any(|(at, value)| *value > 8.0 && (at - 7_777.0).abs() < 10.0));
    }
}
