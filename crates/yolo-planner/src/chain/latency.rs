//! How long images wait and run, from the queue's stationary distribution (control.md §4, "Tail").
//!
//! An image arrives in one of twelve parts of a running batch, behind those that were left and those that came before
//! it; its own batch is the one that takes it. Or it starts, with others, a batch of an idle server.
//!
//! **Bounds:** batch sizes run over 1 ..= b, parts over `PARTS`; distributions are indexed below their own length.
#![expect(clippy::indexing_slicing, reason = "see the bounds argument in the module doc")]

use std::ops::Range;

use super::count;
use super::{Server, Starter, real};

/// Parts of a batch's time: an image's arrival in the middle of its part is off by a 24th of a batch at most.
const PARTS: usize = 12;
/// Batches of less weight change no probability that a person reads.
const WEIGHT_MIN: f64 = 1e-12;
/// Probability of the longest queue from which the chain no longer tells the truth (control.md §4).
const OVERFLOW_MAX: f64 = 1e-4;
/// Bisections of a quantile: 2^-18 of the longest queue, which is below a thousandth of one batch.
const BISECTIONS: u32 = 18;

/// The images that arrive while batches of one size run, by part.
struct Group {
    size: usize,
    parts: Vec<Part>,
}

/// The images that arrive in one part of a batch's time: where [`Latencies::sums`] has them.
struct Part {
    /// The probability that at most so many images arrived since the batch began.
    arrived: Range<usize>,
    /// The weight of the images that have so many or more ahead of them.
    behind: Range<usize>,
}

/// The latencies of one server at one rate.
pub(crate) struct Latencies {
    times: Vec<f64>,
    rate: f64,
    groups: Vec<Group>,
    sums: Vec<f64>,
    starters: Vec<Starter>,
    /// All images' weight.
    weight: f64,
    /// Share of the time in which the server works.
    pub(crate) busy: f64,
    /// Probability that the queue is as long as the chain can tell, or longer.
    pub(crate) overflow: f64,
}

/// Share of the time in which the server works: batches' time over that and the time until the next arrival at an idle one.
fn busy(server: &Server, rate: f64, waiting: &[f64], starters: &[Starter]) -> f64 {
    let batches = waiting.iter().enumerate().skip(1);
    let working: f64 = batches.map(|(waiting, weight)| weight * server.time(waiting.min(server.batch()))).sum();
    let (mut started, mut idle_s) = (0.0, 0.0);
    for starter in starters {
        started += starter.weight * server.time(starter.size);
        idle_s += starter.weight * (1.0 / rate + starter.wait_s);
    }
    let working = working + waiting[0] * started;
    working / (working + waiting[0] * idle_s)
}

/// Adds to each value those before it.
fn cumulate<'a>(values: impl Iterator<Item = &'a mut f64>) {
    let mut sum = 0.0;
    for value in values {
        sum += *value;
        *value = sum;
    }
}

/// Adds `weight` times the distribution of the sum of two counts to `sums`, which is as long as that.
fn add_sum(sums: &mut [f64], left: &[f64], counts: &[f64], weight: f64) {
    for (start, &first) in left.iter().enumerate() {
        let first = first * weight;
        // Most long queues are all but impossible: not worth a convolution.
        if first > WEIGHT_MIN * weight {
            for (sum, second) in sums[start..].iter_mut().zip(counts) {
                *sum += first * second;
            }
        }
    }
}

impl Latencies {
    pub(super) fn new(server: Server, rate: f64, waiting: &[f64], starters: Vec<Starter>) -> Self {
        let batch = server.batch();
        let (idle, busy) = (waiting[0], busy(&server, rate, waiting, &starters));
        let starters: Vec<Starter> =
            starters.into_iter().map(|starter| Starter { weight: idle * starter.weight, ..starter }).collect();
        let (mut groups, mut sums) = (Vec::new(), Vec::new());
        let mut weight: f64 = starters.iter().map(|starter| starter.weight * real(starter.size)).sum();
        for size in 1..=batch {
            let started: f64 =
                starters.iter().filter(|starter| starter.size == size).map(|starter| starter.weight).sum();
            // Left behind by such a batch, by count; a full one leaves what exceeds it.
            let mut left = if size == batch { waiting[batch..].to_vec() } else { vec![waiting[size]] };
            left[0] += started;
            let share: f64 = left.iter().sum();
            weight += share * rate * server.time(size);
            if share > WEIGHT_MIN {
                groups.push(group(&mut sums, &server, rate, (size, &left)));
            }
        }
        let overflow = waiting.last().copied().unwrap_or(0.0);
        Self { times: server.times.to_vec(), rate, groups, sums, starters, weight, busy, overflow }
    }

    fn batch(&self) -> usize {
        self.times.len()
    }

    /// Whether the queue is short enough for the chain to tell all of it.
    pub(crate) fn true_to_life(&self) -> bool {
        self.overflow < OVERFLOW_MAX
    }

    fn full_s(&self) -> f64 {
        self.times[self.batch() - 1]
    }

    /// Seconds of a batch of `size` images, linear between whole sizes.
    fn time(&self, size: f64) -> f64 {
        let size = size.clamp(1.0, real(self.batch()));
        let index = whole(size.ceil()) - 1;
        let (lower, upper) = (self.times[index.saturating_sub(1)], self.times[index]);
        lower + (upper - lower) * (1.0 - (real(index + 1) - size))
    }

    /// The share of the images that wait and run for longer than `limit_s`, 0..=1.
    pub(crate) fn beyond(&self, limit_s: f64) -> f64 {
        let grouped: f64 = self.groups.iter().map(|group| self.group_beyond(group, limit_s)).sum();
        let started: f64 = self.starters.iter().map(|starter| self.starter_beyond(*starter, limit_s)).sum();
        ((grouped + started) / self.weight).clamp(0.0, 1.0)
    }

    fn starter_beyond(&self, starter: Starter, limit_s: f64) -> f64 {
        let run_s = self.times[starter.size - 1];
        let size = real(starter.size);
        let slow =
            (0..starter.size).filter(|&index| starter.wait_s * (1.0 - real(index) / size) + run_s > limit_s).count();
        starter.weight * real(slow)
    }

    fn group_beyond(&self, group: &Group, limit_s: f64) -> f64 {
        let run_s = self.times[group.size - 1];
        let mut beyond = 0.0;
        for (index, part) in group.parts.iter().enumerate() {
            let rest_s = run_s * (1.0 - (real(index) + 0.5) / real(PARTS));
            let quick = self.times.partition_point(|time| rest_s + time <= limit_s);
            let behind = &self.sums[part.behind.clone()];
            beyond += if quick < self.batch() {
                // What arrives in the rest of this part's batch is what arrived up to the part opposite.
                next_beyond(behind, quick, &self.sums[group.parts[PARTS - 1 - index].arrived.clone()])
            } else {
                self.later_beyond(behind, rest_s, limit_s)
            };
        }
        beyond
    }

    /// Images behind at least one full batch: their own batch grows by what is expected to arrive. All of the next batch
    /// are quick.
    ///
    /// Waits grow with the position, so from the first slow one on all are.
    fn later_beyond(&self, behind: &[f64], rest_s: f64, limit_s: f64) -> f64 {
        let (batch, full_s) = (self.batch(), self.full_s());
        let wait_s = |block: usize| rest_s + real(block) * full_s;
        let blocks = behind.len().div_ceil(batch);
        let Some(block) = (1..blocks).find(|&block| wait_s(block) + full_s > limit_s) else { return 0.0 };
        let wait_s = wait_s(block);
        let grown = 1.0 + self.rate * wait_s;
        let slow = |position: usize| wait_s + self.time(real(position) + grown) > limit_s;
        // The last of the block is slow: its batch is full.
        let first = (0..batch - 1).find(|&position| slow(position)).unwrap_or(batch - 1);
        behind.get(block * batch + first).copied().unwrap_or(0.0)
    }

    /// The `q`-quantile of waiting and running, seconds.
    pub(crate) fn quantile(&self, q: f64) -> f64 {
        let parts = self.groups.iter().flat_map(|group| &group.parts);
        let longest = parts.map(|part| part.behind.len()).max().unwrap_or(0);
        let delay_s = self.starters.iter().map(|starter| starter.wait_s).fold(0.0, f64::max);
        let (mut low, mut high) = (0.0, delay_s + self.full_s() * (3.0 + real(longest / self.batch())));
        for _ in 0..BISECTIONS {
            let middle = f64::midpoint(low, high);
            if self.beyond(middle) <= 1.0 - q { high = middle } else { low = middle }
        }
        high
    }
}

/// The weight of the images in the next batch that grows beyond `quick` images, fewer than a full one, and of all later
/// ones, which wait for a full batch. `arrived`: the probability that at most so many come before the next batch starts.
fn next_beyond(behind: &[f64], quick: usize, arrived: &[f64]) -> f64 {
    // With more room than ever arrives a batch stays quick.
    let first = quick.saturating_sub(arrived.len());
    let from = behind.get(first..).unwrap_or_default();
    let to = from.iter().skip(1).chain(std::iter::once(&0.0));
    let within = arrived[..quick - first].iter().rev();
    let grown: f64 = from.iter().zip(to).zip(within).map(|((from, to), within)| (from - to) * (1.0 - within)).sum();
    grown + behind.get(quick).copied().unwrap_or(0.0)
}

/// The images that arrive while a batch of `size` runs that left `left` behind, by count.
fn group(sums: &mut Vec<f64>, server: &Server, rate: f64, (size, left): (usize, &[f64])) -> Group {
    let run_s = server.time(size);
    let weight = rate * run_s / real(PARTS);
    let parts = (0..PARTS).map(|part| {
        let begin = sums.len();
        count::append(sums, rate * run_s * (real(part) + 0.5) / real(PARTS), server.dispersion);
        let middle = sums.len();
        sums.resize(2 * middle - begin + left.len() - 1, 0.0);
        let (counts, behind) = sums[begin..].split_at_mut(middle - begin);
        add_sum(behind, left, counts, weight);
        cumulate(behind.iter_mut().rev());
        cumulate(counts.iter_mut());
        Part { arrived: begin..middle, behind: middle..sums.len() }
    });
    Group { size, parts: parts.collect() }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a size within 1 ..= b")]
const fn whole(size: f64) -> usize {
    size as usize
}
