//! The same run simulated: the manifest's own curve, policy and limits, the operator's constants, what was measured.

use std::path::Path;

use anyhow::{Context, bail};
use yolo_api::v1alpha1::YoloInferenceService;
use yolo_operator::build::Defaults;
use yolo_operator::rollouts::Most;
use yolo_operator::validate::{self, Engine, Workload};
use yolo_planner::units::Seconds;
use yolo_planner::{Knobs, Policy};
use yolo_simulator::course::Course;
use yolo_simulator::fleet::{Routing, run_recorded};
use yolo_simulator::policies::Planner;
use yolo_simulator::service::Service;
use yolo_simulator::world::{Faults, Metrics, SCRAPE_S, World};

use crate::real::Real;

/// What the manifest says.
pub struct Manifest {
    policy: Policy,
    workload: Workload,
    slo_s: f64,
}

impl Manifest {
    /// As the operator reads it.
    ///
    /// # Errors
    /// If the operator would refuse it, or it has no API latency target.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
        let service: YoloInferenceService = serde_yaml_ng::from_str(&text)?;
        let defaults = Defaults {
            server_image: String::new(),
            server_cuda_image: None,
            service_types: Vec::new(),
            operator_namespace: String::new(),
            rollouts_most: Most::Percent(10),
        };
        let checked = validate::validate(&service, &defaults)?;
        let policy = Policy { scrape: Seconds::whole(SCRAPE_S), ..checked.policy };
        let slo_s = policy.targets.api.context("no API latency target")?.threshold.get();
        Ok(Self { policy, workload: checked.workload, slo_s })
    }

    /// Threshold of the API latency target, seconds.
    pub fn slo_s(&self) -> f64 {
        self.slo_s
    }

    /// The environment of `real`.
    ///
    /// # Errors
    /// If the manifest declares no emulated device.
    pub fn world(&self, real: &Real) -> anyhow::Result<World> {
        let Engine::Emulated { alpha_micros, beta_micros, .. } = self.workload.engine else {
            bail!("the manifest declares no service curve")
        };
        let initial = Knobs::initial(&self.policy);
        let service = Service {
            name: "scale-up",
            alpha_s: alpha_micros as f64 * 1e-6,
            beta_s: beta_micros as f64 * 1e-6,
            sessions: 1,
            accelerator: self.policy.accelerator,
            batch: initial.max_batch_size.get(),
            overhead_s: real.overhead_s,
            cpu_s: real.cpu_s,
        };
        Ok(World {
            // A cluster IP.
            routing: Routing::Random,
            startup_s: real.startup_s(),
            slo_s: self.slo_s,
            replicas_max: self.policy.replicas.max.get(),
            initial,
            // A new service, and with it a planner's short first minute.
            served_s: 0.0,
            warmup_s: 0.0,
            pictures: None,
            metrics: Metrics::default(),
            faults: Faults {
                quota_cores: self.workload.cpu_millis as f64 * 1e-3,
                memory_limit: self.workload.memory.get(),
                ..Faults::default()
            },
            ..World::new(service, initial.replicas.get())
        })
    }

    /// The arrivals of `real` in `world` under a planner that knows nothing yet, as the operator's did.
    pub fn run(&self, world: &World, real: &Real, seed: u64) -> Course {
        let mut planner = Planner::new(self.policy.clone());
        Course::of(run_recorded(world, &real.trace(), seed, &mut planner))
    }
}
