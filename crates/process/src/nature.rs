//! What a process is made of, and what that costs while it is frozen.

use std::time::Duration;

use whimbrel_engine::Nature;
use whimbrel_kernel::proc;

use crate::spec::resident_bytes;

/// Freeze, capture, rebuild and start of a process with one thread. These figures were measured on two cores of a virtual machine, Linux 6.18.
const STOP: Duration = Duration::from_micros(4000);
/// For each thread more: its registers are read, it is made and filled.
const STOP_PER_THREAD: Duration = Duration::from_micros(300);
/// For each mapping: it is compared, sent and made.
const STOP_PER_MAPPING: Duration = Duration::from_micros(10);
/// Missing pages have to be armed, and the last steps of the rebuild fault for some.
const ARM: Duration = Duration::from_micros(2000);
/// Written pages lie scattered: each of them is a hole to be made.
const DROP: Duration = Duration::from_micros(8000);
/// The frozen copy is ended, whatever it is.
const AFTER: Duration = Duration::from_millis(10);
/// For each MiB of it: its memory is given back.
const AFTER_PER_MIB: Duration = Duration::from_micros(150);
/// Bytes of state, whatever it is.
const STATE_BYTES: u64 = 32 << 10;
/// Bytes of state for each thread: registers with the whole extended state, signals.
const STATE_BYTES_PER_THREAD: u64 = 12 << 10;

/// Of a process that may end at any moment: what cannot be read counts as nothing.
pub fn of(pid: i32) -> Nature {
    let threads = entries(pid, "task");
    let mappings = proc::text(pid, "maps").map_or(0, |maps| maps.lines().count()) as u32;
    let others = u32::try_from(threads.saturating_sub(1)).unwrap_or(u32::MAX);
    let memory = memory(&proc::text(pid, "smaps_rollup").unwrap_or_default());
    let mib = resident_bytes(pid) >> 20;
    Nature {
        memory,
        state_bytes: STATE_BYTES + STATE_BYTES_PER_THREAD * threads,
        stop: STOP + STOP_PER_THREAD * others + STOP_PER_MAPPING * mappings,
        arm: ARM,
        drop: DROP,
        after: AFTER + AFTER_PER_MIB * u32::try_from(mib).unwrap_or(u32::MAX),
    }
}

fn entries(pid: i32, directory: &str) -> u64 {
    std::fs::read_dir(format!("/proc/{pid}/{directory}")).map_or(0, |entries| entries.count() as u64)
}

/// Resident memory by kind, from smaps_rollup (proc(5)): anonymous is what was written, file what can be had from files again.
fn memory(rollup: &str) -> Vec<(String, u64)> {
    let kib = |key: &str| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    let (all, anonymous) = (kib("Rss:").unwrap_or(0), kib("Anonymous:").unwrap_or(0));
    let shared = kib("Pss_Shmem:").unwrap_or(0);
    let kinds = [
        ("anonymous", anonymous),
        ("of which huge", kib("AnonHugePages:").unwrap_or(0)),
        ("shared", shared),
        ("file", all.saturating_sub(anonymous).saturating_sub(shared)),
    ];
    let named = |(name, kib): (&str, u64)| (name.to_owned(), kib << 10);
    kinds.into_iter().filter(|(_, kib)| *kib > 0).map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_told_by_kind() {
        let rollup = "55d-7ffc ---p 00000000 00:00 0    [rollup]\nRss:               10000 kB\nPss_Shmem:           200 kB\n\
                      Anonymous:          6000 kB\nAnonHugePages:         0 kB\n";
        let kinds = |name: &str, kib: u64| (name.to_owned(), kib << 10);
        assert_eq!(
            memory(rollup),
            [
                kinds("anonymous", 6000),
                kinds("shared", 200),
                kinds("file", 3800)
            ]
        );
        assert!(memory("").is_empty());
    }

    #[test]
    fn more_threads_cost_more() {
        let this = of(std::process::id() as i32);
        assert!(this.stop >= STOP + STOP_PER_MAPPING * 10 && this.state_bytes > STATE_BYTES);
        assert!(this
            .memory
            .iter()
            .any(|(kind, bytes)| kind == "anonymous" && *bytes > 0));
        assert!(of(-1).memory.is_empty());
    }
}
