//! Scalers in the loop.

use yolo_planner::policy::{Experts, Margin, Policy};
use yolo_simulator::fleet::{Outcome, run};
use yolo_simulator::policies::{Clairvoyant, Duty, Planner, Shell, arrivals_by_second, policy};
use yolo_simulator::scaler::Scaler;
use yolo_simulator::service::Service;
use yolo_simulator::trace::{Kind, STEP_AT_S, Trace};
use yolo_simulator::world::World;

fn step() -> (World, Trace) {
    (World::new(Service::GPU, 3), Kind::Step(4).trace(4000.0, 1))
}

fn under(world: &World, trace: &Trace, scaler: &mut dyn Scaler) -> Outcome {
    run(world, trace, 1, scaler)
}

#[test]
fn the_planner_follows_a_step() {
    let (world, trace) = step();
    let outcome = under(&world, &trace, &mut Planner::new(policy(&world)));
    let pods = |second: usize| outcome.ledger.seconds[second].ready;
    assert!((3..=6).contains(&pods(800)), "{}", pods(800));
    assert!((11..=16).contains(&pods(1790)), "{}", pods(1790));
    let recovery_s = outcome.ledger.recovery_s(f64::from(u16::try_from(STEP_AT_S).unwrap()));
    assert!(recovery_s < 90.0, "{recovery_s}");
    assert_eq!(outcome.blind_downs, 0);
}

#[test]
fn the_clairvoyant_is_cheaper_than_duty_and_breaks_next_to_nothing() {
    let (world, trace) = step();
    let mut oracle = Clairvoyant::new(&world.service, world.startup_s, &arrivals_by_second(&trace, 1));
    let planned = oracle.pod_seconds(world.warmup_s);
    let clairvoyant = under(&world, &trace, &mut oracle);
    assert!((clairvoyant.ledger.pod_seconds / planned - 1.0).abs() < 0.02);
    assert!(clairvoyant.ledger.bad_windows() < 0.05, "{}", clairvoyant.ledger.bad_windows());
    let duty = under(&world, &trace, &mut Shell::new(Duty { target: 0.7 }, 300.0));
    assert!(duty.ledger.pod_seconds > 2.0 * planned);
}

#[test]
fn metrics_that_are_gone_never_take_a_pod_away() {
    let mut world = World::new(Service::GPU, 12);
    world.metrics.blind_s = Some((600.0, 1200.0));
    let trace = Trace { rates: vec![500.0; 1500], gaps: yolo_simulator::trace::Gaps::Poisson };
    let outcome = under(&world, &trace, &mut Planner::new(policy(&world)));
    assert_eq!(outcome.blind_downs, 0);
    let pods = |second: usize| outcome.ledger.seconds[second].pods;
    assert!(pods(1199) >= pods(620), "{} {}", pods(620), pods(1199));
}

#[test]
fn a_margin_is_ordered_as_the_policy_asks() {
    // A burst in each tenth minute: errors for a bound to cover, misses for an adaptive one to widen after.
    let rate = |second: usize| if second % 600 < 30 { 1200.0 } else { 200.0 };
    let trace = Trace { rates: (0..5400).map(rate).collect(), gaps: yolo_simulator::trace::Gaps::Poisson };
    let world = World::new(Service::GPU, 2);
    let planned = |margin| {
        let usual = policy(&world);
        let unseasonal = Policy { margin, experts: Experts { trend: false, seasonal: false }, ..usual };
        let outcome = under(&world, &trace, &mut Planner::new(unseasonal));
        outcome.ledger.seconds.iter().map(|second| f64::from(second.plan_rate)).sum::<f64>()
    };
    let (none, fixed, adaptive) = (planned(Margin::None), planned(Margin::Fixed), planned(Margin::Adaptive));
    assert!(1.05 * none < fixed && 1.05 * fixed < adaptive, "{none:.0} {fixed:.0} {adaptive:.0}");
}
