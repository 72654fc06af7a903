//! `whimbrel stop`: ends a workload and forgets it.

use std::time::Instant;

use whimbrel_engine::State;
use whimbrel_kernel::namespace::terminate;
use whimbrel_process::container::{self, Identity, Phase, Registry};
use whimbrel_wire::MigrationId;

use crate::args::StopArgs;
use crate::exit::refused;
use crate::host;

/// Asks the workload to end, then makes it.
pub fn run(args: &StopArgs) -> anyhow::Result<()> {
    host::tidy();
    let Some(entry) = Registry::of_host().get(&args.name)? else {
        return Err(refused(format!(
            "no workload here is called {}; see whimbrel ps --all",
            args.name
        )));
    };
    if entry.phase == Phase::Arriving {
        return Err(refused(format!(
            "{} is just arriving here; end that migration instead",
            args.name
        )));
    }
    if let Some(id) = moving(&args.name)? {
        return Err(refused(format!(
            "{} is in migration {id}; end that first (whimbrel ps shows it)",
            args.name
        )));
    }
    if let Some(process) = entry.process.filter(Identity::is_alive) {
        let deadline = Instant::now() + args.timeout;
        terminate(process.pid);
        while process.is_alive() && Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
    container::end(&entry.resources)?;
    Ok(())
}

/// The migration of this workload that is not decided yet.
fn moving(name: &str) -> anyhow::Result<Option<MigrationId>> {
    let undecided = |state| {
        matches!(
            state,
            State::Active | State::Prepared | State::Offered | State::Released
        )
    };
    let listed = host::journals().list()?;
    let mut records = listed.into_iter().map(|listed| listed.record);
    Ok(records
        .find(|record| record.workload == name && undecided(record.state))
        .map(|record| record.id))
}
