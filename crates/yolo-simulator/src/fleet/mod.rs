//! The fleet, event by event (control.md §10, "DES").
//!
//! **Bounds:** pods are never removed from their vector, so that an index that an event holds stays valid; seats are
//! rebuilt whenever a pod begins or ends to serve.
#![expect(clippy::indexing_slicing, reason = "see Bounds")]

mod ledger;
mod orders;
mod pod;
mod quantiles;
mod routing;

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, VecDeque};

use yolo_planner::Knobs;
use yolo_planner::explain::BottleneckKind;
use yolo_planner::observation::Phase;

pub use ledger::{Answer, BIN_S, Bin, Ledger, Second};
use ledger::{STEP_S, STEPS};
pub use pod::{BATCH_MAX, Buckets, Calls, Counters, LATENCY_EDGES_S, Life, Pod};
pub use routing::Routing;

use crate::pictures::Pictures;
use crate::random::Random;
use crate::sampling::Sampler;
use crate::scaler::{Look, Scaler};
use crate::service::JITTER;
use crate::trace::{Arrivals, Trace};
use crate::world::World;
use pod::bucket;
use quantiles::{lognormal, overheads};

/// Quantiles of the jitter that are drawn from: a normal draw a batch would cost a tenth of a run.
const NOISES: usize = 4096;
/// A timer may come this much early by rounding.
const ROUNDING_S: f64 = 1e-9;

/// What happens at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Happens {
    /// A batch of the pod's worker ends.
    Done { pod: usize, worker: usize },
    /// A pod's queue has waited long enough.
    Wake { pod: usize },
    /// A pod begins to serve.
    Ready { pod: usize },
    /// An image that arrived then leaves the stage before the queue; the moment as bits, so that events are `Eq`.
    Prepared { pod: usize, arrived_bits: u64 },
    /// New knobs reach the pods.
    Applied,
}

/// Ordered by time, then by the order in which they were made.
#[derive(Debug, Clone, Copy)]
struct Event {
    at_s: f64,
    sequence: u64,
    happens: Happens,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Event {}
impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Event {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at_s.total_cmp(&other.at_s).then(self.sequence.cmp(&other.sequence))
    }
}

/// A fleet under way.
pub struct Fleet<'w> {
    world: &'w World,
    trace: &'w Trace,
    now_s: f64,
    events: BinaryHeap<Reverse<Event>>,
    sequence: u64,
    pods: Vec<Pod>,
    /// Pods that get requests, and the images in each.
    seats: Vec<usize>,
    loads: Vec<u32>,
    turn: usize,
    /// Images that wait for any pod; used under central routing only.
    central: VecDeque<f64>,
    /// As ordered, and as the pods run them.
    knobs: Knobs,
    applied: Knobs,
    generation: u64,
    applied_generation: u64,
    inflight: u64,
    /// Images in the pods, integrated over the present second.
    inflight_area: f64,
    area_until_s: f64,
    second: Second,
    overheads: Vec<(f64, usize)>,
    noises: Vec<f64>,
    bucket_of: Vec<u8>,
    arrivals: Arrivals,
    pictures: Option<Pictures>,
    choices: Random,
    jitter: Random,
    ledger: Ledger,
    sampler: Sampler,
    phase: u64,
    /// Bottlenecks named, with the moment.
    blames: Vec<(f64, Option<BottleneckKind>)>,
}

/// What a run leaves.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What happened.
    pub ledger: Ledger,
    /// What the scaler took for the bottleneck, look by look.
    pub blames: Vec<(f64, Option<BottleneckKind>)>,
    /// Images still in the pods at the end.
    pub unfinished: u64,
    /// Pods ordered fewer while no fresh sample was at hand.
    pub blind_downs: u32,
    /// The knobs at the end.
    pub knobs: Knobs,
}

/// Runs `trace` through `world` under `scaler`.
pub fn run(world: &World, trace: &Trace, seed: u64, scaler: &mut dyn Scaler) -> Outcome {
    drive(Fleet::new(world, trace, seed), scaler)
}

/// The same, with every answer in the ledger: for short runs.
pub fn run_recorded(world: &World, trace: &Trace, seed: u64, scaler: &mut dyn Scaler) -> Outcome {
    let mut fleet = Fleet::new(world, trace, seed);
    fleet.ledger.answers = Some(Vec::new());
    drive(fleet, scaler)
}

fn drive(mut fleet: Fleet<'_>, scaler: &mut dyn Scaler) -> Outcome {
    let (world, trace) = (fleet.world, fleet.trace);
    let mut blind_downs = 0;
    for index in 0..trace.rates.len() {
        fleet.advance_second(index);
        let second = index as u64 + 1;
        if scaler.observes() && second % u64::from(world.metrics.scrape_s) == fleet.phase {
            fleet.sampler.read(&mut fleet.pods, fleet.now_s);
        }
        if second % u64::from(scaler.period_s()) == fleet.phase % u64::from(scaler.period_s()) {
            let look = fleet.look(scaler.observes());
            let blind = look.observation.as_ref().is_some_and(is_blind);
            let order = scaler.decide(&look);
            let fewer = order.knobs.replicas < fleet.knobs.replicas;
            blind_downs += u32::from(blind && fewer);
            fleet.blames.push((fleet.now_s, order.blames));
            fleet.order(order);
        }
    }
    let Fleet { mut ledger, pods, now_s, blames, inflight, knobs, .. } = fleet;
    for pod in pods.iter().filter(|pod| pod.life != Life::Ended) {
        ledger.pay(pod.created_s, now_s);
    }
    Outcome { ledger, blames, unfinished: inflight, blind_downs, knobs }
}

/// Whether fewer than 60 % of the serving pods have a fresh sample (control.md §2).
fn is_blind(observation: &yolo_planner::Observation) -> bool {
    let ready = || observation.pods.iter().filter(|pod| pod.phase == Phase::Ready);
    let live = ready().filter(|pod| pod.sample.live().is_some()).count();
    (live as f64) < 0.6 * ready().count() as f64
}

impl<'w> Fleet<'w> {
    /// A fleet with its first pods ready.
    pub fn new(world: &'w World, trace: &'w Trace, seed: u64) -> Self {
        let pictures = world.pictures.as_ref().map(|law| Pictures::new(law, Random::new(seed, 3)));
        let mut fleet = Self {
            world,
            trace,
            now_s: 0.0,
            events: BinaryHeap::new(),
            sequence: 0,
            pods: Vec::new(),
            seats: Vec::new(),
            loads: Vec::new(),
            turn: 0,
            central: VecDeque::new(),
            knobs: world.initial,
            applied: world.initial,
            generation: 1,
            applied_generation: 1,
            inflight: 0,
            inflight_area: 0.0,
            area_until_s: 0.0,
            second: Second::default(),
            overheads: overheads(world.service.overhead_s),
            noises: lognormal(NOISES, JITTER).collect(),
            bucket_of: (0..=STEPS).map(|step| bucket((step as f64 + 0.5) * STEP_S) as u8).collect(),
            arrivals: Arrivals::new(trace.gaps.clone(), seed),
            pictures,
            choices: Random::new(seed, 4),
            jitter: Random::new(seed, 5),
            ledger: Ledger::new(world.warmup_s),
            sampler: Sampler::new(world, seed),
            // The operator's rounds begin at any moment of a second's multiple.
            phase: seed % u64::from(world.metrics.scrape_s),
            blames: Vec::new(),
        };
        for _ in 0..world.initial.replicas.get() {
            let pod = fleet.create(-world.served_s);
            fleet.pods[pod].created_s = -world.served_s - world.startup_s;
            fleet.begin(pod);
        }
        fleet
    }

    /// What a scaler sees now.
    fn look(&self, observes: bool) -> Look<'_> {
        let observation = observes.then(|| {
            let applied = if self.applied_generation == self.generation { self.seats.len() } else { 0 };
            self.sampler.observe(&self.pods, (&self.knobs, applied as u32), self.now_s)
        });
        Look {
            now_s: self.now_s,
            ledger: &self.ledger,
            pods: self.replicas(),
            ready: self.seats.len() as u32,
            knobs: self.knobs,
            observation,
        }
    }

    /// Everything up to the end of a second.
    fn advance_second(&mut self, index: usize) {
        let end_s = (index + 1) as f64;
        let rate = self.trace.rates[index];
        let mut arrival = self.arrivals.next(self.now_s, end_s, rate);
        loop {
            let next_s = self.events.peek().map_or(f64::INFINITY, |Reverse(event)| event.at_s);
            match arrival {
                Some(at_s) if at_s <= next_s => {
                    self.now_s = at_s;
                    self.arrive();
                    arrival = self.arrivals.next(at_s, end_s, rate);
                }
                _ if next_s < end_s => self.step(),
                _ => break,
            }
        }
        self.now_s = end_s;
        self.close_second();
    }

    fn close_second(&mut self) {
        self.integrate();
        for seat in &self.seats {
            self.pods[*seat].close_bin();
        }
        self.ledger.roll(self.now_s);
        let full = (self.now_s as u64).is_multiple_of(5);
        let p95_s = if full { self.ledger.quantile_s(0.95) } else { None };
        let before = self.ledger.seconds.last().copied().unwrap_or_default();
        self.ledger.seconds.push(Second {
            inflight: self.inflight_area as f32,
            ready: self.seats.len() as u16,
            pods: self.replicas() as u16,
            plan_rate: before.plan_rate,
            batch: self.applied.max_batch_size.get() as u16,
            cache_mib: (self.applied.cache_bytes.get() >> 20) as u16,
            p95_s: if full { p95_s.unwrap_or(0.0) as f32 } else { before.p95_s },
            ..self.second
        });
        self.second = Second::default();
        self.inflight_area = 0.0;
    }

    fn integrate(&mut self) {
        self.inflight_area += self.inflight as f64 * (self.now_s - self.area_until_s);
        self.area_until_s = self.now_s;
    }

    fn push(&mut self, at_s: f64, happens: Happens) {
        self.sequence += 1;
        self.events.push(Reverse(Event { at_s, sequence: self.sequence, happens }));
    }

    fn step(&mut self) {
        let Some(Reverse(event)) = self.events.pop() else { return };
        self.now_s = event.at_s;
        match event.happens {
            Happens::Done { pod, worker } => self.done(pod, worker),
            Happens::Wake { pod } => {
                self.try_start(pod);
                self.end_if_drained(pod);
            }
            Happens::Ready { pod } => {
                if self.pods[pod].life == Life::Starting {
                    self.begin(pod);
                }
            }
            Happens::Prepared { pod, arrived_bits } => {
                self.pods[pod].preparing -= 1;
                self.pods[pod].queue.push_back(f64::from_bits(arrived_bits));
                self.try_start(pod);
            }
            Happens::Applied => self.apply(),
        }
    }

    fn arrive(&mut self) {
        self.ledger.arrivals += 1;
        self.second.arrivals += 1;
        let key = self.pictures.as_mut().map(Pictures::draw);
        if self.loads.is_empty() {
            self.ledger.drop(self.now_s, 1);
            return;
        }
        let sticky = self.world.faults.sticky_share;
        let seat = if sticky > 0.0 && self.choices.unit() <= sticky {
            0
        } else {
            self.world.routing.pick(&self.loads, &mut self.turn, &mut self.choices)
        };
        let index = self.seats[seat];
        let pod = &mut self.pods[index];
        pod.counters.arrivals += 1;
        pod.counters.bin += 1;
        if let (Some(cache), Some(key)) = (&mut pod.cache, key)
            && cache.reference(key)
        {
            pod.counters.done += 1;
            self.respond(index, self.now_s, 0.0);
            self.ledger.bin(self.now_s).done += 1;
            return;
        }
        self.integrate();
        self.inflight += 1;
        self.loads[seat] += 1;
        if let Some((_, takes_s)) = self.world.faults.prepare {
            self.prepare(index, takes_s);
        } else if self.world.routing == Routing::Central {
            self.central.push_back(self.now_s);
            self.loads[seat] -= 1;
            self.offer();
        } else {
            self.pods[index].queue.push_back(self.now_s);
            self.try_start(index);
        }
    }

    /// An image enters the stage before the queue: served in order by the worker that is free first.
    fn prepare(&mut self, index: usize, takes_s: f64) {
        let arrived_bits = self.now_s.to_bits();
        let pod = &mut self.pods[index];
        pod.preparing += 1;
        pod.counters.prepared.0 += 1;
        pod.counters.prepared.1 += takes_s;
        let Some(free_s) = pod.prepare_free_s.iter_mut().min_by(|a, b| a.total_cmp(b)) else { return };
        *free_s = free_s.max(self.now_s) + takes_s;
        let at_s = *free_s;
        self.push(at_s, Happens::Prepared { pod: index, arrived_bits });
    }

    /// Central queue: an idle pod takes what waits.
    fn offer(&mut self) {
        let idle = |index: &&usize| self.pods[**index].workers.iter().any(|worker| worker.items.is_empty());
        let Some(&index) = self.seats.iter().find(idle) else { return };
        self.pull(index);
        self.try_start(index);
    }

    /// Fills a pod's queue from the central one up to a batch.
    fn pull(&mut self, index: usize) {
        let cap = self.applied.max_batch_size.get() as usize;
        while self.pods[index].queue.len() < cap {
            let Some(arrived_s) = self.central.pop_front() else { return };
            self.pods[index].queue.push_back(arrived_s);
            let seat = self.pods[index].seat;
            if let Some(load) = self.loads.get_mut(seat) {
                *load += 1;
            }
        }
    }

    /// Starts batches on idle workers: when a batch is full or its oldest image has waited for the queue delay.
    fn try_start(&mut self, index: usize) {
        let cap = self.applied.max_batch_size.get() as usize;
        let delay_s = self.applied.max_queue_delay_micros as f64 * 1e-6;
        loop {
            let Some(worker) = self.pods[index].workers.iter().position(|worker| worker.items.is_empty()) else {
                return;
            };
            self.drop_expired(index);
            let pod = &mut self.pods[index];
            let Some(&oldest_s) = pod.queue.front() else { return };
            let due_s = oldest_s + delay_s;
            if pod.queue.len() < cap && due_s > self.now_s + ROUNDING_S {
                if pod.wake_s < due_s - ROUNDING_S {
                    pod.wake_s = due_s;
                    self.push(due_s, Happens::Wake { pod: index });
                }
                return;
            }
            self.start(index, worker, cap);
        }
    }

    fn drop_expired(&mut self, index: usize) {
        let deadline_s = self.applied.deadline_millis as f64 * 1e-3;
        let mut dropped = 0;
        let pod = &mut self.pods[index];
        while pod.queue.front().is_some_and(|arrived_s| self.now_s - arrived_s > deadline_s) {
            pod.queue.pop_front();
            dropped += 1;
        }
        if dropped > 0 {
            pod.counters.shed += dropped;
            self.ledger.drop(self.now_s, dropped);
            self.leave(index, dropped as u32);
        }
    }

    fn start(&mut self, index: usize, worker: usize, cap: usize) {
        let noise = self.noises[self.jitter.below(NOISES)];
        let slowed = self.world.faults.slowed.filter(|(from_s, _)| self.now_s >= *from_s).map_or(1.0, |(_, by)| by);
        let pod = &mut self.pods[index];
        let count = pod.queue.len().min(cap);
        let takes_s = self.world.service.batch_s(count as u32) * pod.slowdown * slowed * noise;
        let batch = &mut pod.workers[worker];
        batch.items.extend(pod.queue.drain(..count));
        batch.takes_s = takes_s;
        self.push(self.now_s + takes_s, Happens::Done { pod: index, worker });
    }

    fn done(&mut self, index: usize, worker: usize) {
        let batch = &mut self.pods[index].workers[worker];
        let items = std::mem::take(&mut batch.items);
        let takes_s = batch.takes_s;
        let count = items.len();
        let mut late = 0;
        for arrived_s in &items {
            late += u64::from(self.respond(index, *arrived_s, takes_s));
        }
        let counters = &mut self.pods[index].counters;
        counters.done += count as u64;
        counters.inference[bucket(takes_s)] += count as u64;
        counters.inference_s += takes_s * count as f64;
        let calls = &mut counters.batches[count];
        calls.count += 1;
        calls.seconds += takes_s;
        calls.squared += takes_s * takes_s;
        self.second.busy_s += (takes_s / f64::from(self.world.service.sessions)) as f32;
        let bin = self.ledger.bin(self.now_s);
        bin.done += count as u64;
        bin.late += late;
        self.leave(index, count as u32);
        // Kept for the next batch: an allocation a batch would cost a tenth of the run.
        let batch = &mut self.pods[index].workers[worker];
        batch.items = items;
        batch.items.clear();
        if self.world.routing == Routing::Central {
            self.pull(index);
        }
        self.try_start(index);
        self.end_if_drained(index);
    }

    /// Counts an answer; whether it is late. `takes_s` is the engine's time, 0 for a hit.
    fn respond(&mut self, index: usize, arrived_s: f64, takes_s: f64) -> bool {
        let (overhead_s, overhead_bucket) = self.overheads[self.choices.below(self.overheads.len())];
        let latency_s = self.now_s - arrived_s + overhead_s;
        let step = ((latency_s / STEP_S) as usize).min(STEPS);
        self.ledger.respond(step);
        if let Some(answers) = &mut self.ledger.answers {
            answers.push(Answer { at_s: self.now_s, latency_s: Some(latency_s) });
        }
        let counters = &mut self.pods[index].counters;
        counters.api[usize::from(self.bucket_of[step])] += 1;
        counters.overhead_s += overhead_s;
        if self.world.faults.prepare.is_some() && takes_s > 0.0 {
            // What the stage before the queue took is overhead, as the server counts it.
            let extra_s = self.world.faults.prepare.map_or(0.0, |(_, s)| s);
            counters.overhead[bucket(overhead_s + extra_s)] += 1;
        } else {
            counters.overhead[overhead_bucket] += 1;
        }
        latency_s > self.world.slo_s
    }

    /// `count` images leave a pod.
    fn leave(&mut self, index: usize, count: u32) {
        self.integrate();
        self.inflight -= u64::from(count);
        if self.pods[index].life == Life::Ready {
            self.loads[self.pods[index].seat] -= count;
        }
    }
}
