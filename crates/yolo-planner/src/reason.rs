//! Decisions as sentences, with numbers and units, for status, Events and people.

use crate::capacity::{Binding, Model, PodRate};
use crate::choose::Choice;
use crate::decision::{HoldReason, Trigger};
use crate::explain::{ConstraintKind, Expert, Forecast};
use crate::intake::Seen;
use crate::observation::Knobs;
use crate::policy::{Paces, Policy, Select};
use crate::units::{Bytes, real};

/// What a sentence is about.
#[derive(Clone, Copy)]
pub(crate) struct Facts<'a> {
    pub(crate) policy: &'a Policy,
    pub(crate) model: &'a Model,
    pub(crate) choice: &'a Choice,
    pub(crate) forecast: &'a Forecast,
    /// Share of the images that the cache surely answers.
    pub(crate) hit_ratio: f64,
    /// How long a lower need had to last, seconds.
    pub(crate) hold_s: f64,
    pub(crate) seen: &'a Seen,
    /// Highest arrivals of the past hours, images/s.
    pub(crate) peak: f64,
    /// How long a pod ordered now takes to serve, seconds.
    pub(crate) startup_s: f64,
    /// Ticks seen.
    pub(crate) ticks: u32,
    /// The budget burns, and one pod more is not ordered because unequal shares explain it.
    pub(crate) unbalanced: bool,
}

/// Why the knobs move from one setting to another.
pub(crate) fn change(facts: Option<Facts>, trigger: Trigger, from: &Knobs, to: &Knobs) -> String {
    let knobs = |knobs: &Knobs| (knobs.replicas, knobs.max_batch_size, knobs.cache_bytes);
    if knobs(from) == knobs(to) {
        // What a person set, in whatever mode the knobs are.
        return format!(
            "queue delay {} µs, cache TTL {} s, deadline {} ms",
            to.max_queue_delay_micros, to.cache_ttl_seconds, to.deadline_millis
        );
    }
    let Some(facts) = facts else { return hold(HoldReason::CurveUnknown, None, to) };
    let mut parts = Vec::new();
    if to.max_batch_size != from.max_batch_size {
        parts.push(batch(facts, from.max_batch_size.get(), to.max_batch_size.get()));
    }
    if to.cache_bytes != from.cache_bytes {
        parts.push(cache(facts.choice.cache_hits, from.cache_bytes, to.cache_bytes));
    }
    if to.replicas != from.replicas {
        parts.push(replicas(facts, trigger, (from.replicas.get(), to.replicas.get())));
    }
    let back = if trigger == Trigger::BackOff { "an earlier change made it worse; " } else { "" };
    format!("{back}{}", parts.join("; "))
}

fn replicas(facts: Facts, trigger: Trigger, (from, to): (u32, u32)) -> String {
    let allowed = facts.choice.replicas;
    if let Some(why) = special(facts, trigger).filter(|_| to > from) {
        return format!("replicas {from}→{to}: {why}");
    }
    let load = load(facts);
    let pod = pod(facts.policy, &facts.choice.pod);
    let range = facts.policy.replicas;
    if to > from && allowed <= from {
        format!("replicas {from}→{to}: the range is {} to {}", range.min.get(), range.max.get())
    } else if to > from {
        format!("replicas {from}→{to}: {load} need {}: {pod}", need(facts.choice))
    } else if from > range.max.get() {
        format!("replicas {from}→{to}: replicas.max is {}", range.max.get())
    } else {
        format!(
            "replicas {from}→{to}: for {:.0} s no more were needed, {load} need {}: {pod}",
            facts.hold_s,
            need(facts.choice)
        )
    }
}

/// What calls for more pods besides arrivals and a queue.
fn special(facts: Facts, trigger: Trigger) -> Option<String> {
    let (load, budget) = (load(facts), facts.policy.targets.budget.get() * 1e2);
    match trigger {
        Trigger::SloBurn => Some(format!(
            "more of the last hour's minutes miss the targets than the budget of {budget:.1} % allows, so one pod more \
             than the model says; {load}"
        )),
        Trigger::BackOff => Some(format!("fewer did not do; {load}")),
        Trigger::Blind if facts.seen.sampled > 0 => Some(format!(
            "{} of {} ready pods answer, and the others are taken to get as much: {load}",
            facts.seen.live, facts.seen.ready
        )),
        Trigger::Blind => Some(format!(
            "nothing has been seen for minutes, so pods for {:.1}/s, the most of the past hours; {} of {} ready pods \
             answer",
            facts.peak, facts.seen.live, facts.seen.ready
        )),
        Trigger::Schedule => Some(format!(
            "a schedule asks for at least {} within {:.0} s",
            pods(facts.policy.schedule_floor.get()),
            facts.forecast.horizon.get()
        )),
        Trigger::Load | Trigger::Backlog | Trigger::Model | Trigger::Policy => None,
    }
}

/// "arrivals 36.0/s (41.4/s planned)".
fn load(facts: Facts) -> String {
    let forecast = facts.forecast;
    let mut notes = vec![format!("{:.1}/s planned", forecast.plan.get())];
    match forecast.expert {
        Expert::Level => {}
        Expert::Trend => notes.push("rising".to_owned()),
        Expert::Seasonal => notes.push("as one period before".to_owned()),
    }
    if forecast.backlog >= 1.0 {
        notes.push(format!("{:.0} waiting", forecast.backlog));
    }
    if facts.hit_ratio > 0.0 {
        notes.push(format!("{:.0} % from the cache", facts.hit_ratio * 1e2));
    }
    format!("arrivals {:.1}/s ({})", forecast.level.get(), notes.join(", "))
}

/// "1 pod", "3 pods".
pub(crate) fn pods(count: u32) -> String {
    if count == 1 { "1 pod".to_owned() } else { format!("{count} pods") }
}

/// "3 pods", "14 pods (10 at most)": what is needed, and what the range makes of it.
fn need(choice: &Choice) -> String {
    let allowed = choice.replicas;
    match choice.needed {
        Some(needed) if needed > allowed => format!("{} ({allowed} at most)", pods(needed)),
        Some(needed) if needed.max(1) < allowed => format!("{} ({allowed} at least)", pods(needed.max(1))),
        _ => pods(allowed),
    }
}

/// "one pod carries 14.1/s within 200 ms (CPU quota binds)".
fn pod(policy: &Policy, pod: &PodRate) -> String {
    let within = policy.targets.api.map_or_else(String::new, |target| format!(" within {}", millis(target.limit_s())));
    let why = match pod.binding {
        Binding::Latency => "latency binds",
        Binding::Utilization => "utilisation binds",
        Binding::CpuQuota => "CPU quota binds",
        Binding::Decoders => "decoding binds",
    };
    format!("one pod carries {:.1}/s{within} ({why})", pod.carried)
}

/// Larger batches that carry no more than this many times what smaller ones do gain nothing (the server's own rule).
const GAIN_MIN: f64 = 1.03;

fn batch(facts: Facts, from: u32, to: u32) -> String {
    let pods = facts.choice.replicas;
    let carried = |size: u32| facts.model.pod(size, pods).map(|pod| pod.carried);
    let time = |size: u32| facts.model.times.mean(size);
    // The larger batch may not be known; then the smaller one, being too slow itself, says enough.
    let slow = facts.policy.targets.inference.and_then(|target| {
        let upper = |size: u32| facts.model.times.upper(size, target.at());
        upper(from)
            .or_else(|| upper(to))
            .filter(|upper| to < from && *upper > target.limit_s())
            .zip(Some(target.limit_s()))
    });
    if let Some((upper, limit)) = slow {
        let saturation = |size: u32| facts.model.pod(size, pods).map(|pod| pod.saturation);
        let gain = match saturation(from).zip(saturation(to)) {
            Some((before, after)) if before <= GAIN_MIN * after => {
                format!(
                    "batching does not pay here, {after:.1}/s at most with batches of {to}, {before:.1}/s with {from}; "
                )
            }
            _ => String::new(),
        };
        return format!(
            "batch {from}→{to}: {gain}a batch takes up to {}, {} are allowed",
            millis(upper),
            millis(limit)
        );
    }
    if to < from && facts.choice.infeasible == Some(ConstraintKind::Memory) {
        return format!("batch {from}→{to}: not even the model alone fits into 90 % of the memory");
    }
    match (carried(from), carried(to)) {
        (Some(before), Some(after)) if to < from => format!(
            "batch {from}→{to}: batching does not pay here, one pod carries {after:.1}/s with batches of {to} and \
             {before:.1}/s with {from} ({} and {} a batch)",
            millis(time(to).unwrap_or(0.0)),
            millis(time(from).unwrap_or(0.0)),
        ),
        (Some(before), Some(after)) => format!(
            "batch {from}→{to}: one pod carries {after:.1}/s instead of {before:.1}/s, a batch takes {}",
            millis(time(to).unwrap_or(0.0)),
        ),
        (None, Some(after)) if to < from => format!(
            "batch {from}→{to}: batching does not pay here, one pod carries {after:.1}/s with batches of {to} and \
             larger ones gained nothing",
        ),
        _ => {
            let range = facts.policy.batch;
            format!("batch {from}→{to}: the range is {} to {}", range.min.get(), range.max.get())
        }
    }
}

fn cache(hits: f64, from: Bytes, to: Bytes) -> String {
    let (before, after) = (bytes(from), bytes(to));
    if to > from {
        format!("cache {before}→{after}: it would answer {:.0} % of the images, which repeat", hits * 1e2)
    } else {
        format!("cache {before}→{after}: more answers nothing, {:.1} % of the images repeat within it", hits * 1e2)
    }
}

/// Why nothing moves.
pub(crate) fn hold(reason: HoldReason, facts: Option<Facts>, current: &Knobs) -> String {
    let setting = format!(
        "{}, batch {}, cache {}",
        pods(current.replicas.get()),
        current.max_batch_size.get(),
        bytes(current.cache_bytes)
    );
    let why = match reason {
        HoldReason::Settled => facts.map_or_else(String::new, |facts| {
            format!("{} need {}: {}", load(facts), need(facts.choice), pod(facts.policy, &facts.choice.pod))
        }),
        HoldReason::NoData => "no usable sample has been seen yet".to_owned(),
        HoldReason::Stale => {
            let seen = facts.map_or_else(String::new, |facts| {
                format!(" ({} of {} ready pods have a fresh one)", facts.seen.sampled, facts.seen.ready)
            });
            format!("samples are old or cover too few pods{seen}, and no data is no reason to scale down")
        }
        HoldReason::ColdStart => {
            let seen = facts.map_or_else(String::new, |facts| {
                format!(": {} so far, {} need {}", ticks(facts.ticks), load(facts), need(facts.choice))
            });
            format!("too little has been seen yet to take pods away{seen}")
        }
        HoldReason::Pending => {
            let coming = facts.map_or_else(String::new, |facts| {
                format!(", {} are ready, a start takes about {:.0} s", facts.seen.ready, facts.startup_s)
            });
            format!("pods that were ordered are on their way{coming}")
        }
        HoldReason::Stabilizing => facts.map_or_else(String::new, |facts| stabilizing(facts, current.replicas.get())),
        HoldReason::CurveUnknown => "how long a batch takes is not known yet".to_owned(),
        HoldReason::FlapDamped => {
            "the direction changed too often within the hour, so lower needs must last twice as long".to_owned()
        }
        HoldReason::OtherManager => "another autoscaler manages the replicas".to_owned(),
        HoldReason::Paused => "paused".to_owned(),
        HoldReason::ModeOff => "all knobs are off".to_owned(),
        HoldReason::ModeRecommend => "a change is only recommended".to_owned(),
        HoldReason::NonFinite => "a number is none, or time ran backwards".to_owned(),
    };
    format!("holds {setting}: {why}{}", facts.map_or("", |facts| unbalanced(facts, reason)))
}

fn stabilizing(facts: Facts, current: u32) -> String {
    let (policy, wanted) = (facts.policy, pods(facts.choice.replicas));
    let lasts = policy
        .stabilization_up
        .filter(|lasts| lasts.get() > 0.0)
        .map(|lasts| format!("that has been so for {:.0} s", lasts.get()));
    let when: Vec<String> = lasts.into_iter().chain(allowed(policy.paces_up.as_ref(), "scaleUp")).collect();
    if facts.choice.replicas > current && !when.is_empty() {
        return format!("{} need {wanted}, once {}", load(facts), when.join(" and "));
    }
    let when = allowed(policy.paces_down.as_ref(), "scaleDown").map_or_else(
        || " and no rollout is under way".to_owned(),
        |allowed| format!(", no rollout is under way and {allowed}"),
    );
    format!("{wanted} would do, once that has been so for {:.0} s{when}", facts.hold_s)
}

/// That pods must wait until a limit lets them come or go, where there is one.
fn allowed(paces: Option<&Paces>, direction: &str) -> Option<String> {
    Some(match paces?.select {
        Select::Disabled => format!("scaling.behavior.{direction}.selectPolicy is not Disabled"),
        Select::Fastest | Select::Slowest => format!("scaling.behavior.{direction} allows it"),
    })
}

/// Why a budget that burns orders no pod.
fn unbalanced(facts: Facts, reason: HoldReason) -> &'static str {
    if facts.unbalanced && matches!(reason, HoldReason::Settled | HoldReason::Stabilizing) {
        "; more minutes miss the targets than allowed, because pods get unequal shares: one pod more would not mend that"
    } else {
        ""
    }
}

fn ticks(count: u32) -> String {
    if count == 1 { "1 tick".to_owned() } else { format!("{count} ticks") }
}

/// "62 ms", "8.4 ms".
pub(crate) fn millis(seconds: f64) -> String {
    let ms = seconds * 1e3;
    if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

/// "256 KiB", "0".
pub(crate) fn bytes(bytes: Bytes) -> String {
    let value = real(bytes.get());
    match bytes.get() {
        0 => "0".to_owned(),
        1..1_048_576 => format!("{:.0} KiB", value / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.0} MiB", value / 1_048_576.0),
        _ => format!("{:.1} GiB", value / 1_073_741_824.0),
    }
}
