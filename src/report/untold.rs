//! Decisions that no status has shown yet: one whose tick failed to apply or to report is told by a later tick.

use yolo_api::v1alpha1::status::DECISIONS_MAX;
use yolo_planner::{Decision, Record};

/// Records that wait for a status, oldest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Untold {
    /// New decisions.
    pub(super) made: Vec<Record>,
    /// Earlier decisions whose outcome is known by now.
    pub(super) judged: Vec<Record>,
}

impl Untold {
    /// These and what `decision` adds. As many as a status shows; older ones would only be pushed out of it.
    #[must_use]
    pub fn with(mut self, decision: &Decision) -> Self {
        self.made.extend(decision.record.clone());
        self.judged.extend(decision.judged.iter().cloned());
        for records in [&mut self.made, &mut self.judged] {
            let extra = records.len().saturating_sub(DECISIONS_MAX);
            records.drain(..extra);
        }
        self
    }
}
