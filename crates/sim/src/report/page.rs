//! One page of HTML: no scripts, nothing from elsewhere, light and dark as the reader has it.

use crate::chart::escaped;

use super::compare::{self, LINES_MAX, MEASURES};
use super::plots;
use super::table::{columns, WORDS};
use super::Case;

/// Outcomes with charts of their own.
const DETAILS_MAX: usize = 12;

/// Outcomes that are bars.
const BARS_MAX: usize = 40;

/// Outcomes in the table.
const ROWS_MAX: usize = 1000;

/// Notes of one outcome, each of which is a line.
const NOTES_MAX: usize = 20;

/// The policy forbids the browser to fetch anything, whatever a name may contain.
const HEAD: &str = "<meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">
<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } h3 { font-size: 1rem; overflow-wrap: anywhere; }
.charts { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.table { overflow-x: auto; }
svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.6rem; border-bottom: 1px solid #88888855; text-align: right; white-space: nowrap; }
.word { text-align: left; }
</style>
";

/// The page. Of many outcomes not all are drawn, and it says so.
pub fn page(title: &str, cases: &[Case]) -> String {
    let parts = [
        summary(cases),
        comparison(cases),
        sweeps(cases),
        details(cases),
        table(cases),
    ];
    document(title, &parts.concat())
}

/// A page with this title, which may be any text, and this body, which is HTML.
pub(crate) fn document(title: &str, body: &str) -> String {
    let title = escaped(title);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<title>{title}</title>\n{HEAD}</head>\n<body>\n<h1>{title}</h1>\n{body}</body>\n</html>\n"
    )
}

fn summary(cases: &[Case]) -> String {
    let finished = cases.iter().filter(|case| case.outcome.is_finished).count();
    let migrations = if cases.len() == 1 {
        "migration"
    } else {
        "migrations"
    };
    format!(
        "<p>{} simulated {migrations}, {finished} of which finished. Sizes are powers of 1000. Times are virtual.</p>\n",
        cases.len()
    )
}

/// Bars of the first outcomes.
fn comparison(cases: &[Case]) -> String {
    let shown = &cases[..cases.len().min(BARS_MAX)];
    let bars: String = MEASURES
        .iter()
        .map(|measure| measure.bars(shown).inline())
        .collect();
    format!(
        "<h2>Comparison</h2>\n{}{}",
        limited(shown.len(), cases.len()),
        charts(&bars)
    )
}

/// Lines over what was swept.
fn sweeps(cases: &[Case]) -> String {
    let one = |over: compare::Over| {
        let lines: String = MEASURES
            .iter()
            .map(|measure| measure.lines(&over).inline())
            .collect();
        let drawn = over.groups.len().min(LINES_MAX);
        let limit = match over.groups.len() {
            all if all > drawn => format!("<p>The first {drawn} of {all} lines are drawn.</p>\n"),
            _ => String::new(),
        };
        limit + &charts(&lines)
    };
    let overs: String = compare::over_keys(cases).into_iter().map(one).collect();
    match overs.is_empty() {
        true => overs,
        false => format!("<h2>Over the swept values</h2>\n{overs}"),
    }
}

/// How the first outcomes went.
fn details(cases: &[Case]) -> String {
    let shown = &cases[..cases.len().min(DETAILS_MAX)];
    let sections: String = shown.iter().map(detail).collect();
    format!(
        "<h2>How it went</h2>\n{}{sections}",
        limited(shown.len(), cases.len())
    )
}

fn detail(case: &Case) -> String {
    let outcome = &case.outcome;
    let mut drawn = String::new();
    if !outcome.series.is_empty() {
        drawn += &plots::progress(outcome).inline();
        drawn += &plots::application(outcome).inline();
    }
    if !outcome.pauses.is_empty() {
        drawn += &plots::latency(outcome).inline();
    }
    if !outcome.rounds.is_empty() {
        drawn += &plots::rounds(outcome).inline();
    }
    let reason = outcome.stop_reason.iter();
    let reason: String = reason
        .map(|why| format!("<p>Switched over: {}.</p>\n", escaped(why)))
        .collect();
    let notes = outcome.notes.iter().take(NOTES_MAX);
    let notes: String = notes.map(|note| format!("<p>{}</p>\n", escaped(note))).collect();
    let name = escaped(&compare::name(case));
    format!(
        "<section>\n<h3>{name}</h3>\n{reason}{notes}{}</section>\n",
        charts(&drawn)
    )
}

fn table(cases: &[Case]) -> String {
    let shown = &cases[..cases.len().min(ROWS_MAX)];
    let class = |column: usize| if column < WORDS { " class=\"word\"" } else { "" };
    let columns = columns(cases);
    let heads = columns.iter().enumerate();
    let heads: String = heads
        .map(|(column, (name, _))| format!("<th{}>{name}</th>", class(column)))
        .collect();
    let row = |case: &Case| {
        let cells = columns.iter().enumerate().map(|(column, (_, value))| {
            format!("<td{}>{}</td>", class(column), escaped(&value(&case.outcome)))
        });
        format!("<tr>{}</tr>\n", cells.collect::<String>())
    };
    let rows: String = shown.iter().map(row).collect();
    let limit = limited(shown.len(), cases.len());
    format!(
        "<h2>All numbers</h2>\n{limit}<div class=\"table\">\n<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n"
    )
}

/// Says that not all are shown.
fn limited(shown: usize, all: usize) -> String {
    if shown == all {
        return String::new();
    }
    format!("<p>The first {shown} of {all} are shown; the files of CSV and JSON have all.</p>\n")
}

/// Charts beside each other, as far as there is room.
pub(crate) fn charts(drawn: &str) -> String {
    format!("<div class=\"charts\">\n{drawn}</div>\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Setting;
    use crate::{Outcome, Pause, Sample, SimRound};

    fn case(scenario: &str) -> Case {
        let outcome = Outcome {
            scenario: scenario.to_owned(),
            strategy: "precopy".to_owned(),
            stop_reason: Some("<small>".to_owned()),
            is_finished: true,
            total_s: 2.0,
            rounds: vec![SimRound::default(); 3],
            series: vec![Sample::default(); 3],
            pauses: vec![Pause {
                begun_s: 1.0,
                duration_s: 0.5,
                why: "switch-over".to_owned(),
            }],
            notes: vec!["<late>".to_owned()],
            ..Outcome::default()
        };
        let swept = vec![Setting {
            key: "link.rate".to_owned(),
            value: scenario.len().to_string().into(),
        }];
        Case { swept, outcome }
    }

    /// Every tag that is opened is closed, in order, but those that have no end.
    fn assert_well_formed(page: &str) {
        let mut open: Vec<&str> = Vec::new();
        for tag in page.split('<').skip(1) {
            let (tag, _) = tag.split_once('>').unwrap();
            let name = tag.split([' ', '/']).find(|part| !part.is_empty()).unwrap();
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name));
            } else if !tag.ends_with('/') && !["!DOCTYPE", "meta"].contains(&name) {
                open.push(name);
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn nothing_comes_from_elsewhere() {
        let page = page("t", &[case("a"), case("bb")]);
        for word in [
            "http:", "https:", "<script", "url(", "@import", "src=", "href=", "<link",
        ] {
            assert!(!page.contains(word), "{word}");
        }
        assert_well_formed(&page);
    }

    #[test]
    fn names_cannot_become_markup() {
        let page = page("<t>", &[case("</title><script>alert(1)</script>")]);
        assert!(!page.contains("<script") && !page.contains("<late>") && !page.contains("<small>"));
        assert!(page.contains("<title>&lt;t&gt;</title>"));
        assert_well_formed(&page);
    }

    #[test]
    fn of_many_outcomes_the_first_are_drawn() {
        let cases: Vec<Case> = (0..1001).map(|n| case(&"x".repeat(n % 9 + 1))).collect();
        let page = page("many", &cases);
        assert_eq!(page.matches("<section>").count(), DETAILS_MAX);
        assert_eq!(page.matches("<tr>").count(), ROWS_MAX + 1);
        assert!(page.contains("The first 12 of 1001 are shown"));
        assert!(page.contains("The first 40 of 1001 are shown"));
        assert!(page.contains("Total time over link.rate"));
        assert!(page.len() < 2_000_000, "{}", page.len());
    }

    #[test]
    fn a_page_of_nothing_is_a_page() {
        assert_well_formed(&page("none", &[]));
        assert_well_formed(&page("empty", &[Outcome::default().into()]));
    }
}
