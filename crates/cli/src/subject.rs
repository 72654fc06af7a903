//! What the user means by WORKLOAD, and whatever is to be done with it: processes and virtual machines alike.

use std::path::Path;

use anyhow::Context;
use whimbrel_engine::Workload;
use whimbrel_process::container::{Entry, Phase, Registry};

use crate::exit::refused;
use crate::host;
use crate::privilege::{require, require_kernel_of_source, NET_ADMIN, SYS_ADMIN, SYS_PTRACE};

/// Something that is done with a workload of either kind.
pub trait Task {
    /// What comes of it.
    type Done;

    /// Does it. `name` is what people call the workload.
    fn carry_out<W: Workload>(self, workload: &mut W, name: String) -> anyhow::Result<Self::Done>;
}

/// Finds the workload and does something with it. What interrupted commands left behind is put in order first.
pub fn with<T: Task>(workload: &str, task: T) -> anyhow::Result<T::Done> {
    match monitor_of(workload) {
        Some(monitor) => {
            require(&[SYS_PTRACE, SYS_ADMIN])?;
            require_kernel_of_source()?;
            host::tidy();
            let mut machine = host::machine(monitor)?;
            let name = machine.name().to_owned();
            task.carry_out(&mut machine, name)
        }
        None => {
            require(&[SYS_PTRACE, SYS_ADMIN, NET_ADMIN])?;
            require_kernel_of_source()?;
            host::tidy();
            let target = Target::find(workload)?;
            let mut process = host::workload(target.pid, target.entry.as_ref())?;
            task.carry_out(&mut process, target.name)
        }
    }
}

/// The monitor's socket, if it is a virtual machine that is meant.
fn monitor_of(workload: &str) -> Option<&Path> {
    workload.strip_prefix("qemu:").map(Path::new)
}

/// What the user wants to move.
struct Target {
    /// The process.
    pid: i32,
    /// What people call it.
    name: String,
    /// Its container if `run` started it.
    entry: Option<Entry>,
}

impl Target {
    /// A workload of `run`, by name or PID, or any other process.
    fn find(workload: &str) -> anyhow::Result<Self> {
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
