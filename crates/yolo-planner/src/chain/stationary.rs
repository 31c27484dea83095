//! The stationary distribution of the queue at batch ends, by state reduction.
//!
//! Grassmann, Taksar and Heyman 1985 ("Regenerative analysis and steady state distributions for Markov chains"):
//! Gaussian elimination from the longest queue down, without subtractions, so that no digit is lost however near to
//! saturation. A batch takes at most b images away and adds a bounded number, so the matrix is a band and stays one:
//! K·u·b steps, less than ten of the thousands of iterations that the same accuracy needs.
//!
//! **Bounds:** a row of state m holds columns m - b ..= m + u at offsets 0 ..= b + u; `Band::at` is the only address
//! computation, and every caller keeps columns within that range.
#![expect(clippy::indexing_slicing, reason = "see the bounds argument in the module doc")]

use super::count::distribution;
use super::{Server, Starter};

/// A square matrix with entries only near its diagonal.
struct Band {
    entries: Vec<f64>,
    below: usize,
    above: usize,
    last: usize,
}

impl Band {
    fn new(last: usize, below: usize, above: usize) -> Self {
        Self { entries: vec![0.0; (last + 1) * (below + above + 1)], below, above, last }
    }

    const fn at(&self, row: usize, column: usize) -> usize {
        row * (self.below + self.above + 1) + column + self.below - row
    }

    /// Adds `weight` times the distribution of `first` + count to a row; what lies beyond the last state goes there.
    fn add(&mut self, row: usize, first: usize, counts: &[f64], weight: f64) {
        let start = self.at(row, first);
        let fitting = (self.last + 1 - first).min(counts.len());
        for (entry, probability) in self.entries[start..start + fitting].iter_mut().zip(counts) {
            *entry += weight * probability;
        }
        let beyond: f64 = counts[fitting..].iter().sum();
        let end = self.at(row, self.last.min(row + self.above));
        self.entries[end] += weight * beyond;
    }

    /// Removes the states from the last down to 1; returns the stationary distribution.
    fn reduce(mut self) -> Vec<f64> {
        let (below, above) = (self.below, self.above);
        for state in (1..=self.last).rev() {
            let low = state.saturating_sub(below);
            let out = self.at(state, low);
            let width = state - low;
            let leaving: f64 = self.entries[out..out + width].iter().sum();
            // A queue that never shrinks has no distribution; its long queues then count as never seen.
            let scale = if leaving > 0.0 { 1.0 / leaving } else { 0.0 };
            let (rows_before, rows_from) = self.entries.split_at_mut(out);
            let exits = &rows_from[..width];
            for row in state.saturating_sub(above)..state {
                let entry = row * (below + above + 1) + state + below - row;
                let share = rows_before[entry] * scale;
                rows_before[entry] = share;
                if share > 0.0 {
                    let start = entry - width;
                    for (target, exit) in rows_before[start..entry].iter_mut().zip(exits) {
                        *target += share * exit;
                    }
                }
            }
        }
        let mut weights = vec![0.0; self.last + 1];
        weights[0] = 1.0;
        for row in 0..self.last {
            let above = above.min(self.last - row);
            let start = self.at(row, row + 1);
            let (known, later) = weights.split_at_mut(row + 1);
            for (weight, share) in later.iter_mut().zip(&self.entries[start..start + above]) {
                *weight += known[row] * share;
            }
        }
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|weight| weight / sum).collect()
    }
}

/// The probabilities that 0, 1, … images are left waiting at a batch's end; the last state holds all longer queues.
pub(super) fn waiting(server: &Server, rate: f64, starters: &[Starter]) -> Vec<f64> {
    let (batch, last) = (server.batch(), server.states());
    let counts: Vec<Vec<f64>> =
        (1..=batch).map(|size| distribution(rate * server.time(size), server.dispersion)).collect();
    // From n < b a batch leaves what arrived; from more it leaves n - b and what arrived.
    let jump = |waiting: usize| {
        let longest = counts[waiting.clamp(1, batch) - 1].len() - 1;
        (waiting.saturating_sub(batch) + longest).saturating_sub(waiting)
    };
    let from_idle = starters.iter().map(|starter| counts[starter.size - 1].len() - 1).max().unwrap_or(0);
    let above = (1..=batch).map(jump).max().unwrap_or(0).max(from_idle).clamp(1, last);
    let mut band = Band::new(last, batch, above);
    for starter in starters {
        band.add(0, 0, &counts[starter.size - 1], starter.weight);
    }
    for waiting in 1..=last {
        let size = waiting.min(batch);
        band.add(waiting, waiting - size, &counts[size - 1], 1.0);
    }
    band.reduce()
}
