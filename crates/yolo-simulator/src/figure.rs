//! Figures with their goals, in the shape of every bench of this repository (`yolo_testkit::figures`, which normal code
//! may not depend on).

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use serde::Serialize;

use crate::stats::Mean;

/// The command that measures these figures.
pub const HOW: &str = "make bench-control";

/// One number and its goal.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// Unique in the area.
    pub id: String,
    /// Mean over the seeds.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// The goal as text.
    pub goal: String,
    /// Whether the mean reaches it.
    pub met: bool,
    /// Seeds.
    pub runs: usize,
    /// Smallest of them.
    pub min: f64,
    /// Largest of them.
    pub max: f64,
    /// How it is measured.
    pub how: &'static str,
    /// The 95 % interval, and what else belongs to it.
    pub note: String,
}

impl Figure {
    fn new(id: &str, mean: &Mean, unit: &'static str, (goal, met): (String, bool)) -> Self {
        let least = mean.values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = mean.values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (min, max) = if mean.values.is_empty() { (mean.mean, mean.mean) } else { (least, most) };
        let note = format!("95 % interval {:.3} to {:.3}", mean.low, mean.high);
        let (id, value, runs) = (id.to_owned(), mean.mean, mean.values.len());
        Self { id, value, unit, goal, met, runs, min, max, how: HOW, note }
    }

    /// A mean that must not exceed `limit`.
    pub fn at_most(id: &str, mean: &Mean, unit: &'static str, limit: f64) -> Self {
        Self::new(id, mean, unit, (format!("<= {limit}"), mean.mean <= limit))
    }

    /// A mean that must reach `limit`.
    pub fn at_least(id: &str, mean: &Mean, unit: &'static str, limit: f64) -> Self {
        Self::new(id, mean, unit, (format!(">= {limit}"), mean.mean >= limit))
    }

    /// The same with more to say.
    #[must_use]
    pub fn noted(mut self, note: &str) -> Self {
        let _ = write!(self.note, "; {note}");
        self
    }
}

#[derive(Serialize)]
struct Machine {
    cores: usize,
    cpu: String,
}

#[derive(Serialize)]
struct File<'a> {
    area: &'static str,
    commit: String,
    machine: Machine,
    figures: &'a [Figure],
}

/// Writes `figures` as `<folder>/control.json`, keeping those of other benches that the file already holds.
///
/// # Errors
/// If the file cannot be read as figures, or not be written.
pub fn write(folder: &Path, figures: &[Figure]) -> anyhow::Result<()> {
    let path = folder.join("control.json");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let file = File { area: "control", commit: commit(), machine: Machine { cores, cpu: cpu() }, figures };
    let mut now = serde_json::to_value(file)?;
    if let Ok(text) = std::fs::read_to_string(&path) {
        let before: serde_json::Value =
            serde_json::from_str(&text).with_context(|| format!("{} holds no figures", path.display()))?;
        let kept = before.get("figures").and_then(serde_json::Value::as_array).into_iter().flatten();
        let new =
            |old: &serde_json::Value| figures.iter().any(|figure| old.get("id") == Some(&figure.id.as_str().into()));
        let kept: Vec<_> = kept.filter(|old| !new(old)).cloned().collect();
        if let Some(all) = now.get_mut("figures").and_then(serde_json::Value::as_array_mut) {
            all.extend(kept);
        }
    }
    std::fs::create_dir_all(folder).with_context(|| format!("failed to create {}", folder.display()))?;
    std::fs::write(&path, serde_json::to_string_pretty(&now)? + "\n")
        .with_context(|| format!("failed to write {}", path.display()))
}

/// The figures as a table for a terminal, misses last.
pub fn table(figures: &[Figure]) -> String {
    let mut sorted: Vec<&Figure> = figures.iter().collect();
    sorted.sort_by_key(|figure| !figure.met);
    let width = sorted.iter().map(|figure| figure.id.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Figure { id, value, unit, goal, met, note, .. } in sorted {
        let verdict = if *met { "ok    " } else { "MISSED" };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{verdict}  {id:<width$}  {value:>9.3} {unit:<9} {goal:<9} {note}");
    }
    text
}

/// The commit that was measured; `unknown` outside a git checkout.
fn commit() -> String {
    let output = Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).output();
    let text = output.ok().filter(|o| o.status.success()).and_then(|o| String::from_utf8(o.stdout).ok());
    text.map_or_else(|| "unknown".to_owned(), |commit| commit.trim().to_owned())
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
    fn figures_of_other_benches_are_kept_and_own_ones_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let other = Figure { how: "make other", ..Figure::at_most("theirs", &Mean::of(vec![1.0]), "ratio", 2.0) };
        write(folder.path(), &[other, Figure::at_most("ours", &Mean::of(vec![3.0]), "ratio", 2.0)]).unwrap();
        write(folder.path(), &[Figure::at_least("ours", &Mean::of(vec![3.0, 5.0]), "ratio", 2.0)]).unwrap();
        let text = std::fs::read_to_string(folder.path().join("control.json")).unwrap();
        let file: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(file["area"], "control");
        assert_eq!(file["figures"].as_array().unwrap().len(), 2);
        let ours = &file["figures"][0];
        assert_eq!((&ours["id"], &ours["met"], &ours["runs"]), (&"ours".into(), &true.into(), &2.into()));
        assert_eq!((&ours["min"], &ours["max"], &ours["goal"]), (&3.0.into(), &5.0.into(), &">= 2".into()));
        assert_eq!(file["figures"][1]["how"], "make other");
    }

    #[test]
    fn a_table_lists_misses_last() {
        let missed = Figure::at_most("cost", &Mean::of(vec![1.2]), "ratio", 1.1);
        let met = Figure::at_most("bad", &Mean::of(vec![0.0]), "%", 1.0).noted("of all");
        let text = table(&[missed, met]);
        assert!(text.starts_with("ok      bad") && text.contains("of all"), "{text}");
        assert!(text.lines().nth(1).unwrap().starts_with("MISSED  cost"), "{text}");
    }
}
