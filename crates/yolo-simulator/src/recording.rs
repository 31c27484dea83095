//! Recorded loads: CSV files of rates, or of single requests as public traces hold them (docs/simulator.md).

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use jiff::civil::DateTime;

use crate::trace::{Gaps, Kind, Trace};

/// Longest load that a file may hold: a month.
const SECONDS_MAX: usize = 31 * 24 * 3600;
/// Shortest one: the first five minutes of a run are not judged.
const SECONDS_MIN: usize = 600;
/// Single requests are counted over this time: a second's count of a slow log is chance, and a factor would magnify it.
const BIN_S: usize = 60;
/// First column of a file of single requests.
const LOG_HEADING: &str = "timestamp";

/// A recorded load.
#[derive(Debug, Clone, PartialEq)]
pub struct Recording {
    /// As the report calls it.
    pub name: String,
    /// Images/s in each second, as recorded.
    rates: Vec<f64>,
}

impl Recording {
    /// The file `path`, named by its stem.
    ///
    /// # Errors
    /// If it cannot be read, or is neither of the two forms of [`Self::parse`].
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
        let name = path.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        Self::parse(name, &text).with_context(|| format!("{} is no recorded load", path.display()))
    }

    /// `text` as lines `seconds,images_per_second`, a rate until the next line, times rising, with or without a heading;
    /// or, if its heading begins with `TIMESTAMP`, as a request a line with its `date time` first.
    ///
    /// # Errors
    /// Names the line that is no such pair, and what is wrong with the file as a whole.
    pub fn parse(name: String, text: &str) -> anyhow::Result<Self> {
        let heading = text.get(..LOG_HEADING.len()).unwrap_or("");
        let rates = if heading.eq_ignore_ascii_case(LOG_HEADING) { requests(text) } else { rates(text) }?;
        ensure!(rates.len() >= SECONDS_MIN, "it holds {} s; at least {SECONDS_MIN} are needed", rates.len());
        ensure!(rates.iter().any(|rate| *rate > 0.0), "nothing arrives in it");
        Ok(Self { name, rates })
    }

    /// Greatest rate, images/s.
    pub fn peak(&self) -> f64 {
        self.rates.iter().copied().fold(0.0, f64::max)
    }

    /// The load with its rates multiplied so that the greatest is `peak` images/s; Poisson gaps.
    pub fn trace(&self, peak: f64) -> Trace {
        let factor = peak / self.peak();
        Trace { rates: self.rates.iter().map(|rate| factor * rate).collect(), gaps: Gaps::Poisson }
    }
}

/// Rates by second from lines `seconds,images_per_second`.
fn rates(text: &str) -> anyhow::Result<Vec<f64>> {
    let mut rates: Vec<f64> = Vec::new();
    let mut last: Option<f64> = None;
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let Some((time, rate)) = line.split_once(',') else {
            ensure!(line.trim().is_empty(), "line {number}: expected `seconds,rate`, got {line:?}");
            continue;
        };
        let Ok(time_s) = time.trim().parse::<f64>() else {
            ensure!(number == 1, "line {number}: {time:?} is no number of seconds");
            continue;
        };
        let rate: f64 = rate.trim().parse().with_context(|| format!("line {number}: {rate:?} is no rate"))?;
        ensure!(rate.is_finite() && rate >= 0.0, "line {number}: the rate must be finite and not negative");
        ensure!((0.0..SECONDS_MAX as f64).contains(&time_s), "line {number}: the time must lie in 0..{SECONDS_MAX}");
        let until = time_s.round() as usize;
        ensure!(rates.is_empty() || until >= rates.len(), "line {number}: times must rise by at least a second");
        rates.resize(until, last.unwrap_or(rate));
        rates.push(rate);
        last = Some(rate);
    }
    ensure!(!rates.is_empty(), "the file holds no line `seconds,rate`");
    Ok(rates)
}

/// Rates by second from a request a line, in any order: counts of whole minutes from the first request on.
fn requests(text: &str) -> anyhow::Result<Vec<f64>> {
    let mut seconds = Vec::new();
    for (index, line) in text.lines().enumerate().skip(1).filter(|(_, line)| !line.trim().is_empty()) {
        let stamp = line.split(',').next().unwrap_or("").trim();
        let moment: DateTime =
            stamp.parse().with_context(|| format!("line {}: {stamp:?} is no `date time`", index + 1))?;
        seconds.push(moment.duration_since(DateTime::ZERO).as_secs());
    }
    let first = seconds.iter().copied().min().context("the file holds no request")?;
    let last = seconds.iter().copied().max().unwrap_or(first);
    let length_s = usize::try_from(last - first)?;
    ensure!(length_s < SECONDS_MAX, "the requests span {length_s} s, more than {SECONDS_MAX}");
    // A last minute that the recording broke off would look like a fall.
    let mut counts = vec![0_u32; length_s / BIN_S];
    for second in seconds {
        if let Some(count) = counts.get_mut(usize::try_from(second - first)? / BIN_S) {
            *count += 1;
        }
    }
    Ok(counts.iter().flat_map(|count| [f64::from(*count) / BIN_S as f64; BIN_S]).collect())
}

/// What arrives in a comparison.
#[derive(Debug, Clone, PartialEq)]
pub enum Load {
    /// From a generator.
    Made(Kind),
    /// From a file.
    Recorded(Arc<Recording>),
}

impl Load {
    /// As the report calls it.
    pub fn name(&self) -> String {
        match self {
            Self::Made(kind) => kind.name(),
            Self::Recorded(recording) => recording.name.clone(),
        }
    }

    /// The load whose usual peak is `peak` images/s; a recorded one is the same for every seed but for the gaps.
    pub fn trace(&self, peak: f64, seed: u64) -> Trace {
        match self {
            Self::Made(kind) => kind.trace(peak, seed),
            Self::Recorded(recording) => recording.trace(peak),
        }
    }

    /// Whether it is one step up.
    pub const fn steps(&self) -> bool {
        matches!(self, Self::Made(Kind::Step(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_rates_holds_each_until_the_next_line() {
        assert_eq!(rates("seconds,rate\n0,10\n3,20\n5,0\n").unwrap(), [10.0, 10.0, 10.0, 20.0, 20.0, 0.0]);
        for (broken, why) in [
            ("", "no line"),
            ("0,1\nx,2", "line 2"),
            ("0,1\n1,-2", "negative"),
            ("0,1\n0,2", "rise"),
            ("0,1\n1,NaN", "finite"),
            ("0;1", "expected"),
            ("1e12,1", "must lie"),
        ] {
            let error = rates(broken).unwrap_err().to_string();
            assert!(error.contains(why), "{broken:?}: {error}");
        }
    }

    #[test]
    fn a_file_of_requests_is_counted_by_the_minute() {
        let log = "TIMESTAMP,ContextTokens,GeneratedTokens\n\
            2023-11-16 23:59:30.5000000,374,44\n2023-11-17 00:00:31.1,5,6\n2023-11-17 00:00:29.9,1,2\n\
            2023-11-17 00:02:00.0,1,2\n";
        let rates = requests(log).unwrap();
        assert_eq!(rates.len(), 120, "the third minute is broken off");
        assert!((rates[59] - 2.0 / 60.0).abs() < 1e-9 && (rates[60] - 1.0 / 60.0).abs() < 1e-9, "{rates:?}");
        let error = |text: &str| requests(text).unwrap_err().to_string();
        assert!(error("TIMESTAMP\nyesterday,1").contains("line 2"));
        assert!(error("TIMESTAMP,x\n").contains("no request"));
        assert!(error("TIMESTAMP\n0001-01-01 00:00:00\n9999-01-01 00:00:00").contains("span"));
    }

    #[test]
    fn a_recording_is_scaled_to_a_peak_and_must_be_long_enough() {
        let recording = Recording::parse("day".to_owned(), "0,1\n300,4\n700,2\n").unwrap();
        let rates = recording.trace(100.0).rates;
        assert_eq!((rates[299], rates[300], rates[700], rates.len()), (25.0, 100.0, 50.0, 701));
        let error = |text: &str| Recording::parse(String::new(), text).unwrap_err().to_string();
        assert!(error("0,1\n598,1\n").contains("599 s"));
        assert!(error("0,0\n900,0\n").contains("nothing arrives"));
    }
}
