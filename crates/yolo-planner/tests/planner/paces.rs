//! How fast pods come and go where `scaling.behavior` limits it.

use crate::guards::{held, policy};
use crate::plain::Plain;
use proptest::prelude::*;
use yolo_planner::policy::{Accelerator, Amount, Knob, Pace, Paces, Policy, Select};
use yolo_planner::units::{Replicas, Seconds};
use yolo_planner::{Action, Decision, HoldReason, Trigger};

/// More images a second than the pods can carry.
const FLOOD: f64 = 3000.0;

fn paces(limits: &[(Amount, u32)], select: Select) -> Paces {
    let pace = |(most, period_s): &(Amount, u32)| Pace { most: *most, period: Seconds::whole(*period_s) };
    Paces { limits: limits.iter().map(pace).collect(), select }
}

fn wide() -> Policy {
    let range = Knob::auto(Replicas::new(1), Replicas::new(60));
    Policy { replicas: range, stabilization: Some(Seconds::whole(10)), ..policy(Accelerator::Cpu) }
}

/// A fleet of `pods` that are all needed and known.
fn settled(policy: Policy, pods: u32) -> Plain {
    let start = Policy { replicas: Knob::auto(Replicas::new(pods), Replicas::new(pods)), ..policy.clone() };
    let mut fleet = Plain::new(start, 0.016, 1);
    fleet.knobs.replicas = Replicas::new(pods);
    fleet.run(|_| FLOOD, 24);
    fleet.policy = policy;
    fleet
}

fn pods(decisions: &[Decision]) -> Vec<u32> {
    decisions.iter().map(|decision| decision.desired.replicas.get()).collect()
}

#[test]
fn doubling_in_fifteen_seconds_is_kept_to_and_used() {
    let mut fleet =
        settled(Policy { paces_up: Some(paces(&[(Amount::Percent(100), 15)], Select::Fastest)), ..wide() }, 1);
    let steps = pods(&fleet.run(|_| FLOOD, 13));
    assert_eq!(steps, [2, 2, 2, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32], "a period is no longer by the tick that shows it");
}

#[test]
fn a_tenth_in_a_minute_of_ten_pods_is_one() {
    let slow = Some(paces(&[(Amount::Percent(10), 60)], Select::Fastest));
    let mut rising = settled(Policy { paces_up: slow.clone(), ..wide() }, 10);
    let up = rising.run(|_| FLOOD, 37);
    assert_eq!(pods(&up)[..25], [[11; 12].as_slice(), &[13; 12], &[15]].concat());
    held(&up[1], HoldReason::Stabilizing);
    let reason = &up[1].explanation.reason;
    assert!(reason.contains("once scaling.behavior.scaleUp allows it"), "{reason}");

    let mut falling = settled(Policy { paces_down: slow, ..wide() }, 10);
    let down = falling.run(|_| 1.0, 60);
    let first = pods(&down).iter().position(|pods| *pods < 10).unwrap();
    assert_eq!(pods(&down)[first..first + 25], [[9; 12].as_slice(), &[8; 12], &[7]].concat());
    held(&down[first + 1], HoldReason::Stabilizing);
    let reason = &down[first + 1].explanation.reason;
    assert!(reason.contains("no rollout is under way and scaling.behavior.scaleDown allows it"), "{reason}");
}

#[test]
fn pods_are_counted_and_several_limits_are_chosen_from() {
    let limits = [(Amount::Pods(2), 30), (Amount::Percent(50), 30)];
    let after = |select| {
        let mut fleet = settled(Policy { paces_up: Some(paces(&limits, select)), ..wide() }, 10);
        pods(&fleet.run(|_| FLOOD, 7))
    };
    assert_eq!(after(Select::Fastest), [15, 15, 15, 15, 15, 15, 23]);
    assert_eq!(after(Select::Slowest), [12, 12, 12, 12, 12, 12, 14]);
    assert_eq!(after(Select::Disabled), [10; 7]);
}

#[test]
fn limits_may_allow_more_than_a_fifth_in_half_a_minute() {
    let largest = |paces_down| {
        let steps = pods(&settled(Policy { paces_down, ..wide() }, 20).run(|_| 1.0, 60));
        steps.windows(2).map(|two| two[0].saturating_sub(two[1])).max().unwrap()
    };
    assert!((1..=12).contains(&largest(None)));
    assert!(largest(Some(paces(&[(Amount::Percent(100), 15)], Select::Fastest))) >= 19);
}

#[test]
fn a_direction_that_is_disabled_says_so_and_the_range_is_obeyed_all_the_same() {
    let never = Policy {
        paces_down: Some(paces(&[], Select::Disabled)),
        paces_up: Some(paces(&[], Select::Disabled)),
        ..wide()
    };
    let mut fleet = settled(never, 10);
    let calm = fleet.run(|_| 1.0, 60);
    assert_eq!(pods(&calm), [10; 60]);
    held(&calm[59], HoldReason::Stabilizing);
    let reason = &calm[59].explanation.reason;
    assert!(reason.contains("once") && reason.contains("scaleDown.selectPolicy is not Disabled"), "{reason}");
    fleet.policy.replicas = Knob::auto(Replicas::new(1), Replicas::new(4));
    assert_eq!(pods(&fleet.run(|_| 1.0, 2)), [4, 4]);
    fleet.policy.replicas = Knob::auto(Replicas::new(12), Replicas::new(20));
    assert_eq!(pods(&fleet.run(|_| 1.0, 2)), [12, 12]);
}

#[test]
fn a_schedules_pods_come_as_fast_as_pods_may() {
    let paced = Policy { paces_up: Some(paces(&[(Amount::Pods(1), 60)], Select::Fastest)), ..wide() };
    let mut fleet = Plain::new(Policy { schedule_floor: Replicas::new(5), ..paced }, 0.016, 1);
    // Not even the curve is known at first: no metric has to confirm a schedule.
    assert_eq!(pods(&fleet.run(|_| 0.0, 14)), [[2; 12].as_slice(), &[3; 2]].concat());
    let of_schedule = Action::Change { trigger: Trigger::Schedule };
    let known = fleet.run(|_| 10.0, 30);
    assert!(known.iter().any(|decision| decision.desired.replicas.get() < 5 && decision.action == of_schedule));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Whatever the load does, no period sees more pods come or go than one of the limits allows.
    #[test]
    fn no_period_sees_more_than_a_limit_allows(
        loads in proptest::collection::vec((1.0..FLOOD, 1..40_u32), 2..8),
        up in (1..8_u32, 1..60_u32), down in (1..60_u32, 1..60_u32), start in 1..60_u32,
    ) {
        let limits = Policy {
            paces_up: Some(paces(&[(Amount::Pods(up.0), 5 * up.1)], Select::Slowest)),
            paces_down: Some(paces(&[(Amount::Percent(down.0), 5 * down.1)], Select::Slowest)),
            ..wide()
        };
        let mut fleet = settled(limits, start);
        let mut counts = vec![start];
        for (rate, ticks) in loads {
            counts.extend(pods(&fleet.run(|_| rate, ticks)));
        }
        for now in 1..counts.len() {
            let before = |ticks: u32| counts[now.saturating_sub(usize::try_from(ticks).unwrap())];
            let (most, fewest) = (before(up.1) + up.0, before(down.1) * (100 - down.0) / 100);
            prop_assert!(counts[now] <= most.max(counts[now - 1]), "more than {most} at {now}: {counts:?}");
            prop_assert!(counts[now] >= fewest.min(counts[now - 1]), "fewer than {fewest} at {now}: {counts:?}");
        }
    }
}
