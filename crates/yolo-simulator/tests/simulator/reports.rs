//! The report repeats byte by byte, and says what was measured.

use yolo_simulator::campaign::{Entry, measure_all};
use yolo_simulator::contestant::Contestant;
use yolo_simulator::goals;
use yolo_simulator::programme::Size;
use yolo_simulator::report::Report;
use yolo_simulator::trace::Kind;
use yolo_simulator::variation::Variation;

const SIZE: Size = Size { seeds: 2, scale: 0.25 };

fn report() -> Report {
    let entry =
        |kind, contestant, variation| Entry { place: SIZE.gpu(kind), contestant, variation, seeds: 1..=SIZE.seeds };
    let comparison = [
        entry(Kind::Step(4), Contestant::Planner, Variation::None),
        entry(Kind::Step(4), Contestant::Clairvoyant, Variation::None),
        entry(Kind::Gamma(4), Contestant::Planner, Variation::None),
    ];
    let comparison = measure_all(&comparison, &|_, _| {});
    let ablations = measure_all(&[entry(Kind::Step(4), Contestant::Planner, Variation::Curve(120))], &|_, _| {});
    let figures = goals::judge(&SIZE, (&comparison, &[]));
    Report { seeds: SIZE.seeds, scale: SIZE.scale, figures, comparison, ablations, faults: Vec::new() }
}

#[test]
fn the_same_seeds_make_the_same_bytes() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    report().write(one.path()).unwrap();
    report().write(other.path()).unwrap();
    for name in ["report.md", "report.json"] {
        let read = |folder: &tempfile::TempDir| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(read(&one), read(&other), "{name}");
    }
    let page = std::fs::read_to_string(one.path().join("report.md")).unwrap();
    for part in ["### step-x4, gpu, start-up 30 s", "| yolo-planner, told a curve of 120 % |", "G3_step4_L30_recovery"]
    {
        assert!(page.contains(part), "{part} is missing in\n{page}");
    }
}

#[test]
fn a_clairvoyant_costs_what_it_planned_and_whoever_costs_less_was_late() {
    let report = report();
    let row = |contestant: &str| report.comparison.iter().find(|row| row.contestant == contestant).unwrap();
    let (clairvoyant, planner) = (row("clairvoyant"), row("yolo-planner"));
    assert!((clairvoyant.cost.mean - 1.0).abs() < 1e-9);
    // The step cannot be foreseen: pods come a start-up too late, which saves as much of their cost.
    let (late, foreseen) = (planner.late_requests_percent.mean, clairvoyant.late_requests_percent.mean);
    assert!(late > foreseen + 1.0, "{late} % late beside {foreseen} %");
    assert!(planner.cost.mean > 0.95, "{}", planner.cost.mean);
}
