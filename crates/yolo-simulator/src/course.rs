//! A real run beside simulated ones of the same arrivals (control.md §10, "Calibrate"): both as a [`Course`], judged by
//! the same functions.

use std::path::Path;

use plotters::style::RGBColor;

use crate::chart::{BLUE, Chart, GREEN, Line, ORANGE, Row};
use crate::fleet::{Answer, BIN_S, Bin, Outcome};

/// Requests whose answers meet the target in a window that does.
const QUANTILE: f64 = 0.95;

/// What a fleet did and what its clients got; seconds since the start.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Course {
    /// Changes of the ordered pods: moment, before, after.
    pub orders: Vec<(f64, u32, u32)>,
    /// Pods that serve or start, at the end of each second.
    pub pods: Vec<u32>,
    /// Pods that serve.
    pub ready: Vec<u32>,
    /// Batch cap of the serving pods.
    pub batch: Vec<u32>,
    /// What became of each request.
    pub answers: Vec<Answer>,
}

impl Course {
    /// A simulated run that was recorded.
    pub fn of(outcome: Outcome) -> Self {
        let ledger = outcome.ledger;
        let each = |value: &dyn Fn(&crate::fleet::Second) -> u16| -> Vec<u32> {
            ledger.seconds.iter().map(|second| u32::from(value(second))).collect()
        };
        Self {
            pods: each(&|second| second.pods),
            ready: each(&|second| second.ready),
            batch: each(&|second| second.batch),
            orders: ledger.orders,
            answers: ledger.answers.unwrap_or_default(),
        }
    }

    /// From `at_s` to the first order of more pods after it.
    pub fn order_s(&self, at_s: f64) -> Option<f64> {
        self.orders
            .iter()
            .find(|(order_s, before, after)| *order_s >= at_s && after > before)
            .map(|order| order.0 - at_s)
    }

    /// Seconds that pods existed in these seconds.
    pub fn pod_seconds(&self, (from, until): (usize, usize)) -> f64 {
        self.pods.get(from..until.min(self.pods.len())).unwrap_or(&[]).iter().copied().map(f64::from).sum()
    }

    /// Late, dropped and all requests that ended in these seconds, a window of [`BIN_S`] each.
    fn windows(&self, (from, until): (usize, usize), slo_s: f64) -> Vec<Bin> {
        let from_s = from as f64;
        let mut bins = vec![Bin::default(); ((until - from) as f64 / BIN_S).ceil() as usize];
        for Answer { at_s, latency_s } in &self.answers {
            let index = (at_s - from_s) / BIN_S;
            let Some(bin) = bins.get_mut(index as usize).filter(|_| index >= 0.0) else { continue };
            match latency_s {
                Some(latency_s) => {
                    bin.done += 1;
                    bin.late += u64::from(*latency_s > slo_s);
                }
                None => bin.dropped += 1,
            }
        }
        bins
    }

    /// Share of the requests that ended in these seconds and were late, dropped or failed.
    pub fn missed_share(&self, span: (usize, usize), slo_s: f64) -> f64 {
        let windows = self.windows(span, slo_s);
        let missed: u64 = windows.iter().map(|bin| bin.late + bin.dropped).sum();
        let all: u64 = windows.iter().map(|bin| bin.done + bin.dropped).sum();
        missed as f64 / (all as f64).max(1.0)
    }

    /// From the first of these seconds to the start of the first window within target after one that was not; 0 if all
    /// were within, the whole span if none was again.
    pub fn recovery_s(&self, span: (usize, usize), slo_s: f64) -> f64 {
        let windows = self.windows(span, slo_s);
        let Some(first) = windows.iter().position(Bin::bad) else { return 0.0 };
        let again = windows.iter().skip(first).position(|bin| !bin.bad());
        again.map_or((span.1 - span.0) as f64, |after| (first + after) as f64 * BIN_S)
    }

    /// 95th percentile of what clients waited, of the answers that came in these seconds.
    pub fn p95_s(&self, (from, until): (usize, usize)) -> Option<f64> {
        let span = from as f64..until as f64;
        let within = self.answers.iter().filter(|answer| span.contains(&answer.at_s));
        let mut latencies: Vec<f64> = within.filter_map(|answer| answer.latency_s).collect();
        latencies.sort_by(f64::total_cmp);
        let rank = (QUANTILE * latencies.len() as f64).ceil() as usize;
        latencies.get(rank.saturating_sub(1)).copied()
    }

    fn p95_line(&self, seconds: usize) -> Vec<(f64, f64)> {
        let starts = (0..seconds).step_by(BIN_S as usize);
        let point = |from: usize| Some((from as f64 + BIN_S / 2.0, 1e3 * self.p95_s((from, from + BIN_S as usize))?));
        starts.filter_map(point).collect()
    }
}

/// Middle value; of two the lower one. `None` of nothing.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied()
}

/// Pods of several runs as one: the median of each second.
pub fn median_pods(courses: &[Course]) -> Vec<u32> {
    let seconds = courses.iter().map(|course| course.pods.len()).min().unwrap_or(0);
    let at = |second: usize| {
        let values = courses.iter().filter_map(|course| course.pods.get(second)).copied();
        median(values.map(f64::from).collect()).unwrap_or(0.0) as u32
    };
    (0..seconds).map(at).collect()
}

/// Greatest distance of `real` from what `simulated` holds within `tolerance` seconds around, over these seconds.
///
/// A step that comes some seconds sooner or later is no distance: that difference is told by [`Course::order_s`].
pub fn apart(real: &[u32], simulated: &[u32], (from, until): (usize, usize), tolerance: usize) -> u32 {
    let distance = |second: usize| {
        let around = simulated.get(second.saturating_sub(tolerance)..(second + tolerance + 1).min(simulated.len()))?;
        let (least, most) = (around.iter().min()?, around.iter().max()?);
        let real = real.get(second)?;
        Some(least.saturating_sub(*real).max(real.saturating_sub(*most)))
    };
    (from..until).filter_map(distance).max().unwrap_or(0)
}

/// A real run and a simulated one, drawn over each other.
pub struct Comparison<'a> {
    /// Above it.
    pub title: String,
    /// Arrivals of each second.
    pub arrivals: &'a [f64],
    /// What was.
    pub real: &'a Course,
    /// What was expected.
    pub simulated: &'a Course,
    /// Target of p95.
    pub slo_s: f64,
}

impl Comparison<'_> {
    /// Draws it into the file `path`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn draw(&self, path: &Path) -> anyhow::Result<()> {
        let seconds = self.arrivals.len();
        let Self { real, simulated, .. } = self;
        let line = |label, color: RGBColor, points| Line { label, color, points };
        let counts = |label, color, values: &[u32]| line(label, color, stairs(values));
        let arrivals = (0..).zip(self.arrivals).map(|(second, rate)| (f64::from(second), *rate)).collect();
        let rows = vec![
            Row { lines: vec![line("arrivals /s", BLUE, arrivals)], limit: None },
            Row {
                lines: vec![
                    counts("pods ordered, simulated", ORANGE, &simulated.pods),
                    counts("real", BLUE, &real.pods),
                    counts("real, serving", GREEN, &real.ready),
                ],
                limit: None,
            },
            Row {
                lines: vec![
                    line("p95 of 5 s, ms (target dashed), simulated", ORANGE, simulated.p95_line(seconds)),
                    line("real, at the client", BLUE, real.p95_line(seconds)),
                ],
                limit: Some(1e3 * self.slo_s),
            },
            Row {
                lines: vec![
                    counts("batch cap, simulated", ORANGE, &simulated.batch),
                    counts("real", BLUE, &real.batch),
                ],
                limit: None,
            },
        ];
        Chart { title: self.title.clone(), seconds, rows, shaded: Vec::new() }.draw(path)
    }
}

/// Holds each value until the next.
fn stairs(values: &[u32]) -> Vec<(f64, f64)> {
    let held = |(second, value): (u32, &u32)| {
        [(f64::from(second), f64::from(*value)), (f64::from(second + 1), f64::from(*value))]
    };
    (0..).zip(values).flat_map(held).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hundred answers in each second of `latencies_s`, all alike.
    fn answers(latencies_s: &[f64]) -> Course {
        let of = |(second, latency_s): (usize, f64)| {
            let answer = move |part: u32| {
                let at_s = second as f64 + f64::from(part) / 100.0;
                Answer { at_s, latency_s: (latency_s > 0.0).then_some(latency_s) }
            };
            (0..100).map(answer)
        };
        let all = latencies_s.iter().copied().enumerate().flat_map(of).collect();
        Course { answers: all, ..Course::default() }
    }

    #[test]
    fn a_run_recovers_with_the_first_window_within_target_after_a_bad_one() {
        let mut latencies_s = vec![0.1; 40];
        latencies_s[12..21].fill(0.5);
        latencies_s[18] = 0.0; // dropped
        let course = answers(&latencies_s);
        // Windows from second 10 on: 10–15, 15–20 and 20–25 hold a bad second, a fifth of each.
        assert!((course.recovery_s((10, 40), 0.2) - 15.0).abs() < 1e-9);
        assert!(course.recovery_s((25, 40), 0.2) < 1e-9);
        assert!((course.recovery_s((13, 17), 0.2) - 4.0).abs() < 1e-9, "never again");
        assert!((course.missed_share((10, 40), 0.2) - 9.0 / 30.0).abs() < 1e-9);
        assert!((course.p95_s((15, 20)).unwrap() - 0.5).abs() < 1e-9);
        assert_eq!(course.p95_s((18, 19)), None, "dropped requests have no latency");
    }

    #[test]
    fn only_an_order_of_more_pods_from_the_step_on_answers_it() {
        let course =
            Course { orders: vec![(5.0, 1, 2), (12.0, 2, 1), (14.5, 1, 4)], pods: vec![1, 2, 4], ..Course::default() };
        assert!((course.order_s(10.0).unwrap() - 4.5).abs() < 1e-9);
        assert_eq!(course.order_s(15.0), None);
        assert!((course.pod_seconds((1, 9)) - 6.0).abs() < 1e-9);
    }

    #[test]
    fn a_step_within_the_tolerance_is_no_distance_and_another_level_is() {
        let (real, late) = ([1, 1, 4, 4, 4, 4, 4, 4], [1, 1, 1, 1, 4, 4, 4, 4]);
        assert_eq!(apart(&real, &late, (0, 8), 2), 0);
        assert_eq!(apart(&real, &late, (0, 8), 1), 3);
        assert_eq!(apart(&real, &[1; 8], (0, 8), 2), 3);
        assert_eq!(apart(&[1; 8], &real, (0, 8), 0), 3);
    }

    #[test]
    fn runs_are_one_by_the_median_of_each_second() {
        let run = |pods: &[u32]| Course { pods: pods.to_vec(), ..Course::default() };
        assert_eq!(median_pods(&[run(&[1, 4, 4]), run(&[1, 1, 4]), run(&[2, 5, 5, 5])]), [1, 4, 4]);
        assert_eq!(median(Vec::new()), None);
    }
}
