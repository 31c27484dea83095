//! What the chain said, kept between calls: one cell a setting, computed within a call's fuel (control.md §2 and §4).

use serde::{Deserialize, Serialize};

use crate::chain::{Goal, Search, Server};

/// Steps of the chain that a call may spend on cells, about a nanosecond each: with all else a call stays below 5 ms.
pub(crate) const FUEL: u32 = 2_000_000;
/// Cells kept: every batch size of the table at two targets, and some.
const CELLS_MAX: usize = 28;
/// A batch's time that moved by this share makes a cell old (control.md §4).
const MOVED: f64 = 0.02;
/// Steps of the limit's grid an octave: 1.1 % apart, below what a threshold in whole milliseconds tells.
const LIMIT_STEPS: f64 = 64.0;
/// Steps of the slow share's grid an octave, from the target's own share upwards.
const SLOW_STEPS: f64 = 4.0;
/// Dispersions that are computed, in halves: 1, 1.5, 2, 3, 4, 6, 8.
const DISPERSIONS: [u8; 7] = [2, 3, 4, 6, 8, 12, 16];
/// Dispersion up to which arrivals count as Poisson: of 60 one-second bins of a Poisson stream one in seven measures
/// have more.
const POISSON_MAX: f64 = 1.2;

/// What a cell is for; continuous figures are rounded to the careful side.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Key {
    batch: u8,
    /// Variance over mean of the arrivals, in halves.
    dispersion: u8,
    /// log₂ of the limit in seconds, in 64ths.
    limit: i32,
    /// Share of the images that may be slow.
    slow: f32,
}

impl Key {
    /// `slow`: the share that the target allows, `missed` the share of the images that the cache does not answer.
    ///
    /// Hits answer at once, so the slow share of all answers is a larger share of those from the engine, at most half.
    pub(crate) fn new(batch: u32, dispersion: f64, limit_s: f64, (slow, missed): (f64, f64)) -> Self {
        let octaves = (libm::log2(1.0 / missed.clamp(1e-3, 1.0)) * SLOW_STEPS + 1e-9).floor() / SLOW_STEPS;
        Self {
            batch: u8::try_from(batch).unwrap_or(u8::MAX),
            dispersion: level(dispersion),
            limit: whole((libm::log2(limit_s.clamp(1e-6, 1e6)) * LIMIT_STEPS + 1e-9).floor()),
            slow: single((slow * libm::exp2(octaves)).min(0.5)),
        }
    }

    /// Largest batch.
    pub(crate) fn batch(&self) -> u32 {
        u32::from(self.batch)
    }

    /// The dispersion that the chain is computed for.
    pub(crate) fn dispersion(&self) -> f64 {
        f64::from(self.dispersion) / 2.0
    }

    /// The target that the chain is computed for.
    pub(crate) fn goal(&self) -> Goal {
        Goal { limit_s: libm::exp2(f64::from(self.limit) / LIMIT_STEPS), slow: f64::from(self.slow) }
    }

    fn server<'a>(&self, times: &'a [f64]) -> Option<Server<'a>> {
        Server::new(times, self.batch(), self.dispersion())
    }
}

/// The dispersion that the chain is computed for, up to the next of [`DISPERSIONS`], in halves.
fn level(dispersion: f64) -> u8 {
    let least = denoised(dispersion);
    DISPERSIONS.into_iter().find(|halves| f64::from(*halves) / 2.0 >= least).unwrap_or(16)
}

/// The least limit that a [`Key`] rounds to no less than `limit_s`.
pub(crate) fn above(limit_s: f64) -> f64 {
    libm::exp2((libm::log2(limit_s.clamp(1e-6, 1e6)) * LIMIT_STEPS - 1e-9).ceil() / LIMIT_STEPS)
}

/// A measured dispersion without what noise alone makes of a Poisson stream's.
pub(crate) fn denoised(dispersion: f64) -> f64 {
    if dispersion <= POISSON_MAX { 1.0 } else { dispersion }
}

#[expect(clippy::cast_possible_truncation, reason = "`as` saturates; limits are within 2^±20 s")]
const fn whole(value: f64) -> i32 {
    value as i32
}

#[expect(clippy::cast_possible_truncation, reason = "seven digits are more than a curve has")]
const fn single(value: f64) -> f32 {
    value as f32
}

/// Times that an answer was computed for: of one image, and of a full batch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Basis {
    first_s: f32,
    full_s: f32,
}

impl Basis {
    fn new(server: &Server) -> Self {
        Self { first_s: single(server.first_s()), full_s: single(server.full_s()) }
    }

    /// Old times over new ones, of one image and of a full batch.
    fn over(self, server: &Server) -> (f64, f64) {
        (f64::from(self.first_s) / server.first_s(), f64::from(self.full_s) / server.full_s())
    }

    fn moved(self, server: &Server) -> bool {
        let (first, full) = self.over(server);
        (first - 1.0).abs() > MOVED || (full - 1.0).abs() > MOVED
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Cell {
    key: Key,
    basis: Basis,
    /// Images/s.
    rate: f32,
}

impl Cell {
    /// Its rate for the times of `server`, images/s.
    fn rate(&self, server: &Server) -> f64 {
        let (first, full) = self.basis.over(server);
        if server.first_s() > self.key.goal().limit_s {
            return 0.0;
        }
        f64::from(self.rate) * first.min(full).min(1.0)
    }
}

/// The cells, and the search that a call could not end.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Table {
    /// The most recently wanted last.
    cells: Vec<Cell>,
    open: Option<(Key, Basis, Search)>,
}

impl Table {
    /// Makes the cells of `keys` as good as `fuel` lets it, in that order; takes what it spends from `fuel`.
    ///
    /// `times`: seconds of a batch of 1, 2, … images.
    pub(crate) fn refresh(&mut self, keys: &[Key], times: &[f64], fuel: &mut u32) {
        for key in keys {
            let Some(server) = key.server(times) else { continue };
            self.touch(key);
            if self.cell(key).is_none_or(|cell| cell.basis.moved(&server)) && !self.search(*key, &server, fuel) {
                return;
            }
        }
    }

    /// Whether the search ended.
    fn search(&mut self, key: Key, server: &Server, fuel: &mut u32) -> bool {
        let goal = key.goal();
        let resumed = self.open.take().filter(|(open, basis, _)| *open == key && !basis.moved(server));
        let (_, basis, mut search) =
            resumed.unwrap_or_else(|| (key, Basis::new(server), Search::new(server, goal, self.hint(&key, server))));
        loop {
            if let Some(rate) = search.found(server) {
                self.put(Cell { key, basis, rate: single(rate) });
                return true;
            }
            let Some(left) = fuel.checked_sub(server.cost()) else {
                self.open = Some((key, basis, search));
                return false;
            };
            *fuel = left;
            search.step(server, goal);
        }
    }

    /// A guess: what the cell said for the old times.
    fn hint(&self, key: &Key, server: &Server) -> Option<f64> {
        self.cell(key).map(|cell| f64::from(cell.rate) * cell.basis.over(server).1)
    }

    fn cell(&self, key: &Key) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.key == *key)
    }

    /// Moves a cell to the end: the first ones are dropped when there are too many.
    fn touch(&mut self, key: &Key) {
        if let Some(at) = self.cells.iter().position(|cell| cell.key == *key) {
            let cell = self.cells.remove(at);
            self.cells.push(cell);
        }
    }

    fn put(&mut self, cell: Cell) {
        self.cells.retain(|old| old.key != cell.key);
        if self.cells.len() >= CELLS_MAX {
            self.cells.remove(0);
        }
        self.cells.push(cell);
    }

    /// The largest rate that keeps `key`'s target, images/s; `None` where it is not computed yet.
    ///
    /// A cell of quicker times counts in proportion until it is redone; one of slower times as it is.
    pub(crate) fn rate(&self, key: &Key, times: &[f64]) -> Option<f64> {
        Some(self.cell(key)?.rate(&key.server(times)?))
    }

    /// A rate that keeps `key`'s target, from the cells of its batch that are at least as bursty and as strict, images/s:
    /// the largest rate falls with dispersion, and rises with the limit at least as the room beyond one image does.
    pub(crate) fn bound(&self, key: &Key, times: &[f64]) -> Option<f64> {
        let server = key.server(times)?;
        let room_s = |key: &Key| (key.goal().limit_s - server.first_s()).max(0.0);
        let stricter = self.cells.iter().filter(|cell| {
            cell.key.batch == key.batch && cell.key.dispersion >= key.dispersion && cell.key.slow <= key.slow
        });
        let bounds = stricter.filter_map(|cell| {
            let room = room_s(key) / room_s(&cell.key).max(1e-9);
            Some(cell.rate(&cell.key.server(times)?) * room.min(1.0))
        });
        bounds.max_by(f64::total_cmp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(scale: f64) -> Vec<f64> {
        (1..=32).map(|n| scale * (0.006 + 0.0022 * f64::from(n))).collect()
    }

    fn key(batch: u32) -> Key {
        Key::new(batch, 1.0, 0.180, (0.05, 1.0))
    }

    #[test]
    fn a_search_without_fuel_goes_on_in_the_next_call_and_ends_the_same() {
        let (times, keys) = (line(1.0), [key(16), key(32)]);
        let mut at_once = Table::default();
        at_once.refresh(&keys, &times, &mut u32::MAX.clone());
        let mut little = Table::default();
        let mut calls = 0;
        while little.rate(&keys[1], &times).is_none() && calls < 40 {
            let mut fuel = 900_000;
            little.refresh(&keys, &times, &mut fuel);
            let value = serde_json::to_value(&little).unwrap();
            assert_eq!(serde_json::from_value::<Table>(value).unwrap(), little);
            calls += 1;
        }
        assert!(calls > 3 && calls < 40, "{calls}");
        assert_eq!(little.cells, at_once.cells);
        let rate = little.rate(&keys[0], &times).unwrap();
        assert!((rate / 377.3 - 1.0).abs() < 5e-3, "{rate}");
    }

    #[test]
    fn times_that_moved_scale_a_cell_until_it_is_redone() {
        let mut table = Table::default();
        table.refresh(&[key(8)], &line(1.0), &mut u32::MAX.clone());
        let before = table.rate(&key(8), &line(1.0)).unwrap();
        let slower = table.rate(&key(8), &line(1.1)).unwrap();
        assert!((slower * 1.1 / before - 1.0).abs() < 1e-6, "{slower}");
        assert!(table.rate(&key(8), &line(0.5)).unwrap() <= before, "quicker is not believed before it is computed");
        table.refresh(&[key(8)], &line(1.015), &mut u32::MAX.clone());
        assert!((table.rate(&key(8), &line(1.0)).unwrap() - before).abs() < 1e-9, "1.5 % is not worth a search");
        table.refresh(&[key(8)], &line(1.1), &mut u32::MAX.clone());
        assert!(table.rate(&key(8), &line(1.1)).unwrap() < before / 1.05);
        assert_eq!(table.rate(&key(8), &line(30.0)), Some(0.0), "one image alone is too slow");
    }

    #[test]
    fn a_stricter_cell_bounds_one_that_is_not_computed() {
        let (times, limit) = (line(1.0), |limit_s, dispersion| Key::new(16, dispersion, limit_s, (0.05, 1.0)));
        let mut table = Table::default();
        table.refresh(&[limit(0.180, 8.0)], &times, &mut u32::MAX.clone());
        for wanted in [limit(0.180, 2.0), limit(0.150, 1.0), limit(0.100, 8.0), limit(0.300, 8.0)] {
            let bound = table.bound(&wanted, &times).unwrap();
            let mut exact = Table::default();
            exact.refresh(&[wanted], &times, &mut u32::MAX.clone());
            let exact = exact.rate(&wanted, &times).unwrap();
            assert!((0.5 * exact..=1.001 * exact).contains(&bound), "{wanted:?}: {bound} of {exact}");
        }
        assert_eq!(table.bound(&key(8), &times), None, "another batch says nothing");
        let mut calm = Table::default();
        calm.refresh(&[limit(0.180, 1.0)], &times, &mut u32::MAX.clone());
        assert_eq!(calm.bound(&limit(0.180, 2.0), &times), None, "calmer arrivals say nothing of burstier ones");
    }

    #[test]
    fn rounding_is_to_the_careful_side() {
        let exact = Key::new(4, 1.0, 0.125, (0.05, 1.0));
        assert!((exact.goal().limit_s - 0.125).abs() < 1e-12);
        assert!((exact.goal().slow - 0.05).abs() < 1e-8);
        let rough = Key::new(4, 2.1, 0.1259, (0.05, 0.7));
        assert!(rough.goal().limit_s <= 0.1259 && rough.goal().limit_s > 0.1259 / 1.011);
        assert!(rough.goal().slow <= 0.05 / 0.7 && rough.goal().slow > 0.05 / 0.7 / 1.2);
        assert!((rough.dispersion() - 3.0).abs() < 1e-12);
        assert!((Key::new(4, 1.15, 1.0, (0.05, 1.0)).dispersion() - 1.0).abs() < 1e-12, "noise of a Poisson stream");
        assert!((Key::new(4, f64::NAN, 1.0, (0.05, 1.0)).dispersion() - 8.0).abs() < 1e-12);
        assert!(Key::new(4, 1.0, 1.0, (0.05, 1e-9)).goal().slow <= 0.5);
    }

    #[test]
    fn cells_do_not_pile_up() {
        let mut table = Table::default();
        for ms in 20..200 {
            let key = Key::new(1, 1.0, f64::from(ms) / 1e3, (0.05, 1.0));
            table.refresh(&[key], &line(1.0), &mut u32::MAX.clone());
            assert!(table.rate(&key, &line(1.0)).is_some());
        }
        assert_eq!(table.cells.len(), CELLS_MAX);
    }
}
