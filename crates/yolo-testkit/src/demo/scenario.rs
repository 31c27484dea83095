//! What the demo does to its services and what it expects of the operator. Every rate and duration is here.

use std::time::Duration;

use yolo_loadgen::pictures::Mode;

use super::status::{Change, Status};

/// Calm load is this share of what one pod can carry at its batch limit of the moment, and `BUSY` times that is
/// more than one pod can carry (1.8 pods' worth), so that only a change of the knobs can hold the targets.
pub const CALM_SHARE: f64 = 0.6;
const BUSY: f64 = 3.0;

/// Length of the look at one pod's cost an image, and the rate of it. 60 images are enough for a mean within a few
/// percent, and too few to make the operator act.
pub const PROBE: Duration = Duration::from_secs(12);
/// See [`PROBE`].
pub const PROBE_RATE_PER_SECOND: f64 = 5.0;

/// The window of the examples' targets: a verdict needs one whole window without a miss.
const WINDOW: Duration = Duration::from_secs(30);

/// A service of the demo.
#[derive(Debug, Clone, Copy)]
pub struct ServiceScript {
    /// Name of the custom resource.
    pub name: &'static str,
    /// Its heading in the plot.
    pub title: &'static str,
    /// Its manifest, relative to the repository.
    pub manifest: &'static str,
    /// Folder of its pictures below the cache.
    pub pictures: &'static str,
    /// Calm images a second at most, whatever one pod could carry: the machine also runs the cluster and the clients.
    pub calm_rate_max: f64,
}

/// The service with the real model.
pub const PAGE_LAYOUT: ServiceScript = ServiceScript {
    name: "page-layout",
    title: "page-layout (real model, CPU)",
    manifest: "examples/page-layout.yaml",
    pictures: "pages/jpeg",
    // The busy phase takes 1.8 pods of half a core; only a much faster machine would offer more than this.
    calm_rate_max: 60.0,
};

/// The service with the emulated engine. Its pictures are small: only their arrival matters to an emulated device,
/// and decoding whole pages at such rates would take the CPU from the service beside it.
pub const EMULATED_GPU: ServiceScript = ServiceScript {
    name: "emulated-gpu",
    title: "emulated-gpu (emulated engine, no GPU)",
    manifest: "examples/emulated-gpu.yaml",
    pictures: "pages/thumbnails",
    // 0.6 of a pod at a batch limit of 4 (105 images/s). At 16 it would be 155/s and three times that when busy,
    // which costs server and client half a core.
    calm_rate_max: 63.0,
};

/// A stretch of constant load.
#[derive(Debug, Clone, Copy)]
pub struct PhaseScript {
    /// Shown to people.
    pub name: &'static str,
    /// Rate over the calm rate.
    pub factor: f64,
    /// Whether pictures repeat.
    pub mode: Mode,
    /// It ends at the earliest after this time, then as soon as everything expected has happened.
    pub least: Duration,
    /// It ends at the latest after this time.
    pub most: Duration,
    /// What the operator has to have done by its end.
    pub expected: &'static [Expected],
}

/// A move of one service.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// Name of the service.
    pub service: &'static str,
    /// The move.
    pub change: Move,
}

/// A change of the knobs for a stated reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// The batch limit went down to 1, because batching does not pay.
    BatchDownToOne,
    /// The batch limit went up, and no replica had been added before.
    BatchUpBeforeReplicas,
    /// Replicas were added.
    ReplicasUp,
    /// Replicas were taken away.
    ReplicasDown,
    /// The cache grew.
    CacheUp,
}

/// The four phases of `make demo`.
///
/// A new verdict needs one window, a move some seconds before it, so no phase is shorter than two windows. The busy
/// phase also lasts until the new pods' shares are measured: 20 s after readiness, over 20 s.
pub const PHASES: [PhaseScript; 4] = [
    PhaseScript {
        name: "calm",
        factor: 1.0,
        mode: Mode::Distinct,
        least: WINDOW.saturating_mul(2),
        most: Duration::from_secs(100),
        expected: &[Expected { service: PAGE_LAYOUT.name, change: Move::BatchDownToOne }],
    },
    PhaseScript {
        name: "x3",
        factor: BUSY,
        mode: Mode::Distinct,
        least: WINDOW.saturating_mul(3),
        most: Duration::from_secs(130),
        expected: &[
            Expected { service: PAGE_LAYOUT.name, change: Move::ReplicasUp },
            Expected { service: EMULATED_GPU.name, change: Move::BatchUpBeforeReplicas },
        ],
    },
    PhaseScript {
        name: "x3 repeated",
        factor: BUSY,
        mode: Mode::Repeated,
        least: WINDOW.saturating_mul(2),
        most: Duration::from_mins(2),
        expected: &[Expected { service: PAGE_LAYOUT.name, change: Move::CacheUp }],
    },
    PhaseScript {
        name: "calm again",
        factor: 1.0,
        mode: Mode::Distinct,
        least: WINDOW.saturating_mul(2),
        most: Duration::from_secs(130),
        expected: &[Expected { service: PAGE_LAYOUT.name, change: Move::ReplicasDown }],
    },
];

/// The shortest story with the whole path in it, for the end-to-end test: load that one pod carries, then three times it.
pub const SHORT_PHASES: [PhaseScript; 2] = [
    PhaseScript { least: WINDOW, most: Duration::from_mins(1), expected: &[], ..PHASES[0] },
    PhaseScript {
        least: WINDOW.saturating_mul(2),
        most: Duration::from_mins(2),
        expected: &[Expected { service: PAGE_LAYOUT.name, change: Move::ReplicasUp }],
        ..PHASES[1]
    },
];

impl Move {
    /// The first change of `status` that is this move, if there is one.
    pub fn find(self, status: &Status) -> Option<&Change> {
        let changes = || status.changes.iter();
        match self {
            Self::BatchDownToOne => {
                changes().find(|c| c.from.batch > 1 && c.to.batch == 1 && c.reason.contains("does not pay"))
            }
            Self::BatchUpBeforeReplicas => changes()
                .take_while(|c| c.to.replicas <= c.from.replicas || c.to.batch > c.from.batch)
                .find(|c| c.to.batch > c.from.batch && !c.reason.is_empty()),
            Self::ReplicasUp => changes().find(|c| c.to.replicas > c.from.replicas && !c.reason.is_empty()),
            Self::ReplicasDown => changes()
                .skip_while(|c| c.to.replicas <= c.from.replicas)
                .find(|c| c.to.replicas < c.from.replicas && !c.reason.is_empty()),
            Self::CacheUp => changes().find(|c| c.to.cache_bytes > c.from.cache_bytes && !c.reason.is_empty()),
        }
    }

    /// Part of a figure's id.
    pub fn id(self) -> &'static str {
        match self {
            Self::BatchDownToOne => "batch_down_to_one",
            Self::BatchUpBeforeReplicas => "batch_up_before_replicas",
            Self::ReplicasUp => "replicas_up",
            Self::ReplicasDown => "replicas_down_again",
            Self::CacheUp => "cache_up",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::status::Knobs;

    fn change((from, to): (Knobs, Knobs), reason: &str) -> Change {
        Change { id: 0, from, to, reason: reason.to_owned() }
    }

    fn knobs(replicas: u64, batch: u64, cache_bytes: u64) -> Knobs {
        Knobs { replicas, batch, cache_bytes }
    }

    fn status(changes: Vec<Change>) -> Status {
        Status { changes, ..Status::default() }
    }

    #[test]
    fn moves_are_found_in_their_order_and_only_with_a_reason() {
        let changes = status(vec![
            change((knobs(1, 4, 0), knobs(1, 1, 0)), "batching does not pay here"),
            change((knobs(1, 1, 0), knobs(3, 1, 0)), "arrivals grew"),
            change((knobs(3, 1, 0), knobs(3, 1, 1024)), ""),
            change((knobs(3, 1, 0), knobs(1, 1, 0)), "load fell"),
        ]);
        let found = |change: Move| change.find(&changes).map(|c| c.to.clone());
        assert_eq!(found(Move::BatchDownToOne), Some(knobs(1, 1, 0)));
        assert_eq!(found(Move::ReplicasUp), Some(knobs(3, 1, 0)));
        assert_eq!(found(Move::ReplicasDown), Some(knobs(1, 1, 0)));
        assert_eq!(found(Move::CacheUp), None);
        assert_eq!(found(Move::BatchUpBeforeReplicas), None);
    }

    #[test]
    fn a_batch_that_rises_after_the_replicas_does_not_count_as_before_them() {
        let after = status(vec![
            change((knobs(1, 4, 0), knobs(2, 4, 0)), "arrivals grew"),
            change((knobs(2, 4, 0), knobs(2, 16, 0)), "batching pays"),
        ]);
        assert_eq!(Move::BatchUpBeforeReplicas.find(&after), None);
        let together = status(vec![change((knobs(1, 4, 0), knobs(2, 16, 0)), "both at once")]);
        assert!(Move::BatchUpBeforeReplicas.find(&together).is_some());
    }

    #[test]
    fn replicas_taken_away_before_any_was_added_are_not_down_again() {
        let only_down = status(vec![change((knobs(3, 1, 0), knobs(1, 1, 0)), "load fell")]);
        assert_eq!(Move::ReplicasDown.find(&only_down), None);
    }
}
