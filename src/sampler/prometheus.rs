//! Readings from one Prometheus for all services: one instant query for [`PAGE`] pods at a time.
//!
//! The query returns raw counters, and beside them the time at which each target was scraped. That time, not the
//! query's, is the reading's: Prometheus answers with values up to five minutes old as if they were of now.
//! Both come in one query, so that no scrape can fall between a value and its time.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use prometheus_http_query::Client;
use prometheus_http_query::reqwest::{self, redirect};
use serde::Deserialize;

use super::raw::{NARROWED, RawSample, name_pattern};
use super::{ReadError, Readings, Target};
use crate::clock::Clock;

/// One query's whole answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// 100 pods' series are about 8 MB.
const ANSWER_BYTES_MAX: usize = 32 << 20;
/// Pods a query: 10 queries for 1 000 pods.
const PAGE: usize = 100;
/// A clock difference that changed by more than this is measured anew; less is the network's jitter.
const CLOCK_STEP_S: f64 = 1.0;
/// Label that marks the scrape times among the answer's series.
const SCRAPED_MARK: &str = "yolo_operator_scraped";

/// The URL of a Prometheus that cannot be one.
#[derive(Debug, thiserror::Error)]
#[error("{url:?} is not the http or https URL of a Prometheus")]
pub struct UrlError {
    url: String,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// Reads a Prometheus.
pub struct Prometheus {
    client: Client,
    /// What to add to Prometheus' clock to get ours. Measured at the first answer and then kept, so that one scrape
    /// has one time however often it is read.
    ahead_s: Option<f64>,
}

impl Prometheus {
    pub(super) fn new(url: &str) -> Result<Self, UrlError> {
        let wrong = |source| UrlError { url: url.to_owned(), source };
        // No redirects: the answer to a query comes from where the operator was told to ask. No proxy from the
        // environment: the address is one inside the cluster.
        let http = reqwest::Client::builder().redirect(redirect::Policy::none()).no_proxy().timeout(TIMEOUT).build();
        let http = http.map_err(|error| wrong(Box::new(error)))?;
        let client = Client::from(http, url).map_err(|error| wrong(Box::new(error)))?;
        if !matches!(client.base_url().scheme(), "http" | "https") {
            return Err(wrong("another scheme".into()));
        }
        Ok(Self { client, ahead_s: None })
    }

    /// One reading of each target. A page that fails is the failure of each of its pods.
    pub(super) async fn read(&mut self, targets: &[Target], clock: Clock) -> Readings {
        let mut readings = Readings::new();
        for page in targets.chunks(PAGE) {
            match self.page(page, clock).await {
                Ok(read) => readings.extend(read),
                Err(error) => readings.extend(page.iter().map(|target| (target.uid.clone(), Err(error.clone())))),
            }
        }
        readings
    }

    async fn page(&mut self, targets: &[Target], clock: Clock) -> Result<Readings, ReadError> {
        let text = self.ask(&query(targets)).await?;
        let now_s = clock.now().get();
        let answer: Answer = serde_json::from_slice(&text).map_err(|_| ReadError::Malformed { what: "the answer" })?;
        let series = answer.data.result;
        let ahead_s = match (self.ahead_s, series.first()) {
            (Some(kept), Some(series)) if (now_s - series.value.0 - kept).abs() <= CLOCK_STEP_S => kept,
            (_, Some(series)) => now_s - series.value.0,
            (kept, None) => kept.unwrap_or(0.0),
        };
        self.ahead_s = Some(ahead_s);
        let mut pods = newest_scrapes(&series, ahead_s)?;
        for one in &series {
            one.put(&mut pods)?;
        }
        let readings = targets.iter().map(|target| {
            let pod = pods.remove(&(target.namespace.as_str(), target.name.as_str()));
            (target.uid.clone(), pod.map_or(Err(ReadError::Absent), |pod| pod.raw.and_then(RawSample::complete)))
        });
        Ok(readings.collect())
    }

    async fn ask(&self, query: &str) -> Result<Vec<u8>, ReadError> {
        // POST: a hundred pods' names do not fit into a URL.
        let mut answer = self.client.query(query).post_raw().await.map_err(|e| ReadError::Prometheus(Arc::new(e)))?;
        if answer.status() != reqwest::StatusCode::OK {
            return Err(ReadError::Status(answer.status().as_u16()));
        }
        let mut text = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|e| ReadError::Prometheus(Arc::new(e)))? {
            if text.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(ReadError::TooLarge { bytes_max: ANSWER_BYTES_MAX });
            }
            text.extend_from_slice(&chunk);
        }
        Ok(text)
    }
}

/// The whole families, the narrowed ones, and the scrape times, of these pods.
fn query(targets: &[Target]) -> String {
    let alternatives = |names: BTreeSet<&str>| {
        // In a name only the dot means something else in a pattern.
        let names: Vec<String> = names.into_iter().map(|name| name.replace('.', r"\\.")).collect();
        names.join("|")
    };
    let namespaces = alternatives(targets.iter().map(|target| target.namespace.as_str()).collect());
    let pods = alternatives(targets.iter().map(|target| target.name.as_str()).collect());
    let these = format!("namespace=~\"{namespaces}\",pod=~\"{pods}\"");
    let mut query = format!("{{__name__=~\"{}\",{these}}}", name_pattern());
    for (name, label, only) in NARROWED {
        // Writing to a String cannot fail.
        let _ = write!(query, " or {name}{{{label}=\"{only}\",{these}}}");
    }
    // The mark keeps `or`, which compares labels without the name, from taking a time for a value it already has.
    let _ = write!(query, " or label_replace(timestamp(yolo_workers{{{these}}}),\"{SCRAPED_MARK}\",\"1\",\"\",\"\")");
    query
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    data: Data<'a>,
}

#[derive(Deserialize)]
struct Data<'a> {
    #[serde(borrow)]
    result: Vec<Series<'a>>,
}

/// One series: its labels, and the pair of the query's time and its value, a number in quotes.
#[derive(Deserialize)]
struct Series<'a> {
    #[serde(borrow)]
    metric: HashMap<Cow<'a, str>, Cow<'a, str>>,
    #[serde(borrow)]
    value: (f64, Cow<'a, str>),
}

type PodName<'s> = (&'s str, &'s str);

/// A pod's reading, and which scrape target it is of.
struct Pod<'s> {
    target: [Option<&'s str>; 2],
    raw: Result<RawSample, ReadError>,
}

impl Series<'_> {
    fn label(&self, name: &str) -> Option<&str> {
        self.metric.get(name).map(Cow::as_ref)
    }

    fn pod(&self) -> Option<PodName<'_>> {
        Some((self.label("namespace")?, self.label("pod")?))
    }

    /// Two scrape configurations may read the same pod; these labels tell their series apart.
    fn target(&self) -> [Option<&str>; 2] {
        [self.label("job"), self.label("instance")]
    }

    fn number(&self) -> Result<f64, ReadError> {
        self.value.1.parse().map_err(|_| ReadError::Malformed { what: "a value" })
    }

    /// Adds this series to its pod's reading; a bad one spoils the reading of its own pod only.
    fn put<'s>(&'s self, pods: &mut HashMap<PodName<'s>, Pod<'s>>) -> Result<(), ReadError> {
        let (Some(name), Some(pod)) = (self.label("__name__"), self.pod()) else { return Ok(()) };
        let value = self.number()?;
        if let Some(pod) = pods.get_mut(&pod).filter(|pod| pod.target == self.target())
            && let Ok(raw) = &mut pod.raw
            && let Err(error) = raw.put(name, |label| self.label(label), value)
        {
            pod.raw = Err(error);
        }
        Ok(())
    }
}

/// An empty reading of each pod that was scraped, at the time of its newest scrape on our clock.
fn newest_scrapes<'s>(series: &'s [Series<'_>], ahead_s: f64) -> Result<HashMap<PodName<'s>, Pod<'s>>, ReadError> {
    let mut newest: BTreeMap<PodName<'s>, (f64, [Option<&'s str>; 2])> = BTreeMap::new();
    for one in series.iter().filter(|one| one.label(SCRAPED_MARK).is_some()) {
        let Some(pod) = one.pod() else { continue };
        let scraped_s = one.number()?;
        if newest.get(&pod).is_none_or(|(other_s, _)| scraped_s > *other_s) {
            newest.insert(pod, (scraped_s, one.target()));
        }
    }
    let pod = |(at_s, target)| Pod { target, raw: Ok(RawSample::at(at_s)) };
    Ok(newest.into_iter().map(|(name, (scraped_s, target))| (name, pod((scraped_s + ahead_s, target)))).collect())
}
