//! `whimbrel plan`: measures a workload and the way to a destination, and says what each strategy would cost.

use std::fmt::{self, Write};
use std::sync::atomic::AtomicBool;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use whimbrel_engine::source::{measure, SourceOptions, ASK_FOR};
use whimbrel_engine::summary::{Bytes, Time};
use whimbrel_engine::{Measurement, ResidualOptions, Workload};
use whimbrel_policy::predict::{choose, predict_all, Choice, Estimate, Goals, Position, Prediction};
use whimbrel_policy::{Hints, Limits, Migration, PreCopy, PAGE_SIZE};
use whimbrel_wire::MigrationId;

use crate::args::{End, PlanArgs};
use crate::exit::refused;
use crate::guardian::Guardian;
use crate::subject::{self, Task};
use crate::watch::Watch;
use crate::{host, interrupt};

/// Intervals for which the dirty rate is shown.
const INTERVALS: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(30),
];

/// Measures, predicts and prints.
pub fn run(args: &PlanArgs) -> anyhow::Result<()> {
    let cancel = interrupt::watch()?;
    let plan = subject::with(&args.workload, Look { args, cancel })?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&plan.report())?);
    } else {
        print!("{plan}");
    }
    Ok(())
}

struct Look<'a> {
    args: &'a PlanArgs,
    cancel: Arc<AtomicBool>,
}

impl Task for Look<'_> {
    type Done = Plan;

    fn carry_out<W: Workload>(self, workload: &mut W, name: String) -> anyhow::Result<Plan> {
        let args = self.args;
        let limits = Limits {
            downtime_max: args.max_downtime,
            bandwidth_max: args.max_bandwidth,
            ..Limits::default()
        };
        let id = MigrationId::random()?;
        let guardian = Guardian::start(id, End::Source, args.link_timeout, None)?;
        let options = SourceOptions {
            id,
            key: args.key.clone(),
            destination: args.destination.clone(),
            workload_name: name.clone(),
            migration: Migration::new(Box::new(PreCopy::default()), limits, Hints::default()),
            residual: ResidualOptions::default(),
            trace: None,
            link_timeout: args.link_timeout,
            followed: true,
            ask_for: ASK_FOR,
            journals: host::journals(),
            cancel: self.cancel,
        };
        let mut watch = Watch::new(None)?;
        let measured = measure(workload, options, args.look_for, &mut watch);
        guardian.release();
        watch.close();
        let measurement = measured.map_err(|why| refused(format!("{name} cannot be measured: {why}")))?;
        let goals = Goals {
            downtime_max: args.max_downtime,
            min: args.min.map(Into::into),
        };
        Ok(Plan::new(
            name,
            args.destination.clone(),
            measurement,
            &limits,
            &goals,
        ))
    }
}

/// What was found, and what follows from it.
struct Plan {
    workload: String,
    destination: String,
    found: Measurement,
    predictions: Vec<Prediction>,
    choice: Option<Choice>,
}

impl Plan {
    fn new(
        workload: String,
        destination: String,
        found: Measurement,
        limits: &Limits,
        goals: &Goals,
    ) -> Self {
        let predictions = predict_all(&found.measured, limits, &Position::start(&found.measured));
        Plan {
            workload,
            destination,
            choice: choose(&predictions, goals),
            predictions,
            found,
        }
    }

    fn memory(&self) -> String {
        let measured = &self.found.measured;
        let mut text = format!(
            "memory   {} to send, {:.0} % of it zeros; the rest packs to {:.0} %",
            Bytes(measured.memory_pages * PAGE_SIZE),
            measured.zero_share * 100.0,
            self.found.packed_share * 100.0
        );
        for (kind, bytes) in &self.found.nature.memory {
            let _ = write!(text, ", {kind} {}", Bytes(*bytes));
        }
        text
    }

    fn writes(&self) -> String {
        let dirty = &self.found.measured.dirty;
        let rate = |interval: &Duration| {
            let rate = dirty.rate_over(*interval)?;
            Some(format!(
                "{}/s over {}",
                Bytes(rate),
                Time(interval.as_micros() as u64)
            ))
        };
        let rates: Vec<String> = INTERVALS.iter().filter_map(rate).collect();
        let set = match dirty.working_set_pages() {
            Some(pages) => format!("working set {}", Bytes(pages as u64 * PAGE_SIZE)),
            None => "no end of the working set to be seen".to_owned(),
        };
        format!("writes   {}; {set}", rates.join(", "))
    }

    fn report(&self) -> Report<'_> {
        let measured = &self.found.measured;
        Report {
            workload: &self.workload,
            destination: &self.destination,
            looked_for_s: self.found.looked_for.as_secs_f64(),
            memory_bytes: measured.memory_pages * PAGE_SIZE,
            memory: self
                .found
                .nature
                .memory
                .iter()
                .map(|(kind, bytes)| (kind.as_str(), *bytes))
                .collect(),
            zero_share: measured.zero_share,
            packed_share: self.found.packed_share,
            urgent_bytes: measured.urgent_pages * PAGE_SIZE,
            working_set_bytes: measured
                .dirty
                .working_set_pages()
                .map(|pages| pages as u64 * PAGE_SIZE),
            dirtied: measured
                .dirty
                .points()
                .map(|(time, pages)| (time.as_secs_f64(), pages * PAGE_SIZE))
                .collect(),
            link_bytes_per_s: measured.link_bandwidth,
            round_trip_s: measured.round_trip.as_secs_f64(),
            strategies: self.predictions.iter().map(Row::of).collect(),
            choice: self.choice.map(|choice| choice.course.name()),
            why: self.choice.map(|choice| choice.to_string()),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let measured = &self.found.measured;
        writeln!(f, "{} to {}", clean(&self.workload), self.destination)?;
        writeln!(f, "{}\n{}", self.memory(), self.writes())?;
        writeln!(
            f,
            "link     {}/s, round trip {}",
            Bytes(measured.link_bandwidth),
            Time(measured.round_trip.as_micros() as u64)
        )?;
        writeln!(
            f,
            "\n{:<10}{:<26}{:<28}{:<30}{:<20}slow-down",
            "strategy", "total time", "downtime", "bytes", "network faults"
        )?;
        for prediction in &self.predictions {
            writeln!(f, "{}", row(prediction))?;
        }
        match self.choice {
            Some(choice) => writeln!(f, "\n{choice}"),
            None => Ok(()),
        }
    }
}

fn clean(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// The likely value, and in brackets how far it may be off.
fn spread(estimate: &Estimate, show: impl Fn(f64) -> String) -> String {
    let Estimate { low, likely, high } = *estimate;
    format!("{} ({} to {})", show(likely), show(low), show(high))
}

fn row(prediction: &Prediction) -> String {
    let time = |seconds: f64| Time((seconds * 1e6) as u64).to_string();
    let count = |number: f64| format!("{number:.0}");
    format!(
        "{:<10}{:<26}{:<28}{:<30}{:<20}{:.0} %",
        prediction.course.name(),
        spread(&prediction.total_s, time),
        spread(&prediction.downtime_s, time),
        spread(&prediction.bytes, |bytes| Bytes(bytes as u64).to_string()),
        spread(&prediction.network_faults, count),
        prediction.slowdown.likely * 100.0
    )
}

/// The same for programs. Times in seconds.
#[derive(Serialize)]
struct Report<'a> {
    workload: &'a str,
    destination: &'a str,
    looked_for_s: f64,
    memory_bytes: u64,
    memory: Vec<(&'a str, u64)>,
    zero_share: f64,
    packed_share: f64,
    urgent_bytes: u64,
    working_set_bytes: Option<u64>,
    dirtied: Vec<(f64, u64)>,
    link_bytes_per_s: u64,
    round_trip_s: f64,
    strategies: Vec<Row>,
    choice: Option<&'static str>,
    why: Option<String>,
}

/// Likely, lowest and highest value.
#[derive(Serialize)]
struct Row {
    strategy: &'static str,
    total_s: [f64; 3],
    downtime_s: [f64; 3],
    bytes: [f64; 3],
    network_faults: [f64; 3],
    slowdown: [f64; 3],
    rounds: u32,
    stop_reason: Option<String>,
}

impl Row {
    fn of(prediction: &Prediction) -> Self {
        let three = |estimate: Estimate| [estimate.likely, estimate.low, estimate.high];
        Row {
            strategy: prediction.course.name(),
            total_s: three(prediction.total_s),
            downtime_s: three(prediction.downtime_s),
            bytes: three(prediction.bytes),
            network_faults: three(prediction.network_faults),
            slowdown: three(prediction.slowdown),
            rounds: prediction.rounds,
            stop_reason: prediction.stop_reason.map(|reason| reason.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_says_how_far_it_may_be_off() {
        let estimate = Estimate {
            low: 1.5,
            likely: 2.0,
            high: 3.0,
        };
        assert_eq!(
            spread(&estimate, |number| format!("{number:.1}")),
            "2.0 (1.5 to 3.0)"
        );
    }
}
