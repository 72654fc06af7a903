//! Tables and charts of the competition.

use serde_json::Value;
use whimbrel_sim::chart::{Across, Chart, Scale, Series};

use super::{Competitor, Row, Run, Score};
use crate::chart::save;
use crate::record::{cell, destination_ms, fault_ms, ms, phase_ms, residual};

/// What is compared: its name, its decimals, and the number.
struct Number {
    name: &'static str,
    decimals: usize,
    of: fn(&Run) -> f64,
}

const NUMBERS: [Number; 4] = [
    Number {
        name: "gap ms",
        decimals: 0,
        of: |run| run.gap_ms,
    },
    Number {
        name: "client ms",
        decimals: 0,
        of: |run| run.client_ms,
    },
    Number {
        name: "total s",
        decimals: 2,
        of: |run| run.total_s,
    },
    Number {
        name: "MB",
        decimals: 0,
        of: |run| run.megabytes,
    },
];

/// Where whimbrel's downtime goes: at the source, then at the destination.
const PHASES: [&str; 7] = [
    "freeze",
    "capture",
    "last-scan",
    "last-pages",
    "hold",
    "load",
    "offer",
];
const AT_DESTINATION: [&str; 5] = ["build_us", "load_us", "offer_us", "commit_us", "start_us"];

fn place(row: Row) -> String {
    format!("{:>5} MB {:>4} MB/s", row.memory_mib, row.rate)
}

/// `errors` and lost ticks of all runs together: both must be 0.
pub fn heads() {
    let names: String = NUMBERS
        .iter()
        .map(|number| format!("{:>20}", number.name))
        .collect();
    println!("{:>18}{:>13}{names}{:>8}{:>7}", "guest", "by", "errors", "lost");
}

/// The same without a move, and how busy the machine is: 1 is the guest itself.
pub fn usual(row: Row, (gap, client): &(f64, f64)) {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    println!(
        "{:>18}{:>13}{gap:>20.0}{client:>20.0}  load {load}",
        place(row),
        "no move"
    );
}

pub fn print(row: Row, results: &[Score]) {
    for result in results {
        let cell = |number: &Number| format!("{:>20}", spread(result, number));
        let cells: String = NUMBERS.iter().map(cell).collect();
        let errors: u64 = result.runs.iter().map(|run| run.errors).sum();
        let lost: usize = result.runs.iter().map(|run| run.lost).sum();
        let name = result.competitor.name();
        let note = match result.gives_up() {
            true => "  does not converge",
            false if !result.failures.is_empty() => "  FAILED",
            false => "",
        };
        println!("{:>18}{name:>13}{cells}{errors:>8}{lost:>7}{note}", place(row));
    }
}

fn spread(result: &Score, number: &Number) -> String {
    let mut values: Vec<f64> = result.runs.iter().map(number.of).collect();
    values.sort_by(f64::total_cmp);
    let (Some(low), Some(high)) = (values.first(), values.last()) else {
        return "-".to_string();
    };
    let (middle, digits) = (values[values.len() / 2], number.decimals);
    format!("{middle:.digits$} ({low:.digits$}-{high:.digits$})")
}

fn median(result: &Score, number: impl Fn(&Run) -> f64) -> f64 {
    let mut values: Vec<f64> = result.runs.iter().map(number).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The best of whimbrel's strategies by the best of QEMU's, for each number on its own. Who damages the guest has no part in it.
pub fn ratios(rows: &[(Row, Vec<Score>)]) {
    println!("\nwhimbrel's best / QEMU's best: below 1 whimbrel is better\n");
    let names: String = NUMBERS
        .iter()
        .map(|number| format!("{:>34}", number.name))
        .collect();
    println!("{:>18}{names}", "guest");
    for (row, results) in rows {
        let ratio = |number: &Number| {
            let best = |whimbrel| {
                let right = results
                    .iter()
                    .filter(|one| one.runs.iter().all(|run| run.errors == 0));
                let those =
                    right.filter(|one| one.competitor.is_whimbrel() == whimbrel && !one.runs.is_empty());
                let medians = those.map(|one| (median(one, number.of), one.competitor.name()));
                medians.min_by(|one, other| one.0.total_cmp(&other.0))
            };
            match (best(true), best(false)) {
                (Some(ours), Some(theirs)) => {
                    format!("{:>8.2} ({:>10} / {:<10})", ours.0 / theirs.0, ours.1, theirs.1)
                }
                _ => "-".to_string(),
            }
        };
        let cells: String = NUMBERS
            .iter()
            .map(|number| format!("{:>34}", ratio(number)))
            .collect();
        println!("{:>18}{cells}", place(*row));
    }
}

pub fn phases(rows: &[(Row, Vec<Score>)]) {
    println!("\nwhere whimbrel's downtime goes, ms; dst: at the destination; then what followed after the switch-over\n");
    let here = PHASES.iter().map(|name| name.to_string());
    let there = AT_DESTINATION
        .iter()
        .map(|name| format!("dst {}", name.trim_end_matches("_us")));
    let after = ["resume s", "faults", "fault p99", "fault max"].map(str::to_string);
    let names = here.chain(there).chain(after);
    let names: String = names.map(|name| format!("{name:>11}")).collect();
    println!(
        "{:>18}{:>13}{:>9}{:>7}{names}",
        "guest", "by", "downtime", "rounds"
    );
    for (row, results) in rows {
        for result in results.iter().filter(|result| result.competitor.is_whimbrel()) {
            println!("{:>18}{}", place(*row), phases_of(result));
        }
    }
}

fn phases_of(result: &Score) -> String {
    let of =
        |number: &dyn Fn(&Value) -> f64| median(result, |run| run.record.as_ref().map_or(f64::NAN, number));
    let here = PHASES.map(|phase| of(&|record| phase_ms(record, phase)));
    let there = AT_DESTINATION.map(|name| of(&|record| destination_ms(record, name)));
    let after = [
        of(&|record| residual(record, "duration_us") / 1e6),
        of(&|record| residual(record, "network_faults")),
        of(&|record| fault_ms(record, "p99_us")),
        of(&|record| fault_ms(record, "max_us")),
    ];
    let numbers = here.into_iter().chain(there).chain(after);
    let cells: String = numbers.map(|number| cell(number, 1)).collect();
    let downtime = of(&|record| ms(record, "downtime_us"));
    let rounds = of(&|record| {
        record["rounds"]
            .as_array()
            .map_or(0.0, |rounds| rounds.len() as f64)
    });
    let name = result.competitor.name();
    format!("{name:>13}{downtime:>9.1}{rounds:>7.0}{cells}")
}

/// A chart: its file, its title, its unit, its scale, and which of the numbers it shows.
type Graph = (&'static str, &'static str, &'static str, Scale, &'static Number);

const GRAPHS: [Graph; 3] = [
    (
        "machines-gap.svg",
        "Longest silence",
        "ms",
        Scale::Logarithmic,
        &NUMBERS[0],
    ),
    (
        "machines-total.svg",
        "Total migration time",
        "s",
        Scale::Linear,
        &NUMBERS[2],
    ),
    (
        "machines-bytes.svg",
        "Bytes sent",
        "MB",
        Scale::Linear,
        &NUMBERS[3],
    ),
];

/// For the small guest.
pub fn charts(rows: &[(Row, Vec<Score>)]) {
    let small: Vec<_> = rows.iter().filter(|(row, _)| row.memory_mib == 512).collect();
    let Some((_, first)) = small.first() else { return };
    let competitors: Vec<Competitor> = first.iter().map(|result| result.competitor).collect();
    println!();
    for (file, title, left, scale, number) in GRAPHS {
        let line = |(index, competitor): (usize, &Competitor)| {
            let values = small
                .iter()
                .map(|(_, results)| median(&results[index], number.of));
            Series::of_columns(&competitor.name(), values)
        };
        let chart = Chart {
            title: format!("{title}, guest of 512 MB (w: whimbrel, Q: QEMU 7.2)"),
            left: left.to_string(),
            bottom: "it rewrites 128 MB at so many MB/s".to_string(),
            across: Across::Columns(small.iter().map(|(row, _)| row.rate.to_string()).collect()),
            series: competitors.iter().enumerate().map(line).collect(),
            scale,
            ..Chart::default()
        };
        save(file, &chart);
    }
}
