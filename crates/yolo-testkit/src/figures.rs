//! Measured figures in the one format of every bench and campaign: `target/figures/<area>.json` and a table.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::Context;
use serde::Serialize;
use serde_json::Value;

/// One measured number and the goal that it was held against.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// Unique in its area, such as `knob_change_applied_p95`.
    pub id: String,
    /// The value; of several runs or samples the one that the id names (a p95, a maximum).
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// The goal as text, such as `<= 1`; `reported` for a number that is only shown.
    pub goal: String,
    /// Whether the goal is reached.
    pub met: bool,
    /// Runs or samples behind it.
    pub runs: usize,
    /// Smallest of them.
    pub min: f64,
    /// Largest of them.
    pub max: f64,
    /// The command that measures it.
    pub how: &'static str,
    /// Evidence in words: a decision's reason, what was missed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub note: String,
}

impl Figure {
    /// A number that must not exceed `limit`.
    pub fn at_most(id: impl Into<String>, value: f64, unit: &'static str, limit: f64) -> Self {
        let goal = format!("<= {limit}");
        Self { goal, met: value <= limit, ..Self::reported(id, value, unit) }
    }

    /// A number that must reach `limit`.
    pub fn at_least(id: impl Into<String>, value: f64, unit: &'static str, limit: f64) -> Self {
        let goal = format!(">= {limit}");
        Self { goal, met: value >= limit, ..Self::reported(id, value, unit) }
    }

    /// A number without a goal.
    pub fn reported(id: impl Into<String>, value: f64, unit: &'static str) -> Self {
        let goal = "reported".to_owned();
        let (id, note) = (id.into(), String::new());
        Self { id, value, unit, goal, met: true, runs: 1, min: value, max: value, how: "", note }
    }

    /// The same figure with its evidence in words.
    #[must_use]
    pub fn noted(self, note: impl Into<String>) -> Self {
        Self { note: note.into(), ..self }
    }

    /// The same figure with the samples behind it.
    #[must_use]
    pub fn over(self, samples: &[f64]) -> Self {
        let min = samples.iter().copied().fold(f64::INFINITY, f64::min);
        let max = samples.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if samples.is_empty() { self } else { Self { runs: samples.len(), min, max, ..self } }
    }
}

#[derive(Serialize)]
struct Machine {
    cores: usize,
    cpu: String,
}

#[derive(Serialize)]
struct File<'a> {
    area: &'a str,
    commit: String,
    machine: Machine,
    figures: &'a [Figure],
}

/// Writes `<folder>/<area>.json`; `how` is the command that measured them.
///
/// # Errors
/// If the folder or the file cannot be written.
pub fn write(folder: &Path, area: &str, how: &'static str, figures: &mut [Figure]) -> anyhow::Result<()> {
    for figure in figures.iter_mut() {
        figure.how = how;
    }
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let file = File { area, commit: stamp().to_owned(), machine: Machine { cores, cpu: cpu() }, figures };
    std::fs::create_dir_all(folder).with_context(|| format!("failed to create {}", folder.display()))?;
    let path = folder.join(format!("{area}.json"));
    let text = serde_json::to_string_pretty(&file)? + "\n";
    std::fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))
}

/// As [`add_to`] does, into the folder that `YOLO_FIGURES` names; without it nothing is written. For figures that come
/// from tests.
///
/// # Errors
/// If the file cannot be read as figures, or not be written.
pub fn add(area: &str, how: &'static str, figures: &mut [Figure]) -> anyhow::Result<()> {
    let Some(folder) = std::env::var_os("YOLO_FIGURES").map(PathBuf::from) else { return Ok(()) };
    add_to(&folder, area, how, figures)
}

/// As [`write()`] does, but keeps what others have measured: figures of the same id are replaced.
///
/// # Errors
/// If the file cannot be read as figures, or not be written.
pub fn add_to(folder: &Path, area: &str, how: &'static str, figures: &mut [Figure]) -> anyhow::Result<()> {
    let path = folder.join(format!("{area}.json"));
    let before = std::fs::read_to_string(&path).ok();
    write(folder, area, how, figures)?;
    let Some(before) = before else { return Ok(()) };
    let (before, mut now): (Value, Value) =
        (serde_json::from_str(&before)?, serde_json::from_str(&std::fs::read_to_string(&path)?)?);
    let kept = before.get("figures").and_then(Value::as_array).into_iter().flatten();
    let kept =
        kept.filter(|old| figures.iter().all(|new| old.get("id") != Some(&Value::from(new.id.as_str())))).cloned();
    if let Some(all) = now.get_mut("figures").and_then(Value::as_array_mut) {
        all.extend(kept);
    }
    std::fs::write(&path, serde_json::to_string_pretty(&now)? + "\n")
        .with_context(|| format!("failed to write {}", path.display()))
}

/// The figures as a table, those that miss their goal last, where the reader of a terminal looks first.
pub fn table(figures: &[Figure]) -> String {
    let mut sorted: Vec<&Figure> = figures.iter().collect();
    sorted.sort_by_key(|figure| !figure.met);
    let width = sorted.iter().map(|figure| figure.id.len()).max().unwrap_or(0);
    let mut text = String::new();
    for figure in sorted {
        let verdict = if figure.met { "ok    " } else { "MISSED" };
        let value = format!("{:.3}", figure.value);
        let value = value.trim_end_matches('0').trim_end_matches('.');
        let Figure { id, unit, goal, note, .. } = figure;
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{verdict}  {id:<width$}  {value:>9} {unit:<8} {goal:<9} {note}");
    }
    text
}

/// The commit that is measured, as it is at the first call; `unknown` outside a git checkout. A program that runs for long
/// calls this when it starts: the checkout may move on while it measures.
pub fn stamp() -> &'static str {
    static COMMIT: OnceLock<String> = OnceLock::new();
    COMMIT.get_or_init(|| {
        let output = Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).output();
        let text = output.ok().filter(|o| o.status.success()).and_then(|o| String::from_utf8(o.stdout).ok());
        text.map_or_else(|| "unknown".to_owned(), |commit| commit.trim().to_owned())
    })
}

fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(':'));
    model.map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_lists_misses_last() {
        let figures = [Figure::at_most("late", 2.0, "s", 1.0), Figure::at_least("ratio", 0.98, "ratio", 0.97)];
        let table = table(&figures);
        let lines: Vec<_> = table.lines().collect();
        assert!(lines[0].starts_with("ok      ratio"), "{table}");
        assert!(lines[1].starts_with("MISSED  late") && lines[1].contains("<= 1"), "{table}");
    }

    #[test]
    fn the_file_has_the_documented_fields() {
        let folder = tempfile::tempdir().unwrap();
        let mut figures = [Figure::at_most("x", 0.5, "s", 1.0).over(&[0.25, 0.5])];
        write(folder.path(), "demo", "make demo", &mut figures).unwrap();
        let text = std::fs::read_to_string(folder.path().join("demo.json")).unwrap();
        let file: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(file["area"], "demo");
        assert_eq!(
            file["figures"][0],
            serde_json::json!({"id": "x", "value": 0.5, "unit": "s", "goal": "<= 1", "met": true, "runs": 2,
                "min": 0.25, "max": 0.5, "how": "make demo"})
        );
    }

    #[test]
    fn figures_of_others_are_kept_and_own_ones_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let add = |how, figures: &mut [Figure]| add_to(folder.path(), "server", how, figures).unwrap();
        add("make theirs", &mut [Figure::reported("theirs", 1.0, "s")]);
        add("make ours", &mut [Figure::at_most("ours", 3.0, "s", 2.0)]);
        add("make ours", &mut [Figure::at_least("ours", 4.0, "s", 2.0)]);
        let text = std::fs::read_to_string(folder.path().join("server.json")).unwrap();
        let file: Value = serde_json::from_str(&text).unwrap();
        let ids: Vec<_> = file["figures"].as_array().unwrap().iter().map(|figure| &figure["id"]).collect();
        assert_eq!(ids, ["ours", "theirs"]);
        assert_eq!((&file["figures"][0]["goal"], &file["figures"][1]["how"]), (&">= 2".into(), &"make theirs".into()));
    }
}
