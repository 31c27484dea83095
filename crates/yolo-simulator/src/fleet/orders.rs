//! Orders become pods: created at once, ready after the start-up; the newest pending go first, then the least loaded.

use super::{Fleet, Happens, Life, Pod};
use crate::cache::{CacheCounters, PodCache};
use crate::scaler::Order;

/// From writing the knobs to their effect in the pods: a nudge makes the kubelet sync within a fraction of a second.
const KNOBS_S: f64 = 0.5;

impl Fleet<'_> {
    /// Pods that serve or start.
    pub(super) fn replicas(&self) -> u32 {
        self.pods.iter().rev().filter(|pod| pod.is_replica()).count() as u32
    }

    /// Carries out an order.
    pub(super) fn order(&mut self, order: Order) {
        if let Some(second) = self.ledger.seconds.last_mut() {
            second.plan_rate = order.plan_rate as f32;
        }
        let wanted = order.knobs.replicas.get().clamp(1, self.world.replicas_max);
        let before = self.knobs.replicas.get();
        if wanted != before {
            self.ledger.orders.push((self.now_s, before, wanted));
        }
        let only_pods = yolo_planner::Knobs { replicas: order.knobs.replicas, ..self.knobs } == order.knobs;
        self.knobs = order.knobs;
        self.knobs.replicas = yolo_planner::units::Replicas::new(wanted);
        if !only_pods {
            self.generation += 1;
            self.push(self.now_s + KNOBS_S, Happens::Applied);
        }
        for _ in self.replicas()..wanted {
            let pod = self.create(self.now_s + self.world.startup_s);
            let ready_s = self.pods[pod].ready_s;
            self.push(ready_s, Happens::Ready { pod });
        }
        for _ in wanted..self.replicas() {
            self.remove_one();
        }
    }

    /// The ordered knobs reach the pods.
    pub(super) fn apply(&mut self) {
        self.applied = self.knobs;
        self.applied_generation = self.generation;
        for pod in &mut self.pods {
            pod.knobs = self.knobs;
            if let Some(cache) = &mut pod.cache {
                cache.resize(self.knobs.cache_bytes.get());
            }
        }
        // A larger batch or a shorter delay may be due at once.
        for seat in 0..self.seats.len() {
            self.try_start(self.seats[seat]);
        }
    }

    /// A pod that will be ready at `ready_s`; its index.
    pub(super) fn create(&mut self, ready_s: f64) -> usize {
        let service = &self.world.service;
        let bytes = self.knobs.cache_bytes.get();
        let prepare = self.world.faults.prepare.map_or(0, |(workers, _)| workers);
        let index = self.pods.len();
        self.pods.push(Pod {
            created_s: self.now_s,
            ready_s,
            life: Life::Starting,
            seat: usize::MAX,
            queue: std::collections::VecDeque::new(),
            workers: vec![super::pod::Worker::default(); service.sessions as usize],
            wake_s: f64::NEG_INFINITY,
            slowdown: 1.0,
            prepare_free_s: vec![0.0; prepare as usize],
            preparing: 0,
            counters: super::Counters::default(),
            cache: self.world.pictures.as_ref().map(|law| PodCache::new(law, bytes)),
            cache_read: CacheCounters::default(),
            read_s: None,
            silent: self.sampler.is_silent(),
            knobs: self.knobs,
        });
        index
    }

    /// A pod begins to serve.
    pub(super) fn begin(&mut self, index: usize) {
        let pod = &mut self.pods[index];
        pod.life = Life::Ready;
        pod.seat = self.seats.len();
        pod.counters.loads += 1;
        self.seats.push(index);
        self.loads.push(0);
        if !self.central.is_empty() {
            self.offer();
        }
    }

    /// Ends the newest pod that has not started to serve, else drains the least loaded; the last serving pod stays.
    fn remove_one(&mut self) {
        if let Some(index) = self.pods.iter().rposition(|pod| pod.life == Life::Starting) {
            self.end(index);
            return;
        }
        if self.seats.len() <= 1 {
            return;
        }
        let Some(seat) = (0..self.seats.len()).min_by_key(|seat| self.loads[*seat]) else { return };
        let index = self.seats.swap_remove(seat);
        self.loads.swap_remove(seat);
        if let Some(&moved) = self.seats.get(seat) {
            self.pods[moved].seat = seat;
        }
        self.pods[index].life = Life::Draining;
        self.pods[index].seat = usize::MAX;
        self.end_if_drained(index);
    }

    pub(super) fn end_if_drained(&mut self, index: usize) {
        if self.pods[index].life == Life::Draining && self.pods[index].inflight() == 0 {
            self.end(index);
        }
    }

    fn end(&mut self, index: usize) {
        let pod = &mut self.pods[index];
        pod.life = Life::Ended;
        pod.cache = None;
        let created_s = pod.created_s;
        self.ledger.pay(created_s, self.now_s);
    }
}
