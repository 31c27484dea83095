//! Means over seeds as figures of this repository.

use crate::figures::Figure;
use crate::stats::Mean;

/// The command that measures these figures.
pub const HOW: &str = "make bench-control";

impl Mean {
    /// A figure whose mean must not exceed `limit`.
    pub fn at_most(&self, id: &str, unit: &'static str, limit: f64) -> Figure {
        self.explained(Figure::at_most(id, self.mean, unit, limit))
    }

    /// A figure whose mean must reach `limit`.
    pub fn at_least(&self, id: &str, unit: &'static str, limit: f64) -> Figure {
        self.explained(Figure::at_least(id, self.mean, unit, limit))
    }

    /// A figure that is only shown.
    pub fn reported(&self, id: &str, unit: &'static str) -> Figure {
        self.explained(Figure::reported(id, self.mean, unit))
    }

    fn explained(&self, figure: Figure) -> Figure {
        let interval = format!("95 % interval {:.3} to {:.3}", self.low, self.high);
        Figure { how: HOW, ..figure.over(&self.values).noted(interval) }
    }
}

/// `figure` with more to say.
pub fn also(figure: Figure, note: &str) -> Figure {
    let note = format!("{}; {note}", figure.note);
    figure.noted(note)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_is_judged_and_its_seeds_are_told() {
        let figure = also(Mean::of(vec![3.0, 5.0]).at_most("cost", "ratio", 3.5), "of all");
        assert_eq!((figure.value, figure.met, figure.runs, figure.min, figure.max), (4.0, false, 2, 3.0, 5.0));
        assert!(figure.note.starts_with("95 % interval 3.000 to 5.000; of all"), "{}", figure.note);
        assert!(Mean::of(vec![3.0, 5.0]).at_least("cost", "ratio", 3.5).met);
    }
}
