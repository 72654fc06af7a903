//! The command line.

use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use whimbrel_policy::predict::Aim;
use whimbrel_process::container::Address;
use whimbrel_sim::sweep::Sweep;
use whimbrel_wire::{Key, MigrationId};

use crate::demo::server::ServerArgs;
use crate::demo::DemoArgs;
use crate::units;

/// What every command's exit code means.
const EXIT_CODES: &str = "\
Exit codes:
    0  done
    1  failed; the workload runs on where it was
    2  the command line is wrong, or a scenario
    3  refused before anything was touched
    4  undecided: the workload is frozen at the source until the destination answers (see `whimbrel resume`)
    5  the workload runs at the destination, but something after that failed
  130  cancelled (Ctrl-C); the workload runs on where it was";

/// Moves a running Linux workload to another machine while it runs.
#[derive(Debug, Parser)]
#[command(version, after_help = EXIT_CODES, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a command so that it can move anywhere
    Run(RunArgs),
    /// List the workloads and the QEMU machines that run here, and the migrations that are under way
    Ps(PsArgs),
    /// Show what a workload wrote to its output
    Logs(LogsArgs),
    /// End a workload and forget it
    Stop(StopArgs),
    /// Say whether a workload can move, and what stands in its way
    Check(CheckArgs),
    /// Measure a workload and the way to a destination, and say what each strategy would cost
    Plan(PlanArgs),
    /// Move a workload to a host where `whimbrel receive` runs
    Migrate(MigrateArgs),
    /// Take in a workload from another host
    Receive(ReceiveArgs),
    /// Decide a migration that was interrupted
    Resume(ResumeArgs),
    /// Show it all on this machine: two hosts made of namespaces, a server that moves between them under load
    Demo(DemoArgs),
    /// Simulate migrations, and compare what came out
    Sim(SimArgs),
    /// The demo's server
    #[command(hide = true)]
    DemoServer(ServerArgs),
    /// The first process of a workload's namespaces
    #[command(hide = true)]
    Init(InitArgs),
    /// Outlives a controller and cleans up after it
    #[command(hide = true)]
    Guardian(GuardianArgs),
}

/// `run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// What to call it [default: the program's name and four digits]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Address of its own on the network of a bridge, like 10.0.0.2/24; once for each address
    #[arg(long, value_name = "ADDR/LEN")]
    pub ip: Vec<Address>,
    /// The bridge [default: the one with an address in the same network, else the only one]
    #[arg(long, value_name = "BRIDGE", requires = "ip")]
    pub bridge: Option<String>,
    /// Default gateway [default: the host's own behind the bridge, else the bridge]
    #[arg(long, value_name = "ADDR", requires = "ip")]
    pub gateway: Vec<IpAddr>,
    /// The command and its arguments
    #[arg(required = true, last = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// `ps`
#[derive(Debug, Args)]
pub struct PsArgs {
    /// As lines of JSON
    #[arg(long)]
    pub json: bool,
    /// Also those that have ended
    #[arg(long, short)]
    pub all: bool,
}

/// `logs`
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The workload's name
    pub name: String,
    /// Go on with what it writes from now on, until it ends or moves away
    #[arg(long, short)]
    pub follow: bool,
}

/// `stop`
#[derive(Debug, Args)]
pub struct StopArgs {
    /// The workload's name
    pub name: String,
    /// How long it may take after SIGTERM until SIGKILL
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = units::duration)]
    pub timeout: Duration,
}

/// `check`
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// A name given by `run`, the PID of a process, or qemu:PATH with the socket of a virtual machine's monitor
    pub workload: String,
    /// Where `whimbrel receive` listens, to ask it, too: it prepares everything and lets it go again
    #[arg(value_name = "HOST:PORT", value_parser = host_and_port, requires = "key")]
    pub destination: Option<String>,
    /// The one-time key that `receive` printed; it can be used again afterwards
    #[arg(long, env = "WHIMBREL_KEY", hide_env_values = true, value_name = "KEY")]
    pub key: Option<Key>,
    /// Give up when the other end is silent for so long
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = units::duration)]
    pub link_timeout: Duration,
}

/// `plan`
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// A name given by `run`, the PID of a process, or qemu:PATH with the socket of a virtual machine's monitor
    pub workload: String,
    /// Where `whimbrel receive` listens: it prepares everything, takes in padding to measure the link, and lets it go again
    #[arg(value_name = "HOST:PORT", value_parser = host_and_port)]
    pub destination: String,
    /// The one-time key that `receive` printed; it can be used again afterwards
    #[arg(long, env = "WHIMBREL_KEY", hide_env_values = true, value_name = "KEY")]
    pub key: Key,
    /// How long to look at what the workload writes
    #[arg(long = "for", value_name = "TIME", default_value = "3s", value_parser = units::duration)]
    pub look_for: Duration,
    /// The downtime should be at most this
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = units::duration)]
    pub max_downtime: Duration,
    /// What to save beside that [default: time, but rather by a strategy that needs only one machine at any time]
    #[arg(long, value_enum)]
    pub min: Option<Saving>,
    /// Send pages at most at this rate, like 1gbit or 100MB/s
    #[arg(long, value_name = "RATE", value_parser = units::rate)]
    pub max_bandwidth: Option<u64>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
    /// Give up when the other end is silent for so long
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = units::duration)]
    pub link_timeout: Duration,
}

/// What to save.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Saving {
    /// Bytes on the network
    Bytes,
    /// Time until the source may be switched off
    Time,
    /// Time in which the workload does not run
    Downtime,
}

impl From<Saving> for Aim {
    fn from(saving: Saving) -> Aim {
        match saving {
            Saving::Bytes => Aim::Bytes,
            Saving::Time => Aim::Time,
            Saving::Downtime => Aim::Downtime,
        }
    }
}

/// `migrate`
#[derive(Debug, Args)]
pub struct MigrateArgs {
    /// A name given by `run`, the PID of a process, or qemu:PATH with the socket of a virtual machine's monitor
    pub workload: String,
    /// Where `whimbrel receive` listens
    #[arg(value_name = "HOST:PORT", value_parser = host_and_port)]
    pub destination: String,
    /// The one-time key that `receive` printed. Better in the environment: command lines are seen by all users
    #[arg(long, env = "WHIMBREL_KEY", hide_env_values = true, value_name = "KEY")]
    pub key: Key,
    /// How to move it
    #[arg(long, value_enum, default_value_t = Strategy::Auto)]
    pub strategy: Strategy,
    /// auto: what to save beside the downtime [default: time, but rather by a strategy that needs only one machine at any time]
    #[arg(long, value_enum)]
    pub min: Option<Saving>,
    /// auto: a longer downtime only if nothing else is possible. precopy: switch over as soon as the predicted downtime is at most this
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = units::duration)]
    pub max_downtime: Duration,
    /// Send pages at most at this rate, like 1gbit or 100MB/s
    #[arg(long, value_name = "RATE", value_parser = units::rate)]
    pub max_bandwidth: Option<u64>,
    /// At most so many rounds of pre-copy, the first full pass included
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub max_rounds: u32,
    /// Before the switch-over send at most so many percent of the workload's memory
    #[arg(long, value_name = "PERCENT", default_value_t = 300)]
    pub max_traffic: u32,
    /// hybrid: passes of pre-copy before the switch-over
    #[arg(long, value_name = "N")]
    pub passes: Option<u32>,
    /// auto, postcopy, hybrid: in which order pages follow that nobody waits for [default: bubbling]
    #[arg(long, value_enum, value_name = "ORDER")]
    pub prepage: Option<Prepage>,
    /// --prepage bubbling: from how many threads' last faults the push grows at the same time [default: 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub pivots: Option<u32>,
    /// auto, postcopy, hybrid: push pages at most at this rate after the switch-over; pages that a thread waits for do not count
    #[arg(long, value_name = "RATE", value_parser = units::rate)]
    pub max_residual_bandwidth: Option<u64>,
    /// auto, postcopy, hybrid: so long after the switch-over hold the workload until the rest of its memory has arrived
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    pub residual_max: Option<Duration>,
    /// auto, postcopy, hybrid: look for a destination that was lost after the switch-over for so long, then leave it to `whimbrel resume`
    #[arg(long, value_name = "TIME", default_value = "60min", value_parser = units::duration)]
    pub reconnect_for: Duration,
    /// Write everything that happens to a file, as lines of JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write what was told to the decisions and what they decided, to be replayed by `whimbrel sim --replay FILE`
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Give up when the other end is silent for so long
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = units::duration)]
    pub link_timeout: Duration,
}

/// The order in which pages follow after the switch-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Prepage {
    /// Outwards from where threads last waited for a page
    Bubbling,
    /// In order of their addresses
    Push,
    /// None: each page waits until it is touched
    Demand,
}

/// How to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Strategy {
    /// Whichever of the others is predicted to be best, decided while it sends
    Auto,
    /// All memory while it runs, again what was written meanwhile, and so on; then a short stop
    Precopy,
    /// Stop it, then send everything
    Stopcopy,
    /// Its state first: it runs there at once, and its memory follows
    Postcopy,
    /// Passes of pre-copy, then post-copy of what was written meanwhile
    Hybrid,
}

/// `receive`
#[derive(Debug, Args)]
pub struct ReceiveArgs {
    /// Address and port to listen on; 0.0.0.0:7440 for every network of this host
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:7440", value_parser = host_and_port)]
    pub listen: String,
    /// Go on after the first workload
    #[arg(long)]
    pub keep: bool,
    /// The bridge for the workload's network [default: the one with an address in the same network, else the only one]
    #[arg(long, value_name = "BRIDGE")]
    pub bridge: Option<String>,
    /// A shell command that starts the virtual machine that arrives, instead of the source's own command line. It must make a monitor
    /// (-qmp unix:{monitor},server=on,wait=off; {monitor} is replaced by a path) and wait for its state (-S -incoming defer)
    #[arg(long, value_name = "COMMAND")]
    pub vm_command: Option<String>,
    /// Write everything that happens to a file, as lines of JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Give up when the other end is silent for so long
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = units::duration)]
    pub link_timeout: Duration,
}

/// `resume`
#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// The migration's id, as `whimbrel ps` shows it
    pub id: MigrationId,
    /// Let the workload run on here without an answer of the destination. If it was started there, it will run twice
    #[arg(long, requires = "force")]
    pub here: bool,
    /// Yes, I know that it does not run at the destination
    #[arg(long, requires = "here")]
    pub force: bool,
}

/// `sim`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct SimArgs {
    /// Something else than scenarios.
    #[command(subcommand)]
    pub command: Option<SimCommand>,
    /// Scenarios, as TOML
    #[arg(required_unless_present_any = ["manager", "replay"], value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Instead of scenarios: servers and VMs that are moved by commands, by hand or from a script
    #[arg(long, value_name = "SCRIPT", num_args = 0..=1, exclusive = true)]
    pub manager: Option<Option<PathBuf>>,
    /// Instead of scenarios: what `whimbrel migrate --trace FILE` wrote; tells whether it is decided in the same way again
    #[arg(long, value_name = "FILE", exclusive = true)]
    pub replay: Option<PathBuf>,
    /// Simulate with each of these values, like link.rate=100Mbit/s,1Gbit/s or guest.load.0.rate=1MB/s,50MB/s; several: each
    /// combination
    #[arg(long, value_name = "KEY=V,V…")]
    pub sweep: Vec<Sweep>,
    /// Write outcomes.json, outcomes.csv and report.html, a page with plots, into this directory
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Instead of the scenario's own
    #[arg(long, value_name = "N")]
    pub seed: Option<u32>,
}

/// What `sim` can do without a scenario.
#[derive(Debug, Subcommand)]
pub enum SimCommand {
    /// Simulate the experiments of the papers that whimbrel goes back to, and show what they print beside what comes out
    Papers(PapersArgs),
}

/// `sim papers`
#[derive(Debug, Args)]
pub struct PapersArgs {
    /// Which ones [default: all]
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Write papers.json and papers.html, a page with plots, into this directory
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// JSON instead of tables
    #[arg(long)]
    pub json: bool,
    /// Markdown instead of tables
    #[arg(long, conflicts_with = "json")]
    pub markdown: bool,
}

/// `init`
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The inherited end of the connection to the controller
    pub control: i32,
}

/// `guardian`
#[derive(Debug, Args)]
pub struct GuardianArgs {
    /// The migration that it guards
    pub id: MigrationId,
    /// Which end of it
    #[arg(value_enum)]
    pub end: End,
    /// The inherited end of a pipe whose other end the controller has
    #[arg(long)]
    pub pipe: i32,
    /// The controller's PID
    #[arg(long)]
    pub controller: i32,
    /// As the controller's
    #[arg(long, value_parser = units::duration)]
    pub link_timeout: Duration,
    /// The inherited listening socket
    #[arg(long, requires = "port")]
    pub listener: Option<i32>,
    /// The port of that socket, for whoever needs it
    #[arg(long)]
    pub port: Option<u16>,
}

/// One end of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum End {
    /// Where the workload comes from.
    Source,
    /// Where it goes.
    Destination,
}

/// As on the command line.
impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            End::Source => "source",
            End::Destination => "destination",
        })
    }
}

impl MigrateArgs {
    /// An option that has no meaning with the strategy.
    pub fn misplaced(&self) -> Option<&'static str> {
        let lazy = matches!(
            self.strategy,
            Strategy::Auto | Strategy::Postcopy | Strategy::Hybrid
        );
        let bubbling = self.prepage.is_none_or(|prepage| prepage == Prepage::Bubbling);
        let given = [
            (
                self.passes.is_some() && self.strategy != Strategy::Hybrid,
                "--passes needs --strategy hybrid",
            ),
            (
                self.min.is_some() && self.strategy != Strategy::Auto,
                "--min needs --strategy auto",
            ),
            (
                self.prepage.is_some() && !lazy,
                "--prepage needs --strategy auto, postcopy or hybrid",
            ),
            (
                self.pivots.is_some() && !(lazy && bubbling),
                "--pivots needs --strategy auto, postcopy or hybrid, with --prepage bubbling",
            ),
            (
                self.max_residual_bandwidth.is_some() && !lazy,
                "--max-residual-bandwidth needs --strategy auto, postcopy or hybrid",
            ),
            (
                self.residual_max.is_some() && !lazy,
                "--residual-max needs --strategy auto, postcopy or hybrid",
            ),
        ];
        given
            .into_iter()
            .find(|(misplaced, _)| *misplaced)
            .map(|(_, why)| why)
    }
}

/// As on the command line.
impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Strategy::Auto => "auto",
            Strategy::Precopy => "precopy",
            Strategy::Stopcopy => "stopcopy",
            Strategy::Postcopy => "postcopy",
            Strategy::Hybrid => "hybrid",
        })
    }
}

/// `name:port`, `1.2.3.4:port` or `[::1]:port`; whether the name exists is found out later.
fn host_and_port(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is not a host with a port, like 10.0.0.2:7440")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    const ID: &str = "0123456789abcdef0123456789abcdef";
    const KEY: &str = "00000-00000-00000-00000-000000";

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.command)
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_takes_the_command_as_it_is() {
        let Command::Run(run) =
            parse("whimbrel run --name a --ip 10.0.0.2/24 --ip fd00::2/64 -- java -Xmx1g --name b").unwrap()
        else {
            panic!("not run");
        };
        assert_eq!(
            (run.name.as_deref(), run.ip.len(), run.command.len()),
            (Some("a"), 2, 4)
        );
        assert!(parse("whimbrel run").is_err());
        assert!(parse("whimbrel run --bridge br0 -- x").is_err());
    }

    #[test]
    fn migrate_reads_goals() {
        let goals = "--max-downtime 80ms --max-bandwidth 1gbit --strategy stopcopy";
        let line = format!("whimbrel migrate shop h:1 --key {KEY} {goals}");
        let Command::Migrate(migrate) = parse(&line).unwrap() else {
            panic!("not migrate")
        };
        assert_eq!(migrate.max_downtime, Duration::from_millis(80));
        assert_eq!(migrate.max_bandwidth, Some(125_000_000));
        assert_eq!(migrate.strategy, Strategy::Stopcopy);
        assert!(parse(&format!(
            "whimbrel migrate shop h:1 --key {KEY} --max-downtime 80"
        ))
        .is_err());
        assert!(parse(&format!("whimbrel migrate shop h:1 --key {KEY} --strategy hope")).is_err());
        assert!(parse(&format!("whimbrel migrate shop here --key {KEY}")).is_err());
        assert!(parse("whimbrel migrate shop h:1 --key short").is_err());
    }

    #[test]
    fn options_for_what_follows_need_a_strategy_that_leaves_something() {
        let misplaced = |options: &str| {
            let line = format!("whimbrel migrate shop h:1 --key {KEY} {options}");
            let Command::Migrate(migrate) = parse(&line).unwrap() else {
                panic!("not migrate")
            };
            migrate.misplaced()
        };
        for good in [
            "--strategy postcopy --prepage push --residual-max 9s",
            "--min bytes --prepage push",
            "--strategy hybrid --passes 2 --pivots 4 --max-residual-bandwidth 100mbit",
        ] {
            assert_eq!(misplaced(good), None, "{good}");
        }
        for bad in [
            "--passes 2 --strategy postcopy",
            "--strategy precopy --prepage push",
            "--strategy stopcopy --residual-max 1s",
            "--strategy hybrid --min bytes",
            "--strategy postcopy --prepage push --pivots 2",
        ] {
            assert!(misplaced(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn check_needs_only_a_workload() {
        for workload in ["shop", "4711", "qemu:/run/vm.qmp"] {
            let Command::Check(check) = parse(&format!("whimbrel check {workload}")).unwrap() else {
                panic!("not check")
            };
            assert_eq!(check.workload, workload);
        }
        assert!(parse("whimbrel check").is_err());
        assert!(parse("whimbrel check shop h:1").is_err());
    }

    #[test]
    fn sim_takes_scenarios_and_sweeps() {
        let line =
            "whimbrel sim a.toml b.toml --sweep link.rate=1,2 --sweep guest.vcpus=1,2,4 --out here --seed 7";
        let Command::Sim(sim) = parse(line).unwrap() else {
            panic!("not sim")
        };
        assert_eq!((sim.files.len(), sim.sweep.len(), sim.seed), (2, 2, Some(7)));
        assert_eq!(sim.sweep[1].values.len(), 3);
        assert!(parse("whimbrel sim").is_err());
        let manager = |line| match parse(line) {
            Ok(Command::Sim(sim)) => sim.manager,
            _ => None,
        };
        assert_eq!(manager("whimbrel sim --manager"), Some(None));
        assert_eq!(
            manager("whimbrel sim --manager a.script"),
            Some(Some("a.script".into()))
        );
        assert!(parse("whimbrel sim --manager a.script --json").is_err());
        assert!(
            matches!(parse("whimbrel sim --replay a.trace"), Ok(Command::Sim(sim)) if sim.replay.is_some())
        );
        assert!(parse("whimbrel sim --replay a.trace a.toml").is_err());
        assert!(parse("whimbrel sim a.toml --sweep link.rate").is_err());
    }

    #[test]
    fn forcing_has_to_be_said_twice() {
        assert!(parse(&format!("whimbrel resume {ID} --here")).is_err());
        assert!(parse(&format!("whimbrel resume {ID} --force")).is_err());
        assert!(parse(&format!("whimbrel resume {ID} --here --force")).is_ok());
    }
}
