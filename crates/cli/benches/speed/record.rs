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

/// A line of a table: a name, a number with its unit, and what it should be.
pub fn line(name: &str, number: f64, unit: &str, goal: &str) {
    println!("{name:<44} {number:>10.2} {unit:<6} {goal}");
}
