//! `whimbrel migrate`: moves a workload away.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use anyhow::Context;
use whimbrel_engine::source::{migrate, SourceOptions, ASK_FOR};
use whimbrel_engine::{Error, Failure, Prepaging, ResidualOptions, Trace, Whereabouts, Workload, PIVOTS_MAX};
use whimbrel_policy::strategy::Named;
use whimbrel_policy::{Hints, Limits, Migration, Passes};
use whimbrel_process::container::{Entry, Phase, Registry};
use whimbrel_wire::MigrationId;

use crate::args::{End, MigrateArgs, Prepage, Strategy};
use crate::exit::{refused, Code, Coded};
use crate::guardian::Guardian;
use crate::privilege::{require, require_kernel_of_source, NET_ADMIN, SYS_ADMIN, SYS_PTRACE};
use crate::watch::Watch;
use crate::{host, interrupt, screen};

/// Moves it and prints the summary.
pub fn run(args: &MigrateArgs) -> anyhow::Result<()> {
    if let Some(why) = args.misplaced() {
        return Err(refused(why.to_owned()));
    }
    let cancel = interrupt::watch()?;
    require(&[SYS_PTRACE, SYS_ADMIN, NET_ADMIN])?;
    require_kernel_of_source()?;
    host::tidy();
    if let Some(monitor) = monitor_of(&args.workload) {
        let mut machine = host::machine(monitor)?;
        let name = machine.name().to_owned();
        return carry_out(&mut machine, name, args, cancel);
    }
    let target = Target::find(&args.workload)?;
    let mut workload = host::workload(target.pid, target.entry.as_ref())?;
    carry_out(&mut workload, target.name, args, cancel)
}

/// The monitor's socket, if it is a virtual machine that is meant.
pub fn monitor_of(workload: &str) -> Option<&Path> {
    workload.strip_prefix("qemu:").map(Path::new)
}

fn carry_out<W: Workload>(
    workload: &mut W,
    name: String,
    args: &MigrateArgs,
    cancel: Arc<AtomicBool>,
) -> anyhow::Result<()> {
    let mut watch = Watch::new(args.json.as_deref())?;
    let id = MigrationId::random()?;
    let guardian = Guardian::start(id, End::Source, args.link_timeout, None)?;
    let options = SourceOptions {
        id,
        key: args.key.clone(),
        destination: args.destination.clone(),
        workload_name: name,
        migration: decisions(args),
        residual: residual(args),
        trace: args.trace.as_deref().map(trace).transpose()?,
        link_timeout: args.link_timeout,
        followed: true,
        ask_for: ASK_FOR,
        journals: host::journals(),
        cancel,
    };
    let result = migrate(workload, options, &mut watch);
    guardian.release();
    match &result {
        Ok(summary) => {
            watch.moved(summary);
            print!("{}", screen::result(summary));
        }
        Err(failure) => watch.failed(&failure.to_string()),
    }
    watch.close();
    result.map(drop).map_err(coded)
}

/// What the user wants to move.
pub struct Target {
    /// The process.
    pub pid: i32,
    /// What people call it.
    pub name: String,
    /// Its container if `run` started it.
    pub entry: Option<Entry>,
}

impl Target {
    /// A workload of `run`, by name or PID, or any other process.
    pub fn find(workload: &str) -> anyhow::Result<Self> {
        let entry = Registry::of_host().find(workload)?;
        match (entry, workload.parse::<i32>()) {
            (Some(entry), _) => Self::of_entry(entry),
            (None, Ok(pid)) => Self::of_process(pid),
            (None, Err(_)) => Err(refused(format!(
                "no workload here is called {workload}; see whimbrel ps, or give the PID of a process"
            ))),
        }
    }

    fn of_entry(entry: Entry) -> anyhow::Result<Self> {
        let name = entry.spec.name.clone();
        match (entry.phase, entry.process) {
            (Phase::Running, Some(process)) => Ok(Self {
                pid: process.pid,
                name,
                entry: Some(entry),
            }),
            (Phase::Arriving, _) => Err(refused(format!(
                "{name} is just arriving here; wait until it runs"
            ))),
            _ => Err(refused(format!("{name} has ended; there is nothing to move"))),
        }
    }

    fn of_process(pid: i32) -> anyhow::Result<Self> {
        if pid == std::process::id() as i32 {
            return Err(refused(format!(
                "process {pid} is this command itself, which cannot move"
            )));
        }
        if pid < 1 || !Path::new(&format!("/proc/{pid}")).exists() {
            return Err(refused(format!("there is no process {pid} on this host")));
        }
        let program = whimbrel_kernel::proc::text(pid, "comm").context("cannot read the process's name")?;
        Ok(Self {
            pid,
            name: format!("{} ({pid})", program.trim_end()),
            entry: None,
        })
    }
}

fn decisions(args: &MigrateArgs) -> Migration {
    let limits = Limits {
        downtime_max: args.max_downtime,
        rounds_max: args.max_rounds,
        traffic_percent_max: args.max_traffic,
        bandwidth_max: args.max_bandwidth,
    };
    let strategy = match args.strategy {
        Strategy::Precopy => Named::PreCopy,
        Strategy::Stopcopy => Named::StopCopy,
        Strategy::Postcopy => Named::PostCopy,
        Strategy::Hybrid => Named::Hybrid(Passes::Exactly(args.passes.unwrap_or(1))),
    };
    Migration::new(strategy.build(), limits, Hints::default())
}

/// The file is made now, so that it does not fail later.
fn trace(path: &Path) -> anyhow::Result<Trace> {
    Trace::create(path)
        .map_err(|error| refused(format!("cannot write the trace {}: {error}", path.display())))
}

fn residual(args: &MigrateArgs) -> ResidualOptions {
    let pivots_max = args.pivots.map_or(PIVOTS_MAX, |pivots| pivots as usize);
    ResidualOptions {
        prepaging: match args.prepage.unwrap_or(Prepage::Bubbling) {
            Prepage::Bubbling => Prepaging::Bubbling { pivots_max },
            Prepage::Push => Prepaging::Push,
            Prepage::Demand => Prepaging::Demand,
        },
        bandwidth_max: args.max_residual_bandwidth,
        residual_max: args.residual_max,
        reconnect_for: args.reconnect_for,
    }
}

/// A failure with the exit code that tells where the workload is.
pub fn coded(failure: Failure) -> anyhow::Error {
    let code = match (failure.whereabouts, &failure.error) {
        (Whereabouts::Untouched | Whereabouts::Source, Error::Cancelled) => Code::Cancelled,
        (Whereabouts::Untouched, Error::Refused(_) | Error::Workload(_)) => Code::Refused,
        (Whereabouts::Untouched | Whereabouts::Source, _) => Code::Failed,
        (Whereabouts::Undecided, _) => Code::Undecided,
        (Whereabouts::Destination, _) => Code::Unclean,
    };
    Coded {
        code,
        sentence: failure.to_string(),
    }
    .into()
}
