//! Whether the targets can be met, as the deadline takes it: shedding is of use only while they can (design.md §3).

use serde::{Deserialize, Serialize};

/// How long targets must have been within reach, or out of it, before the deadline follows. Where the load lies at the edge of
/// what the most pods carry, the answer changes with every tick's noise, and each change is another document for all pods.
/// The level looks back half a minute, and where the plan is the level itself (what shedding may refuse needs no reserve that
/// the past peak would steady), each half minute at the edge is one toss of a coin: four alike in a row are one in sixteen.
const LASTS_S: f64 = 120.0;

/// What the deadline was last made for.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Feasibility {
    taken: Option<bool>,
    /// Since when the targets' reach has been the other one.
    other_since_s: Option<f64>,
}

impl Feasibility {
    /// Whether the targets count as within reach at `now_s`; `found` is this call's answer, `None` where there is none.
    pub(crate) fn take(&mut self, found: Option<bool>, now_s: f64) -> bool {
        let Some(found) = found else { return self.taken.unwrap_or(false) };
        let taken = *self.taken.get_or_insert(found);
        if found == taken {
            self.other_since_s = None;
            return taken;
        }
        if now_s - *self.other_since_s.get_or_insert(now_s) < LASTS_S {
            return taken;
        }
        *self = Self { taken: Some(found), other_since_s: None };
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_last_is_not_taken() {
        let mut feasibility = Feasibility::default();
        assert!(!feasibility.take(None, 0.0), "nothing is known");
        assert!(feasibility.take(Some(true), 5.0), "the first answer counts at once");
        assert!(feasibility.take(Some(false), 10.0) && feasibility.take(None, 15.0));
        assert!(feasibility.take(Some(true), 35.0) && feasibility.take(Some(false), 40.0), "it begins anew");
        assert!(feasibility.take(Some(false), 159.0));
        assert!(!feasibility.take(Some(false), 160.0));
        assert!(!feasibility.take(Some(true), 165.0) && !feasibility.take(None, 170.0));
        assert!(feasibility.take(Some(true), 285.0));
    }
}
