//! The operator's eyes and the planner behind them, without a cluster: the real sampler reads the servers, and every
//! round of it is planned on. What the planner orders is not applied, so that a fault stays as it was made.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use futures::channel::mpsc;
use yolo_operator::clock::Clock;
use yolo_operator::fleet::{PodView, ServiceId};
use yolo_operator::metrics::Metrics;
use yolo_operator::observe;
use yolo_operator::sampler::{self, Running, Setup, Snapshots, Source};
use yolo_planner::observation::Observation;
use yolo_planner::units::Seconds;
use yolo_planner::{Decision, Knobs, Policy, State};

/// Rounds that may wait; a reader is a few milliseconds behind at most.
const ROUNDS_WAITING: usize = 4;

/// One service under the planner's eyes.
pub struct Watch {
    policy: Policy,
    knobs: Knobs,
    pods: Arc<Mutex<Vec<PodView>>>,
    service: ServiceId,
    snapshots: Snapshots,
    clock: Clock,
    rounds: mpsc::Receiver<ServiceId>,
    state: State,
    _running: Running,
}

/// What one round came to.
pub struct Round {
    /// The planner's answer.
    pub decision: Decision,
    /// What it saw.
    pub seen: Observation,
    /// The record that it would keep of `knobs`: what its model expects of them at the arrivals of now.
    pub expected: Option<yolo_planner::Record>,
}

impl Watch {
    /// Starts sampling `pods`, which must not be empty.
    pub fn start(policy: Policy, knobs: Knobs, pods: Vec<PodView>) -> anyhow::Result<Self> {
        let service = pods.first().map(|pod| pod.service.clone()).ok_or_else(|| anyhow::anyhow!("no pods"))?;
        let (pods, snapshots, clock) = (Arc::new(Mutex::new(pods)), Snapshots::default(), Clock::start());
        let (rounds_sent, rounds) = mpsc::channel(ROUNDS_WAITING);
        let (listed, name) = (pods.clone(), service.clone());
        let running = sampler::start(Setup {
            source: Source::new(None)?,
            pods: Arc::new(move || {
                let pods = listed.lock().unwrap_or_else(PoisonError::into_inner).clone();
                BTreeMap::from([(name.clone(), pods)])
            }),
            snapshots: snapshots.clone(),
            rounds: rounds_sent,
            clock,
            metrics: Arc::new(Metrics::new()),
        });
        let state = State::default();
        Ok(Self { policy, knobs, pods, service, snapshots, clock, rounds, state, _running: running })
    }

    /// Replaces the pods, as after a restart or a rollout.
    pub fn replace(&self, pods: Vec<PodView>) {
        *self.pods.lock().unwrap_or_else(PoisonError::into_inner) = pods;
    }

    /// What was learned so far.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Waits for the next round and plans on it.
    pub async fn round(&mut self) -> anyhow::Result<Round> {
        self.rounds.next().await.ok_or_else(|| anyhow::anyhow!("the sampler ended"))?;
        let snapshot = self.snapshots.of(&self.service);
        let now = self.clock.now();
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let seen = Observation {
            applied_pods: u32::try_from(pods.len())?,
            pods: pods.iter().map(|view| observe::pod(view, snapshot.as_deref(), now)).collect(),
            ..Observation::new(self.knobs)
        };
        let scrape = snapshot.map_or(self.policy.scrape, |snapshot| snapshot.scrape);
        let policy = Policy { scrape, ..self.policy.clone() };
        // A record is kept of changes only: another time-out is one that leaves the queue as it is.
        let mut other = policy.clone();
        other.overload.queue_timeout = Seconds::whole(30);
        let expected = yolo_planner::plan(&other, &seen, &self.state, now).record;
        let decision = yolo_planner::plan(&policy, &seen, &self.state, now);
        self.state = decision.state.clone();
        Ok(Round { decision, seen, expected })
    }
}
