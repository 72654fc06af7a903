//! The machines that run on this host.

use std::path::{Path, PathBuf};

use whimbrel_kernel::proc::{self, Status};

use crate::arguments::{Arguments, Severity, Unfit};

/// A machine that runs here, as far as `/proc` tells. Nobody connects to its monitor, which has room for one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// The process.
    pub pid: i32,
    /// What the user calls it, else the program's name.
    pub name: String,
    /// Sockets of monitors in control mode. The one that whimbrel added on an earlier hop comes first: nobody else
    /// uses it.
    pub monitors: Vec<PathBuf>,
    /// Why it cannot be moved, if an option stands in the way. [`Severity::Starts`] is not looked for.
    pub unfit: Option<Unfit>,
}

/// The machines that run in our mount namespace, by PID. In another one their paths mean something else. Processes
/// that end meanwhile, or that we may not look at, are left out.
pub fn list() -> Vec<Running> {
    let Ok(ours) = proc::namespace(std::process::id() as i32, "mnt") else {
        return Vec::new();
    };
    let mut machines: Vec<(i32, Arguments)> = pids()
        .into_iter()
        .filter(|pid| proc::namespace(*pid, "mnt").is_ok_and(|theirs| theirs == ours))
        .filter_map(|pid| Some((pid, Arguments::of_process(pid).ok()?)))
        .filter(|(pid, arguments)| is_qemu(*pid, arguments))
        .collect();
    let all = machines.clone();
    machines.retain(|machine| !is_helper(machine, &all));
    machines
        .into_iter()
        .map(|(pid, arguments)| running(pid, &arguments))
        .collect()
}

pub(crate) fn pids() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<i32> = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    pids
}

pub(crate) fn is_qemu(pid: i32, arguments: &Arguments) -> bool {
    let program = proc::link(pid, "exe").unwrap_or_default();
    // The file may have been replaced by an update meanwhile.
    let program = program.strip_suffix(" (deleted)").unwrap_or(&program);
    is_name_of_qemu(program) || is_name_of_qemu(arguments.program())
}

fn is_name_of_qemu(program: &str) -> bool {
    let name = file_name(program);
    name.starts_with("qemu-system-") || matches!(name, "qemu-kvm" | "kvm")
}

pub(crate) fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// Whether it is a child of a machine that has its command line: what `-async-teardown` makes, or a fork that is
/// about to run something else.
fn is_helper((pid, arguments): &(i32, Arguments), all: &[(i32, Arguments)]) -> bool {
    let status = Status::read(*pid).ok();
    let Some(parent) = status.and_then(|status| status.number("PPid")) else {
        return false;
    };
    all.iter()
        .any(|(other, theirs)| u64::try_from(*other) == Ok(parent) && theirs == arguments)
}

fn running(pid: i32, arguments: &Arguments) -> Running {
    let own = arguments.own_monitor();
    let mut monitors = arguments.monitors();
    monitors.sort_by_key(|path| own.as_ref() != Some(path));
    // A daemon has left the directory in which its relative paths began.
    let directory = match arguments.daemonizes() {
        true => None,
        false => proc::link(pid, "cwd").ok(),
    };
    let absolute = |path: PathBuf| match &directory {
        _ if path.is_absolute() => Some(path),
        Some(directory) => Some(Path::new(directory).join(path)),
        None => None,
    };
    Running {
        pid,
        name: arguments
            .name()
            .unwrap_or_else(|| file_name(arguments.program()).to_owned()),
        monitors: monitors.into_iter().filter_map(absolute).collect(),
        unfit: arguments
            .unfit()
            .into_iter()
            .find(|unfit| unfit.severity == Severity::Moves),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_known_by_their_program() {
        for program in [
            "/usr/bin/qemu-system-x86_64",
            "qemu-system-aarch64",
            "/usr/libexec/qemu-kvm",
            "kvm",
        ] {
            assert!(is_name_of_qemu(program), "{program}");
        }
        for program in ["/usr/bin/qemu-img", "/opt/kvm/bin/sh", "", "/usr/bin/qemu-x86_64"] {
            assert!(!is_name_of_qemu(program), "{program}");
        }
    }

    #[test]
    fn the_monitor_of_ours_comes_first() {
        let line = "/usr/bin/kvm -qmp unix:/run/a,server=on -chardev socket,id=whimbrel-monitor,path=/run/b,server=on \
            -mon chardev=whimbrel-monitor,mode=control -qmp unix:c,server=on -device vfio-pci,host=1 -daemonize";
        let words = line.split_whitespace().map(str::to_owned).collect();
        let machine = running(std::process::id() as i32, &Arguments::parse(words));
        assert_eq!(
            machine.monitors,
            [PathBuf::from("/run/b"), PathBuf::from("/run/a")]
        );
        assert_eq!(machine.name, "kvm");
        assert_eq!(machine.unfit.unwrap().option, "-device vfio-pci");
    }
}
