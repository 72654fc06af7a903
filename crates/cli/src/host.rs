//! This host: where its journals are, and what other commands left undone.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use whimbrel_engine::guardian::{recover_stale, GuardianOptions, Settled};
use whimbrel_engine::journal::{Journals, Record};
use whimbrel_engine::LINK_TIMEOUT;
use whimbrel_process::container::{self, Entry, Registry};
use whimbrel_process::ProcessWorkload;
use whimbrel_qemu::{QemuWorkload, ReplicaOptions};
use whimbrel_wire::MigrationId;

use crate::exit::refused;
use crate::kinds::{AnyRecover, AnyReplica};

/// How long a command that has something else to do asks or tells the other end of an interrupted migration.
const ASK_FOR: Duration = Duration::from_secs(1);

/// The journals of this host.
pub fn journals() -> Journals {
    Journals::new(Registry::run_directory().join("journal"))
}

/// Who cleans up after dead controllers.
pub fn recover() -> AnyRecover {
    AnyRecover
}

/// Where the directories of virtual machines are.
pub fn machines() -> PathBuf {
    Registry::run_directory().join("machines")
}

/// A virtual machine as what moves.
pub fn machine(monitor: &Path) -> anyhow::Result<QemuWorkload> {
    QemuWorkload::new(monitor).map_err(|error| refused(error.to_string()))
}

/// A process as what moves; with its entry if `run` started it.
pub fn workload(pid: i32, entry: Option<&Entry>) -> anyhow::Result<ProcessWorkload> {
    ProcessWorkload::new(pid, entry).map_err(|error| refused(error.to_string()))
}

/// What becomes of a workload that arrives: in the network of `bridge`, or started by `command` if it is a virtual machine.
pub fn replica(id: MigrationId, bridge: Option<String>, command: Option<String>) -> AnyReplica {
    let process = container::Options {
        bridge,
        ..container::Options::default()
    };
    let machine = ReplicaOptions {
        machines: machines(),
        id: id.to_string(),
        command,
    };
    AnyReplica::new(process, machine)
}

/// Finishes what dead controllers left whose guardians are dead as well, and says what became of it. Never fails: the
/// command that calls it has work of its own.
pub fn tidy() {
    let never = AtomicBool::new(false);
    let options = GuardianOptions {
        link_timeout: LINK_TIMEOUT.min(ASK_FOR),
        ask_for: Some(ASK_FOR),
        force_here: false,
        listener: None,
        answer_for: ASK_FOR,
        follow: false,
        cancel: &never,
    };
    match recover_stale(&journals(), &recover(), &options) {
        Ok(results) => results
            .iter()
            .filter_map(|(record, result)| told(record, result))
            .for_each(|line| eprintln!("whimbrel: {line}")),
        Err(e) => eprintln!("whimbrel: an interrupted migration cannot be looked at: {e}"),
    }
    if let Err(e) = Registry::of_host().sweep() {
        eprintln!("whimbrel: what an interrupted command left behind cannot be removed: {e}");
    }
    if let Err(e) = whimbrel_qemu::launch::sweep(&machines()) {
        eprintln!("whimbrel: what ended virtual machines left behind cannot be removed: {e}");
    }
}

/// One sentence about a migration that was found interrupted; none if nothing changed.
pub fn told(record: &Record, result: &whimbrel_engine::Result<Settled>) -> Option<String> {
    let Record {
        id, workload, peer, ..
    } = record;
    let name = if workload.is_empty() {
        "a workload"
    } else {
        workload
    };
    Some(match result {
        Ok(Settled::Nothing | Settled::Started { .. }) => return None,
        Ok(Settled::Stays) => format!("the migration of {name} to {peer} was interrupted; it runs on here"),
        Ok(Settled::Moved) => format!("the migration of {name} to {peer} was interrupted; it runs there, and its copy here is gone"),
        Ok(Settled::Serving) => format!(
            "{name} runs at {peer}, which still lacks pages of its memory; they are in its frozen copy here, and nobody sends them: \
             `whimbrel resume {id}` goes on"
        ),
        Ok(Settled::Conflict) => format!(
            "{name} was taken back by force, but {peer} says that it runs there, too: end one of the two"
        ),
        Ok(Settled::Discarded) => format!("the migration of {name} from {peer} was interrupted; nothing of it is left here"),
        Ok(Settled::Undecided) => format!(
            "{name} is frozen until {peer} says whether it runs there; ask again with `whimbrel resume {id}`, or \
             take it back with `whimbrel resume {id} --here --force` if you know that it does not"
        ),
        Err(e) => format!("the interrupted migration {id} of {name} cannot be settled: {e}"),
    })
}
