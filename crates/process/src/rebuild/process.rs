//! What belongs to the process as a whole.

use whimbrel_kernel::error;
use whimbrel_kernel::remote::Remote;
use whimbrel_kernel::task;

use super::{plan, raise_limit, Result};
use crate::calls::Plan;
use crate::capture::threads::signal_of;
use crate::state::{MemoryDescriptor, ProcessState, SignalAction};

const PR_SET_MM_MAP: u64 = 14;
const PR_SET_MDWE: u64 = 65;
/// `struct prctl_mm_map` of linux/prctl.h: eleven addresses, the vector's address, its size and a descriptor.
const MM_MAP_BYTES: u64 = 104;
const SIGNALS: i32 = 64;
/// `sizeof(sigset_t)` of the kernel.
const SIGNAL_SET_BYTES: u64 = 8;

/// Makes room for descriptors and locked memory while we build; the real limits come at the end.
pub(super) fn raise_limits(pid: i32) -> Result<()> {
    raise_limit(pid, libc::RLIMIT_NOFILE)?;
    raise_limit(pid, libc::RLIMIT_SIGPENDING)
}

/// Program addresses, signal handlers, directories, attributes.
pub(super) fn build(leader: &mut Remote, process: &ProcessState) -> Result<()> {
    describe_memory(leader, &process.memory)?;
    let mut calls = plan(leader)?;
    for signal in (1..=SIGNALS).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal)) {
        let action = process
            .signals
            .actions
            .iter()
            .find(|action| action.signal == signal);
        set_action(
            &mut calls,
            action.copied().unwrap_or(SignalAction {
                signal,
                ..SignalAction::default()
            }),
        );
    }
    let path = calls.text(process.filesystem.working_directory.as_bytes());
    calls.call(
        &format!("chdir to {}", process.filesystem.working_directory),
        libc::SYS_chdir,
        &[path],
    );
    calls.call("umask", libc::SYS_umask, &[process.filesystem.umask.into()]);
    let attributes = &process.attributes;
    calls.call(
        "personality",
        libc::SYS_personality,
        &[attributes.personality.into()],
    );
    let subreaper = [
        libc::PR_SET_CHILD_SUBREAPER as u64,
        attributes.child_subreaper.into(),
    ];
    calls.call("prctl PR_SET_CHILD_SUBREAPER", libc::SYS_prctl, &subreaper);
    let huge_pages = [libc::PR_SET_THP_DISABLE as u64, attributes.thp_disabled.into()];
    calls.call("prctl PR_SET_THP_DISABLE", libc::SYS_prctl, &huge_pages);
    calls.run(leader)?;
    Ok(())
}

fn set_action(calls: &mut Plan, action: SignalAction) {
    let address = calls.words(&[action.handler, action.flags, action.restorer, action.mask]);
    let args = [action.signal as u64, address, 0, SIGNAL_SET_BYTES];
    calls.call(
        &format!("rt_sigaction of signal {}", action.signal),
        libc::SYS_rt_sigaction,
        &args,
    );
}

/// `PR_SET_MM_MAP`, and what /proc/pid/exe shows.
fn describe_memory(leader: &mut Remote, memory: &MemoryDescriptor) -> Result<()> {
    let mut open = plan(leader)?;
    let path = open.text(memory.executable.as_bytes());
    let flags = (libc::O_RDONLY | libc::O_CLOEXEC) as u64;
    let what = format!("open of the executable {}", memory.executable);
    let opened = open.call(&what, libc::SYS_openat, &[libc::AT_FDCWD as u64, path, flags, 0]);
    let executable = open.run(leader)?.result(opened) as u64;
    let mut calls = plan(leader)?;
    let mut vector: Vec<u64> = memory
        .auxv
        .iter()
        .flat_map(|(kind, value)| [*kind, *value])
        .collect();
    vector.extend([0, 0]);
    let vector_address = calls.words(&vector);
    let vector_bytes = 8 * vector.len() as u64;
    let map = calls.words(&[
        memory.start_code,
        memory.end_code,
        memory.start_data,
        memory.end_data,
        memory.start_brk,
        memory.brk,
        memory.start_stack,
        memory.arg_start,
        memory.arg_end,
        memory.env_start,
        memory.env_end,
        vector_address,
        vector_bytes | executable << 32,
    ]);
    let args = [libc::PR_SET_MM as u64, PR_SET_MM_MAP, map, MM_MAP_BYTES, 0];
    calls.call("prctl PR_SET_MM_MAP", libc::SYS_prctl, &args);
    calls.call("close", libc::SYS_close, &[executable]);
    calls.run(leader)?;
    Ok(())
}

/// Signals that wait for the process.
pub(super) fn queue_signals(leader: &mut Remote, process: &ProcessState) -> Result<()> {
    let mut calls = plan(leader)?;
    for pending in &process.signals.pending {
        let info = calls.put(&pending.siginfo);
        let signal = signal_of(pending).unwrap_or(0);
        calls.call(
            "rt_sigqueueinfo",
            libc::SYS_rt_sigqueueinfo,
            &[process.pid as u64, signal.into(), info],
        );
    }
    calls.run(leader)?;
    Ok(())
}

/// The limits, while we are still allowed to set them.
pub(super) fn limit(pid: i32, process: &ProcessState) -> Result<()> {
    for (resource, limit) in (0u32..).zip(&process.resource_limits) {
        if task::resource_limit(pid, resource)? != *limit {
            task::set_resource_limit(pid, resource, *limit)?;
        }
    }
    let path = format!("/proc/{pid}/oom_score_adj");
    let value = process.attributes.oom_score_adj.to_string();
    let written = std::fs::write(&path, &value);
    Ok(written.map_err(|source| error::Error::call(format!("write {value} to {path}"), source))?)
}

/// What must come after the credentials, which reset some of it.
pub(super) fn finish(leader: &mut Remote, process: &ProcessState) -> Result<()> {
    let mut calls = plan(leader)?;
    let attributes = &process.attributes;
    // 2 is what the kernel sets by itself for a program that is not to be read; it cannot be asked for
    if attributes.dumpable < 2 {
        let args = [libc::PR_SET_DUMPABLE as u64, attributes.dumpable.into()];
        calls.call("prctl PR_SET_DUMPABLE", libc::SYS_prctl, &args);
    }
    if attributes.memory_deny_write_execute != 0 {
        let args = [PR_SET_MDWE, attributes.memory_deny_write_execute.into()];
        calls.call("prctl PR_SET_MDWE", libc::SYS_prctl, &args);
    }
    calls.run(leader)?;
    Ok(())
}
