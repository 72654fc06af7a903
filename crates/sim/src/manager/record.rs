//! What one migration came to, and several beside each other.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use super::log::clock;

/// Who wanted a page to travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Asked {
    /// A round of pre-copy, from 1 on.
    Round(u32),
    /// The pages that travel while the VM is frozen.
    Last,
    /// The push.
    Background,
    /// The push, because the forward context has touched it.
    Guide,
    /// The following context waits for it.
    Fault,
}

impl std::fmt::Display for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Asked::Round(number) => write!(f, "round {number}"),
            Asked::Last => f.write_str("the last pages"),
            Asked::Background => f.write_str("background"),
            Asked::Guide => f.write_str("guide"),
            Asked::Fault => f.write_str("fault"),
        }
    }
}

/// Pages that have come, by who asked for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sent {
    /// In rounds of pre-copy, and while the VM was frozen.
    pub rounds: u64,
    /// By the push.
    pub background: u64,
    /// By the push, because the forward context had touched them.
    pub guide: u64,
    /// In replies to faults of the following context.
    pub fault: u64,
}

impl Sent {
    pub(super) fn add(&mut self, asked: Asked) {
        *match asked {
            Asked::Round(_) | Asked::Last => &mut self.rounds,
            Asked::Background => &mut self.background,
            Asked::Guide => &mut self.guide,
            Asked::Fault => &mut self.fault,
        } += 1;
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.rounds + self.background + self.guide + self.fault
    }

    fn percent(&self, part: u64) -> u64 {
        (part * 100).checked_div(self.total()).unwrap_or(0)
    }
}

/// One migration. Moments are those of the manager's clock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Record {
    /// From 1 on.
    pub number: u32,
    /// The VM.
    pub vm: String,
    /// From which server.
    pub source: String,
    /// To which server.
    pub destination: String,
    /// By which policy.
    pub policy: String,
    /// When it was asked for.
    pub begun: Duration,
    /// When the VM was frozen at the source.
    pub frozen: Option<Duration>,
    /// When it went on at the destination.
    pub started: Option<Duration>,
    /// When the source was not needed any more.
    pub ended: Option<Duration>,
    /// Pages that have come, each time counted.
    pub sent: Sent,
    /// Pages that were placed at the destination after it started.
    pub placed: u64,
    /// Pages that the VM replaced before they were sent.
    pub spared: u64,
    /// Pages that were sent, and that the VM replaced before they came.
    pub late: u64,
    /// Bytes that have come, the state included.
    pub bytes: u64,
    /// Accesses at the destination to a page that was still at the source.
    pub network_faults: u64,
    /// What they waited in all.
    pub network_wait: Duration,
    /// Accesses, between start and end, to a page that neither server had in memory.
    pub disk_faults: u64,
    /// What they waited in all.
    pub disk_wait: Duration,
    /// References done between start and end.
    pub references: u64,
}

impl Record {
    /// From the request until the source was not needed any more.
    pub fn total(&self) -> Option<Duration> {
        self.ended.map(|ended| ended.saturating_sub(self.begun))
    }

    /// From the freeze until it went on.
    pub fn downtime(&self) -> Option<Duration> {
        Some(self.started?.saturating_sub(self.frozen?))
    }

    /// From the request until the freeze.
    pub fn preparation(&self) -> Option<Duration> {
        self.frozen.map(|frozen| frozen.saturating_sub(self.begun))
    }

    /// From the start until nothing was missing.
    pub fn resume(&self) -> Option<Duration> {
        Some(self.ended?.saturating_sub(self.started?))
    }

    /// Bytes per second of the whole migration.
    pub fn bandwidth(&self) -> Option<u64> {
        let seconds = self.total()?.as_secs_f64();
        (seconds > 0.0).then(|| (self.bytes as f64 / seconds) as u64)
    }

    /// Times, pages, faults and bandwidth, a line each.
    pub(super) fn summary(&self, link_rate: u64) -> [String; 4] {
        let sent = &self.sent;
        let share = |pages| format!("{pages} ({} %)", sent.percent(pages));
        let bandwidth = self.bandwidth().unwrap_or(0);
        [
            format!(
                "migration {} is over: {} from {} to {} by {}: total {}, preparation {}, downtime {}, resume {}",
                self.number,
                self.vm,
                self.source,
                self.destination,
                self.policy,
                time(self.total()),
                time(self.preparation()),
                time(self.downtime()),
                time(self.resume())
            ),
            format!(
                "  pages {}: rounds {}, background {}, forward context {}, faults of the following context {}; replaced before they were sent {}, before they came {}",
                sent.total(),
                share(sent.rounds),
                share(sent.background),
                share(sent.guide),
                share(sent.fault),
                self.spared,
                self.late
            ),
            format!(
                "  network faults {}, which waited {}; pages from disk {}, which waited {}; references {}",
                self.network_faults,
                clock(self.network_wait),
                self.disk_faults,
                clock(self.disk_wait),
                self.references
            ),
            format!(
                "  bytes {}, {bandwidth} B/s, {:.0} % of the link",
                self.bytes,
                bandwidth as f64 * 100.0 / link_rate.max(1) as f64
            ),
        ]
    }

    fn cells(&self) -> [String; 17] {
        let sent = &self.sent;
        [
            self.number.to_string(),
            self.vm.clone(),
            self.policy.clone(),
            seconds(self.total()),
            seconds(self.preparation()),
            seconds(self.downtime()),
            seconds(self.resume()),
            sent.total().to_string(),
            sent.rounds.to_string(),
            sent.background.to_string(),
            sent.guide.to_string(),
            sent.fault.to_string(),
            self.network_faults.to_string(),
            seconds(Some(self.network_wait)),
            self.disk_faults.to_string(),
            self.references.to_string(),
            self.bandwidth().map_or_else(String::new, |rate| rate.to_string()),
        ]
    }
}

const HEADS: [&str; 17] = [
    "number",
    "vm",
    "policy",
    "total_s",
    "preparation_s",
    "downtime_s",
    "resume_s",
    "pages",
    "rounds",
    "background",
    "guide",
    "fault",
    "faults",
    "fault_wait_s",
    "disk_faults",
    "references",
    "bytes_per_s",
];

/// A line for each migration, under a line of heads, in columns.
pub(super) fn table(records: &[Record]) -> String {
    let mut rows = vec![HEADS.map(str::to_owned)];
    rows.extend(records.iter().map(Record::cells));
    let widths: Vec<usize> = (0..HEADS.len())
        .map(|at| rows.iter().map(|row| row[at].len()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<_> = row
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:>width$}"))
            .collect();
        let _ = writeln!(text, "{}", cells.join("  "));
    }
    text
}

/// The same as comma-separated values. Names hold neither commas nor quotes.
pub(super) fn csv(records: &[Record]) -> String {
    let mut text = format!("{}\n", HEADS.join(","));
    for record in records {
        let _ = writeln!(text, "{}", record.cells().join(","));
    }
    text
}

fn time(time: Option<Duration>) -> String {
    time.map_or_else(|| "not known".to_owned(), clock)
}

fn seconds(time: Option<Duration>) -> String {
    time.map_or_else(String::new, |time| format!("{:.3}", time.as_secs_f64()))
}
