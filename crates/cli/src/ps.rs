//! `whimbrel ps`: what runs here.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use serde::Serialize;
use whimbrel_engine::journal::{Listed, Role, State};
use whimbrel_process::container::{Entry, Exit, Phase, Registry};
use whimbrel_qemu::running::{self, Running};

use crate::args::PsArgs;
use crate::host;

/// One line of JSON.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Line<'a> {
    Workload(&'a Row),
    Machine(&'a Machine),
    Migration(&'a Moving),
}

/// One workload, as scripts read it.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    id: String,
    pid: Option<i32>,
    state: Phase,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit: Option<Exit>,
    /// Why whimbrel had to end it.
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<String>,
    since: u64,
    addresses: Vec<String>,
    command: Vec<String>,
}

/// One QEMU machine, which `run` did not start.
#[derive(Debug, Serialize)]
struct Machine {
    name: String,
    pid: i32,
    /// Unix sockets of its monitors in control mode.
    monitors: Vec<PathBuf>,
    /// What `migrate` calls it, if it can move.
    #[serde(skip_serializing_if = "Option::is_none")]
    workload: Option<String>,
    /// Why it cannot move.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// One migration that is not over.
#[derive(Debug, Serialize)]
struct Moving {
    id: String,
    role: &'static str,
    state: &'static str,
    workload: String,
    peer: String,
    /// Pages that the destination lacks although it runs there.
    #[serde(skip_serializing_if = "Option::is_none")]
    missing_pages: Option<u64>,
    /// Whether a process works on it.
    attended: bool,
}

/// What a destination's journal says when nothing is left to be done.
const GIVEN_UP: &str = "given up";

/// What a journal says while pages follow after the switch-over.
const SERVING: &str = "serving";
const FETCHING: &str = "running here, fetching";

/// Why a machine cannot move that nobody can talk to.
const NO_MONITOR: &str = "no monitor: start it with -qmp unix:PATH,server=on,wait=off";

/// Lists.
pub fn run(args: &PsArgs) -> anyhow::Result<()> {
    host::tidy();
    let mut entries = Registry::of_host().list()?;
    entries.retain(|entry| args.all || entry.phase != Phase::Ended);
    let rows: Vec<Row> = entries.into_iter().map(row).collect();
    let machines: Vec<Machine> = running::list().into_iter().map(machine).collect();
    let migrations: Vec<Moving> = host::journals().list()?.into_iter().map(moving).collect();
    let text = if args.json {
        json(&rows, &machines, &migrations)?
    } else {
        table(&rows) + &troubles(&rows) + &machine_table(&machines) + &migration_table(&migrations)
    };
    match io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e).context("cannot write the list"),
        _ => Ok(()),
    }
}

fn row(entry: Entry) -> Row {
    let trouble = entry.trouble();
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
        trouble,
        since: entry.since,
        addresses: network.iter().map(ToString::to_string).collect(),
        command: entry.spec.command,
    }
}

fn machine(running: Running) -> Machine {
    let workload = running
        .monitors
        .first()
        .map(|monitor| format!("qemu:{}", monitor.display()));
    let reason = match (&running.unfit, &workload) {
        (Some(unfit), _) => Some(unfit.to_string()),
        (None, None) => Some(NO_MONITOR.to_owned()),
        (None, Some(_)) => None,
    };
    Machine {
        name: running.name,
        pid: running.pid,
        monitors: running.monitors,
        workload: workload.filter(|_| reason.is_none()),
        reason,
    }
}

fn moving(listed: Listed) -> Moving {
    let Listed { record, stale } = listed;
    Moving {
        id: record.id.to_string(),
        role: match record.role {
            Role::Source => "source",
            Role::Destination => "destination",
        },
        state: match record.state {
            State::Active => "under way",
            State::Prepared => "complete",
            State::Offered => "frozen until the destination answers",
            State::Serving => SERVING,
            State::Released => "moved",
            State::Stayed => "runs on here",
            State::Started if record.missing_pages.is_some() => FETCHING,
            State::Started => "running here",
            State::Fenced => GIVEN_UP,
        },
        workload: record.workload,
        missing_pages: record.missing_pages,
        peer: record.peer,
        attended: !stale,
    }
}

fn json(rows: &[Row], machines: &[Machine], migrations: &[Moving]) -> anyhow::Result<String> {
    let mut text = String::new();
    for line in rows
        .iter()
        .map(Line::Workload)
        .chain(machines.iter().map(Line::Machine))
        .chain(migrations.iter().map(Line::Migration))
    {
        text += &serde_json::to_string(&line).context("cannot write the list")?;
        text.push('\n');
    }
    Ok(text)
}

/// Nothing if there is none.
fn machine_table(machines: &[Machine]) -> String {
    if machines.is_empty() {
        return String::new();
    }
    let mut lines = vec![["MACHINE", "PID", "STATE", "MONITOR"].map(str::to_owned)];
    lines.extend(machines.iter().map(|machine| {
        let (state, words) = match (&machine.workload, &machine.reason) {
            (Some(workload), _) => ("can move", workload),
            (None, reason) => ("cannot move", reason.as_ref().unwrap_or(&machine.name)),
        };
        [
            machine.name.clone(),
            machine.pid.to_string(),
            state.to_owned(),
            words.clone(),
        ]
    }));
    format!("\n{}", align(&lines))
}

/// Nothing if there is none.
fn migration_table(migrations: &[Moving]) -> String {
    if migrations.is_empty() {
        return String::new();
    }
    let mut lines = vec![["MIGRATION", "WORKLOAD", "THIS END", "OTHER END", "STATE"].map(str::to_owned)];
    lines.extend(migrations.iter().map(|m| {
        let workload = if m.workload.is_empty() { "-" } else { &m.workload };
        let note = match (m.attended, m.state) {
            (true, _) => "",
            (false, GIVEN_UP) => " (kept for a day, in case the other end asks)",
            (false, SERVING | FETCHING) => " (nobody works on it: whimbrel resume)",
            (false, _) => " (nobody works on it)",
        };
        let pages = match (m.state, m.missing_pages) {
            (SERVING, Some(pages)) => format!(" {pages} pages that the destination lacks"),
            (FETCHING, Some(pages)) => format!(" {pages} pages from the source"),
            _ => String::new(),
        };
        let state = m.state.to_owned() + &pages + note;
        [
            m.id.clone(),
            workload.to_owned(),
            m.role.to_owned(),
            m.peer.clone(),
            state,
        ]
    }));
    format!("\n{}", align(&lines))
}

/// A sentence for each workload that had to be ended.
fn troubles(rows: &[Row]) -> String {
    let sentences = rows.iter().filter_map(|row| {
        let sentence = row.trouble.as_ref()?;
        let clean = |c: char| if c.is_control() { ' ' } else { c };
        Some(format!(
            "{}: {}\n",
            row.name,
            sentence.chars().map(clean).collect::<String>()
        ))
    });
    sentences.collect()
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
    use whimbrel_engine::journal::Record;
    use whimbrel_qemu::arguments::{Severity, Unfit};

    fn rows() -> Vec<Row> {
        let row = |name: &str, pid, state, exit| Row {
            name: name.to_owned(),
            id: "00".to_owned(),
            pid,
            state,
            exit,
            trouble: exit.map(|_| "it lacked\npages".to_owned()),
            since: 7,
            addresses: vec!["10.0.0.2/24".to_owned()],
            command: vec!["sh".to_owned(), "-c\n".to_owned()],
        };
        vec![
            row("a", Some(12), Phase::Running, None),
            row("longer", None, Phase::Ended, Some(Exit::Killed(9))),
        ]
    }

    fn migration() -> Moving {
        moving(Listed {
            record: Record {
                id: whimbrel_wire::MigrationId([0xab; 16]),
                role: Role::Source,
                state: State::Offered,
                key: whimbrel_wire::Key::from_bytes([1; 16]),
                peer: "h:1".to_owned(),
                workload: "shop".to_owned(),
                resources: Vec::new(),
                pid: 1,
                residual: None,
                missing_pages: Some(12),
                listen: None,
            },
            stale: true,
        })
    }

    #[test]
    fn a_migration_that_waits_is_shown_without_its_key() {
        let text = migration_table(&[migration()]);
        let last = text.lines().last().unwrap();
        let words = format!(
            "{}  shop      source    h:1        frozen until the destination answers (nobody",
            "ab".repeat(16)
        );
        assert!(last.starts_with(&words), "{text}");
        assert!(!text.contains(&whimbrel_wire::Key::from_bytes([1; 16]).to_string()));
        assert_eq!(migration_table(&[]), "");
        let serving = Moving {
            state: SERVING,
            ..migration()
        };
        let text = migration_table(&[serving]);
        assert!(
            text.contains(
                "serving 12 pages that the destination lacks (nobody works on it: whimbrel resume)"
            ),
            "{text}"
        );
        let kept = Moving {
            state: GIVEN_UP,
            ..migration()
        };
        let text = migration_table(&[kept]);
        assert!(text.contains("given up (kept for a day"), "{text}");
    }

    #[test]
    fn the_table_is_aligned() {
        let expected = "\
NAME    PID  STATE            ADDRESS      COMMAND
a       12   running          10.0.0.2/24  sh -c
longer  -    ended, signal 9  10.0.0.2/24  sh -c
";
        assert_eq!(table(&rows()), expected);
        assert_eq!(troubles(&rows()), "longer: it lacked pages\n");
    }

    fn machines() -> Vec<Machine> {
        let running = |name: &str, monitors: &[&str], unfit| {
            machine(Running {
                pid: 7,
                name: name.to_owned(),
                monitors: monitors.iter().map(PathBuf::from).collect(),
                unfit,
            })
        };
        let unfit = Unfit {
            severity: Severity::Moves,
            option: "-snapshot".to_owned(),
            what: "keeps writes here".to_owned(),
            cure: "use an overlay".to_owned(),
        };
        vec![
            running("shop", &["/run/shop.qmp", "/run/other.qmp"], None),
            running("db", &[], None),
            running("lab", &["/run/lab.qmp"], Some(unfit)),
        ]
    }

    #[test]
    fn machines_are_shown_with_what_to_type() {
        let expected = "
MACHINE  PID  STATE        MONITOR
shop     7    can move     qemu:/run/shop.qmp
db       7    cannot move  no monitor: start it with -qmp unix:PATH,server=on,wait=off
lab      7    cannot move  -snapshot keeps writes here: use an overlay
";
        assert_eq!(machine_table(&machines()), expected);
        assert_eq!(machine_table(&[]), "");
        let text = json(&[], &machines(), &[]).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            r#"{"kind":"machine","name":"shop","pid":7,"monitors":["/run/shop.qmp","/run/other.qmp"],"workload":"qemu:/run/shop.qmp"}"#
        );
        let lab: serde_json::Value = serde_json::from_str(lines[2]).unwrap();
        assert_eq!(lab["reason"], "-snapshot keeps writes here: use an overlay");
        assert!(lab.get("workload").is_none());
    }

    #[test]
    fn json_is_one_object_a_line() {
        let text = json(&rows(), &machines(), &[migration()]).unwrap();
        let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(
            (first["name"].as_str(), first["state"].as_str()),
            (Some("a"), Some("running"))
        );
        let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(
            (last["kind"].as_str(), last["attended"].as_bool()),
            (Some("migration"), Some(false))
        );
        assert_eq!(text.lines().count(), 6);
    }
}
