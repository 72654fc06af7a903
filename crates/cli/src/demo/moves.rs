//! One move of the demo, with the commands that a user types.

use std::time::{Duration, Instant};

use anyhow::Context;
use whimbrel_engine::Summary;
use whimbrel_testbed::{Host, TwoHosts, ALPHA, BETA};

/// How long `receive` may take to listen.
const LISTEN_MAX: Duration = Duration::from_secs(10);

/// How long a move may take. At 1 Gbit/s the sample server takes two or three seconds.
const MOVE_MAX: Duration = Duration::from_secs(90);

/// Where `receive` listens.
const PORT: u16 = 7440;

/// Where `migrate` writes its record.
const RECORD: &str = "/tmp/whimbrel-move.json";

/// A move that is to be made.
pub struct Move<'a> {
    /// Where.
    pub hosts: &'a TwoHosts,
    /// What the binary is called in both hosts.
    pub program: &'a str,
    /// The workload.
    pub name: &'a str,
    /// How.
    pub strategy: &'a str,
    /// From beta to alpha instead of from alpha to beta.
    pub back: bool,
}

/// A move that was made.
#[derive(Clone, Debug)]
pub struct Moved {
    /// How.
    pub strategy: String,
    /// From where to where.
    pub direction: String,
    /// When it was asked for, since the demo began.
    pub start: Duration,
    /// When the command ended.
    pub end: Duration,
    /// What the record says.
    pub summary: Summary,
}

impl Move<'_> {
    /// Receives at one end, migrates at the other, and reads the record. Times count from `began`.
    pub fn carry_out(&self, began: Instant) -> anyhow::Result<Moved> {
        let Self {
            program,
            name,
            strategy,
            ..
        } = self;
        let (source, destination, address) = match self.back {
            false => (&self.hosts.alpha, &self.hosts.beta, BETA),
            true => (&self.hosts.beta, &self.hosts.alpha, ALPHA),
        };
        let receive = format!("{program} receive --listen {address}:{PORT}");
        println!("\n{}$ {receive}", destination.name());
        let mut receiving = destination.command(receive.split(' ')).spawn()?;
        let line = receiving.line_with("--key ", LISTEN_MAX)?;
        let key = key_in(&line).with_context(|| format!("no key in \"{line}\""))?;

        let migrate = format!(
            "{program} migrate {name} {address}:{PORT} --key {key} --strategy {strategy} --json {RECORD}"
        );
        println!("{}$ {migrate}", source.name());
        let start = began.elapsed();
        let finished = source.command(migrate.split(' ')).spawn()?.wait_success(MOVE_MAX);
        let end = began.elapsed();
        let output = finished
            .with_context(|| format!("the receiving end said: {}", receiving.output()))?
            .output;
        println!("{}", output.lines().last().unwrap_or_default());
        receiving.wait_success(LISTEN_MAX)?;
        let summary = summary(source)?;
        let direction = format!("{} → {}", source.name(), destination.name());
        Ok(Moved {
            strategy: strategy.to_string(),
            direction,
            start,
            end,
            summary,
        })
    }
}

/// The word behind `--key` in a line of output.
fn key_in(line: &str) -> Option<&str> {
    line.split_once("--key ")?.1.split_whitespace().next()
}

/// The last line of the record.
fn summary(source: &Host) -> anyhow::Result<Summary> {
    let path = source.path(RECORD);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read the record {RECORD}"))?;
    let _ = std::fs::remove_file(path);
    let last = text.lines().last().context("the record is empty")?;
    serde_json::from_str(last).with_context(|| format!("the record's last line is no summary: \"{last}\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_key_in_the_command_that_receive_shows() {
        assert_eq!(
            key_in("  whimbrel migrate WORKLOAD 10.77.0.2:7440 --key AB12-CD34"),
            Some("AB12-CD34")
        );
        assert_eq!(key_in("no key here"), None);
    }
}
