//! What every reconcile works with. Built once; shared by reference.

use std::sync::Arc;

use kube::Client;
use kube::runtime::events::Reporter;

use crate::build::Defaults;
use crate::clock::Clock;
use crate::controller::Failures;
use crate::leader::Leader;
use crate::live::Live;
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::queue::Queue;
use crate::rollouts::Rollouts;
use crate::sampler::Snapshots;
use crate::{apply, report};

/// Handles and memory of the operator.
pub struct Context {
    /// The API client.
    pub client: Client,
    /// The election.
    pub leader: Leader,
    /// The live objects.
    pub live: Live,
    /// The latest samples.
    pub snapshots: Snapshots,
    /// The one clock.
    pub clock: Clock,
    /// The operator's own series.
    pub metrics: Arc<Metrics>,
    /// What the installation decides.
    pub defaults: Defaults,
    /// The planner's state of each service.
    pub states: Memory<yolo_planner::State>,
    /// What the planner told and no status has shown yet.
    pub untold: Memory<report::Untold>,
    /// What `apply` remembers.
    pub applied: Memory<apply::Kept>,
    /// What `report` remembers.
    pub reported: Memory<report::Kept>,
    /// Who rests after failures.
    pub failures: Memory<Failures>,
    /// Who waits for a reconcile.
    pub queue: Queue,
    /// Who replaces its pods.
    pub rollouts: Rollouts,
    /// Who signs Events.
    pub reporter: Reporter,
}

impl Context {
    /// Forgets everything that a term of leadership learned: a successor may have moved on meanwhile. Rollouts are counted anew.
    pub fn forget_all(&self) {
        self.states.clear();
        self.untold.clear();
        self.applied.clear();
        self.reported.clear();
        self.failures.clear();
        self.queue.clear();
        self.rollouts.begin(&self.live.deployments.state());
    }

    /// Forgets a service that is gone.
    pub fn forget(&self, service: &crate::fleet::ServiceId) {
        self.states.forget(service);
        self.untold.forget(service);
        self.applied.forget(service);
        self.reported.forget(service);
        self.failures.forget(service);
        self.metrics.taken(self.queue.taken(service));
        self.rollouts.forget(service);
    }
}
