//! What is left of a migration when it is over: numbers, one line for people, and lines of JSON for programs.

use std::fmt;
use std::io::Write;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use whimbrel_policy::Migration;
use whimbrel_wire::{DestinationTimes, FaultTimes, MigrationId};

use crate::observer::{micros, Observer, Phase, PhaseTime, Progress, Round};
use crate::residual::ResidualProgress;

/// A migration that succeeded, as the source saw it. Times in microseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The migration.
    #[serde(with = "id_text")]
    pub id: MigrationId,
    /// The workload's name.
    pub workload: String,
    /// Where it went.
    pub destination: String,
    /// The strategy's name.
    pub strategy: String,
    /// Why it was switched over just then.
    pub stop_reason: Option<String>,
    /// From the request until the source may be switched off.
    pub total_us: u64,
    /// From the beginning of the freeze at the source until its answer that it runs at the destination.
    pub downtime_us: u64,
    /// What the destination did meanwhile.
    pub destination_times: DestinationTimes,
    /// Bytes on the bulk stream: layouts, pages and the state.
    pub bulk_bytes: u64,
    /// Bytes of the state beside the memory.
    pub state_bytes: u64,
    /// Bytes of memory that the workload had at the end.
    pub memory_bytes: u64,
    /// Rounds, and the last pages.
    pub rounds: Vec<Round>,
    /// Phases at the source, in order.
    pub phases: Vec<PhaseTime>,
    /// From the request until the freeze.
    pub preparation_us: u64,
    /// What followed after the switch-over, with a strategy that leaves pages for then.
    pub residual: Option<ResidualSummary>,
    /// What was expected, if the strategy chose by that.
    #[serde(default)]
    pub predicted: Option<Predicted>,
}

/// What a strategy that chooses by predictions expected of what it chose.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Predicted {
    /// What it chose, and why.
    pub choice: String,
    /// The way of moving.
    pub course: String,
    /// As [`Summary::total_us`].
    pub total_us: u64,
    /// As [`Summary::downtime_us`].
    pub downtime_us: u64,
    /// As [`Summary::wire_bytes`].
    pub bytes: u64,
    /// As [`ResidualSummary::network_faults`].
    pub network_faults: u64,
}

impl Predicted {
    /// What a migration's strategy expected.
    pub(crate) fn of(migration: &Migration) -> Option<Self> {
        let (choice, prediction) = (migration.choice()?, migration.prediction()?);
        let micros = |seconds: f64| (seconds * 1e6) as u64;
        Some(Self {
            choice: choice.to_string(),
            course: prediction.course.to_string(),
            total_us: micros(prediction.total_s.likely),
            downtime_us: micros(prediction.downtime_s.likely),
            bytes: prediction.bytes.likely as u64,
            network_faults: prediction.network_faults.likely as u64,
        })
    }
}

impl Summary {
    /// Bytes on the wire in all: the bulk stream, and what followed.
    pub fn wire_bytes(&self) -> u64 {
        let followed =
            |residual: &ResidualSummary| residual.bytes_pushed.saturating_add(residual.bytes_replied);
        self.bulk_bytes
            .saturating_add(self.residual.as_ref().map_or(0, followed))
    }
}

/// The pages that followed after the switch-over (the measures of the post-copy paper; see [`whimbrel_policy::postcopy::Metrics`]).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ResidualSummary {
    /// The order of the push.
    pub prepaging: String,
    /// Pages that the destination lacked at the switch-over.
    pub pages: u64,
    /// Those that nobody had asked for when they were sent.
    pub pages_pushed: u64,
    /// Those that were sent because a thread waited for one of them.
    pub pages_replied: u64,
    /// Those of both that were full of zeros.
    pub pages_zero: u64,
    /// Pages sent again after a lost link.
    pub pages_again: u64,
    /// Pages that the workload had dropped before they were sent.
    pub pages_spared: u64,
    /// Pages for which at least one thread waited.
    pub pages_faulted: u64,
    /// Faults that waited for the network.
    pub network_faults: u64,
    /// Those of them whose page was on its way already.
    pub faults_in_flight: u64,
    /// Network faults that the push has spared, at most.
    pub faults_avoided_max: u64,
    /// Bytes of the push.
    pub bytes_pushed: u64,
    /// Bytes of replies.
    pub bytes_replied: u64,
    /// The resume time: from the switch-over until every page was there, lost links included.
    pub duration_us: u64,
    /// How often the link was lost and came back.
    pub reconnects: u32,
    /// How long faults took, as the destination saw it.
    pub times: FaultTimes,
    /// How much the thread that waited longest was slowed down: the share of the resume time in which it waited, in percent.
    pub slowdown_percent: Option<f64>,
}

/// A migration that the destination received. Times in microseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Received {
    /// The migration.
    #[serde(with = "id_text")]
    pub id: MigrationId,
    /// Where it came from.
    pub source: String,
    /// Bytes on the bulk stream.
    pub bulk_bytes: u64,
    /// How long faults took, if pages followed after the start.
    pub fault_times: Option<FaultTimes>,
    /// From the first word until it ran here.
    pub total_us: u64,
    /// What was done between the last page and the start.
    pub times: DestinationTimes,
    /// Phases at the destination, in order.
    pub phases: Vec<PhaseTime>,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds = self.rounds.iter().filter(|r| !r.frozen).count();
        write!(
            f,
            "moved {} to {} in {}, {} of it down: {} in {}",
            self.workload,
            self.destination,
            Time(self.total_us),
            Time(self.downtime_us),
            Bytes(self.bulk_bytes),
            match rounds {
                0 => "one stop".to_owned(),
                1 => "1 round".to_owned(),
                n => format!("{n} rounds"),
            },
        )?;
        match &self.residual {
            Some(residual) => write!(f, "; {residual}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for ResidualSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} followed in {}, {} network faults",
            Bytes(self.bytes_pushed.saturating_add(self.bytes_replied)),
            Time(self.duration_us),
            self.network_faults
        )?;
        let times = &self.times.all;
        if times.faults > 0 {
            write!(
                f,
                " (half within {}, 99 % within {}, longest {})",
                Time(times.p50_us),
                Time(times.p99_us),
                Time(times.max_us)
            )?;
        }
        if let Some(percent) = self.slowdown_percent {
            write!(f, ", its slowest thread waited {percent:.0} % of that time")?;
        }
        match self.reconnects {
            0 => Ok(()),
            n => write!(f, ", link lost and found {n} times"),
        }
    }
}

impl fmt::Display for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = Bytes(self.bulk_bytes);
        write!(
            f,
            "received {bytes} from {} in {}",
            self.source,
            Time(self.total_us)
        )
    }
}

/// Microseconds, as people say them.
#[derive(Clone, Copy, Debug)]
pub struct Time(pub u64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            us @ 0..=999 => write!(f, "{us} us"),
            us @ 1000..=99_949 => write!(f, "{:.1} ms", us as f64 / 1e3),
            us @ 99_950..=999_499 => write!(f, "{:.0} ms", us as f64 / 1e3),
            us => write!(f, "{:.2} s", us as f64 / 1e6),
        }
    }
}

/// Bytes, as people say them: powers of 1000.
#[derive(Clone, Copy, Debug)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            b @ 0..=999 => write!(f, "{b} B"),
            b @ 1000..=999_999 => write!(f, "{:.1} kB", b as f64 / 1e3),
            b @ 1_000_000..=999_949_999 => write!(f, "{:.1} MB", b as f64 / 1e6),
            b => write!(f, "{:.2} GB", b as f64 / 1e9),
        }
    }
}

/// One line of a record.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Line<'a> {
    PhaseBegun { phase: Phase },
    PhaseEnded { phase: Phase, duration_us: u64 },
    Progress(&'a Progress),
    Round(&'a Round),
    Residual(&'a ResidualProgress),
    Warning { sentence: &'a str },
    Moved(&'a Summary),
    Received(&'a Received),
    Failed { sentence: &'a str },
}

/// Writes everything that happens as lines of JSON, each an object with a member `event`. A failed write is remembered
/// and does not disturb the migration.
#[derive(Debug)]
pub struct JsonLines<W> {
    out: W,
    failed: Option<std::io::Error>,
}

impl<W: Write> JsonLines<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self { out, failed: None }
    }

    /// The last line of a migration that succeeded, at the source.
    pub fn moved(&mut self, summary: &Summary) {
        self.line(&Line::Moved(summary));
    }

    /// The last line of a migration that succeeded, at the destination.
    pub fn received(&mut self, received: &Received) {
        self.line(&Line::Received(received));
    }

    /// The last line of a migration that failed.
    pub fn failed(&mut self, sentence: &str) {
        self.line(&Line::Failed { sentence });
    }

    /// The first write that failed.
    pub fn finish(mut self) -> std::io::Result<W> {
        match self.failed.take() {
            Some(e) => Err(e),
            None => self.out.flush().map(|()| self.out),
        }
    }

    fn line(&mut self, line: &Line<'_>) {
        if self.failed.is_some() {
            return;
        }
        let result = serde_json::to_writer(&mut self.out, line).map_err(std::io::Error::from);
        self.failed = result.and_then(|()| self.out.write_all(b"\n")).err();
    }
}

impl<W: Write> Observer for JsonLines<W> {
    fn begun(&mut self, phase: Phase) {
        self.line(&Line::PhaseBegun { phase });
    }

    fn ended(&mut self, phase: Phase, duration: Duration) {
        self.line(&Line::PhaseEnded {
            phase,
            duration_us: micros(duration),
        });
    }

    fn progress(&mut self, progress: &Progress) {
        self.line(&Line::Progress(progress));
    }

    fn residual(&mut self, progress: &ResidualProgress) {
        self.line(&Line::Residual(progress));
    }

    fn round(&mut self, round: &Round) {
        self.line(&Line::Round(round));
    }

    fn warning(&mut self, sentence: &str) {
        self.line(&Line::Warning { sentence });
    }
}

mod id_text {
    use serde::{de::Error, Deserialize, Deserializer, Serializer};
    use whimbrel_wire::MigrationId;

    pub fn serialize<S: Serializer>(id: &MigrationId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<MigrationId, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary() -> Summary {
        Summary {
            id: MigrationId([0xab; 16]),
            workload: "shop".into(),
            destination: "192.0.2.7:7440".into(),
            strategy: "precopy".into(),
            stop_reason: Some("the predicted downtime is short enough".into()),
            total_us: 3_214_000,
            downtime_us: 23_449,
            destination_times: DestinationTimes {
                build_us: 11_000,
                ..Default::default()
            },
            bulk_bytes: 412_000_000,
            state_bytes: 100_000,
            memory_bytes: 400_000_000,
            rounds: vec![
                Round {
                    number: 1,
                    ..Round::default()
                },
                Round {
                    number: 2,
                    ..Round::default()
                },
                Round {
                    number: 3,
                    frozen: true,
                    ..Round::default()
                },
            ],
            phases: vec![PhaseTime {
                phase: Phase::Freeze,
                begun_us: 7,
                duration_us: 300,
            }],
            preparation_us: 2_900_000,
            residual: None,
            predicted: None,
        }
    }

    #[test]
    fn one_line_for_people() {
        assert_eq!(
            summary().to_string(),
            "moved shop to 192.0.2.7:7440 in 3.21 s, 23.4 ms of it down: 412.0 MB in 2 rounds"
        );
    }

    #[test]
    fn what_followed_is_told_behind_it() {
        let mut summary = summary();
        summary.residual = Some(ResidualSummary {
            bytes_pushed: 40_000_000,
            network_faults: 213,
            duration_us: 400_000,
            slowdown_percent: Some(12.4),
            reconnects: 1,
            times: FaultTimes {
                all: whimbrel_wire::Latency {
                    faults: 213,
                    p50_us: 300,
                    p99_us: 2000,
                    max_us: 2100,
                    waited_us: 99_000,
                },
                ..FaultTimes::default()
            },
            ..ResidualSummary::default()
        });
        let expected = "in 2 rounds; 40.0 MB followed in 400 ms, 213 network faults (half within 300 us, 99 % within 2.0 ms, longest 2.1 ms), \
                        its slowest thread waited 12 % of that time, link lost and found 1 times";
        assert!(summary.to_string().ends_with(expected), "{summary}");
    }

    #[test]
    fn times_and_sizes_as_people_say_them() {
        let times = [
            (0, "0 us"),
            (999, "999 us"),
            (1000, "1.0 ms"),
            (99_949, "99.9 ms"),
            (99_950, "100 ms"),
        ];
        times
            .iter()
            .for_each(|&(us, text)| assert_eq!(Time(us).to_string(), text));
        assert_eq!(
            (Time(999_499).to_string(), Time(999_500).to_string()),
            ("999 ms".into(), "1.00 s".into())
        );
        let sizes = [
            (999, "999 B"),
            (1500, "1.5 kB"),
            (2_000_000, "2.0 MB"),
            (3_210_000_000, "3.21 GB"),
        ];
        sizes
            .iter()
            .for_each(|&(bytes, text)| assert_eq!(Bytes(bytes).to_string(), text));
    }

    #[test]
    fn a_record_is_lines_of_json_that_read_back() {
        let mut lines = JsonLines::new(Vec::new());
        lines.begun(Phase::Freeze);
        lines.ended(Phase::Freeze, Duration::from_micros(300));
        lines.round(&Round::default());
        lines.warning("a \"quoted\"\nword");
        lines.moved(&summary());
        let text = String::from_utf8(lines.finish().unwrap()).unwrap();
        let values: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let events: Vec<_> = values.iter().map(|v| v["event"].as_str().unwrap()).collect();
        assert_eq!(
            events,
            ["phase-begun", "phase-ended", "round", "warning", "moved"]
        );
        assert_eq!(values[1]["duration_us"], 300);
        assert_eq!(
            serde_json::from_value::<Summary>(values[4].clone()).unwrap(),
            summary()
        );
    }

    #[test]
    fn a_full_disk_does_not_disturb() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let mut lines = JsonLines::new(Full);
        lines.begun(Phase::Freeze);
        lines.failed("no");
        assert!(lines.finish().is_err());
    }
}
