//! Rows of lines over one time axis, as one SVG.

use std::error::Error;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

const WIDTH_PX: u32 = 1200;
const TITLE_PX: u32 = 36;
const ROW_PX: u32 = 170;
const AXIS_PX: u32 = 30;
const Y_LABELS_PX: u32 = 64;
/// Half of the last label of the time axis.
const RIGHT_PX: u32 = 26;

/// Longer runs count hours: whole hours make rounder labels than thousands of seconds.
const HOURS_FROM_S: usize = 7200;

const INK: RGBColor = RGBColor(38, 50, 56);
/// Colours of lines; orange is for what was ordered, or expected.
pub const BLUE: RGBColor = RGBColor(21, 101, 192);
/// See [`BLUE`].
pub const ORANGE: RGBColor = RGBColor(239, 108, 0);
/// See [`BLUE`].
pub const GREEN: RGBColor = RGBColor(46, 125, 50);
const LIMIT: RGBColor = RGBColor(198, 40, 40);
const SHADE: RGBColor = RGBColor(255, 205, 210);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn Error>>;

/// One line of a row.
pub struct Line {
    /// Shown in its colour.
    pub label: &'static str,
    /// Its colour.
    pub color: RGBColor,
    /// (seconds, value)
    pub points: Vec<(f64, f64)>,
}

/// Lines over one axis of values.
pub struct Row {
    /// Drawn in this order.
    pub lines: Vec<Line>,
    /// A dashed horizontal line: the target.
    pub limit: Option<f64>,
}

/// The whole picture.
pub struct Chart {
    /// Above it.
    pub title: String,
    /// Length of the time axis.
    pub seconds: usize,
    /// From top to bottom.
    pub rows: Vec<Row>,
    /// (from, until) in seconds, in all rows.
    pub shaded: Vec<(f64, f64)>,
}

impl Chart {
    /// Draws it into the file `path`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn draw(&self, path: &Path) -> anyhow::Result<()> {
        self.try_draw(path).map_err(|failure| anyhow::anyhow!("failed to draw {}: {failure}", path.display()))
    }

    fn try_draw(&self, path: &Path) -> Drawn {
        let height = TITLE_PX + ROW_PX * self.rows.len() as u32 + AXIS_PX;
        let root = SVGBackend::new(path, (WIDTH_PX, height)).into_drawing_area();
        root.fill(&WHITE)?;
        let (title, mut rest) = root.split_vertically(TITLE_PX);
        let left = i32::try_from(Y_LABELS_PX)?;
        title.draw(&Text::new(self.title.clone(), (left, 10), ("sans-serif", 20).into_font().color(&INK)))?;
        let last = self.rows.len() - 1;
        for (index, row) in self.rows.iter().enumerate() {
            let with_axis = index == last;
            let (panel, below) = rest.split_vertically(if with_axis { ROW_PX + AXIS_PX } else { ROW_PX });
            self.draw_row(&panel, row, with_axis)?;
            rest = below;
        }
        root.present()?;
        Ok(())
    }

    fn draw_row(&self, area: &Area<'_>, row: &Row, with_axis: bool) -> Drawn {
        let (unit_s, unit) = if self.seconds > HOURS_FROM_S { (3600.0, "h") } else { (1.0, "s") };
        let length = self.seconds as f64 / unit_s;
        let values = row.lines.iter().flat_map(|line| line.points.iter().map(|(_, value)| *value));
        let highest = values.chain(row.limit).fold(1.0, f64::max) * 1.15;
        let mut chart = ChartBuilder::on(area)
            .margin_right(RIGHT_PX)
            .margin_top(8)
            .x_label_area_size(if with_axis { AXIS_PX } else { 0 })
            .y_label_area_size(Y_LABELS_PX)
            .build_cartesian_2d(0.0..length, 0.0..highest)?;
        let shaded = self.shaded.iter().map(|(from_s, until_s)| [(from_s / unit_s, 0.0), (until_s / unit_s, highest)]);
        chart.draw_series(shaded.map(|corners| Rectangle::new(corners, SHADE.filled())))?;
        let mut mesh = chart.configure_mesh();
        let labels = ("sans-serif", 13).into_font().color(&INK);
        mesh.disable_x_mesh().light_line_style(TRANSPARENT).bold_line_style(INK.mix(0.12)).axis_style(INK.mix(0.5));
        let time = |x: &f64| format!("{x:.0} {unit}");
        let number = |y: &f64| format!("{y:.0}");
        mesh.y_labels(5).x_labels(13).label_style(labels);
        mesh.x_label_formatter(&time).y_label_formatter(&number).draw()?;
        if let Some(limit) = row.limit {
            chart.draw_series(DashedLineSeries::new([(0.0, limit), (length, limit)], 6, 4, LIMIT.stroke_width(2)))?;
        }
        let mut left = i32::try_from(Y_LABELS_PX)? + 6;
        for line in &row.lines {
            let points = line.points.iter().map(|(at_s, value)| (at_s / unit_s, *value));
            chart.draw_series(LineSeries::new(points, line.color.stroke_width(1)))?;
            area.draw(&Text::new(line.label, (left, 12), ("sans-serif", 14).into_font().color(&line.color)))?;
            left += 9 * i32::try_from(line.label.chars().count())? + 12;
        }
        Ok(())
    }
}
