//! A recorded load, from the file to the table.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Output};

fn compare(file: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_yolo-simulator"));
    command.args(["compare", "--alone", "--csv"]).arg(file).args(args).output().unwrap()
}

/// Twenty minutes of requests in the form of the Azure LLM inference traces: 2/s, then 6/s.
fn requests() -> String {
    let mut log = String::from("TIMESTAMP,ContextTokens,GeneratedTokens\n");
    for second in 0..1200 {
        for request in 0..if second < 600 { 2 } else { 6 } {
            let (minute, second) = (second / 60, second % 60);
            writeln!(log, "2023-11-16 18:{minute:02}:{second:02}.{request}000000,374,44").unwrap();
        }
    }
    // The last minute counts once it is whole.
    log + "2023-11-16 18:20:00.0000000,374,44\n"
}

#[test]
fn recorded_requests_are_compared_and_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let (file, picture) = (folder.path().join("requests.csv"), folder.path().join("run.svg"));
    std::fs::write(&file, requests()).unwrap();
    let output = compare(&file, &["--peak", "1500", "--picture", picture.to_str().unwrap()]);
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && table.starts_with("requests, gpu, start-up 30 s\n"), "{table}");
    let row = |name: &str| table.lines().find(|line| line.starts_with(name)).unwrap();
    assert!(row("clairvoyant").contains("cost 1.000 "), "{table}");
    assert!(!row("yolo-planner").contains("changes 0.0 "), "three times the load needs more pods:\n{table}");
    assert!(std::fs::read_to_string(picture).unwrap().contains("clairvoyant, "));
}

#[test]
fn a_file_that_is_no_load_is_refused_by_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("broken.csv");
    std::fs::write(&file, requests() + "soon,1,1\n").unwrap();
    let output = compare(&file, &[]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && error.contains("broken.csv") && error.contains("line 4803"), "{error}");
}
