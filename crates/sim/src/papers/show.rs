//! What the papers say beside what is simulated: for terminals, as Markdown, as JSON, and as a page.

use serde_json::{json, Value};

use super::{Finding, Paper, Told, Verdict};
use crate::chart::{escaped, Bars, Chart};
use crate::report::page::{charts, document};

/// Of a row.
const COLUMNS: [&str; 6] = ["what", "unit", "paper", "simulated", "ratio", "verdict"];

/// So many columns are words, the others numbers.
const WORDS: usize = 2;

impl Finding {
    fn cells(&self) -> [String; COLUMNS.len()] {
        [
            self.what.clone(),
            self.unit.to_owned(),
            told(self.paper),
            number(self.simulated),
            self.ratio().map_or("-".to_owned(), number),
            verdict(self.verdict()).to_owned(),
        ]
    }
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Agrees => "agrees",
        Verdict::Disagrees => "DISAGREES",
    }
}

fn told(paper: Told) -> String {
    match paper {
        Told::Value(value) => number(value),
        Told::AtLeast(value) => format!("at least {}", number(value)),
        Told::AtMost(value) => format!("at most {}", number(value)),
        Told::Shape(_, _, words) => words.to_owned(),
    }
}

/// With three digits that count, and without a fraction of zeros.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        _ => 2,
    };
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

fn agreed(paper: &Paper) -> usize {
    let agrees = |finding: &&Finding| finding.verdict() == Verdict::Agrees;
    paper.findings.iter().filter(agrees).count()
}

fn summary(paper: &Paper) -> String {
    format!(
        "{} of {} agree: within a fifth of what is printed, or on the side or of the sign that is said.",
        agreed(paper),
        paper.findings.len()
    )
}

fn notes(paper: &Paper) -> impl Iterator<Item = (&str, &str)> {
    let noted = paper.findings.iter().filter(|finding| !finding.note.is_empty());
    noted.map(|finding| (finding.what.as_str(), finding.note))
}

/// For a terminal: the source, the assumptions, an aligned table, and notes, of each paper.
pub fn text(papers: &[Paper]) -> String {
    let papers: Vec<String> = papers.iter().map(text_of).collect();
    papers.join("\n")
}

fn text_of(paper: &Paper) -> String {
    let assumptions = paper.assumptions.iter().map(|one| format!("  assumed: {one}\n"));
    let notes = notes(paper).map(|(what, note)| format!("  {what}: {note}\n"));
    format!(
        "{}: {}\n{}\n{}\n{}{}\n",
        paper.name,
        paper.citation,
        assumptions.collect::<String>(),
        aligned(paper),
        notes.collect::<String>(),
        summary(paper),
    )
}

fn aligned(paper: &Paper) -> String {
    let heads = COLUMNS.map(str::to_owned);
    let rows: Vec<_> = std::iter::once(heads)
        .chain(paper.findings.iter().map(Finding::cells))
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths = std::array::from_fn::<usize, { COLUMNS.len() }, _>(|column| width(column).unwrap_or(0));
    let cell = |(column, cell): (usize, &String)| match column < WORDS {
        true => format!("{cell:<width$}", width = widths[column]),
        false => format!("{cell:>width$}", width = widths[column]),
    };
    let line = |row: &[String; COLUMNS.len()]| {
        row.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ") + "\n"
    };
    rows.iter().map(line).collect()
}

/// As Markdown.
pub fn markdown(papers: &[Paper]) -> String {
    let sections: String = papers.iter().map(markdown_of).collect();
    format!(
        "# The papers, simulated\n\nWritten by `whimbrel sim papers --markdown`. Where a paper is silent something is assumed, the same for all of its rows.\n{sections}"
    )
}

fn markdown_of(paper: &Paper) -> String {
    let row = |cells: &[String]| {
        format!(
            "| {} |\n",
            cells
                .iter()
                .map(|cell| cell.replace('|', "\\|"))
                .collect::<Vec<_>>()
                .join(" | ")
        )
    };
    let rows: String = paper
        .findings
        .iter()
        .map(|finding| row(&finding.cells()))
        .collect();
    let notes: String = notes(paper)
        .map(|(what, note)| format!("- {what}: {note}\n"))
        .collect();
    let assumptions: String = paper.assumptions.iter().map(|one| format!("- {one}\n")).collect();
    let titled = |title: &str, lines: String| match lines.is_empty() {
        true => lines,
        false => format!("\n{title}:\n\n{lines}"),
    };
    format!(
        "\n## {}\n\n{}\n\n{}\n\n{}|---|---|--:|--:|--:|---|\n{rows}{}{}",
        paper.name,
        paper.citation,
        summary(paper),
        row(&COLUMNS.map(str::to_owned)),
        titled("Why they differ", notes),
        titled("Assumed", assumptions),
    )
}

/// As JSON: an array of papers. Numbers that are none become null.
pub fn json(papers: &[Paper]) -> String {
    let papers: Vec<Value> = papers.iter().map(json_of).collect();
    format!("{:#}\n", Value::Array(papers))
}

fn json_of(paper: &Paper) -> Value {
    let finding = |finding: &Finding| {
        let (low, high) = match finding.paper {
            Told::Value(value) => (Some(value), Some(value)),
            Told::AtLeast(low) => (Some(low), None),
            Told::AtMost(high) => (None, Some(high)),
            Told::Shape(low, high, _) => (Some(low), Some(high)),
        };
        json!({
            "what": finding.what,
            "unit": finding.unit,
            "paper": told(finding.paper),
            "paper_low": low,
            "paper_high": high,
            "simulated": finding.simulated,
            "ratio": finding.ratio(),
            "agrees": finding.verdict() == Verdict::Agrees,
            "note": finding.note,
        })
    };
    json!({
        "name": paper.name,
        "citation": paper.citation,
        "assumptions": paper.assumptions,
        "findings": paper.findings.iter().map(finding).collect::<Vec<_>>(),
    })
}

/// As one page of HTML that opens offline.
pub fn page(papers: &[Paper]) -> String {
    let sections: String = papers.iter().map(section).collect();
    document("The papers, simulated", &sections)
}

fn section(paper: &Paper) -> String {
    let item = |words: &str| format!("<li>{}</li>\n", escaped(words));
    let assumptions: String = paper.assumptions.iter().map(|one| item(one)).collect();
    let notes: String = notes(paper)
        .map(|(what, note)| item(&format!("{what}: {note}")))
        .collect();
    let drawn: String = paper
        .charts
        .iter()
        .map(Chart::inline)
        .chain(paper.bars.iter().map(Bars::inline))
        .collect();
    let list = |title: &str, items: String| match items.is_empty() {
        true => items,
        false => format!("<h3>{title}</h3>\n<ul>\n{items}</ul>\n"),
    };
    format!(
        "<h2>{}</h2>\n<p>{}</p>\n<p>{}</p>\n{}{}{}{}",
        escaped(paper.name),
        escaped(paper.citation),
        escaped(&summary(paper)),
        table(paper),
        list("Why they differ", notes),
        list("Assumed", assumptions),
        charts(&drawn)
    )
}

fn table(paper: &Paper) -> String {
    let class = |column: usize| if column < WORDS { " class=\"word\"" } else { "" };
    let row = |tag: &str, cells: &[String]| {
        let cell =
            |(column, cell): (usize, &String)| format!("<{tag}{}>{}</{tag}>", class(column), escaped(cell));
        format!(
            "<tr>{}</tr>\n",
            cells.iter().enumerate().map(cell).collect::<String>()
        )
    };
    let rows: String = paper
        .findings
        .iter()
        .map(|finding| row("td", &finding.cells()))
        .collect();
    format!(
        "<div class=\"table\">\n<table>\n<thead>{}</thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n",
        row("th", &COLUMNS.map(str::to_owned))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paper() -> Paper {
        let finding = |what: &str, paper, simulated, note| Finding {
            what: what.to_owned(),
            unit: "s",
            paper,
            simulated,
            note,
        };
        Paper {
            name: "one",
            citation: "Somebody, <somewhere>",
            assumptions: vec!["it rains"],
            findings: vec![
                finding("a|b", Told::Value(2.0), 2.1, ""),
                finding("downtime", Told::AtMost(0.25), 1.0, "<why>"),
                finding("more", Told::Shape(1.0, f64::INFINITY, "more"), f64::NAN, ""),
            ],
            ..Paper::default()
        }
    }

    #[test]
    fn numbers_have_three_digits_that_count() {
        let numbers = [-82.816, 0.25, 2.0, 1536.0, 100.0, f64::NAN].map(number);
        assert_eq!(numbers, ["-82.8", "0.25", "2", "1536", "100", "NaN"]);
    }

    #[test]
    fn rows_are_aligned_and_disagreement_is_named() {
        let text = text(&[paper()]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("one: Somebody") && lines[1].contains("assumed: it rains"));
        assert_eq!(
            lines[3],
            "what      unit         paper  simulated  ratio    verdict"
        );
        assert_eq!(
            lines[4],
            "a|b       s                2        2.1   1.05     agrees"
        );
        assert_eq!(
            lines[5],
            "downtime  s     at most 0.25          1      4  DISAGREES"
        );
        assert!(
            text.contains("downtime: <why>") && text.contains("1 of 3 agree"),
            "{text}"
        );
    }

    #[test]
    fn markdown_cells_stay_cells() {
        let text = markdown(&[paper()]);
        assert!(
            text.contains("| a\\|b | s | 2 | 2.1 | 1.05 | agrees |\n"),
            "{text}"
        );
        assert!(text.contains("- downtime: <why>\n"), "{text}");
    }

    #[test]
    fn json_has_null_for_what_is_no_number() {
        let read: Value = serde_json::from_str(&json(&[paper()])).unwrap();
        assert_eq!(read[0]["findings"][0]["ratio"], 1.05);
        assert_eq!(read[0]["findings"][1]["agrees"], false);
        assert!(read[0]["findings"][2]["simulated"].is_null());
        assert!(read[0]["findings"][2]["paper_high"].is_null());
    }

    #[test]
    fn a_page_has_no_markup_of_others() {
        let page = page(&[paper()]);
        assert!(
            page.contains("Somebody, &lt;somewhere&gt;") && page.contains("&lt;why&gt;"),
            "{page}"
        );
        assert!(page.ends_with("</html>\n"));
    }
}
