//! `whimbrel migrate`: moves a workload away.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;
use std::time::Duration;

use whimbrel_engine::source::{migrate, SourceOptions, ASK_FOR};
use whimbrel_engine::{
    Error, Failure, Nature, Prepaging, ResidualOptions, Trace, Whereabouts, Workload, PIVOTS_MAX,
};
use whimbrel_policy::predict::{Costs, Goals};
use whimbrel_policy::strategy::Named;
use whimbrel_policy::{Hints, Limits, Migration, Passes};
use whimbrel_wire::MigrationId;

use crate::args::{End, MigrateArgs, Prepage, Strategy};
use crate::exit::{refused, Code, Coded};
use crate::guardian::Guardian;
use crate::subject::{self, Task};
use crate::watch::Watch;
use crate::{host, interrupt, screen};

/// What a scan of a running workload takes, until one was seen.
const SCAN: Duration = Duration::from_millis(3);
/// What the round trip of a network fault is taken for: it only decides between ways that are close to each other.
const ROUND_TRIP: Duration = Duration::from_micros(500);

/// Moves it and prints the summary.
pub fn run(args: &MigrateArgs) -> anyhow::Result<()> {
    if let Some(why) = args.misplaced() {
        return Err(refused(why.to_owned()));
    }
    let cancel = interrupt::watch()?;
    subject::with(&args.workload, Move { args, cancel })
}

struct Move<'a> {
    args: &'a MigrateArgs,
    cancel: Arc<AtomicBool>,
}

impl Task for Move<'_> {
    type Done = ();

    fn carry_out<W: Workload>(self, workload: &mut W, name: String) -> anyhow::Result<()> {
        let args = self.args;
        let mut watch = Watch::new(args.json.as_deref())?;
        let trace = args.trace.as_deref().map(trace).transpose()?;
        let id = MigrationId::random()?;
        let guardian = Guardian::start(id, End::Source, args.link_timeout, None)?;
        let options = SourceOptions {
            id,
            key: args.key.clone(),
            destination: args.destination.clone(),
            workload_name: name,
            migration: decisions(args, &workload.nature()),
            residual: residual(args),
            trace,
            link_timeout: args.link_timeout,
            followed: true,
            ask_for: ASK_FOR,
            journals: host::journals(),
            cancel: self.cancel,
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
}

fn decisions(args: &MigrateArgs, nature: &Nature) -> Migration {
    let limits = Limits {
        downtime_max: args.max_downtime,
        rounds_max: args.max_rounds,
        traffic_percent_max: args.max_traffic,
        bandwidth_max: args.max_bandwidth,
    };
    let strategy = match args.strategy {
        Strategy::Auto => auto(args, nature),
        Strategy::Precopy => Named::PreCopy,
        Strategy::Stopcopy => Named::StopCopy,
        Strategy::Postcopy => Named::PostCopy,
        Strategy::Hybrid => Named::Hybrid(Passes::Exactly(args.passes.unwrap_or(1))),
    };
    let hints = Hints {
        state_bytes: nature.state_bytes,
        fixed_cost: nature.stop,
        ..Hints::default()
    };
    Migration::new(strategy.build(), limits, hints)
}

fn auto(args: &MigrateArgs, nature: &Nature) -> Named {
    let goals = Goals {
        downtime_max: args.max_downtime,
        min: args.min.map(Into::into),
    };
    let costs = Costs {
        before: Duration::ZERO,
        scan: SCAN,
        stop: nature.stop,
        arm: nature.arm,
        drop: nature.drop,
        after: nature.after,
    };
    Named::Auto {
        goals,
        costs,
        round_trip: ROUND_TRIP,
    }
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
