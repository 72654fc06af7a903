//! `whimbrel logs`: what a workload wrote.

use std::fs::File;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::Context;
use whimbrel_process::container::{Phase, Registry};

use crate::args::LogsArgs;
use crate::exit::refused;

/// How often the log is looked at for more.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Prints the log, and goes on with it if asked to.
pub fn run(args: &LogsArgs) -> anyhow::Result<()> {
    let registry = Registry::of_host();
    if registry.get(&args.name)?.is_none() {
        return Err(refused(format!(
            "no workload here is called {}; see whimbrel ps --all",
            args.name
        )));
    }
    let path = registry.log(&args.name);
    let mut log = File::open(&path).with_context(|| format!("cannot open the log {}", path.display()))?;
    let mut out = io::stdout().lock();
    loop {
        // Before the copy: what is written until its end was noted is still shown.
        let runs = registry
            .get(&args.name)?
            .is_some_and(|entry| entry.phase != Phase::Ended);
        match io::copy(&mut log, &mut out).and_then(|_| out.flush()) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            other => other.context("cannot copy the log")?,
        }
        if !args.follow || !runs {
            return Ok(());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
