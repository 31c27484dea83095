//! The guardrails of memory (control.md §8): pods that were killed for it, and pods that soon will be.

use crate::guards::{Scene, nothing, policy, samples};
use crate::support::{GPU, at};
use yolo_planner::State;
use yolo_planner::observation::Observation;
use yolo_planner::policy::{Accelerator, Knob, Mode};
use yolo_planner::units::Bytes;

#[test]
fn a_kill_for_memory_takes_the_cache_then_the_batch() {
    let mut sized = policy(Accelerator::Gpu);
    sized.cache = Knob::auto(Bytes::default(), Bytes::mebi(64));
    let mut scene = Scene::new(GPU, sized);
    scene.fleet.repeats = 0.8;
    scene.run(300.0, 60, nothing);
    let (cache, size) = (scene.fleet.knobs.cache_bytes, scene.fleet.knobs.max_batch_size);
    assert!(cache > Bytes::default() && size.get() > 1, "{:?}", scene.fleet.knobs);
    let kill = |scene: &mut Scene| {
        let now = scene.fleet.now + 4.0;
        scene.run(300.0, 1, move |seen| seen.pods[0].oom_killed = Some(at(now)));
    };
    kill(&mut scene);
    assert_eq!(scene.fleet.knobs.cache_bytes.get(), cache.get() / 2, "half of the cache at once");
    assert_eq!(scene.fleet.knobs.max_batch_size, size);
    scene.run(300.0, 20, nothing);
    assert!(scene.fleet.knobs.cache_bytes.get() <= cache.get() / 2, "pinned");
    let mut bare = policy(Accelerator::Gpu);
    bare.cache = Knob::auto(Bytes::default(), Bytes::default());
    let mut scene = Scene::new(GPU, bare);
    scene.run(180.0, 40, nothing);
    let size = scene.fleet.knobs.max_batch_size.get();
    kill(&mut scene);
    assert_eq!(scene.fleet.knobs.max_batch_size.get(), size / 2, "no cache is left to take");
    let pinned: Vec<u32> =
        scene.run(180.0, 740, nothing).iter().map(|decision| decision.desired.max_batch_size.get()).collect();
    let free = pinned.iter().position(|now| *now > size / 2);
    assert!(free.is_some_and(|tick| tick >= 718), "pinned for an hour: {free:?}");
    let mut fixed = policy(Accelerator::Gpu);
    fixed.cache = Knob { mode: Mode::Off, min: Bytes::default(), max: Bytes::mebi(64) };
    let mut scene = Scene::new(GPU, fixed);
    scene.fleet.knobs.cache_bytes = Bytes::mebi(32);
    scene.run(180.0, 40, nothing);
    let size = scene.fleet.knobs.max_batch_size.get();
    kill(&mut scene);
    assert_eq!(scene.fleet.knobs.max_batch_size.get(), size / 2, "the cache is not the planner's to take");
}

#[test]
fn the_next_leader_keeps_what_a_kill_for_memory_took() {
    let mut sized = policy(Accelerator::Gpu);
    sized.cache = Knob::auto(Bytes::default(), Bytes::mebi(64));
    let mut scene = Scene::new(GPU, sized);
    scene.fleet.repeats = 0.8;
    scene.run(300.0, 60, nothing);
    let before = scene.fleet.knobs.cache_bytes;
    let killed = scene.fleet.now + 4.0;
    let shown = |seen: &mut Observation| seen.pods[0].oom_killed = Some(at(killed));
    scene.run(300.0, 20, shown);
    let left = scene.fleet.knobs.cache_bytes;
    assert!(left < before, "{left:?} of {before:?}");
    scene.state = State::seeded(&scene.state.learned());
    let caches: Vec<Bytes> = scene.run(300.0, 740, shown).iter().map(|decision| decision.desired.cache_bytes).collect();
    let free = caches.iter().position(|now| *now > left);
    assert!(free.is_some_and(|tick| (695..=702).contains(&tick)), "for what is left of an hour: {free:?}");
}

#[test]
fn a_working_set_near_the_limit_takes_the_batch_before_the_kernel_takes_the_pod() {
    let mut bare = policy(Accelerator::Gpu);
    bare.cache = Knob::auto(Bytes::default(), Bytes::default());
    bare.targets.memory = None;
    let mut scene = Scene::new(GPU, bare);
    scene.run(180.0, 40, nothing);
    let size = scene.fleet.knobs.max_batch_size.get();
    assert!(size > 1);
    scene.run(180.0, 2, |seen| samples(seen, |sample| sample.rss = Bytes::mebi(1900)));
    assert!(scene.fleet.knobs.max_batch_size.get() <= size / 2, "1900 of 2048 MiB");
}
