//! Numbers from the records of several moves.

use serde_json::Value;

/// The records of moves that were made in the same way.
#[derive(Default)]
pub struct Records(Vec<Value>);

impl Records {
    pub fn push(&mut self, record: Value) {
        self.0.push(record);
    }

    /// The median of a number over all records.
    pub fn median(&self, number: impl Fn(&Value) -> f64) -> f64 {
        let mut numbers: Vec<f64> = self.0.iter().map(number).collect();
        numbers.sort_by(f64::total_cmp);
        numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// A number of the record itself, in milliseconds.
pub fn ms(record: &Value, name: &str) -> f64 {
    record[name].as_f64().unwrap_or(f64::NAN) / 1e3
}

/// A number that the destination measured, in milliseconds.
pub fn destination_ms(record: &Value, name: &str) -> f64 {
    ms(&record["destination_times"], name)
}

/// The time of a phase at the source, in milliseconds; all rounds together.
pub fn phase_ms(record: &Value, phase: &str) -> f64 {
    let phases = record["phases"].as_array().map_or(&[][..], Vec::as_slice);
    let those = phases.iter().filter(|one| one["phase"] == phase);
    those.map(|one| ms(one, "duration_us")).sum()
}

/// A number of what followed after the switch-over. Not a number if nothing did.
pub fn residual(record: &Value, name: &str) -> f64 {
    record["residual"][name].as_f64().unwrap_or(f64::NAN)
}

/// How long network faults took, in milliseconds: `p50_us`, `p99_us`, `max_us`.
pub fn fault_ms(record: &Value, name: &str) -> f64 {
    ms(&record["residual"]["times"]["all"], name)
}

/// Pages that went over the link, before and after the switch-over.
pub fn pages(record: &Value) -> f64 {
    let rounds = record["rounds"].as_array().map_or(&[][..], Vec::as_slice);
    let before: f64 = rounds
        .iter()
        .filter_map(|round| round["pages_sent"].as_f64())
        .sum();
    let after = ["pages_pushed", "pages_replied"].map(|name| residual(record, name));
    before + after.iter().filter(|pages| pages.is_finite()).sum::<f64>()
}

/// A number of the width of a column; a dash if there is none.
pub fn cell(number: f64, decimals: usize) -> String {
    match number.is_finite() {
        true => format!("{number:>11.decimals$}"),
        false => format!("{:>11}", "-"),
    }
}

/// The heads of columns.
pub fn heads(names: &[&str]) {
    println!(
        "{}",
        names.iter().map(|name| format!("{name:>11}")).collect::<String>()
    );
}

/// A line of a table: a name, a number with its unit, and what it should be.
pub fn line(name: &str, number: f64, unit: &str, goal: &str) {
    println!("{name:<44} {number:>10.2} {unit:<6} {goal}");
}
