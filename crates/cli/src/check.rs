//! `whimbrel check`: what stands in the way of a move, without a destination. Nothing is touched.

use std::path::Path;

use whimbrel_engine::Workload;

use crate::args::CheckArgs;
use crate::exit::refused;
use crate::host;
use crate::migrate::{monitor_of, Target};
use crate::privilege::{require, require_kernel_of_source, NET_ADMIN, SYS_ADMIN, SYS_PTRACE};

/// Says that it can move, or why not.
pub fn run(args: &CheckArgs) -> anyhow::Result<()> {
    let name = match monitor_of(&args.workload) {
        Some(path) => machine(path)?,
        None => process(&args.workload)?,
    };
    println!("{}", can_move(&name));
    Ok(())
}

fn can_move(name: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    format!("{} can move", name.chars().map(clean).collect::<String>())
}

/// What `migrate` looks at before it touches anything. The name of what can move.
fn process(workload: &str) -> anyhow::Result<String> {
    require(&[SYS_PTRACE, SYS_ADMIN, NET_ADMIN])?;
    require_kernel_of_source()?;
    host::tidy();
    let target = Target::find(workload)?;
    let mut process = host::workload(target.pid, target.entry.as_ref())?;
    match process.describe() {
        Ok(_) => Ok(target.name),
        Err(error) => Err(refused(format!("{} cannot move: {error}", target.name))),
    }
}

/// The same of the machine with the monitor `path`.
fn machine(path: &Path) -> anyhow::Result<String> {
    require(&[SYS_PTRACE, SYS_ADMIN])?;
    require_kernel_of_source()?;
    host::tidy();
    let mut machine = host::machine(path)?;
    match machine.describe() {
        Ok(_) => Ok(machine.name().to_owned()),
        Err(error) => Err(refused(format!("{} cannot move: {error}", machine.name()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_does_not_move_the_cursor() {
        assert_eq!(can_move("sh\n (7)"), "sh  (7) can move");
    }
}
