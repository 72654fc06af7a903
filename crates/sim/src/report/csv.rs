//! Comma-separated values as RFC 4180 has them, with line feeds.

use super::{Case, Named};
use crate::Predicted;

/// Units are those of [`crate::Outcome`].
const COLUMNS: [Named<Case, String>; 25] = [
    ("strategy", |case| case.outcome.strategy.clone()),
    ("seed", |case| case.outcome.seed.to_string()),
    ("is_finished", |case| case.outcome.is_finished.to_string()),
    ("total_s", |case| number(case.outcome.total_s)),
    ("downtime_s", |case| number(case.outcome.downtime_s)),
    ("preparation_s", |case| number(case.outcome.preparation_s)),
    ("resume_s", |case| number(case.outcome.resume_s)),
    ("rounds", |case| case.outcome.rounds.len().to_string()),
    ("memory_pages", |case| case.outcome.memory_pages.to_string()),
    ("pages_sent", |case| case.outcome.pages_sent.to_string()),
    ("pages_zero", |case| case.outcome.pages_zero.to_string()),
    ("pages_skipped", |case| case.outcome.pages_skipped.to_string()),
    ("pages_from_storage", |case| {
        case.outcome.pages_from_storage.to_string()
    }),
    ("bytes", |case| case.outcome.bytes.to_string()),
    ("storage_bytes", |case| case.outcome.storage_bytes.to_string()),
    ("network_faults", |case| case.outcome.network_faults.to_string()),
    ("fault_wait_s", |case| number(case.outcome.fault_wait_s)),
    ("slowdown", |case| number(case.outcome.slowdown)),
    ("cpu_s", |case| number(case.outcome.cpu_s)),
    ("chosen", |case| case.outcome.chosen.clone().unwrap_or_default()),
    ("predicted_total_s", |case| {
        predicted(case, |predicted| predicted.total_s)
    }),
    ("predicted_downtime_s", |case| {
        predicted(case, |predicted| predicted.downtime_s)
    }),
    ("predicted_bytes", |case| {
        predicted(case, |predicted| predicted.bytes)
    }),
    ("stop_reason", |case| {
        case.outcome.stop_reason.clone().unwrap_or_default()
    }),
    ("notes", |case| case.outcome.notes.join("; ")),
];

/// A line of names, and a line for each case: the scenario's name, a column for each swept key, then the measures.
pub fn csv(cases: &[Case]) -> String {
    let keys = keys(cases);
    let measures = COLUMNS.iter().map(|(name, _)| (*name).to_owned());
    let names = std::iter::once("scenario".to_owned())
        .chain(keys.iter().map(|key| (*key).to_owned()))
        .chain(measures);
    let mut text = line(names);
    for case in cases {
        let swept = keys.iter().map(|key| value_of(case, key));
        let measures = COLUMNS.iter().map(|(_, value)| value(case));
        let name = case.outcome.scenario.clone();
        text += &line(std::iter::once(name).chain(swept).chain(measures));
    }
    text
}

/// All keys that were swept, in order.
fn keys(cases: &[Case]) -> Vec<&str> {
    let mut keys: Vec<&str> = Vec::new();
    for setting in cases.iter().flat_map(|case| &case.swept) {
        if !keys.contains(&setting.key.as_str()) {
            keys.push(&setting.key);
        }
    }
    keys
}

fn value_of(case: &Case, key: &str) -> String {
    let setting = case.swept.iter().find(|setting| setting.key == key);
    setting.map(|setting| setting.words()).unwrap_or_default()
}

fn predicted(case: &Case, value: fn(&Predicted) -> f64) -> String {
    number(case.outcome.predicted.as_ref().map_or(f64::NAN, value))
}

/// Empty if it is none.
fn number(value: f64) -> String {
    if value.is_finite() {
        value.to_string()
    } else {
        String::new()
    }
}

fn line(fields: impl Iterator<Item = String>) -> String {
    let fields: Vec<String> = fields.map(|field| quoted(harmless(field))).collect();
    fields.join(",") + "\n"
}

/// Names come from files of other people: what a spreadsheet would take for a formula begins with an apostrophe, and no control
/// character reaches a terminal.
fn harmless(field: String) -> String {
    let field = field.replace(|c: char| c.is_control() && c != '\n', " ");
    match field.starts_with(['=', '+', '-', '@']) && field.parse::<f64>().is_err() {
        true => format!("'{field}"),
        false => field,
    }
}

/// RFC 4180, section 2, rules 5 to 7.
fn quoted(field: String) -> String {
    if field.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Setting;
    use crate::Outcome;

    #[test]
    fn fields_are_quoted_where_they_must_be() {
        assert_eq!(quoted("plain text".to_owned()), "plain text");
        assert_eq!(quoted("a,b".to_owned()), "\"a,b\"");
        assert_eq!(quoted("say \"no\"".to_owned()), "\"say \"\"no\"\"\"");
        assert_eq!(quoted("a\nb".to_owned()), "\"a\nb\"");
    }

    #[test]
    fn no_field_is_a_formula_or_moves_a_cursor() {
        let fields = [
            "=cmd|' /C calc'!A0",
            "@a",
            "-a,b",
            "-5",
            "+1e3",
            "a=b",
            "\u{1b}[2J",
        ];
        assert_eq!(
            line(fields.into_iter().map(str::to_owned)),
            "'=cmd|' /C calc'!A0,'@a,\"'-a,b\",-5,+1e3,a=b, [2J\n"
        );
    }

    #[test]
    fn each_swept_key_has_a_column() {
        let outcome = Outcome {
            scenario: "web, link.rate=1gbit".to_owned(),
            total_s: 1.5,
            resume_s: f64::INFINITY,
            ..Outcome::default()
        };
        let swept = vec![Setting {
            key: "link.rate".to_owned(),
            value: "1gbit".into(),
        }];
        let text = csv(&[Case { swept, outcome }, Outcome::default().into()]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("scenario,link.rate,strategy,seed,is_finished,total_s,"));
        assert_eq!(
            lines[1],
            "\"web, link.rate=1gbit\",1gbit,,0,false,1.5,0,0,,0,0,0,0,0,0,0,0,0,0,0,0,,,,,,"
        );
        assert!(lines[2].starts_with(",,,0,false,0,"));
        assert!(text.ends_with("\n"));
    }
}
