//! A run as a picture: rate and plan, pods, p95, knobs; bad minutes shaded.

use std::error::Error;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::fleet::{Ledger, Second};

const WIDTH_PX: u32 = 1200;
const TITLE_PX: u32 = 36;
const ROW_PX: u32 = 170;
const AXIS_PX: u32 = 30;
const Y_LABELS_PX: u32 = 64;
/// Half of the last label of the time axis.
const RIGHT_PX: u32 = 26;
/// Most points of a line: more are not told apart at this width.
const POINTS: usize = 1200;

/// Longer runs count hours.
const HOURS_FROM_S: usize = 7200;

const INK: RGBColor = RGBColor(38, 50, 56);
const FIRST: RGBColor = RGBColor(21, 101, 192);
const SECOND: RGBColor = RGBColor(239, 108, 0);
const THIRD: RGBColor = RGBColor(46, 125, 50);
const LIMIT: RGBColor = RGBColor(198, 40, 40);
const BAD: RGBColor = RGBColor(255, 205, 210);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn Error>>;

/// One line of a row.
struct Line {
    label: &'static str,
    color: RGBColor,
    /// (time in units of the axis, value)
    points: Vec<(f64, f64)>,
}

struct Row {
    lines: Vec<Line>,
    limit: Option<f64>,
}

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
        self.try_draw(path).map_err(|failure| anyhow::anyhow!("failed to draw {}: {failure}", path.display()))
    }

    fn try_draw(&self, path: &Path) -> Drawn {
        let rows = self.rows();
        let height = TITLE_PX + ROW_PX * rows.len() as u32 + AXIS_PX;
        let root = SVGBackend::new(path, (WIDTH_PX, height)).into_drawing_area();
        root.fill(&WHITE)?;
        let (title, mut rest) = root.split_vertically(TITLE_PX);
        let left = i32::try_from(Y_LABELS_PX)?;
        let stretch = stretch(self.ledger.seconds.len());
        let peaks = if stretch > 1 { format!("; points: the greatest of {stretch} s") } else { String::new() };
        title.draw(&Text::new(
            format!("{}{peaks}", self.title),
            (left, 10),
            ("sans-serif", 20).into_font().color(&INK),
        ))?;
        let last = rows.len() - 1;
        for (index, row) in rows.iter().enumerate() {
            let with_axis = index == last;
            let (panel, below) = rest.split_vertically(if with_axis { ROW_PX + AXIS_PX } else { ROW_PX });
            self.draw_row(&panel, row, with_axis)?;
            rest = below;
        }
        root.present()?;
        Ok(())
    }

    /// Length of the run in units of the time axis.
    fn length(&self) -> f64 {
        self.ledger.seconds.len() as f64 / self.unit_s()
    }

    /// What the time axis counts: whole hours make rounder labels than thousands of seconds.
    fn unit_s(&self) -> f64 {
        if self.ledger.seconds.len() > HOURS_FROM_S { 3600.0 } else { 1.0 }
    }

    fn rows(&self) -> Vec<Row> {
        let line = |label, color, value: &dyn Fn(&Second) -> f64| {
            let values = self.ledger.seconds.iter().map(value).collect::<Vec<_>>();
            Line { label, color, points: thinned(&values, self.unit_s()) }
        };
        let mut knobs = vec![line("batch cap", FIRST, &|second| f64::from(second.batch))];
        if self.ledger.seconds.iter().any(|second| second.cache_mib > 0) {
            knobs.push(line("cache of a pod, MiB", SECOND, &|second| f64::from(second.cache_mib)));
        }
        let oracle: Vec<f64> = self.oracle.iter().map(|pods| f64::from(*pods)).collect();
        vec![
            Row {
                lines: vec![
                    line("λ_plan /s", SECOND, &|second| f64::from(second.plan_rate)),
                    line("arrivals /s", FIRST, &|second| f64::from(second.arrivals)),
                ],
                limit: None,
            },
            Row {
                lines: vec![
                    line("pods ordered", SECOND, &|second| f64::from(second.pods)),
                    line("pods ready", FIRST, &|second| f64::from(second.ready)),
                    Line { label: "clairvoyant", color: THIRD, points: thinned(&oracle, self.unit_s()) },
                ],
                limit: None,
            },
            Row {
                lines: vec![line("p95 of a minute, ms (target dashed)", FIRST, &|s| 1e3 * f64::from(s.p95_s))],
                limit: Some(1e3 * self.slo_s),
            },
            Row { lines: knobs, limit: None },
        ]
    }

    fn draw_row(&self, area: &Area<'_>, row: &Row, with_axis: bool) -> Drawn {
        let values = row.lines.iter().flat_map(|line| line.points.iter().map(|(_, value)| *value));
        let highest = values.chain(row.limit).fold(1.0, f64::max) * 1.15;
        let mut chart = ChartBuilder::on(area)
            .margin_right(RIGHT_PX)
            .margin_top(8)
            .x_label_area_size(if with_axis { AXIS_PX } else { 0 })
            .y_label_area_size(Y_LABELS_PX)
            .build_cartesian_2d(0.0..self.length(), 0.0..highest)?;
        let unit_s = self.unit_s();
        let bad =
            self.ledger.bad_spans().map(|(from_s, until_s)| [(from_s / unit_s, 0.0), (until_s / unit_s, highest)]);
        chart.draw_series(bad.map(|corners| Rectangle::new(corners, BAD.filled())))?;
        let mut mesh = chart.configure_mesh();
        let labels = ("sans-serif", 13).into_font().color(&INK);
        mesh.disable_x_mesh().light_line_style(TRANSPARENT).bold_line_style(INK.mix(0.12)).axis_style(INK.mix(0.5));
        let unit = if unit_s > 1.0 { "h" } else { "s" };
        let time = |x: &f64| format!("{x:.0} {unit}");
        let number = |y: &f64| format!("{y:.0}");
        mesh.y_labels(5).x_labels(13).label_style(labels);
        mesh.x_label_formatter(&time).y_label_formatter(&number).draw()?;
        if let Some(limit) = row.limit {
            let ends = [(0.0, limit), (self.length(), limit)];
            chart.draw_series(DashedLineSeries::new(ends, 6, 4, LIMIT.stroke_width(2)))?;
        }
        let mut left = i32::try_from(Y_LABELS_PX)? + 6;
        for line in &row.lines {
            chart.draw_series(LineSeries::new(line.points.iter().copied(), line.color.stroke_width(1)))?;
            area.draw(&Text::new(line.label, (left, 12), ("sans-serif", 14).into_font().color(&line.color)))?;
            left += 9 * i32::try_from(line.label.chars().count())? + 12;
        }
        Ok(())
    }
}

/// Seconds behind a point of a run of `seconds`.
fn stretch(seconds: usize) -> usize {
    seconds.div_ceil(POINTS).max(1)
}

/// At most [`POINTS`] points: the greatest value of each stretch, so that no peak is lost.
fn thinned(values: &[f64], unit_s: f64) -> Vec<(f64, f64)> {
    let stretch = stretch(values.len());
    let greatest = |part: &[f64]| part.iter().copied().fold(0.0, f64::max);
    values.chunks(stretch).enumerate().map(|(at, part)| ((at * stretch) as f64 / unit_s, greatest(part))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_the_peaks() {
        let mut values = vec![1.0; 10_000];
        values[7_777] = 9.0;
        let points = thinned(&values, 1.0);
        assert!(points.len() <= POINTS);
        assert!(points.iter().any(|(at, value)| *value > 8.0 && (at - 7_777.0).abs() < 10.0));
    }
}
