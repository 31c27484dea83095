//! Readings from one Prometheus for all services: one instant query for [`PAGE`] pods at a time.
//!
//! The query returns raw counters, and beside them the time at which each target was scraped. That time, not the
//! query's, is the reading's: Prometheus answers with values up to five minutes old as if they were of now.
//! Both come in one query, so that no scrape can fall between a value and its time.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use prometheus_http_query::Client;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Certificate, redirect};
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

/// How a Prometheus is reached.
#[derive(Debug, Clone, Default)]
pub struct Endpoint {
    /// Its http or https URL.
    pub url: String,
    /// PEM file of the authorities that vouch for it; absent: the system's.
    pub ca_file: Option<PathBuf>,
    /// File of the bearer token that it asks for.
    pub token_file: Option<PathBuf>,
}

/// Settings that cannot reach a Prometheus.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Not an address.
    #[error("{url:?} is not the http or https URL of a Prometheus")]
    Url {
        /// What was given.
        url: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No authorities.
    #[error("failed to read certificates (PEM) from {}", file.display())]
    Authorities {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The token would be readable on its way.
    #[error("a bearer token is only sent over https, and {url:?} is not")]
    PlainToken {
        /// The address.
        url: String,
    },
}

/// Reads a Prometheus.
pub struct Prometheus {
    client: Client,
    token_file: Option<PathBuf>,
    /// What to add to Prometheus' clock to get ours. Measured at the first answer and then kept, so that one scrape
    /// has one time however often it is read.
    ahead_s: Option<f64>,
}

impl Prometheus {
    pub(super) fn new(endpoint: Endpoint) -> Result<Self, EndpointError> {
        let Endpoint { url, ca_file, token_file } = endpoint;
        let wrong = |source| EndpointError::Url { url: url.clone(), source };
        // Fails only if one is installed already: then that one serves.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // No redirects: the answer to a query comes from where the operator was told to ask. No proxy from the
        // environment: the address is one inside the cluster.
        let mut http = reqwest::Client::builder().redirect(redirect::Policy::none()).no_proxy().timeout(TIMEOUT);
        if let Some(file) = ca_file {
            http = http.tls_certs_only(authorities(&file)?);
        }
        let client = Client::from(http.build().map_err(|error| wrong(Box::new(error)))?, &url);
        let client = client.map_err(|error| wrong(Box::new(error)))?;
        match client.base_url().scheme() {
            "http" if token_file.is_some() => return Err(EndpointError::PlainToken { url }),
            "https" | "http" => {}
            _ => return Err(wrong("another scheme".into())),
        }
        Ok(Self { client, token_file, ahead_s: None })
    }

    /// One reading of each target. A page that fails is the failure of each of its pods.
    pub(super) async fn read(&mut self, targets: &[Target], clock: Clock) -> Readings {
        let mut readings = Readings::new();
        let mut rest = targets;
        while !rest.is_empty() {
            let (page, after) = rest.split_at(rest.len().min(PAGE));
            let read = self.page(page, clock).await;
            // A Prometheus that does not answer is not asked for the other pages: every one would take the whole limit.
            let (asked, after) =
                if let Err(ReadError::Prometheus(_)) = &read { (rest, &[][..]) } else { (page, after) };
            match read {
                Ok(read) => readings.extend(read),
                Err(error) => readings.extend(asked.iter().map(|target| (target.uid.clone(), Err(error.clone())))),
            }
            rest = after;
        }
        readings
    }

    async fn page(&mut self, targets: &[Target], clock: Clock) -> Result<Readings, ReadError> {
        let answer = self.ask(&query(targets)).await?;
        readings(&answer, targets, clock.now().get(), &mut self.ahead_s)
    }

    async fn ask(&self, query: &str) -> Result<Vec<u8>, ReadError> {
        let mut query = self.client.query(query);
        if let Some(file) = &self.token_file {
            query = query.header(AUTHORIZATION, bearer(file).map_err(|error| ReadError::Token(Arc::new(error)))?);
        }
        // POST: a hundred pods' names do not fit into a URL.
        let mut answer = query.post_raw().await.map_err(|e| ReadError::Prometheus(Arc::new(e)))?;
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

fn authorities(file: &Path) -> Result<Vec<Certificate>, EndpointError> {
    let unusable = |source| EndpointError::Authorities { file: file.to_owned(), source };
    let pem = std::fs::read(file).map_err(|error| unusable(Box::new(error)))?;
    let found = Certificate::from_pem_bundle(&pem).map_err(|error| unusable(Box::new(error)))?;
    // Else every certificate would be refused, with a message that does not name the file.
    if found.is_empty() { Err(unusable("it holds no certificate".into())) } else { Ok(found) }
}

/// The header's value; no log line shows it.
fn bearer(file: &Path) -> std::io::Result<HeaderValue> {
    let token = std::fs::read_to_string(file)?;
    let unusable = |error: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, error);
    if token.trim().is_empty() {
        return Err(unusable("the file is empty"));
    }
    let value = HeaderValue::try_from(format!("Bearer {}", token.trim()));
    let mut value = value.map_err(|_| unusable("it holds characters that no header may have"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The readings in the `answer` to the query for `targets`, which came at `now_s` of our clock.
fn readings(answer: &[u8], targets: &[Target], now_s: f64, ahead_s: &mut Option<f64>) -> Result<Readings, ReadError> {
    let answer: Answer = serde_json::from_slice(answer).map_err(|_| ReadError::Malformed { what: "the answer" })?;
    let series = answer.data.result;
    let ahead_s = match (*ahead_s, series.first()) {
        (Some(kept), Some(one)) if (now_s - one.value.0 - kept).abs() <= CLOCK_STEP_S => kept,
        (_, Some(one)) => *ahead_s.insert(now_s - one.value.0),
        (_, None) => return Ok(targets.iter().map(|target| (target.uid.clone(), Err(ReadError::Absent))).collect()),
    };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::raw::tests::page;

    const NOW_S: f64 = 5000.0;

    fn at(url: &str) -> Endpoint {
        Endpoint { url: url.to_owned(), ..Endpoint::default() }
    }

    fn target(name: &str) -> Target {
        let (uid, name) = (format!("uid-{name}"), name.to_owned());
        Target { uid, namespace: "kitchen".to_owned(), name, ip: std::net::Ipv4Addr::LOCALHOST.into() }
    }

    /// The series of a page as Prometheus answers them at `now_s` of its clock, of a scrape `age_s` before.
    fn answered((pod, job): (&str, &str), value: f64, now_s: f64, age_s: f64) -> Vec<String> {
        let labels = format!("\"namespace\":\"kitchen\",\"pod\":\"{pod}\",\"job\":\"{job}\"");
        let one =
            |own: String, value: &str| format!("{{\"metric\":{{{own}{labels}}},\"value\":[{now_s},\"{value}\"]}}");
        let series = |line: &str| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let (name, own) = name.trim_end_matches('}').split_once('{').unwrap_or((name, ""));
            let pairs = own.split(',').filter_map(|pair| pair.split_once('='));
            let own: Vec<String> = pairs.map(|(label, value)| format!("\"{label}\":{value},")).collect();
            one(format!("\"__name__\":\"{name}\",{}", own.concat()), value)
        };
        let scraped = one(format!("\"{SCRAPED_MARK}\":\"1\","), &(now_s - age_s).to_string());
        page(value).lines().map(series).chain([scraped]).collect()
    }

    fn read(series: &[Vec<String>], ahead_s: &mut Option<f64>) -> Readings {
        let answer = format!("{{\"status\":\"success\",\"data\":{{\"result\":[{}]}}}}", series.concat().join(","));
        readings(answer.as_bytes(), &[target("one"), target("two.x")], NOW_S, ahead_s).unwrap()
    }

    #[test]
    fn reading_is_as_old_as_its_scrape_whatever_the_clock_of_prometheus() {
        for ahead in [-3600.0, 0.0, 3600.0] {
            let answer = [answered(("one", "pods"), 7.0, NOW_S + ahead, 240.0)];
            let readings = read(&answer, &mut None);
            let one = readings["uid-one"].as_ref().unwrap();
            assert!((one.at_s - (NOW_S - 240.0)).abs() < 1e-6, "{}", one.at_s);
            assert_eq!(one.value("yolo_batches_total", "8"), Some(7.0));
            assert!(matches!(readings["uid-two.x"], Err(ReadError::Absent)));
        }
    }

    #[test]
    fn scrape_keeps_its_time_through_the_jitter_of_the_network() {
        let mut ahead_s = None;
        let first = read(&[answered(("one", "pods"), 7.0, 1000.0, 2.0)], &mut ahead_s);
        let again = read(&[answered(("one", "pods"), 7.0, 1000.3, 2.3)], &mut ahead_s);
        let times = [&first, &again].map(|readings| readings["uid-one"].as_ref().unwrap().at_s);
        assert!((times[0] - times[1]).abs() < 1e-6, "{times:?}");
    }

    #[test]
    fn pod_scraped_by_two_jobs_is_read_from_the_newer_scrape_alone() {
        let (old, new) = (answered(("one", "old"), 7.0, NOW_S, 20.0), answered(("one", "new"), 9.0, NOW_S, 1.0));
        for series in [[old.clone(), new.clone()], [new, old]] {
            let one = read(&series, &mut None).remove("uid-one").unwrap().unwrap();
            assert_eq!(one.value("yolo_queue_depth", ""), Some(9.0));
        }
    }

    #[test]
    fn bad_number_spoils_its_own_pod_only() {
        let bad =
            answered(("one", "pods"), 7.0, NOW_S, 1.0).iter().map(|one| one.replace("\"7\"", "\"NaN\"")).collect();
        let readings = read(&[bad, answered(("two.x", "pods"), 7.0, NOW_S, 1.0)], &mut None);
        assert!(matches!(readings["uid-one"], Err(ReadError::NotANumber { .. })));
        assert!(readings["uid-two.x"].is_ok());
    }

    #[test]
    fn answer_that_is_no_vector_is_refused_and_an_empty_one_is_no_data() {
        for answer in ["", "<html>", "{\"status\":\"error\"}", "{\"data\":{\"result\":[1]}}"] {
            assert!(readings(answer.as_bytes(), &[target("one")], NOW_S, &mut None).is_err(), "{answer}");
        }
        assert!(matches!(read(&[], &mut None)["uid-one"], Err(ReadError::Absent)));
    }

    #[test]
    fn url_of_something_else_is_refused() {
        for url in ["", "prometheus:9090", "file:///etc/passwd", "ftp://host"] {
            assert!(Prometheus::new(at(url)).is_err(), "{url}");
        }
        assert!(Prometheus::new(at("http://prometheus.monitoring.svc:9090")).is_ok());
    }

    #[test]
    fn token_is_not_sent_in_the_clear() {
        let with_token = |url| Prometheus::new(Endpoint { token_file: Some("token".into()), ..at(url) });
        assert!(matches!(with_token("http://prometheus:9090"), Err(EndpointError::PlainToken { .. })));
        assert!(with_token("https://prometheus:9090").is_ok());
    }

    #[test]
    fn file_without_authorities_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("ca.pem");
        std::fs::write(&empty, "").unwrap();
        for file in [empty, folder.path().join("missing.pem")] {
            let error = Prometheus::new(Endpoint { ca_file: Some(file.clone()), ..at("https://prometheus") }).err();
            assert!(error.unwrap().to_string().contains(file.to_str().unwrap()));
        }
    }
}
