//! Two readings of one pod -> the planner's sample: what happened between them, and how the pod stands at the later.
//!
//! Pure. Nothing here trusts a pod: what no machine could have done in the time is clamped to what one could, so that
//! one lying pod cannot order a thousand.

use yolo_planner::histogram::Histogram;
use yolo_planner::observation::{
    Applied, BatchCount, CacheCounts, CurvePoint, GhostSize, Ghosts, GpuLoad, PerSecond, Sample, Stage, Stages,
};
use yolo_planner::units::{BatchSize, Bytes, Cores, Count, Ratio, Seconds, SecondsSquared, Timestamp};

use super::ReadError;
use super::raw::RawSample;

/// Most events a second of one pod: an image of a kilobyte at 100 000/s would fill a 1 Gbit/s link.
const EVENTS_PER_S_MAX: f64 = 1e5;
/// Most bytes a second, 100 Gbit/s.
const BYTES_PER_S_MAX: f64 = 1.25e10;
/// Most memory of one pod, 2^44 bytes (16 TiB).
const MEMORY_BYTES_MAX: f64 = 17_592_186_044_416.0;
/// Most cores, or parallel workers of a stage, of one pod.
const CORES_MAX: f64 = 1024.0;
/// Work is counted when it ends, so that an interval may hold the end of what an earlier one began.
const CARRIED_OVER: f64 = 2.0;

/// What one pod did from `old` to `new`.
///
/// Assumes `new` is the later one.
///
/// # Errors
/// [`ReadError::CounterReset`] if a counter fell or is gone; [`ReadError::Malformed`] for labels or buckets that are
/// not the contract's.
pub(super) fn difference(old: &RawSample, new: &RawSample) -> Result<Sample, ReadError> {
    no_reset(old, new)?;
    let step = Step { old, new, span_s: new.at_s - old.at_s };
    Ok(Sample {
        until: Timestamp::try_from(new.at_s).map_err(|_| ReadError::Malformed { what: "the time" })?,
        span: Seconds::try_from(step.span_s).map_err(|_| ReadError::Malformed { what: "the time" })?,
        arrivals: step.count("yolo_arrivals_total", ""),
        task_arrivals: step.count("yolo_task_arrivals_total", ""),
        per_second: step.per_second(),
        done: step.images(&["ok", "cached", "coalesced"]),
        shed: step.counts("yolo_rejected_total", &["queue_full", "predicted_late"])
            + step.count("yolo_deadline_exceeded_total", "queue"),
        errors: step.images(&["failed"])
            + step.counts("yolo_rejected_total", &["draining", "starting"])
            + step.count("yolo_deadline_exceeded_total", "running"),
        batches: step.batches()?,
        inference: step.histogram("yolo_inference_duration_seconds_bucket", "")?,
        body_bytes: Bytes::new(whole(step.up_to("yolo_http_request_body_bytes_total", "", BYTES_PER_S_MAX))),
        stages: step.stages(),
        api: step.histogram("yolo_http_request_duration_seconds_bucket", "ok,")?,
        overhead: step.histogram("yolo_request_overhead_seconds_bucket", "")?,
        read: step.histogram("yolo_stage_duration_seconds_bucket", "read,")?,
        cache: CacheCounts {
            hits: step.counts("yolo_cache_requests_total", &["hit", "shared_hit", "coalesced"]),
            misses: step.count("yolo_cache_requests_total", "miss"),
            evictions: step.count("yolo_cache_evictions_total", ""),
        },
        ghosts: step.ghosts()?,
        model_loads: step.count("yolo_model_loads_total", ""),
        cpu_seconds: seconds(step.up_to("yolo_cpu_usage_seconds_total", "", CORES_MAX)),
        load_seconds: seconds(step.up_to("yolo_model_load_seconds_total", "", CARRIED_OVER * CORES_MAX)),
        cpu_periods: step.count("yolo_cpu_periods_total", ""),
        cpu_throttled: step.count("yolo_cpu_throttled_periods_total", ""),
        ..gauges(new)?
    })
}

/// A counter that fell, or is gone, belongs to another process; so does another start time.
fn no_reset(old: &RawSample, new: &RawSample) -> Result<(), ReadError> {
    const START: &str = "process_start_time_seconds";
    if let (Some(before), Some(after)) = (old.value(START, ""), new.value(START, ""))
        && (after - before).abs() > 1.0
    {
        return Err(ReadError::CounterReset { name: START });
    }
    let fallen = old.counters().find(|(name, labels, value)| new.value(name, labels).is_none_or(|now| now < *value));
    fallen.map_or(Ok(()), |(name, ..)| Err(ReadError::CounterReset { name }))
}

/// The gauges of a reading; every increase is left at zero.
fn gauges(new: &RawSample) -> Result<Sample, ReadError> {
    let gauge = |name: &str, max: f64| new.value(name, "").unwrap_or(0.0).min(max);
    let memory = |name: &str| Bytes::new(whole(gauge(name, MEMORY_BYTES_MAX)));
    let images = |name: &str| whole(gauge(name, EVENTS_PER_S_MAX));
    let size = |name: &str| batch_size(gauge(name, f64::from(BatchSize::MAX.get())));
    Ok(Sample {
        inflight: images("yolo_images_in_flight"),
        queued: images("yolo_queue_depth"),
        task_queue: whole(new.value("yolo_tasks", "queued").unwrap_or(0.0).min(EVENTS_PER_S_MAX)),
        rss: memory("yolo_memory_working_set_bytes"),
        memory_limit: memory("yolo_memory_limit_bytes"),
        cpu_quota: Cores::try_from(gauge("yolo_cpu_quota_cores", CORES_MAX)).unwrap_or_default(),
        cache_bytes: memory("yolo_cache_bytes"),
        applied: Applied {
            batch: size("yolo_batch_limit"),
            delay: seconds(gauge("yolo_batch_delay_seconds", 1.0)),
            cache: memory("yolo_cache_capacity_bytes"),
            generation: new.knobs_generation().unwrap_or(0),
        },
        b_eff: size("yolo_batch_limit_effective"),
        workers: small(gauge("yolo_workers", CORES_MAX)),
        curve: curve(new)?,
        gpu: gpu(new),
        ..Sample::default()
    })
}

/// The curve that the server timed at idle: sizes with both figures.
fn curve(new: &RawSample) -> Result<Vec<CurvePoint>, ReadError> {
    const NAME: &str = "yolo_batch_curve_seconds";
    let means = new.each(NAME).filter_map(|(labels, mean)| Some((labels.strip_suffix(",mean")?, mean)));
    means
        .filter_map(|(size, mean)| Some((size, mean, new.value(NAME, &format!("{size},p95"))?)))
        .map(|(size, mean, p95)| Ok(CurvePoint { size: size_label(size)?, mean: seconds(mean), p95: seconds(p95) }))
        .collect()
}

/// The mean over the pod's GPUs.
fn gpu(new: &RawSample) -> Option<GpuLoad> {
    let mean = |name: &str| {
        let (sum, count) =
            new.each(name).fold((0.0, 0.0), |(sum, count), (_, value)| (sum + value.min(1.0), count + 1.0));
        (count > 0.0).then(|| Ratio::try_from(sum / count).unwrap_or_default())
    };
    mean("yolo_gpu_utilization_ratio").map(|duty| GpuLoad { duty, sm_active: mean("yolo_gpu_sm_activity_ratio") })
}

/// Two readings and the time between them.
struct Step<'r> {
    old: &'r RawSample,
    new: &'r RawSample,
    span_s: f64,
}

impl Step<'_> {
    /// How much a counter grew; one that appeared counts from zero.
    fn increase(&self, name: &str, labels: &str) -> f64 {
        let before = self.old.value(name, labels).unwrap_or(0.0);
        (self.new.value(name, labels).unwrap_or(0.0) - before).max(0.0)
    }

    /// The same, at most `per_s` a second.
    fn up_to(&self, name: &str, labels: &str, per_s: f64) -> f64 {
        self.increase(name, labels).min(per_s * self.span_s)
    }

    fn count(&self, name: &str, labels: &str) -> u64 {
        whole(self.up_to(name, labels, EVENTS_PER_S_MAX))
    }

    fn counts(&self, name: &str, labels: &[&str]) -> u64 {
        labels.iter().map(|labels| self.count(name, labels)).sum()
    }

    /// Images with one of these outcomes, synchronous and of tasks.
    fn images(&self, outcomes: &[&str]) -> u64 {
        let of = |outcome: &str| {
            ["sync", "async"].map(|source| self.count("yolo_images_total", &format!("{outcome},{source}")))
        };
        outcomes.iter().flat_map(|outcome| of(outcome)).sum()
    }

    fn per_second(&self) -> PerSecond {
        let sum = self.count("yolo_arrival_bin_images_total", "");
        PerSecond {
            n: whole(self.up_to("yolo_arrival_bins_total", "", CARRIED_OVER)),
            sum,
            sum_sq: whole(self.increase("yolo_arrival_bin_images_squared_total", "")).min(sum.saturating_mul(sum)),
        }
    }

    fn batches(&self) -> Result<Vec<BatchCount>, ReadError> {
        let workers = self.new.value("yolo_workers", "").unwrap_or(1.0).clamp(1.0, CORES_MAX);
        let mut batches = Vec::new();
        for (label, _) in self.new.each("yolo_batches_total") {
            let (size, count) = (size_label(label)?, self.count("yolo_batches_total", label));
            if count > 0 {
                let time_s = self.up_to("yolo_batch_seconds_total", label, CARRIED_OVER * workers);
                let squared = self.increase("yolo_batch_seconds_squared_total", label).min(time_s * time_s);
                let seconds_squared = SecondsSquared::try_from(squared).unwrap_or_default();
                batches.push(BatchCount { size, count, seconds: seconds(time_s), seconds_squared });
            }
        }
        Ok(batches)
    }

    fn stages(&self) -> Stages {
        let stage = |name: &str| {
            let gauge = |family: &str| small(self.new.value(family, name).unwrap_or(0.0).min(EVENTS_PER_S_MAX));
            Stage {
                seconds: seconds(self.up_to("yolo_stage_duration_seconds_sum", name, CARRIED_OVER * CORES_MAX)),
                count: self.count("yolo_stage_duration_seconds_count", name),
                workers: gauge("yolo_stage_workers"),
                queued: gauge("yolo_stage_queued"),
            }
        };
        Stages {
            read: stage("read"),
            hash: stage("hash"),
            decode: stage("decode"),
            preprocess: stage("preprocess"),
            inference: stage("inference"),
            postprocess: stage("postprocess"),
            encode: stage("encode"),
        }
    }

    fn ghosts(&self) -> Result<Ghosts, ReadError> {
        const HITS: &str = "yolo_cache_ghost_hits_total";
        let size = |label: &str| label.parse::<u64>().map_err(|_| ReadError::Malformed { what: "a ghost's size" });
        let sizes = self
            .new
            .each(HITS)
            .map(|(label, _)| Ok(GhostSize { bytes: Bytes::new(size(label)?), hits: self.count(HITS, label) }));
        let mut sizes = sizes.collect::<Result<Vec<_>, ReadError>>()?;
        // Labels sort as text: "1024" before "256".
        sizes.sort_by_key(|ghost| ghost.bytes);
        let expected = self.up_to("yolo_cache_ghost_expected_total", "", EVENTS_PER_S_MAX);
        Ok(Ghosts {
            refs: self.count("yolo_cache_ghost_references_total", ""),
            expected: Count::try_from(expected).unwrap_or_default(),
            sizes,
        })
    }

    /// Increases of the buckets whose labels are `prefix` and the edge.
    fn histogram(&self, name: &str, prefix: &str) -> Result<Histogram, ReadError> {
        let wrong = || ReadError::Malformed { what: "a histogram" };
        let mut buckets = Vec::new();
        for (labels, _) in self.new.each(name) {
            let Some(edge) = labels.strip_prefix(prefix) else { continue };
            let edge = edge.parse::<f64>().map_err(|_| wrong())?;
            buckets.push((edge, self.count(name, labels)));
        }
        buckets.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        let total = buckets.pop().filter(|(edge, _)| *edge == f64::INFINITY).ok_or_else(wrong)?;
        let edges = buckets.iter().map(|(edge, _)| Seconds::try_from(*edge)).collect::<Result<Vec<_>, _>>();
        let cumulative: Vec<u64> = buckets.iter().chain([&total]).map(|(_, count)| *count).collect();
        Histogram::from_cumulative(edges.map_err(|_| wrong())?, &cumulative).map_err(|_| wrong())
    }
}

fn seconds(value: f64) -> Seconds {
    Seconds::try_from(value).unwrap_or_default()
}

fn size_label(label: &str) -> Result<BatchSize, ReadError> {
    let size = label.parse::<u32>().ok().and_then(|size| BatchSize::try_from(size).ok());
    size.ok_or(ReadError::Malformed { what: "a batch size" })
}

/// A gauge of a batch size; 0 (nothing learned yet) counts as 1.
fn batch_size(value: f64) -> BatchSize {
    BatchSize::try_from(small(value)).unwrap_or_default()
}

/// A finite, not negative number as a whole one.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates, which is the contract")]
pub(super) fn whole(value: f64) -> u64 {
    value.round() as u64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates, which is the contract")]
fn small(value: f64) -> u32 {
    value.round() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::exposition::parse;
    use crate::sampler::raw::tests::page;

    fn reading(value: f64, at_s: f64) -> RawSample {
        parse(&page(value), at_s).unwrap()
    }

    /// The page at `value`, with one line replaced by others.
    fn edited(value: f64, at_s: f64, line: &str, by: &str) -> RawSample {
        let text = page(value);
        assert!(text.contains(line), "{line}");
        parse(&text.replace(line, by), at_s).unwrap()
    }

    #[test]
    fn counters_give_increases_and_gauges_their_end() {
        let sample = difference(&reading(10.0, 100.0), &reading(14.0, 105.0)).unwrap();
        assert_eq!((sample.until, sample.span), (Timestamp::whole(105), Seconds::whole(5)));
        assert_eq!(sample.arrivals, 4);
        assert_eq!(sample.done, 4 * 3 * 2, "ok, cached and coalesced, sync and async");
        assert_eq!((sample.shed, sample.errors), (4 * 3, 4 * (2 + 2 + 1)));
        assert_eq!(sample.queued, 14);
        assert_eq!(sample.applied.generation, 14);
        assert_eq!((sample.batches.len(), sample.batches[0].count), (2, 4));
        assert_eq!(sample.curve.len(), 2);
        assert_eq!(sample.ghosts.sizes.iter().map(|ghost| ghost.bytes.get()).collect::<Vec<_>>(), [1, 8]);
        assert_eq!(sample.api.count(), 4);
        assert_eq!(sample.cache, CacheCounts { hits: 8, misses: 4, evictions: 4 });
        assert_eq!(sample.gpu.unwrap().duty, Ratio::percent(100));
    }

    #[test]
    fn nothing_happened_is_a_sample_of_zeros_not_no_sample() {
        let sample = difference(&reading(10.0, 100.0), &reading(10.0, 105.0)).unwrap();
        assert_eq!((sample.arrivals, sample.done, sample.api.count()), (0, 0, 0));
        assert!(sample.batches.is_empty());
    }

    #[test]
    fn restarted_process_is_a_reset_whichever_counter_tells() {
        let fell = difference(&reading(10.0, 100.0), &reading(9.0, 105.0));
        assert!(matches!(fell, Err(ReadError::CounterReset { .. })), "{fell:?}");
        let gone = edited(12.0, 105.0, "yolo_batches_total{size=\"8\"} 12\n", "");
        assert!(matches!(difference(&reading(10.0, 100.0), &gone), Err(ReadError::CounterReset { .. })));
        // All counters have caught up already: only the start time tells.
        let other = edited(12.0, 105.0, "process_start_time_seconds 1000\n", "process_start_time_seconds 1099\n");
        assert!(matches!(difference(&reading(12.0, 100.0), &other), Err(ReadError::CounterReset { .. })));
    }

    #[test]
    fn new_batch_size_counts_from_zero() {
        let old = edited(10.0, 100.0, "yolo_batches_total{size=\"8\"} 10\n", "");
        let sample = difference(&old, &reading(10.0, 105.0)).unwrap();
        assert_eq!(sample.batches.iter().map(|batch| (batch.size.get(), batch.count)).collect::<Vec<_>>(), [(8, 10)]);
    }

    #[test]
    fn absurd_pod_is_clamped_to_what_a_machine_can_do() {
        let lie = edited(10.0, 105.0, "yolo_arrivals_total 10\n", "yolo_arrivals_total 1e18\n");
        let sample = difference(&reading(10.0, 100.0), &lie).unwrap();
        assert_eq!(sample.arrivals, 500_000, "5 s at the most images a second");
        // Milliseconds for seconds: a batch of 10 000 "s" in 5 s on 10 workers (the page's gauge).
        let seconds = ("yolo_batch_seconds_total{size=\"8\"} 11\n", "yolo_batch_seconds_total{size=\"8\"} 10010\n");
        let slow = difference(&reading(10.0, 100.0), &edited(11.0, 105.0, seconds.0, seconds.1)).unwrap();
        assert_eq!(slow.batches[1].seconds, Seconds::whole(2 * 11 * 5), "twice 11 workers' time in 5 s");
        let huge = edited(10.0, 105.0, "yolo_memory_working_set_bytes 10\n", "yolo_memory_working_set_bytes 1e300\n");
        assert_eq!(difference(&reading(10.0, 100.0), &huge).unwrap().rss.get(), 1 << 44);
    }

    #[test]
    fn labels_outside_the_contract_are_refused() {
        for (line, by) in [
            ("yolo_batches_total{size=\"8\"} 10\n", "yolo_batches_total{size=\"33\"} 11\n"),
            ("yolo_batches_total{size=\"8\"} 10\n", "yolo_batches_total{size=\"big\"} 11\n"),
            ("yolo_cache_ghost_hits_total{size=\"8\"} 10\n", "yolo_cache_ghost_hits_total{size=\"8Mi\"} 11\n"),
            (
                "yolo_inference_duration_seconds_bucket{le=\"+Inf\"} 10\n",
                "yolo_inference_duration_seconds_bucket{le=\"x\"} 10\n",
            ),
        ] {
            let old = edited(10.0, 100.0, line, "");
            let refused = difference(&old, &edited(10.0, 105.0, line, by));
            assert!(matches!(refused, Err(ReadError::Malformed { .. })), "{by} {refused:?}");
        }
    }
}
