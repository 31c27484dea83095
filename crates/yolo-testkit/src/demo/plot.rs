//! The timeline as one SVG: a column for each service, a row for each quantity, the phases shaded.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::timeline::{Look, Span, Track};

const COLUMN_WIDTH_PX: u32 = 720;
const ROW_HEIGHT_PX: u32 = 170;
const TITLE_HEIGHT_PX: u32 = 64;
const AXIS_HEIGHT_PX: u32 = 30;
/// Room for the labels of the y axis, equal in all rows so that their x axes line up.
const Y_LABELS_PX: u32 = 56;
/// Rates and quantiles are drawn over steps of this length: shorter ones show noise, longer ones hide bursts.
const STEP: Duration = Duration::from_secs(5);

const INK: RGBColor = RGBColor(38, 50, 56);
const LINE: RGBColor = RGBColor(21, 101, 192);
const LIMIT: RGBColor = RGBColor(198, 40, 40);
/// In turn, for the start and the four phases: calm and calm again look alike.
const SHADES: [RGBColor; 5] =
    [WHITE, RGBColor(236, 239, 241), RGBColor(255, 248, 225), RGBColor(232, 245, 233), RGBColor(236, 239, 241)];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn Error>>;

/// One row of the plot.
struct Row {
    label: &'static str,
    /// (seconds, value)
    points: Vec<(f64, f64)>,
    /// Drawn as steps, for a quantity that is set rather than measured.
    steps: bool,
    /// A horizontal line: the target.
    limit: Option<f64>,
}

/// The time shown; its zero is the start of the first phase.
#[derive(Clone, Copy)]
struct Axis {
    start: Duration,
    end: Duration,
}

impl Axis {
    fn seconds(self, at: Duration) -> f64 {
        at.as_secs_f64() - self.start.as_secs_f64()
    }

    fn length_s(self) -> f64 {
        self.seconds(self.end)
    }
}

/// Draws `tracks` over `spans` into the file `path`.
///
/// # Errors
/// If the file cannot be written.
pub fn timeline(path: &Path, spans: &[Span], tracks: &[Track]) -> anyhow::Result<()> {
    let columns = u32::try_from(tracks.len().max(1))?;
    let size = (COLUMN_WIDTH_PX * columns, TITLE_HEIGHT_PX + 5 * ROW_HEIGHT_PX + AXIS_HEIGHT_PX);
    let root = SVGBackend::new(path, size).into_drawing_area();
    let draw = || -> Drawn {
        root.fill(&WHITE)?;
        let start = spans.first().map_or(Duration::ZERO, |span| span.from);
        let axis = Axis { start, end: spans.last().map_or(start + STEP, |span| span.until) };
        for (area, track) in root.split_evenly((1, tracks.len().max(1))).iter().zip(tracks) {
            column(area, track, spans, axis)?;
        }
        root.present()?;
        Ok(())
    };
    draw().map_err(|failure| anyhow::anyhow!("failed to draw {}: {failure}", path.display()))
}

fn column(area: &Area<'_>, track: &Track, spans: &[Span], axis: Axis) -> Drawn {
    let (title, mut rest) = area.split_vertically(TITLE_HEIGHT_PX);
    let left = i32::try_from(Y_LABELS_PX)?;
    title.draw(&Text::new(track.title, (left, 8), ("sans-serif", 24).into_font().color(&INK)))?;
    let px_a_second = f64::from(COLUMN_WIDTH_PX - Y_LABELS_PX) / axis.length_s();
    for span in spans {
        #[expect(clippy::cast_possible_truncation, reason = "a place within the picture's width")]
        let from = left + (axis.seconds(span.from) * px_a_second) as i32;
        title.draw(&Text::new(span.name, (from + 4, 42), ("sans-serif", 15).into_font().color(&INK)))?;
    }
    let rows = rows(track, axis);
    let last = rows.len() - 1;
    for (index, row) in rows.iter().enumerate() {
        let height = if index == last { ROW_HEIGHT_PX + AXIS_HEIGHT_PX } else { ROW_HEIGHT_PX };
        let (panel, below) = rest.split_vertically(height);
        draw_row(&panel, row, spans, (axis, index == last))?;
        rest = below;
    }
    Ok(())
}

fn rows(track: &Track, axis: Axis) -> Vec<Row> {
    let summaries = || {
        let steps = (0..).map(|step| axis.start + STEP * step).take_while(|from| *from + STEP <= axis.end);
        steps.map(|from| (axis.seconds(from + STEP / 2), track.recording.summary(from, from + STEP)))
    };
    let looks = |value: &dyn Fn(&Look) -> f64| -> Vec<_> {
        let shown = track.looks.iter().filter(|look| (axis.start..axis.end).contains(&look.at));
        shown.map(|look| (axis.seconds(look.at), value(look))).collect()
    };
    let rate = summaries().map(|(at_s, summary)| (at_s, summary.offered_per_second)).collect();
    let p95 = summaries().filter_map(|(at_s, summary)| Some((at_s, summary.latency_ms_p95?))).collect();
    #[expect(clippy::cast_precision_loss, reason = "a count of pods")]
    let replicas = looks(&|look| look.replicas() as f64);
    vec![
        Row { label: "arrivals /s", points: rate, steps: false, limit: None },
        Row { label: "p95 ms (client)", points: p95, steps: false, limit: track.p95_target_ms },
        Row { label: "ready replicas", points: replicas, steps: true, limit: None },
        Row { label: "batch limit", points: looks(&Look::batch), steps: true, limit: None },
        Row { label: "cache MiB a pod", points: looks(&Look::cache_mib), steps: true, limit: None },
    ]
}

fn draw_row(area: &Area<'_>, row: &Row, spans: &[Span], (axis, with_axis): (Axis, bool)) -> Drawn {
    let highest = row.points.iter().map(|point| point.1).chain(row.limit).fold(0.0, f64::max);
    let top = if highest > 0.0 { highest * 1.15 } else { 1.0 };
    let mut chart = ChartBuilder::on(area)
        .margin_right(14)
        .margin_top(8)
        .x_label_area_size(if with_axis { AXIS_HEIGHT_PX } else { 0 })
        .y_label_area_size(Y_LABELS_PX)
        .build_cartesian_2d(0.0..axis.length_s(), 0.0..top)?;
    chart.draw_series(spans.iter().zip(SHADES.iter().cycle()).map(|(span, shade)| {
        let corners = [(axis.seconds(span.from), 0.0), (axis.seconds(span.until), top)];
        Rectangle::new(corners, shade.filled())
    }))?;
    let mut mesh = chart.configure_mesh();
    let labels = ("sans-serif", 13).into_font().color(&INK);
    mesh.disable_x_mesh().light_line_style(TRANSPARENT).bold_line_style(INK.mix(0.12)).axis_style(INK.mix(0.5));
    mesh.y_labels(5).x_labels(8).label_style(labels.clone());
    let seconds = |x: &f64| format!("{x:.0} s");
    let steps = if top < 1.0 { 100.0 } else { 10.0 }; // Rounded to one of these parts of a unit.
    let number = |y: &f64| format!("{}", (y * steps).round() / steps);
    mesh.x_label_formatter(&seconds).y_label_formatter(&number).draw()?;
    if let Some(limit) = row.limit {
        chart.draw_series(DashedLineSeries::new(
            [(0.0, limit), (axis.length_s(), limit)],
            6,
            4,
            LIMIT.stroke_width(2),
        ))?;
    }
    let points = if row.steps { stairs(&row.points) } else { row.points.clone() };
    chart.draw_series(LineSeries::new(points, LINE.stroke_width(2)))?;
    let left = i32::try_from(Y_LABELS_PX)? + 6;
    area.draw(&Text::new(row.label, (left, 12), ("sans-serif", 14).into_font().color(&INK)))?;
    Ok(())
}

/// Holds each value until the next, instead of a slope between them.
fn stairs(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let held = points.windows(2).filter_map(|pair| match pair {
        [(from_s, value), (until_s, _)] => Some([(*from_s, *value), (*until_s, *value)]),
        _ => None,
    });
    held.flatten().chain(points.last().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stairs_hold_each_value_until_the_next() {
        assert_eq!(stairs(&[(0.0, 1.0), (2.0, 3.0)]), vec![(0.0, 1.0), (2.0, 1.0), (2.0, 3.0)]);
        assert_eq!(stairs(&[]), vec![]);
    }
}
