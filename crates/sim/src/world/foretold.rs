//! What the predictor says against what the simulator does: a grid of workloads, each moved in every way.
//!
//! The curve of written pages is counted as `plan` counts it; everything else that the predictor is told is what the scenario says.

use std::time::Duration;

use whimbrel_policy::dirty::DirtyCurve;
use whimbrel_policy::predict::{predict, Aim, Course, Measured, Position, Prediction};

use super::before::{costs, limits};
use super::*;

/// When written pages are counted, in milliseconds.
const LOOKS_MS: [u64; 7] = [50, 100, 200, 400, 800, 1600, 3000];

/// Bytes per second of the link in all of them.
const LINK: u64 = 100_000_000;

/// Memory in MiB, and its workloads.
fn grid() -> Vec<(String, String)> {
    let mut grid = Vec::new();
    for mib in [64, 192] {
        let memory = format!("memory = {{ size = \"{mib}MiB\", zero = 0.1 }}");
        grid.push((format!("{mib} MiB, idle"), memory.clone()));
        for model in ["uniform", "hot-cold", "sequential"] {
            for rate in [5, 30, 100, 400] {
                for part in [4, 1] {
                    let load = format!(
                        "{memory}\nguest = {{ vcpus = 2, load = [{{ model = \"{model}\", rate = \"{rate}MB/s\", start = \"{}MiB\", size = \"{}MiB\" }}] }}",
                        (mib - mib / part) / 2,
                        mib / part
                    );
                    grid.push((format!("{mib} MiB, {model} {rate} MB/s in 1/{part}"), load));
                }
            }
        }
    }
    grid
}

fn scenario(workload: &str, migration: &str) -> Scenario {
    let text = format!(
        "link = {{ rate = \"{LINK}B/s\", latency = \"100us\" }}\n{workload}\nmigration = {{ after = \"1s\", {migration} }}"
    );
    Scenario::parse(&text, "grid.toml").unwrap()
}

fn measured(scenario: &Scenario) -> Measured {
    let mut guest = World::new(scenario).guest;
    let mut dirty = DirtyCurve::default();
    let mut at = Duration::ZERO;
    for look in LOOKS_MS.map(Duration::from_millis) {
        while at < look {
            let step = (look - at).min(Duration::from_millis(5));
            guest.run(step);
            at += step;
        }
        dirty.add(at, guest.marks.dirty.len());
    }
    let pages = scenario.memory_pages();
    Measured {
        memory_pages: pages,
        zero_share: guest.zero.len() as f64 / pages as f64,
        urgent_pages: 0,
        dirty,
        wire_share: 1.0,
        link_bandwidth: LINK,
        plain_bytes: 0,
        page_rate_max: None,
        round_trip: 2 * scenario.link.latency.0,
        state_bytes: scenario.guest.state.0,
        costs: costs(scenario),
    }
}

/// What is compared, and in which unit.
type Figure = (&'static str, fn(&Prediction) -> f64, fn(&Outcome) -> f64);
const FIGURES: [Figure; 3] = [
    ("total s", |told| told.total_s.likely, |truth| truth.total_s),
    (
        "downtime ms",
        |told| told.downtime_s.likely * 1e3,
        |truth| truth.downtime_s * 1e3,
    ),
    (
        "MB",
        |told| told.bytes.likely / 1e6,
        |truth| truth.bytes as f64 / 1e6,
    ),
];

fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Signed, in percent of the truth.
fn percent(told: f64, truth: f64) -> f64 {
    (told / truth - 1.0) * 100.0
}

fn simulated(workload: &str, course: Course) -> Outcome {
    simulate(&scenario(workload, &format!("strategy = \"{course}\"")))
}

/// Errors by figure, for all workloads and one course.
fn errors(course: Course) -> [Vec<f64>; 3] {
    let mut errors: [Vec<f64>; 3] = Default::default();
    for (name, workload) in grid() {
        let quiet = scenario(&workload, "");
        let measured = measured(&quiet);
        let told = predict(&measured, &limits(&quiet), &Position::start(&measured), course);
        let truth = simulated(&workload, course);
        assert!(truth.is_finished, "{name} {course} {:?}", truth.notes);
        let mut line = format!("{name:<36} {course:<9}");
        for ((_, of_told, of_truth), errors) in FIGURES.iter().zip(&mut errors) {
            let (told, truth) = (of_told(&told), of_truth(&truth));
            errors.push(percent(told, truth).abs());
            line += &format!("{truth:>10.1}{told:>10.1}{:>+6.0} %", percent(told, truth));
        }
        println!("{line} {:>3} {:>3}", truth.rounds.len(), told.rounds);
    }
    errors
}

#[test]
fn predictions_come_true() {
    for course in Course::ALL {
        let errors = errors(course);
        for ((name, ..), errors) in FIGURES.iter().zip(&errors) {
            let far = errors.iter().filter(|&&error| error > 15.0).count();
            let median = median(errors);
            println!(
                "{course}, {name}: median error {median:.1} %, {far} of {} beyond 15 %",
                errors.len()
            );
            assert!(median <= 15.0, "{course}, {name}: {median:.1} %");
            assert!(far * 5 <= errors.len(), "{course}, {name}: {far} beyond 15 %");
        }
    }
}

/// What an aim saves.
fn cost(aim: Aim, outcome: &Outcome) -> f64 {
    match aim {
        Aim::Time => outcome.total_s,
        Aim::Bytes => outcome.bytes as f64,
        Aim::Downtime => outcome.downtime_s,
    }
}

#[test]
fn auto_is_hardly_worse_than_the_best_of_all_ways() {
    let aims = [Aim::Time, Aim::Bytes, Aim::Downtime];
    let mut regrets: [Vec<f64>; 3] = Default::default();
    for (name, workload) in grid() {
        let all = Course::ALL.map(|course| simulated(&workload, course));
        for (&aim, regrets) in aims.iter().zip(&mut regrets) {
            let quiet = scenario(
                &workload,
                &format!("strategy = \"auto\", min = \"{}\"", aim.name()),
            );
            let limit = limits(&quiet).downtime_max.as_secs_f64();
            let auto = simulate(&quiet);
            let within = |outcome: &&Outcome| aim == Aim::Downtime || outcome.downtime_s <= limit;
            let best = all
                .iter()
                .filter(within)
                .map(|outcome| cost(aim, outcome))
                .fold(f64::INFINITY, f64::min);
            let regret = percent(cost(aim, &auto), best);
            let chosen = auto.chosen.as_deref().unwrap_or("nothing");
            println!(
                "{name:<36} {:<9}{chosen:<9}{regret:>+7.1} % {:>8.1} ms",
                aim.name(),
                auto.downtime_s * 1e3
            );
            regrets.push(regret);
        }
    }
    for (aim, regrets) in aims.iter().zip(&regrets) {
        println!("{}: median regret {:.1} %", aim.name(), median(regrets));
        assert!(
            median(regrets) <= 10.0,
            "{}: {:.1} %",
            aim.name(),
            median(regrets)
        );
    }
}
