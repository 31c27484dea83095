//! How long images wait and run, from the queue's stationary distribution (control.md §4, "Tail").
//!
//! An image arrives in one of twelve parts of a running batch, behind those that were left and those that came before
//! it; its own batch is the one that takes it. Or it starts, with others, a batch of an idle server.
//!
//! **Bounds:** batch sizes run over 1 ..= b, parts over `PARTS`; distributions are indexed below their own length.
#![expect(clippy::indexing_slicing, reason = "see the bounds argument in the module doc")]

use super::count::distribution;
use super::{Server, Starter, real};

/// Parts of a batch's time: an image's arrival in the middle of its part is off by a 24th of a batch at most.
const PARTS: usize = 12;
/// Batches of less weight change no probability that a person reads.
const WEIGHT_MIN: f64 = 1e-12;
/// Bisections of a quantile: 2^-18 of the longest queue, which is below a thousandth of one batch.
const BISECTIONS: u32 = 18;

/// The images that arrive while batches of one size run, by part.
struct Group {
    size: usize,
    /// For each part, the images' weight by how many are ahead of them.
    ahead: Vec<Vec<f64>>,
    /// For each part, the probability that at most so many images arrived since the batch began.
    arrived: Vec<Vec<f64>>,
}

/// The latencies of one server at one rate.
pub(crate) struct Latencies {
    times: Vec<f64>,
    rate: f64,
    groups: Vec<Group>,
    starters: Vec<Starter>,
    /// All images' weight.
    weight: f64,
    /// Share of the time in which the server works.
    pub(crate) busy: f64,
    /// Probability that the queue is as long as the chain can tell, or longer.
    pub(crate) overflow: f64,
}

/// Cumulative sums.
fn cumulative(probabilities: &[f64]) -> Vec<f64> {
    let mut sum = 0.0;
    probabilities
        .iter()
        .map(|probability| {
            sum += probability;
            sum
        })
        .collect()
}

/// Adds `weight` times the distribution of the sum of two counts to `sums`.
fn add_sum(sums: &mut Vec<f64>, left: &[f64], counts: &[f64], weight: f64) {
    let needed = left.len() + counts.len() - 1;
    if sums.len() < needed {
        sums.resize(needed, 0.0);
    }
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
        let idle = waiting[0];
        let starters: Vec<Starter> =
            starters.into_iter().map(|starter| Starter { weight: idle * starter.weight, ..starter }).collect();
        let mut groups = Vec::new();
        let (mut weight, mut working, mut waiting_s) = (0.0, 0.0, 0.0);
        for starter in &starters {
            weight += starter.weight * real(starter.size);
            waiting_s += starter.weight * (1.0 / rate + starter.wait_s);
        }
        for size in 1..=batch {
            let started: f64 =
                starters.iter().filter(|starter| starter.size == size).map(|starter| starter.weight).sum();
            // Left behind by such a batch, by count; a full one leaves what exceeds it.
            let mut left = if size == batch { waiting[batch..].to_vec() } else { vec![waiting[size]] };
            left[0] += started;
            let share: f64 = left.iter().sum();
            working += share * server.time(size);
            weight += share * rate * server.time(size);
            if share > WEIGHT_MIN {
                groups.push(group(&server, rate, size, &left));
            }
        }
        let busy = working / (working + waiting_s);
        let overflow = waiting.last().copied().unwrap_or(0.0);
        Self { times: server.times.to_vec(), rate, groups, starters, weight, busy, overflow }
    }

    fn batch(&self) -> usize {
        self.times.len()
    }

    fn full_s(&self) -> f64 {
        self.times[self.batch() - 1]
    }

    /// Seconds of a batch of `size` images, linear between whole sizes.
    fn time(&self, size: f64) -> f64 {
        let size = size.clamp(1.0, real(self.batch()));
        let after = self.times.iter().enumerate().find(|(index, _)| real(index + 1) >= size);
        let (index, &upper) = after.unwrap_or((0, &self.times[0]));
        let lower = self.times[index.saturating_sub(1)];
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
        for (part, ahead) in group.ahead.iter().enumerate() {
            let rest_s = run_s * (1.0 - (real(part) + 0.5) / real(PARTS));
            // What arrives in the rest of this part's batch is what arrived up to the part opposite.
            let to_come = &group.arrived[PARTS - 1 - part];
            let quick = self.times.partition_point(|time| rest_s + time <= limit_s);
            let (next, later) = ahead.split_at(ahead.len().min(self.batch()));
            for (position, weight) in next.iter().enumerate() {
                beyond += weight * self.next_beyond(position, quick, to_come);
            }
            beyond += self.later_beyond(later, rest_s, limit_s);
        }
        beyond
    }

    /// The probability that the next batch, which an image at `position` is part of, grows beyond `quick` images.
    fn next_beyond(&self, position: usize, quick: usize, to_come: &[f64]) -> f64 {
        if quick >= self.batch() {
            return 0.0;
        }
        match quick.checked_sub(position + 1) {
            Some(room) if quick > 0 => 1.0 - to_come.get(room).copied().unwrap_or(1.0),
            _ => 1.0,
        }
    }

    /// Images behind at least one full batch: their own batch grows by what is expected to arrive.
    fn later_beyond(&self, later: &[f64], rest_s: f64, limit_s: f64) -> f64 {
        let (batch, full_s) = (self.batch(), self.full_s());
        let mut beyond = 0.0;
        for (block, weights) in later.chunks(batch).enumerate() {
            let wait_s = rest_s + real(block + 1) * full_s;
            if wait_s + full_s <= limit_s {
                continue;
            }
            let grown = 1.0 + self.rate * wait_s;
            let slow = |position: usize| wait_s + self.time(real(position) + grown) > limit_s;
            // A batch grows with the position, so from the first slow one on all are.
            let first = (0..weights.len()).find(|&position| slow(position)).unwrap_or(weights.len());
            beyond += weights[first..].iter().sum::<f64>();
        }
        beyond
    }

    /// The `q`-quantile of waiting and running, seconds.
    pub(crate) fn quantile(&self, q: f64) -> f64 {
        let longest = self.groups.iter().flat_map(|group| &group.ahead).map(Vec::len).max().unwrap_or(0);
        let delay_s = self.starters.iter().map(|starter| starter.wait_s).fold(0.0, f64::max);
        let (mut low, mut high) = (0.0, delay_s + self.full_s() * (3.0 + real(longest / self.batch())));
        for _ in 0..BISECTIONS {
            let middle = f64::midpoint(low, high);
            if self.beyond(middle) <= 1.0 - q { high = middle } else { low = middle }
        }
        high
    }
}

fn group(server: &Server, rate: f64, size: usize, left: &[f64]) -> Group {
    let run_s = server.time(size);
    let weight = rate * run_s / real(PARTS);
    let (mut ahead, mut arrived) = (Vec::with_capacity(PARTS), Vec::with_capacity(PARTS));
    for part in 0..PARTS {
        let counts = distribution(rate * run_s * (real(part) + 0.5) / real(PARTS), server.dispersion);
        let mut sums = Vec::new();
        add_sum(&mut sums, left, &counts, weight);
        ahead.push(sums);
        arrived.push(cumulative(&counts));
    }
    Group { size, ahead, arrived }
}
