//! `whimbrel ps`: what runs here.

use std::io::{self, Write};

use anyhow::Context;
use serde::Serialize;
use whimbrel_process::container::{Entry, Exit, Phase, Registry};

use crate::args::PsArgs;

/// One workload, as scripts read it.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    id: String,
    pid: Option<i32>,
    state: Phase,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit: Option<Exit>,
    since: u64,
    addresses: Vec<String>,
    command: Vec<String>,
}

/// Lists.
pub fn run(args: &PsArgs) -> anyhow::Result<()> {
    let mut entries = Registry::of_host().list()?;
    entries.retain(|entry| args.all || entry.phase != Phase::Ended);
    let rows: Vec<Row> = entries.into_iter().map(row).collect();
    let text = if args.json { json(&rows)? } else { table(&rows) };
    match io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e).context("cannot write the list"),
        _ => Ok(()),
    }
}

fn row(entry: Entry) -> Row {
    let network = entry
        .spec
        .network
        .map(|network| network.addresses)
        .unwrap_or_default();
    Row {
        name: entry.spec.name,
        id: entry.spec.id,
        pid: entry.process.map(|process| process.pid),
        state: entry.phase,
        exit: entry.exit,
        since: entry.since,
        addresses: network.iter().map(ToString::to_string).collect(),
        command: entry.spec.command,
    }
}

fn json(rows: &[Row]) -> anyhow::Result<String> {
    let mut text = String::new();
    for row in rows {
        text += &serde_json::to_string(row).context("cannot write the list")?;
        text.push('\n');
    }
    Ok(text)
}

fn table(rows: &[Row]) -> String {
    let mut lines = vec![["NAME", "PID", "STATE", "ADDRESS", "COMMAND"].map(str::to_owned)];
    lines.extend(rows.iter().map(|row| {
        let state = match (row.state, row.exit) {
            (_, Some(Exit::Exited(code))) => format!("ended, exit code {code}"),
            (_, Some(Exit::Killed(signal))) => format!("ended, signal {signal}"),
            (Phase::Arriving, _) => "arriving".to_owned(),
            (Phase::Running, _) => "running".to_owned(),
            (Phase::Ended, _) => "ended".to_owned(),
        };
        let pid = row.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let addresses = if row.addresses.is_empty() {
            "-".to_owned()
        } else {
            row.addresses.join(",")
        };
        [row.name.clone(), pid, state, addresses, row.command.join(" ")]
    }));
    align(&lines)
}

/// Columns as wide as their widest cell; the last one as it comes. Control characters of a command line are not passed on.
fn align<const N: usize>(lines: &[[String; N]]) -> String {
    let width = |column: usize| {
        lines
            .iter()
            .map(|line| line[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let cells = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        let row = cells.collect::<Vec<_>>().join("  ");
        text.extend(
            row.trim_end()
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c }),
        );
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Row> {
        let row = |name: &str, pid, state, exit| Row {
            name: name.to_owned(),
            id: "00".to_owned(),
            pid,
            state,
            exit,
            since: 7,
            addresses: vec!["10.0.0.2/24".to_owned()],
            command: vec!["sh".to_owned(), "-c\n".to_owned()],
        };
        vec![
            row("a", Some(12), Phase::Running, None),
            row("longer", None, Phase::Ended, Some(Exit::Killed(9))),
        ]
    }

    #[test]
    fn the_table_is_aligned() {
        let expected = "\
NAME    PID  STATE            ADDRESS      COMMAND
a       12   running          10.0.0.2/24  sh -c
longer  -    ended, signal 9  10.0.0.2/24  sh -c
";
        assert_eq!(table(&rows()), expected);
    }

    #[test]
    fn json_is_one_object_a_line() {
        let text = json(&rows()).unwrap();
        let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(
            (first["name"].as_str(), first["state"].as_str()),
            (Some("a"), Some("running"))
        );
        assert_eq!(text.lines().count(), 2);
    }
}
