//! What the demo saw, moment by moment; all times are offsets from one epoch, the load generator's.

use std::time::Duration;

use yolo_loadgen::record::Recording;

/// A stretch of the demo with one kind of load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Shown in the plot and in the table.
    pub name: &'static str,
    /// Its start.
    pub from: Duration,
    /// Its end.
    pub until: Duration,
}

/// One ready pod at one moment, from its own metrics.
#[derive(Debug, Clone, PartialEq)]
pub struct PodLook {
    /// Name of the pod.
    pub name: String,
    /// Images that have arrived at it since its start.
    pub arrivals_total: f64,
    /// Batch limit in force.
    pub batch: f64,
    /// Cache capacity in force, in bytes.
    pub cache_bytes: f64,
}

/// One service at one moment: its ready pods.
#[derive(Debug, Clone, PartialEq)]
pub struct Look {
    /// When.
    pub at: Duration,
    /// Ready pods whose metrics could be read.
    pub pods: Vec<PodLook>,
}

impl Look {
    /// Ready pods.
    pub fn replicas(&self) -> usize {
        self.pods.len()
    }

    /// Largest batch limit of its pods; 0 without a pod.
    pub fn batch(&self) -> f64 {
        self.pods.iter().map(|pod| pod.batch).fold(0.0, f64::max)
    }

    /// Largest cache capacity of its pods, in MiB.
    pub fn cache_mib(&self) -> f64 {
        self.pods.iter().map(|pod| pod.cache_bytes / 1_048_576.0).fold(0.0, f64::max)
    }
}

/// One service over the whole demo.
#[derive(Debug, Clone)]
pub struct Track {
    /// Name of the custom resource.
    pub service: &'static str,
    /// Its heading in the plot.
    pub title: &'static str,
    /// Threshold of its API latency target in milliseconds, if it has one.
    pub p95_target_ms: Option<f64>,
    /// In the order of time.
    pub looks: Vec<Look>,
    /// What its clients saw.
    pub recording: Recording,
}

impl Track {
    /// Most replicas ready at once in `from..until`.
    pub fn replicas_max(&self, from: Duration, until: Duration) -> usize {
        self.within(from, until).map(Look::replicas).max().unwrap_or(0)
    }

    /// Replicas ready at the last look before `until`.
    pub fn replicas_at(&self, until: Duration) -> usize {
        self.looks.iter().rev().find(|look| look.at < until).map_or(0, Look::replicas)
    }

    fn within(&self, from: Duration, until: Duration) -> impl Iterator<Item = &Look> {
        self.looks.iter().filter(move |look| (from..until).contains(&look.at))
    }
}

/// How evenly load reached the pods after new ones had come.
#[derive(Debug, Clone, PartialEq)]
pub struct Share {
    /// When the last new pod turned ready.
    pub ready_at: Duration,
    /// Pods compared.
    pub pods: usize,
    /// Standard deviation over mean of the pods' arrival rates.
    pub variation: f64,
}

/// Within this time of its readiness a new pod must carry its share (the figure to reach).
const SETTLING: Duration = Duration::from_secs(20);
/// Over this time the rates are then taken: at 10 images a second and pod a Poisson count of 200 varies by 7 %.
const MEASURED: Duration = Duration::from_secs(20);

/// Compares the pods' arrival rates from 20 s to 40 s after each arrival of new pods, where the set of pods did not
/// change in between.
pub fn shares(track: &Track) -> Vec<Share> {
    let names = |look: &Look| look.pods.iter().map(|pod| pod.name.clone()).collect::<Vec<_>>();
    let grown = track.looks.windows(2).filter_map(|pair| {
        let [before, after] = pair else { return None };
        let known = names(before);
        (!before.pods.is_empty() && names(after).iter().any(|name| !known.contains(name))).then_some(after.at)
    });
    grown.filter_map(|ready_at| share(track, ready_at)).collect()
}

fn share(track: &Track, ready_at: Duration) -> Option<Share> {
    let first = track.looks.iter().find(|look| look.at >= ready_at + SETTLING)?;
    let last = track.looks.iter().find(|look| look.at >= first.at + MEASURED)?;
    let names = |look: &Look| look.pods.iter().map(|pod| pod.name.clone()).collect::<Vec<_>>();
    let unchanged =
        track.within(ready_at, last.at).all(|look| names(look) == names(last)) && names(first) == names(last);
    if !unchanged || last.pods.len() < 2 {
        return None;
    }
    let rates: Vec<f64> =
        first.pods.iter().zip(&last.pods).map(|(from, until)| until.arrivals_total - from.arrivals_total).collect();
    Some(Share { ready_at, pods: rates.len(), variation: variation(&rates)? })
}

/// Standard deviation over mean; `None` if the mean is not positive.
fn variation(values: &[f64]) -> Option<f64> {
    let count = f64::from(u32::try_from(values.len()).ok()?);
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    (mean > 0.0).then(|| variance.sqrt() / mean)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks each second: one pod until `grown_s`, then two, the second with `share` of the first one's 10 a second.
    fn track(grown_s: u64, share: f64) -> Track {
        let pod = |name: &str, arrivals_total| PodLook {
            name: name.to_owned(),
            arrivals_total,
            batch: 1.0,
            cache_bytes: 0.0,
        };
        let looks = (0..100_u32).map(|second| {
            let mut pods = vec![pod("a", 10.0 * f64::from(second))];
            if u64::from(second) >= grown_s {
                pods.push(pod("b", 10.0 * share * f64::from(second)));
            }
            Look { at: Duration::from_secs(second.into()), pods }
        });
        Track { service: "s", title: "s", p95_target_ms: None, looks: looks.collect(), recording: Recording::default() }
    }

    #[test]
    fn an_even_and_an_idle_new_pod_are_told_apart() {
        let even = shares(&track(30, 1.0));
        assert_eq!(even.len(), 1);
        assert!(even[0].variation < 1e-9 && even[0].pods == 2 && even[0].ready_at == Duration::from_secs(30));
        let idle = shares(&track(30, 0.0));
        assert!((idle[0].variation - 1.0).abs() < 1e-9, "{idle:?}");
    }

    #[test]
    fn a_pod_that_comes_too_late_to_be_measured_gives_no_share() {
        assert_eq!(shares(&track(70, 1.0)), vec![]);
    }

    #[test]
    fn replicas_are_counted_within_a_range() {
        let track = track(30, 1.0);
        assert_eq!(track.replicas_max(Duration::ZERO, Duration::from_secs(30)), 1);
        assert_eq!(track.replicas_max(Duration::ZERO, Duration::from_secs(31)), 2);
        assert_eq!(track.replicas_at(Duration::from_secs(30)), 1);
    }
}
