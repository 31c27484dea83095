//! Ours: `yolo_planner::plan` itself, called as the operator calls it, with the operator's defaults.

use yolo_planner::policy::{Knob, Overload, OverloadPolicy, Policy, Routing};
use yolo_planner::units::{Bytes, Replicas, Seconds};
use yolo_planner::{State, plan};

use crate::fleet::Routing as Balancer;
use crate::sampling::timestamp;
use crate::scaler::{Look, Order, Scaler};
use crate::world::World;

/// The operator reconciles after each round of its sampler.
const PERIOD_S: u32 = crate::world::SCRAPE_S;

/// The planner with what it remembers.
#[derive(Debug, Clone)]
pub struct Planner {
    policy: Policy,
    state: State,
}

impl Planner {
    /// A planner that knows nothing yet.
    pub fn new(policy: Policy) -> Self {
        Self { policy, state: State::default() }
    }

    /// A planner that an earlier leader told what it had learned.
    pub const fn seeded(policy: Policy, state: State) -> Self {
        Self { policy, state }
    }

    /// What it remembers.
    pub const fn state(&self) -> &State {
        &self.state
    }
}

/// The policy of a custom resource that says nothing but what `world` fixes: the device, the balancer, the range of
/// pods, shedding, and a cache only where pictures repeat. Everything else is [`Policy::default`], as in the operator.
pub fn policy(world: &World) -> Policy {
    let usual = Policy::default();
    let cache = if world.pictures.is_some() { usual.cache } else { Knob::auto(Bytes::default(), Bytes::default()) };
    Policy {
        replicas: Knob::auto(Replicas::new(1), Replicas::new(world.replicas_max)),
        cache,
        scrape: Seconds::whole(world.metrics.scrape_s),
        accelerator: world.service.accelerator,
        overload: Overload { policy: OverloadPolicy::Shed, ..usual.overload },
        routing: match world.routing {
            Balancer::Random => Routing::Random,
            Balancer::RoundRobin => Routing::RoundRobin,
            Balancer::P2c | Balancer::LeastOutstanding | Balancer::Central => Routing::LeastOutstanding,
        },
        ..usual
    }
}

impl Scaler for Planner {
    fn period_s(&self) -> u32 {
        PERIOD_S
    }

    fn observes(&self) -> bool {
        true
    }

    fn decide(&mut self, look: &Look<'_>) -> Order {
        let Some(observation) = &look.observation else { return Order::pods(look, look.pods) };
        let decision = plan(&self.policy, observation, &self.state, timestamp(look.now_s));
        self.state = decision.state;
        Order {
            knobs: decision.desired,
            plan_rate: decision.explanation.forecast.plan.get(),
            blames: decision.explanation.bottlenecks.first().map(|bottleneck| bottleneck.kind),
        }
    }
}
