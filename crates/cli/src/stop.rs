//! `whimbrel stop`: ends a workload and forgets it.

use std::time::Instant;

use whimbrel_kernel::namespace::terminate;
use whimbrel_process::container::{self, Identity, Registry};

use crate::args::StopArgs;
use crate::exit::refused;

/// Asks the workload to end, then makes it.
pub fn run(args: &StopArgs) -> anyhow::Result<()> {
    let Some(entry) = Registry::of_host().get(&args.name)? else {
        return Err(refused(format!(
            "no workload here is called {}; see whimbrel ps --all",
            args.name
        )));
    };
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
