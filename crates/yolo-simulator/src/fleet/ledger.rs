//! What happened, as the report needs it.

use std::collections::VecDeque;

/// Length of a bin of outcomes, seconds.
pub const BIN_S: f64 = 5.0;
/// Bins of a judged window.
const BINS_A_WINDOW: usize = 12;
/// Share of a window's requests beyond which it is bad.
const BAD_SHARE: f64 = 0.05;
/// Resolution of response times, seconds, and how many steps are told apart.
pub(super) const STEP_S: f64 = 1e-4;
pub(super) const STEPS: usize = 20_000;
/// Slices of the rolling response-time distribution, and the length of one.
const SLICES: usize = 4;
const SLICE_S: f64 = 15.0;
/// A change of direction sooner than this after the one before is a reversal.
const REVERSAL_S: f64 = 300.0;

/// Outcomes of a few seconds, by the time of completion.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bin {
    /// Answered.
    pub done: u64,
    /// Of those, later than the target.
    pub late: u64,
    /// Dropped or failed.
    pub dropped: u64,
}

impl Bin {
    fn add(&mut self, other: &Self) {
        self.done += other.done;
        self.late += other.late;
        self.dropped += other.dropped;
    }

    /// Late and dropped over all; 0 for none.
    pub fn missed_share(&self) -> f64 {
        (self.late + self.dropped) as f64 / ((self.done + self.dropped) as f64).max(1.0)
    }

    /// Whether more missed the target than may.
    pub fn bad(&self) -> bool {
        self.missed_share() > BAD_SHARE
    }
}

/// What became of one request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answer {
    /// When.
    pub at_s: f64,
    /// What its client waited; none if it was dropped or failed.
    pub latency_s: Option<f64>,
}

/// The fleet in one second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Second {
    /// Images that arrived.
    pub arrivals: u32,
    /// Mean of the images in the pods.
    pub inflight: f32,
    /// Time that sessions were busy, divided by the sessions of a pod.
    pub busy_s: f32,
    /// Pods that serve at its end.
    pub ready: u16,
    /// Pods that serve or start at its end.
    pub pods: u16,
    /// The rate that pods are ordered for, where the scaler has one.
    pub plan_rate: f32,
    /// Batch cap.
    pub batch: u16,
    /// Cache of a pod, MiB.
    pub cache_mib: u16,
    /// 95th percentile of the response times of the last minute.
    pub p95_s: f32,
}

/// What happened in one run.
#[derive(Debug, Clone)]
pub struct Ledger {
    /// Outcomes.
    pub bins: Vec<Bin>,
    /// The fleet, second by second.
    pub seconds: Vec<Second>,
    /// Seconds that pods existed, from the end of the warm-up on.
    pub pod_seconds: f64,
    /// Moments of changed orders, with pods before and after.
    pub orders: Vec<(f64, u32, u32)>,
    /// Images that arrived.
    pub arrivals: u64,
    /// What became of each request, where that was asked for.
    pub answers: Option<Vec<Answer>>,
    /// Nothing before it is judged.
    warmup_s: f64,
    /// The slice under way, and full ones, the newest last.
    newest: Vec<u32>,
    slices: VecDeque<Vec<u32>>,
}

impl Ledger {
    /// An empty ledger that judges nothing before `warmup_s`, a multiple of a minute.
    pub fn new(warmup_s: f64) -> Self {
        let (newest, slices) = (vec![0; STEPS + 1], VecDeque::new());
        let (bins, seconds, orders) = (Vec::new(), Vec::new(), Vec::new());
        Self { bins, seconds, pod_seconds: 0.0, orders, arrivals: 0, answers: None, warmup_s, newest, slices }
    }

    /// The bin of `at_s`.
    pub fn bin(&mut self, at_s: f64) -> &mut Bin {
        let index = (at_s / BIN_S) as usize;
        if self.bins.len() <= index {
            self.bins.resize(index + 1, Bin::default());
        }
        &mut self.bins[index]
    }

    /// Counts requests that were dropped or failed.
    pub(super) fn drop(&mut self, at_s: f64, dropped: u64) {
        self.bin(at_s).dropped += dropped;
        if let Some(answers) = &mut self.answers {
            answers.extend((0..dropped).map(|_| Answer { at_s, latency_s: None }));
        }
    }

    /// Counts one response time of `step` steps, at most [`STEPS`].
    pub(super) fn respond(&mut self, step: usize) {
        self.newest[step] += 1;
    }

    /// A second ended at `now_s`: response times older than a minute are forgotten.
    pub fn roll(&mut self, now_s: f64) {
        if now_s.rem_euclid(SLICE_S) < 0.5 {
            let mut slice =
                if self.slices.len() >= SLICES { self.slices.pop_front() } else { None }.unwrap_or_default();
            slice.clear();
            slice.resize(STEPS + 1, 0);
            self.slices.push_back(std::mem::replace(&mut self.newest, slice));
        }
    }

    /// The `q`-quantile of the response times of the last minute.
    pub fn quantile_s(&self, q: f64) -> Option<f64> {
        let slices = || self.slices.iter().chain([&self.newest]);
        let count: u64 = slices().flatten().map(|n| u64::from(*n)).sum();
        if count == 0 {
            return None;
        }
        let rank = ((q * count as f64).ceil() as u64).max(1);
        let mut below = 0;
        (0..=STEPS)
            .find(|step| {
                below += slices().map(|slice| u64::from(slice[*step])).sum::<u64>();
                below >= rank
            })
            .map(|step| (step as f64 + 0.5) * STEP_S)
    }

    /// Adds `seconds` of one pod that ended or is counted at `until_s`.
    pub fn pay(&mut self, from_s: f64, until_s: f64) {
        self.pod_seconds += (until_s - from_s.max(self.warmup_s)).max(0.0);
    }

    fn judged(&self) -> &[Bin] {
        self.bins.get((self.warmup_s / BIN_S) as usize..).unwrap_or(&[])
    }

    /// Share of the windows of a minute that are bad.
    pub fn bad_windows(&self) -> f64 {
        let windows = self.judged().chunks(BINS_A_WINDOW).map(total);
        let (bad, all) =
            windows.fold((0.0, 0.0), |(bad, all), window| (bad + f64::from(u8::from(window.bad())), all + 1.0));
        bad / f64::max(all, 1.0)
    }

    /// Bad windows from the start on, as (from, until) seconds.
    pub fn bad_spans(&self) -> impl Iterator<Item = (f64, f64)> {
        let length_s = BIN_S * BINS_A_WINDOW as f64;
        let windows = self.bins.chunks(BINS_A_WINDOW).map(total).enumerate();
        windows
            .filter(|(_, window)| window.bad())
            .map(move |(index, _)| (index as f64 * length_s, (index + 1) as f64 * length_s))
    }

    /// Late and dropped requests over all.
    pub fn late_requests(&self) -> f64 {
        total(self.judged()).missed_share()
    }

    /// Greatest 95th percentile of a minute's answers from `at_s` on, seconds: what the admitted ones got.
    pub fn worst_p95_s(&self, at_s: usize) -> f64 {
        let after = self.seconds.get(at_s..).unwrap_or(&[]);
        after.iter().map(|second| f64::from(second.p95_s)).fold(0.0, f64::max)
    }

    /// Seconds from `at_s` to the end of the last bad bin after it.
    pub fn recovery_s(&self, at_s: f64) -> f64 {
        let last = self.bins.iter().rposition(Bin::bad).map_or(0.0, |index| (index + 1) as f64 * BIN_S);
        (last - at_s).max(0.0)
    }

    /// Orders that changed the number of pods, an hour of the judged time.
    pub fn changes_an_hour(&self) -> f64 {
        self.judged_orders().count() as f64 / self.judged_hours()
    }

    /// Changes of direction soon after the change before, an hour.
    pub fn reversals_an_hour(&self) -> f64 {
        let orders: Vec<_> = self.judged_orders().collect();
        let turned = orders.windows(2).filter(|pair| match pair {
            [(before_s, from, to), (at_s, now_from, now_to)] => {
                at_s - before_s < REVERSAL_S && (to > from) != (now_to > now_from)
            }
            _ => false,
        });
        turned.count() as f64 / self.judged_hours()
    }

    fn judged_orders(&self) -> impl Iterator<Item = &(f64, u32, u32)> {
        self.orders.iter().filter(|(at_s, ..)| *at_s >= self.warmup_s)
    }

    fn judged_hours(&self) -> f64 {
        ((self.seconds.len() as f64 - self.warmup_s) / 3600.0).max(1e-9)
    }

    /// Busy share of the time that serving pods had.
    pub fn busy_share(&self) -> f64 {
        let judged = self.seconds.get(self.warmup_s as usize..).unwrap_or(&[]);
        let (busy, ready) =
            judged.iter().fold((0.0, 0.0), |(busy, ready), s| (busy + f64::from(s.busy_s), ready + f64::from(s.ready)));
        busy / f64::max(ready, 1.0)
    }
}

fn total(bins: &[Bin]) -> Bin {
    bins.iter().fold(Bin::default(), |mut sum, bin| {
        sum.add(bin);
        sum
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(bins: &[(u64, u64, u64)]) -> Ledger {
        let mut ledger = Ledger::new(0.0);
        ledger.bins = bins.iter().map(|&(done, late, dropped)| Bin { done, late, dropped }).collect();
        ledger.seconds = vec![Second::default(); 3600];
        ledger
    }

    #[test]
    fn a_window_is_bad_beyond_five_percent() {
        let mut bins = vec![(100, 5, 0); 12];
        assert!(ledger(&bins).bad_windows() < 1e-9, "exactly 5 % may be late");
        bins[3].2 = 1;
        assert!((ledger(&bins).bad_windows() - 1.0).abs() < 1e-9);
        bins.extend([(100, 0, 0); 12]);
        assert!((ledger(&bins).bad_windows() - 0.5).abs() < 1e-9);
    }

    #[test]
    fn nothing_before_the_warmup_is_judged() {
        let mut judged = ledger(&[(0, 0, 10); 24]);
        judged.warmup_s = 60.0;
        judged.bins[12..].fill(Bin { done: 10, late: 0, dropped: 0 });
        assert!(judged.bad_windows() < 1e-9 && judged.late_requests() < 1e-9);
        judged.pay(50.0, 80.0);
        assert!((judged.pod_seconds - 20.0).abs() < 1e-9);
    }

    #[test]
    fn recovery_ends_with_the_last_bad_bin() {
        let mut bins = vec![(100, 0, 0); 20];
        bins[4].2 = 50;
        bins[7].1 = 60;
        assert!((ledger(&bins).recovery_s(20.0) - 20.0).abs() < 1e-9);
        assert!(ledger(&bins).recovery_s(100.0) < 1e-9);
    }

    #[test]
    fn the_worst_minute_counts_from_the_step_on() {
        let mut stepped = ledger(&[]);
        for (second, p95_s) in [(10, 0.5), (200, 0.15), (260, 0.25), (900, 0.1)] {
            stepped.seconds[second].p95_s = p95_s;
        }
        assert!((stepped.worst_p95_s(200) - 0.25).abs() < 1e-6);
        assert!((stepped.worst_p95_s(261) - 0.1).abs() < 1e-6);
    }

    #[test]
    fn only_a_quick_turn_is_a_reversal() {
        let mut counted = ledger(&[]);
        counted.orders = vec![(0.0, 1, 2), (100.0, 2, 1), (500.0, 1, 2), (510.0, 2, 3)];
        assert!((counted.reversals_an_hour() - 1.0).abs() < 1e-9);
        assert!((counted.changes_an_hour() - 4.0).abs() < 1e-9);
    }

    #[test]
    fn the_quantile_covers_the_last_minute() {
        let mut rolling = Ledger::new(0.0);
        rolling.respond(10_000);
        for second in 1..=120 {
            rolling.roll(f64::from(second));
            for ms in 0..100 {
                rolling.respond(10 * ms);
            }
        }
        let p95 = rolling.quantile_s(0.95).unwrap();
        assert!((p95 - 0.094).abs() < 0.0011, "{p95}");
        assert!(rolling.quantile_s(1.0).unwrap() < 0.1, "the second of an old response is forgotten");
    }
}
