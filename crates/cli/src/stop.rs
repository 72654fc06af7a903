//! `whimbrel stop`: ends a workload and forgets it.

use std::time::Instant;

use whimbrel_kernel::namespace::terminate;
use whimbrel_process::container::{self, Identity, Phase, Registry};

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
    if let Some(moving) = host::journals()
        .list()?
        .into_iter()
        .find(|listed| listed.record.workload == args.name)
    {
        return Err(refused(format!(
            "{} is in migration {}; end that first (whimbrel ps shows it)",
            args.name, moving.record.id
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
