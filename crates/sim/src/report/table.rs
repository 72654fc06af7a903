//! A table for terminals.

use crate::{Outcome, Predicted};

use super::{Bytes, Case, Named, Share, Time};

/// The first two are words, the others numbers.
const COLUMNS: [Named<Outcome, String>; 14] = [
    ("scenario", |outcome| outcome.scenario.clone()),
    ("strategy", |outcome| outcome.strategy.clone()),
    ("total", total),
    ("downtime", |outcome| Time(outcome.downtime_s).to_string()),
    ("preparation", |outcome| Time(outcome.preparation_s).to_string()),
    ("resume", |outcome| Time(outcome.resume_s).to_string()),
    ("bytes", |outcome| Bytes(outcome.bytes).to_string()),
    ("by storage", |outcome| Bytes(outcome.storage_bytes).to_string()),
    ("pages", |outcome| outcome.pages_sent.to_string()),
    ("zero", |outcome| outcome.pages_zero.to_string()),
    ("skipped", |outcome| outcome.pages_skipped.to_string()),
    ("storage", |outcome| outcome.pages_from_storage.to_string()),
    ("faults", |outcome| outcome.network_faults.to_string()),
    ("slowdown", |outcome| Share(outcome.slowdown).to_string()),
];

/// Only if somebody has chosen.
const CHOICE: [Named<Outcome, String>; 4] = [
    ("chosen", |outcome| outcome.chosen.clone().unwrap_or_default()),
    ("predicted total", |outcome| {
        predicted(outcome, |predicted| Time(predicted.total_s).to_string())
    }),
    ("downtime", |outcome| {
        predicted(outcome, |predicted| Time(predicted.downtime_s).to_string())
    }),
    ("bytes", |outcome| {
        predicted(outcome, |predicted| Bytes(predicted.bytes as u64).to_string())
    }),
];

/// Columns of words.
pub(super) const WORDS: usize = 2;

/// A longer name is cut after its beginning, which names the scenario: names of a sweep differ at their ends.
const NAME_CHARS: usize = 60;

/// What is left of the beginning.
const NAME_BEGIN_CHARS: usize = 20;

/// Notes below the table; the others are in JSON.
const NOTES_MAX: usize = 20;

/// The time until all was over; more than that if something was missing still.
fn total(outcome: &Outcome) -> String {
    let sign = if outcome.is_finished { "" } else { "> " };
    format!("{sign}{}", Time(outcome.total_s))
}

fn predicted(outcome: &Outcome, words: fn(&Predicted) -> String) -> String {
    outcome.predicted.as_ref().map(words).unwrap_or_default()
}

/// What is worth a column.
pub(super) fn columns(cases: &[Case]) -> Vec<Named<Outcome, String>> {
    let is_chosen = cases.iter().any(|case| case.outcome.chosen.is_some());
    let choice = is_chosen.then_some(CHOICE).into_iter().flatten();
    COLUMNS.into_iter().chain(choice).collect()
}

/// A line of names, a line for each case, aligned; then what a reader must know.
pub fn table(cases: &[Case]) -> String {
    let columns = columns(cases);
    let names = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
    let cells = |case: &Case| {
        columns
            .iter()
            .map(|(_, value)| cell(&value(&case.outcome)))
            .collect()
    };
    let rows: Vec<Vec<String>> = std::iter::once(names).chain(cases.iter().map(cells)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..columns.len())
        .map(|column| width(column).unwrap_or(0))
        .collect();
    let lines = rows.iter().map(|row| line(row, &widths));
    lines.chain(notes(cases)).collect()
}

fn line(row: &[String], widths: &[usize]) -> String {
    let cells = row.iter().zip(widths).enumerate().map(|(column, (cell, width))| {
        if column < WORDS {
            format!("{cell:<width$}")
        } else {
            format!("{cell:>width$}")
        }
    });
    let cells: Vec<String> = cells.collect();
    cells.join("  ") + "\n"
}

/// One line, of a bearable length: names come from files of other people.
fn cell(words: &str) -> String {
    let words: String = words
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let count = words.chars().count();
    if count <= NAME_CHARS {
        return words;
    }
    let begin: String = words.chars().take(NAME_BEGIN_CHARS).collect();
    let end_chars = NAME_CHARS - NAME_BEGIN_CHARS - 1;
    begin + "…" + &words.chars().skip(count - end_chars).collect::<String>()
}

fn notes(cases: &[Case]) -> impl Iterator<Item = String> + '_ {
    let all = || {
        let of = |case: &Case| case.outcome.notes.len();
        cases.iter().map(of).sum::<usize>()
    };
    let lines = cases.iter().flat_map(|case| {
        let name = cell(&case.outcome.scenario);
        let notes = case.outcome.notes.iter();
        notes.map(move |note| format!("{name}: {}\n", note.replace(char::is_control, " ")))
    });
    let more = all().saturating_sub(NOTES_MAX);
    let rest = (more > 0).then(|| format!("and {more} more notes\n"));
    lines.take(NOTES_MAX).chain(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(scenario: &str, bytes: u64) -> Case {
        let outcome = Outcome {
            scenario: scenario.to_owned(),
            strategy: "precopy".to_owned(),
            is_finished: true,
            total_s: 2.0,
            bytes,
            ..Outcome::default()
        };
        outcome.into()
    }

    #[test]
    fn columns_are_aligned() {
        let text = table(&[case("idle", 900), case("büsy", 1_500_000)]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("scenario  strategy   total  downtime"));
        assert!(lines[1].starts_with("idle      precopy   2.00 s      0 us"));
        let ends = |line: &str, word: &str| line[..line.find(word).unwrap()].chars().count() + word.len();
        assert_eq!(ends(lines[0], "bytes"), ends(lines[1], "900 B"));
        assert_eq!(ends(lines[0], "bytes") + 1, ends(lines[2], "1.5 MB") + 1);
        let widths: Vec<usize> = lines.iter().map(|line| line.chars().count()).collect();
        assert_eq!(widths, [widths[0]; 3]);
    }

    #[test]
    fn a_choice_and_what_was_expected_have_columns_if_there_was_one() {
        let plain = case("plain", 1);
        let mut auto = case("auto", 1);
        auto.outcome.chosen = Some("hybrid".to_owned());
        auto.outcome.predicted = Some(Predicted {
            total_s: 3.0,
            downtime_s: 0.02,
            bytes: 7e6,
            network_faults: 0.0,
        });
        assert!(!table(std::slice::from_ref(&plain)).contains("chosen"));
        let text = table(&[plain, auto]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].ends_with("chosen  predicted total  downtime   bytes"),
            "{}",
            lines[0]
        );
        assert!(
            lines[2].ends_with("hybrid           3.00 s   20.0 ms  7.0 MB"),
            "{}",
            lines[2]
        );
        assert_eq!(lines[0].chars().count(), lines[1].chars().count());
    }

    #[test]
    fn what_did_not_finish_took_longer() {
        let mut case = case("lazy", 1);
        case.outcome.is_finished = false;
        assert!(table(&[case]).contains("> 2.00 s"));
    }

    #[test]
    fn names_stay_on_their_line_and_notes_are_few() {
        let mut case = case("a\u{1b}[2J\nb", 1);
        case.outcome.notes = vec!["late".to_owned(); 25];
        let text = table(&[case]);
        assert_eq!(text.lines().count(), 2 + NOTES_MAX + 1);
        assert!(text.contains("a [2J b: late\n") && text.ends_with("and 5 more notes\n"));
        assert_eq!(cell(&"x".repeat(99)).chars().count(), NAME_CHARS);
        let swept = format!("web{}, link.rate=1Gbit/s", ", guest.load.0.rate=10MB/s".repeat(3));
        let cut = cell(&swept);
        assert!(
            cut.starts_with("web, ") && cut.ends_with(", link.rate=1Gbit/s"),
            "{cut}"
        );
    }
}
