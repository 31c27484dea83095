//! The timeline as one SVG: a column for each service, a row for each quantity, the phases shaded.

use std::error::Error;
use std::ops::Range;
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
const SHADES: [RGBColor; 2] = [RGBColor(236, 239, 241), RGBColor(255, 248, 225)];

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
        let end_s = spans.last().map_or(1.0, |span| span.until.as_secs_f64());
        for (area, track) in root.split_evenly((1, tracks.len().max(1))).iter().zip(tracks) {
            column(area, track, spans, end_s)?;
        }
        root.present()?;
        Ok(())
    };
    draw().map_err(|failure| anyhow::anyhow!("failed to draw {}: {failure}", path.display()))
}

fn column(area: &Area<'_>, track: &Track, spans: &[Span], end_s: f64) -> Drawn {
    let start_s = spans.first().map_or(0.0, |span| span.from.as_secs_f64());
    let (title, mut rest) = area.split_vertically(TITLE_HEIGHT_PX);
    let middle = i32::try_from(Y_LABELS_PX)?;
    title.draw(&Text::new(track.service.clone(), (middle, 8), ("sans-serif", 24).into_font().color(&INK)))?;
    for span in spans {
        let share = (span.from.as_secs_f64() - start_s) / (end_s - start_s).max(1.0);
        let width = f64::from(COLUMN_WIDTH_PX - Y_LABELS_PX);
        #[expect(clippy::cast_possible_truncation, reason = "0 <= share <= 1 of a picture's width")]
        let left = middle + (share * width) as i32;
        title.draw(&Text::new(span.name, (left + 4, 42), ("sans-serif", 15).into_font().color(&INK)))?;
    }
    let rows = rows(track, start_s..end_s);
    let last = rows.len() - 1;
    for (index, row) in rows.iter().enumerate() {
        let height = if index == last { ROW_HEIGHT_PX + AXIS_HEIGHT_PX } else { ROW_HEIGHT_PX };
        let (panel, below) = rest.split_vertically(height);
        draw_row(&panel, row, spans, (start_s..end_s, index == last))?;
        rest = below;
    }
    Ok(())
}

fn rows(track: &Track, range_s: Range<f64>) -> Vec<Row> {
    let summaries = || {
        let mut from = Duration::from_secs_f64(range_s.start.max(0.0));
        std::iter::from_fn(move || {
            let until = from + STEP;
            (until.as_secs_f64() <= range_s.end).then(|| {
                let summary = track.recording.summary(from, until);
                let middle_s = (from + STEP / 2).as_secs_f64();
                from = until;
                (middle_s, summary)
            })
        })
    };
    let looks = |value: &dyn Fn(&Look) -> f64| -> Vec<_> {
        track.looks.iter().map(|look| (look.at.as_secs_f64(), value(look))).collect()
    };
    let rate = summaries().map(|(at_s, summary)| (at_s, summary.offered_per_second)).collect();
    let p95 = summaries().filter_map(|(at_s, summary)| Some((at_s, summary.latency_ms_p95?))).collect();
    #[expect(clippy::cast_precision_loss, reason = "a count of pods")]
    let replicas = looks(&|look| look.replicas() as f64);
    vec![
        Row { label: "arrivals /s", points: rate, steps: false, limit: None },
        Row { label: "p95 ms (client)", points: p95, steps: false, limit: Some(track.p95_target_ms) },
        Row { label: "ready replicas", points: replicas, steps: true, limit: None },
        Row { label: "batch limit", points: looks(&Look::batch), steps: true, limit: None },
        Row { label: "cache MiB a pod", points: looks(&Look::cache_mib), steps: true, limit: None },
    ]
}

fn draw_row(area: &Area<'_>, row: &Row, spans: &[Span], (range_s, with_axis): (Range<f64>, bool)) -> Drawn {
    let highest = row.points.iter().map(|point| point.1).chain(row.limit).fold(0.0, f64::max);
    let top = if highest > 0.0 { highest * 1.15 } else { 1.0 };
    let mut chart = ChartBuilder::on(area)
        .margin_right(14)
        .margin_top(8)
        .x_label_area_size(if with_axis { AXIS_HEIGHT_PX } else { 0 })
        .y_label_area_size(Y_LABELS_PX)
        .build_cartesian_2d(range_s.clone(), 0.0..top)?;
    chart.draw_series(spans.iter().zip(SHADES.iter().cycle()).map(|(span, shade)| {
        let corners = [(span.from.as_secs_f64(), 0.0), (span.until.as_secs_f64(), top)];
        Rectangle::new(corners, shade.filled())
    }))?;
    let mut mesh = chart.configure_mesh();
    let labels = ("sans-serif", 13).into_font().color(&INK);
    mesh.disable_x_mesh().light_line_style(TRANSPARENT).bold_line_style(INK.mix(0.12)).axis_style(INK.mix(0.5));
    mesh.y_labels(5).x_labels(8).label_style(labels.clone());
    let seconds = |x: &f64| format!("{:.0} s", x - range_s.start);
    let number = |y: &f64| if top < 5.0 { format!("{y:.1}") } else { format!("{y:.0}") };
    mesh.x_label_formatter(&seconds).y_label_formatter(&number).draw()?;
    if let Some(limit) = row.limit {
        chart.draw_series(DashedLineSeries::new(
            [(range_s.start, limit), (range_s.end, limit)],
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
