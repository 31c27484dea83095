//! What would make the targets feasible: per limit the least change that alone does (control.md §6); and which targets
//! cannot hold together.

use crate::capacity::Model;
use crate::choose::{self, Choice, MEMORY_SHARE};
use crate::explain::{Conflict, ConstraintKind, Relaxation, TargetName};
use crate::policy::{Accelerator, Knob, LatencyTarget, Mode, Policy};
use crate::state::State;
use crate::table::above;
use crate::units::{ceil_u32, real};

/// Steps of the chain that relaxations may cost a call, about a nanosecond each; what it does not reach is not offered.
const FUEL: u32 = 1_200_000;
/// Bisections of the model that would be quick enough: to 1/64 of its time.
const MODEL_STEPS: u32 = 6;
/// Bisections of the rate at which a GPU is as busy as asked.
const BUSY_STEPS: u32 = 5;
/// Bytes of a MiB.
const MIB: f64 = 1_048_576.0;

/// An infeasible case: what must be carried, and by what.
struct Case<'a> {
    policy: &'a Policy,
    model: &'a Model,
    state: &'a State,
    sizes: Vec<u32>,
    /// Most pods.
    max: u32,
    /// Images/s that arrive at the engines, and that must be possible.
    rate: f64,
    needed: f64,
}

/// The relaxations of an infeasible choice; empty for a feasible one.
///
/// `policy`: with the knobs that the planner does not move fixed; `rate`: images/s that the pods must carry.
pub(crate) fn relaxations(
    policy: &Policy,
    model: &Model,
    state: &State,
    choice: &Choice,
    rate: f64,
) -> Vec<Relaxation> {
    if choice.infeasible.is_none() {
        return Vec::new();
    }
    let throughput = policy.targets.throughput.map_or(0.0, |target| target.rate.get());
    let case = Case {
        policy,
        model,
        state,
        sizes: choose::known_sizes(policy, model, choice.batch),
        max: policy.replicas.max.max(policy.replicas.min).get(),
        rate,
        needed: rate.max(throughput),
    };
    let mut fuel = FUEL;
    let offers = [
        case.api(&mut fuel),
        case.replicas(),
        case.inference(),
        case.memory(),
        case.throughput(),
        case.quicker(choice, &mut fuel),
    ];
    offers.into_iter().flatten().collect()
}

fn offer(kind: ConstraintKind, value: f64, sentence: String) -> Relaxation {
    Relaxation { kind, value, sentence }
}

fn ceil_ms(seconds: f64) -> u32 {
    ceil_u32(seconds * 1e3)
}

impl Case<'_> {
    fn quick(&self, size: u32) -> bool {
        let limit_s = self.policy.targets.inference.map_or(f64::INFINITY, LatencyTarget::limit_s);
        choose::upper_s(self.policy, self.model, size).is_some_and(|upper| upper <= limit_s)
    }

    fn fits(&self, size: u32) -> bool {
        choose::fits(self.policy, self.state, size, self.policy.cache.min)
    }

    /// Whether the most pods carry what is needed with batches of `size`.
    fn carries(&self, size: u32) -> bool {
        self.model.pods_for(size, self.needed).is_some_and(|pods| pods <= self.max)
    }

    /// Least value of `of` over the sizes that `wanted` takes.
    fn least(&self, wanted: impl Fn(u32) -> bool, mut of: impl FnMut(u32) -> Option<f64>) -> Option<f64> {
        let sizes = self.sizes.iter().copied().filter(|size| wanted(*size));
        sizes.filter_map(&mut of).min_by(f64::total_cmp)
    }

    /// A looser API threshold, under which the most pods carry what is needed.
    fn api(&self, fuel: &mut u32) -> Option<Relaxation> {
        let target = self.policy.targets.api?;
        let overhead_s = target.limit_s() - self.model.budget_s?;
        let limit_s = self.least(
            |size| self.quick(size) && self.fits(size),
            |size| self.model.limit_for(size, self.max, self.needed, fuel),
        )?;
        let millis = ceil_ms(above(limit_s) + overhead_s);
        let value = f64::from(millis) / 1e3;
        (value > target.limit_s()).then(|| offer(ConstraintKind::ApiLatency, value, format!("api ≥ {millis} ms")))
    }

    fn replicas(&self) -> Option<Relaxation> {
        let pods = |size| self.model.pods_for(size, self.needed).map(f64::from);
        let pods = self.least(|size| self.quick(size) && self.fits(size), pods)?;
        let Knob { mode, min, max } = self.policy.replicas;
        let field = if mode == Mode::Auto && min < max { "replicas.max" } else { "replicas" };
        (pods > f64::from(self.max)).then(|| offer(ConstraintKind::ReplicasMax, pods, format!("{field} ≥ {pods:.0}")))
    }

    fn inference(&self) -> Option<Relaxation> {
        let upper = |size| choose::upper_s(self.policy, self.model, size);
        let limit_s = self.least(|size| !self.quick(size) && self.fits(size) && self.carries(size), upper)?;
        let millis = ceil_ms(limit_s);
        Some(offer(ConstraintKind::InferenceLatency, f64::from(millis) / 1e3, format!("inference ≥ {millis} ms")))
    }

    fn memory(&self) -> Option<Relaxation> {
        let bytes = |size| self.state.memory.bytes(size, self.policy.cache.min);
        let bytes = self.least(|size| self.quick(size) && !self.fits(size) && self.carries(size), bytes)?;
        let mebi = (bytes / MEMORY_SHARE / MIB).ceil();
        // A target beyond what the kernel lets a pod have is no room.
        let short = |limit: u64| limit > 0 && real(limit) < mebi * MIB;
        let target = self.policy.targets.memory.is_some_and(|target| short(target.get()));
        let what = match (target, short(self.policy.memory_limit.get())) {
            (true, true) => "memory and its limit",
            (false, true) => "the memory limit",
            (_, false) => "memory",
        };
        Some(offer(ConstraintKind::Memory, mebi * MIB, format!("{what} ≥ {mebi:.0} MiB")))
    }

    /// A lower throughput target, where what arrives is not what is too much.
    fn throughput(&self) -> Option<Relaxation> {
        let most = |size| Some(self.model.pod(size, self.max)?.carried * f64::from(self.max));
        let most = self.least(|size| self.quick(size) && self.fits(size), |size| most(size).map(|rate| -rate))?;
        let rate = (-most * 10.0).floor() / 10.0;
        (rate >= self.rate && rate < self.needed && rate > 0.0)
            .then(|| offer(ConstraintKind::Throughput, rate, format!("throughput ≤ {rate:.1}/s")))
    }

    /// A quicker model or device: how long one image may take.
    fn quicker(&self, choice: &Choice, fuel: &mut u32) -> Option<Relaxation> {
        // Whatever the engine takes, images wait for a decoder before it.
        let smallest = *self.sizes.first().filter(|_| self.model.decodes(self.max, self.needed))?;
        let tried = [smallest, choice.batch.get().min(self.model.times.largest())];
        let (mut low, mut high) = (0.0, 1.0);
        for _ in 0..MODEL_STEPS {
            let middle = f64::midpoint(low, high);
            if tried.into_iter().any(|size| self.would_do(size, middle, fuel)) {
                low = middle;
            } else if *fuel == 0 {
                // What was found so far would do, if not as the least change.
                break;
            } else {
                high = middle;
            }
        }
        // Rounded down: the next whole millisecond might be too slow already.
        let millis = (self.model.times.mean(1)? * low * 1e3).floor();
        (millis > 0.0)
            .then(|| offer(ConstraintKind::OneImage, millis / 1e3, format!("a model with t(1) ≤ {millis:.0} ms")))
    }

    /// Whether batches of `size` that take `factor` of their time would meet the targets.
    fn would_do(&self, size: u32, factor: f64, fuel: &mut u32) -> bool {
        let limit_s = self.policy.targets.inference.map_or(f64::INFINITY, LatencyTarget::limit_s);
        let quick = choose::upper_s(self.policy, self.model, size).is_some_and(|upper| factor * upper <= limit_s);
        // Time has no scale: a model twice as quick at a rate is this one at half the rate, in half the time.
        let limit = self.model.limit_for(size, self.max, self.needed * factor, fuel).map(|limit| limit * factor);
        let within = |limit: f64| self.model.budget_s.is_some_and(|budget| above(limit) <= budget);
        quick && self.fits(size) && limit.is_some_and(within)
    }
}

/// Latency against GPU utilisation: what a GPU is busy at the greatest rate within the API target, if that is less than
/// asked, and the threshold from which it would be as busy as asked. Whatever the load, both cannot hold together.
pub(crate) fn conflict(policy: &Policy, model: &Model, choice: &Choice) -> Option<Conflict> {
    let wanted = policy.targets.gpu.filter(|_| policy.accelerator == Accelerator::Gpu)?.get();
    let target = policy.targets.api?;
    let size = choice.batch.get().min(model.times.largest());
    let within = model.alone(size).filter(|rate| *rate > 0.0 && choice.infeasible.is_none())?;
    let busy = model.lone_latencies(size, within)?.busy;
    if busy >= wanted {
        return None;
    }
    let (mut low, mut high) = (within, 0.99 * model.pod_regardless_of_latency(size)?.saturation);
    for _ in 0..BUSY_STEPS {
        let middle = f64::midpoint(low, high);
        if model.lone_latencies(size, middle).is_none_or(|found| found.busy >= wanted) {
            high = middle;
        } else {
            low = middle;
        }
    }
    let overhead_s = target.limit_s() - model.budget_s?;
    let api_s = model.lone_latencies(size, high)?.quantile(1.0 - model.slow_share()) + overhead_s;
    let sentence = format!(
        "GPU utilisation of {:.0} % and {:.0} ms cannot hold together: within {:.0} ms a GPU is busy {:.0} % at most, \
         {:.0} % from {} ms on.",
        wanted * 1e2,
        target.limit_s() * 1e3,
        target.limit_s() * 1e3,
        (busy * 1e2).floor(),
        wanted * 1e2,
        ceil_ms(api_s),
    );
    Some(Conflict { targets: [TargetName::ApiLatency, TargetName::GpuUtilization], possible: [api_s, busy], sentence })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choose::tests::{Scene, scene};
    use crate::intake::Seen;
    use crate::observation::{Stage, Stages};
    use crate::policy::{OverloadPolicy, Provision, Routing, ThroughputTarget};
    use crate::units::{BatchSize, Rate, Ratio, Replicas, Seconds, whole_bytes};
    use proptest::prelude::*;

    fn found(scene: &Scene, kind: ConstraintKind) -> Option<Relaxation> {
        scene.relaxations().into_iter().find(|relaxation| relaxation.kind == kind)
    }

    /// Law 11: the offer alone makes it feasible, a few percent less do not.
    fn suffices(scene: &Scene, set: impl Fn(&mut Policy, f64), (value, less): (f64, f64)) {
        assert!(scene.choice().infeasible.is_some());
        let mut relaxed = scene.clone();
        set(&mut relaxed.policy, value);
        assert_eq!(relaxed.choice().infeasible, None, "{value} does");
        let mut short = scene.clone();
        set(&mut short.policy, less);
        assert!(short.choice().infeasible.is_some(), "{less} does not");
    }

    fn set_api(policy: &mut Policy, value: f64) {
        policy.targets.api.as_mut().unwrap().threshold = Seconds::try_from(value).unwrap();
    }

    #[test]
    fn an_api_threshold_below_one_image_names_the_least_that_does_and_the_model_that_would() {
        let mut scene = scene(Accelerator::Gpu, |size| 0.060 + 0.010 * size, 5.0);
        set_api(&mut scene.policy, 0.065);
        let api = found(&scene, ConstraintKind::ApiLatency).unwrap();
        assert!((0.070..0.200).contains(&api.value), "{api:?}");
        suffices(&scene, set_api, (api.value, 0.97 * api.value));
        assert_eq!(found(&scene, ConstraintKind::ReplicasMax), None, "more pods do not help");
        let model = found(&scene, ConstraintKind::OneImage).unwrap();
        assert!((0.030..0.065).contains(&model.value), "{model:?}");
        let factor = model.value / 0.070;
        let mut quicker = self::scene(Accelerator::Gpu, |size| factor * (0.060 + 0.010 * size), 5.0);
        set_api(&mut quicker.policy, 0.065);
        assert_eq!(quicker.choice().infeasible, None);
    }

    #[test]
    fn too_few_pods_allowed_names_the_pods_and_the_model_but_no_threshold_that_would_not_do() {
        let mut scene = scene(Accelerator::Gpu, |size| 0.006 + 0.0022 * size, 6000.0);
        scene.policy.replicas.max = Replicas::new(4);
        let pods = found(&scene, ConstraintKind::ReplicasMax).unwrap();
        suffices(
            &scene,
            |policy, max| policy.replicas.max = Replicas::new(ceil_u32(max)),
            (pods.value, pods.value - 1.0),
        );
        assert_eq!(found(&scene, ConstraintKind::ApiLatency), None, "4 pods are short at any threshold");
        let model = found(&scene, ConstraintKind::OneImage).unwrap();
        assert!((0.001..0.0082).contains(&model.value), "{model:?}");
    }

    #[test]
    fn a_quicker_model_is_not_offered_where_decoders_are_what_is_short() {
        let quick = |size| 0.006 + 0.0022 * size;
        let scene = scene(Accelerator::Gpu, quick, 500.0);
        let offered = |decode_millis: u32, max: u32| {
            let (mut state, mut seen) = (scene.model().0, Seen::default());
            seen.workers = 1.0;
            let decode = Stage { seconds: Seconds::millis(100 * decode_millis), count: 100, workers: 2, queued: 0 };
            state.stages.add(&Stages { decode, ..Stages::default() });
            let mut policy = scene.policy.clone();
            policy.replicas.max = Replicas::new(max);
            let model = Model::new(&policy, &state, &seen, 0.0);
            let choice = choose::choose(&policy, &model, &state, &scene.current, scene.load).unwrap();
            let offers = relaxations(&policy, &model, &state, &choice, scene.load.plan);
            offers.iter().map(|offer| offer.kind).collect::<Vec<_>>()
        };
        assert!(offered(1, 1).contains(&ConstraintKind::OneImage), "two decoders of 1 ms pass 1700/s");
        let short = offered(20, 1);
        assert!(!short.contains(&ConstraintKind::OneImage), "two decoders of 20 ms pass 85/s: {short:?}");
        assert!(short.contains(&ConstraintKind::ReplicasMax), "more pods are more decoders");
        assert!(offered(20, 6).is_empty(), "six pods decode 510/s");
    }

    #[test]
    fn a_larger_batch_that_the_inference_threshold_forbids_is_offered() {
        let mut scene = scene(Accelerator::Gpu, |size| 0.040 + 0.002 * size, 60.0);
        scene.policy.replicas.max = Replicas::new(1);
        let set = |policy: &mut Policy, value: f64| {
            policy.targets.inference.as_mut().unwrap().threshold = Seconds::try_from(value).unwrap();
        };
        set(&mut scene.policy, 0.043);
        let inference = found(&scene, ConstraintKind::InferenceLatency).unwrap();
        suffices(&scene, set, (inference.value, 0.97 * inference.value));
    }

    #[test]
    fn memory_and_throughput_have_their_least_change() {
        let mut scene = scene(Accelerator::Gpu, |size| 0.006 + 0.0022 * size, 50.0);
        scene.learn_memory(900, 20);
        let set = |policy: &mut Policy, bytes: f64| policy.targets.memory = Some(crate::units::whole_bytes(bytes));
        set(&mut scene.policy, 900.0 * MIB);
        let memory = found(&scene, ConstraintKind::Memory).unwrap();
        suffices(&scene, set, (memory.value, 0.99 * memory.value));

        let mut scene = self::scene(Accelerator::Gpu, |size| 0.006 + 0.0022 * size, 50.0);
        scene.policy.replicas.max = Replicas::new(2);
        let set = |policy: &mut Policy, rate: f64| {
            policy.targets.throughput.as_mut().unwrap().rate = Rate::try_from(rate).unwrap();
        };
        set(&mut scene.policy, 2000.0);
        let throughput = found(&scene, ConstraintKind::Throughput).unwrap();
        suffices(&scene, set, (throughput.value, 1.01 * throughput.value));
    }

    #[test]
    fn pods_are_offered_for_the_batch_that_as_many_would_run() {
        let mut scene = scene(Accelerator::Gpu, |size| 0.001 + 0.007_87 * size, 1500.0);
        set_api(&mut scene.policy, 0.020);
        scene.policy.replicas.max = Replicas::new(1);
        let pods = found(&scene, ConstraintKind::ReplicasMax).unwrap();
        let set = |policy: &mut Policy, max| policy.replicas.max = Replicas::new(ceil_u32(max));
        suffices(&scene, set, (pods.value, pods.value - 1.0));
    }

    /// What an offer asks for, granted.
    fn granted(scene: &Scene, offer: &Relaxation) -> Scene {
        let mut granted = scene.clone();
        let (policy, seconds) = (&mut granted.policy, Seconds::try_from(offer.value).unwrap());
        match offer.kind {
            ConstraintKind::ApiLatency => policy.targets.api.as_mut().unwrap().threshold = seconds,
            ConstraintKind::InferenceLatency => policy.targets.inference.as_mut().unwrap().threshold = seconds,
            ConstraintKind::ReplicasMax => policy.replicas.max = Replicas::new(ceil_u32(offer.value)),
            ConstraintKind::Memory => {
                let bytes = whole_bytes(offer.value);
                policy.targets.memory = policy.targets.memory.map(|target| target.max(bytes));
                policy.memory_limit = policy.memory_limit.max(bytes);
            }
            ConstraintKind::Throughput => {
                policy.targets.throughput.as_mut().unwrap().rate = Rate::try_from(offer.value).unwrap();
            }
            ConstraintKind::OneImage => {
                let factor = offer.value / scene.model().1.times.mean(1).unwrap();
                for size in &mut granted.learned.curve.as_mut().unwrap().sizes {
                    size.mean = Seconds::try_from(factor * size.mean.get()).unwrap();
                }
            }
            ConstraintKind::Capacity | ConstraintKind::CpuQuota | ConstraintKind::ReplicasMin => {
                unreachable!("{offer:?}")
            }
        }
        granted
    }

    /// Services of which many cannot meet their targets.
    fn scenes() -> impl Strategy<Value = Scene> {
        let millis = |low: f64, high: f64| (low.ln()..high.ln()).prop_map(|log: f64| log.exp() / 1e3);
        let rate = || (0.0..3.7_f64).prop_map(|digits| 10_f64.powf(digits));
        let curve = (millis(0.1, 60.0), millis(0.1, 40.0), any::<bool>());
        let load =
            (rate(), prop_oneof![3 => Just(1.0), 1 => 1.0..6.0_f64], prop_oneof![2 => Just(0.0), 1 => 0.0..0.6_f64]);
        let targets = (
            millis(3.0, 800.0),
            proptest::option::of(millis(2.0, 400.0)),
            proptest::option::of((rate(), any::<bool>())),
        );
        let range = (1..=20_u32, 1..=16_u32, 1..=16_u32);
        let kinds = (any::<bool>(), 0..3_usize, any::<bool>());
        let memory = proptest::option::of((100..2500_u32, 0..200_u32, 100..3000_u32, 100..3000_u32));
        let corrected = (0.7..1.05_f64, 0.0..0.03_f64);
        (curve, load, targets, range, kinds, memory, corrected).prop_map(
            |((alpha_s, beta_s, steps), (rate, dispersion, hit_ratio), targets, range, kinds, memory, corrected)| {
                let accelerator = if kinds.0 { Accelerator::Gpu } else { Accelerator::Cpu };
                // Engines with a profile a power of two run every batch as the next one.
                let run = |size: f64| if steps { size.log2().ceil().exp2() } else { size };
                let mut scene = scene(accelerator, |size| alpha_s + beta_s * run(size), rate);
                scene.load.hit_ratio = hit_ratio;
                set_api(&mut scene.policy, targets.0);
                let policy = &mut scene.policy;
                policy.targets.inference.as_mut().unwrap().threshold =
                    Seconds::try_from(targets.1.unwrap_or(60.0)).unwrap();
                policy.targets.throughput = targets.2.map(|(rate, always)| ThroughputTarget {
                    rate: Rate::try_from(rate).unwrap(),
                    provision: if always { Provision::Always } else { Provision::OnDemand },
                });
                policy.replicas.max = Replicas::new(range.0);
                let size = |size: u32| BatchSize::try_from(size).unwrap();
                (policy.batch.min, policy.batch.max) = (size(range.1.min(range.2)), size(range.1.max(range.2)));
                policy.routing = [Routing::Random, Routing::RoundRobin, Routing::LeastOutstanding][kinds.1];
                policy.overload.policy = if kinds.2 { OverloadPolicy::Shed } else { OverloadPolicy::Queue };
                policy.targets.memory = memory.map(|(_, _, target, _)| crate::units::Bytes::mebi(target));
                policy.memory_limit =
                    memory.map_or_else(Default::default, |(_, _, _, limit)| crate::units::Bytes::mebi(limit));
                scene.current = crate::observation::Knobs::initial(&scene.policy);
                if let Some((base, image, _, _)) = memory {
                    scene.learn_memory(base, image);
                }
                let ratio = |value: f64| Ratio::try_from(value).unwrap();
                (scene.learned.kappa, scene.learned.dispersion) = (Some(ratio(corrected.0)), Some(ratio(dispersion)));
                scene.learned.overhead = Some(Seconds::try_from(corrected.1).unwrap());
                scene
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

        /// Law 11, of whatever cannot be done: each offer alone makes it feasible.
        #[test]
        fn each_offer_alone_suffices(scene in scenes()) {
            for offer in scene.relaxations() {
                let choice = granted(&scene, &offer).choice();
                prop_assert_eq!(choice.infeasible, None, "{}: {:?}", offer.sentence, choice);
            }
        }
    }

    #[test]
    fn latency_and_a_busy_gpu_that_cannot_hold_together_are_named_with_what_could() {
        let mut scene = scene(Accelerator::Gpu, |size| 0.020 + 0.002 * size, 20.0);
        scene.policy.targets.gpu = Some(Ratio::percent(70));
        assert_eq!(scene.conflict(), None, "200 ms are enough to queue in");
        set_api(&mut scene.policy, 0.026);
        let conflict = scene.conflict().unwrap();
        let [api_s, busy] = conflict.possible;
        assert!(busy < 0.7 && api_s > 0.026, "{conflict:?}");
        set_api(&mut scene.policy, 1.03 * api_s);
        assert_eq!(scene.conflict(), None);
        set_api(&mut scene.policy, 0.026);
        scene.policy.targets.gpu = Some(Ratio::try_from(0.98 * busy).unwrap());
        assert_eq!(scene.conflict(), None);
    }

    #[test]
    fn a_feasible_choice_needs_no_relaxation() {
        assert_eq!(scene(Accelerator::Gpu, |size| 0.006 + 0.0022 * size, 50.0).relaxations(), Vec::new());
    }
}
