//! What came out: a table for terminals, JSON, CSV, and one page of HTML with plots that opens offline.

mod compare;
mod csv;
pub(crate) mod page;
pub(crate) mod plots;
mod table;
mod units;

use std::io::{self, Write};

use serde::Serialize;

use crate::Outcome;

pub use csv::csv;
pub use page::page;
pub use table::table;
pub use units::{Bytes, Share, Time};

/// A name, and how to get what it names.
type Named<T, V> = (&'static str, fn(&T) -> V);

/// An outcome, and what was set in its scenario.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Case {
    /// The swept values of its scenario; none if nothing was swept.
    pub swept: Vec<Setting>,
    /// What came out.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// A value of a scenario.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Setting {
    /// Its place, like `link.rate`.
    pub key: String,
    /// What it was set to.
    pub value: toml::Value,
}

impl From<Outcome> for Case {
    fn from(outcome: Outcome) -> Self {
        let swept = Vec::new();
        Self { swept, outcome }
    }
}

impl Setting {
    /// The value as on the command line: strings without quotes.
    pub fn words(&self) -> String {
        match &self.value {
            toml::Value::String(words) => words.clone(),
            value => value.to_string(),
        }
    }
}

impl Case {
    /// The scenario's name without the swept values.
    fn base(&self) -> &str {
        let name = &self.outcome.scenario;
        name.strip_suffix(&suffix(&self.swept)).unwrap_or(name)
    }
}

/// What a sweep adds to a scenario's name.
pub(crate) fn suffix(swept: &[Setting]) -> String {
    let one = |setting: &Setting| format!(", {}={}", setting.key, setting.words());
    swept.iter().map(one).collect()
}

/// An array of objects, one a line: the members of [`Outcome`], and `swept`. Numbers that are none become null.
///
/// # Errors
/// Those of `out`.
pub fn json(cases: &[Case], out: &mut impl Write) -> io::Result<()> {
    out.write_all(b"[")?;
    for (index, case) in cases.iter().enumerate() {
        out.write_all(if index == 0 { b"\n" } else { b",\n" })?;
        serde_json::to_writer(&mut *out, case)?;
    }
    out.write_all(b"\n]\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_everything_and_is_one_line_each() {
        let outcome = Outcome {
            scenario: "idle, link.rate=5".to_owned(),
            total_s: f64::NAN,
            bytes: 7,
            ..Outcome::default()
        };
        let swept = vec![Setting {
            key: "link.rate".to_owned(),
            value: 5.into(),
        }];
        let case = Case { swept, outcome };
        assert_eq!(case.base(), "idle");
        let mut out = Vec::new();
        json(&[case, Outcome::default().into()], &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().count(), 4);
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read[0]["swept"][0]["value"], 5);
        assert_eq!(read[0]["bytes"], 7);
        assert!(read[0]["total_s"].is_null());
        assert_eq!(read[1]["rounds"], serde_json::json!([]));
    }
}
