//! The event loop against theory and by hand.

use yolo_planner::units::BatchSize;
use yolo_simulator::fleet::{Outcome, Routing, run};
use yolo_simulator::policies::StaticPeak;
use yolo_simulator::scaler::{Look, Order, Scaler};
use yolo_simulator::service::Service;
use yolo_simulator::trace::{Gaps, Trace};
use yolo_simulator::world::World;

fn constant(rate: f64, seconds: usize) -> Trace {
    Trace { rates: vec![rate; seconds], gaps: Gaps::Poisson }
}

fn world(service: Service, batch: u32, pods: u32) -> World {
    let mut world = World::new(service, pods);
    world.initial.max_batch_size = BatchSize::try_from(batch).unwrap();
    world.initial.deadline_millis = 60_000;
    world.warmup_s = 60.0;
    world
}

fn fixed(world: &World, trace: &Trace, seed: u64) -> Outcome {
    run(world, trace, seed, &mut StaticPeak(world.initial.replicas.get()))
}

/// Mean response time by Little's law.
fn mean_response_s(outcome: &Outcome) -> f64 {
    let judged = &outcome.ledger.seconds[60..];
    let inflight: f64 = judged.iter().map(|second| f64::from(second.inflight)).sum();
    let arrivals: f64 = judged.iter().map(|second| f64::from(second.arrivals)).sum();
    inflight / arrivals
}

#[test]
fn one_server_without_batching_follows_pollaczek_and_khinchine() {
    // t = 10 ms, jitter 3 %: E[T] = t + λE[t²]/(2(1-ρ)).
    let service = Service { alpha_s: 0.004, beta_s: 0.006, ..Service::GPU };
    let t = 0.010;
    for rho in [0.3, 0.7, 0.9] {
        let outcome = fixed(&world(service.clone(), 1, 1), &constant(rho / t, 6000), 11);
        let squares = t * t * (1.0 + 0.03 * 0.03);
        let expected = t + rho / t * squares / (2.0 * (1.0 - rho));
        let measured = mean_response_s(&outcome);
        assert!((measured / expected - 1.0).abs() < 0.03, "ρ {rho}: {measured} {expected}");
        assert!((outcome.ledger.busy_share() - rho).abs() < 0.01, "{}", outcome.ledger.busy_share());
    }
}

#[test]
fn every_image_is_answered_dropped_or_still_there() {
    for routing in [Routing::Random, Routing::RoundRobin, Routing::P2c, Routing::LeastOutstanding, Routing::Central] {
        let mut world = world(Service::CPU, 2, 3);
        world.routing = routing;
        world.initial.deadline_millis = 150;
        let outcome = fixed(&world, &constant(120.0, 600), 5);
        let bins = &outcome.ledger.bins;
        let (done, dropped) = bins.iter().fold((0, 0), |(d, x), bin| (d + bin.done, x + bin.dropped));
        assert_eq!(outcome.ledger.arrivals, done + dropped + outcome.unfinished, "{routing:?}");
        assert!(dropped > 5_000, "120/s on pods of 33/s each: {routing:?} dropped {dropped}");
    }
}

/// Orders fixed numbers of pods at fixed moments.
struct Script(Vec<(f64, u32)>);

impl Scaler for Script {
    fn period_s(&self) -> u32 {
        1
    }

    fn decide(&mut self, look: &Look<'_>) -> Order {
        let due = self.0.iter().rev().find(|(at_s, _)| look.now_s >= *at_s);
        Order::pods(look, due.map_or(look.pods, |(_, pods)| *pods))
    }
}

#[test]
fn pods_are_ready_after_their_start_and_paid_from_order_to_end() {
    let world = world(Service::GPU, 16, 2);
    let mut script = Script(vec![(100.0, 4), (150.0, 3), (200.0, 5), (210.0, 3)]);
    let outcome = run(&world, &constant(10.0, 300), 1, &mut script);
    let ready = |second: usize| outcome.ledger.seconds[second - 1].ready;
    assert_eq!([ready(100), ready(130), ready(131), ready(150), ready(151)], [2, 2, 4, 4, 3]);
    assert_eq!(outcome.ledger.seconds[299].pods, 3);
    assert_eq!(outcome.ledger.orders, [(100.0, 2, 4), (150.0, 4, 3), (200.0, 3, 5), (210.0, 5, 3)]);
    // From second 60: two pods for 240 s; one for 200 s; one for 50 s; two for 10 s. A drained pod ends a batch later.
    let paid = outcome.ledger.pod_seconds;
    assert!((750.0..750.2).contains(&paid), "{paid}");
}

#[test]
fn a_full_batch_starts_at_once_and_a_part_waits_for_the_delay() {
    // 20 ms delay; one image every 5 ms on average; t(4) = 14.8 ms: batches fill before the delay is over.
    let mut world = world(Service::GPU, 4, 1);
    world.initial.max_queue_delay_micros = 20_000;
    let full = fixed(&world, &constant(250.0, 600), 2);
    world.initial.max_queue_delay_micros = 0;
    let greedy = fixed(&world, &constant(250.0, 600), 2);
    assert!(full.ledger.busy_share() < greedy.ledger.busy_share() - 0.02, "waiting makes larger batches");
    assert!(mean_response_s(&full) > 0.006 + 0.0022);
}

#[test]
fn the_same_seed_makes_the_same_run_and_another_does_not() {
    let world = world(Service::GPU, 16, 2);
    let text = |seed| format!("{:?}", fixed(&world, &constant(500.0, 120), seed).ledger);
    assert_eq!(text(1), text(1));
    assert_ne!(text(1), text(2));
}

#[test]
fn routing_is_capacity() {
    // control.md, finding 3: `cpu`, 180 ms: random .71 of the best rate, least outstanding .95 at eight pods.
    let missed = |routing, share: f64| {
        let mut world = world(Service::CPU, 2, 8);
        world.routing = routing;
        world.slo_s = 0.183;
        fixed(&world, &constant(share * 8.0 * Service::CPU.saturation_tuned(), 3600), 3).ledger.late_requests()
    };
    assert!(missed(Routing::LeastOutstanding, 0.92) < 0.05);
    assert!(missed(Routing::Random, 0.66) < 0.05);
    assert!(missed(Routing::Random, 0.80) > 0.05);
}

#[test]
fn the_last_serving_pod_stays() {
    let mut world = world(Service::GPU, 16, 1);
    world.replicas_max = 1;
    let outcome = run(&world, &constant(10.0, 120), 1, &mut Script(vec![(0.0, 0)]));
    assert_eq!(outcome.ledger.seconds[119].ready, 1);
    assert_eq!(outcome.ledger.bins.iter().map(|bin| bin.dropped).sum::<u64>(), 0);
}
