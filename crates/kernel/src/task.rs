//! Settings of a task that the kernel lets others read and set: scheduling, CPU affinity, resource limits, robust futexes.
//! sched_setattr(2), sched_setaffinity(2), prlimit(2), get_robust_list(2).

use crate::error::Result;
use crate::fd::check;

/// Enough for 8192 CPUs, the largest kernel configuration.
const AFFINITY_BYTES: usize = 1024;
/// Number of `RLIMIT_*`.
pub const RESOURCE_LIMITS: u32 = 16;

/// `struct sched_attr` of linux/sched/types.h up to the fields of Linux 5.3.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedulingAttributes {
    /// Size of the structure, filled in by whoever reads or sets it.
    pub size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Nice value.
    pub nice: i32,
    /// Static priority of a real-time policy.
    pub priority: u32,
    /// Nanoseconds; for `SCHED_OTHER` the time slice, 0 for the default.
    pub runtime_ns: u64,
    /// Nanoseconds, `SCHED_DEADLINE` only.
    pub deadline_ns: u64,
    /// Nanoseconds, `SCHED_DEADLINE` only.
    pub period_ns: u64,
}

const ATTRIBUTES_BYTES: u32 = 48;
const _: () = assert!(std::mem::size_of::<SchedulingAttributes>() == ATTRIBUTES_BYTES as usize);

/// Scheduling policy and priority of a thread.
pub fn scheduling(tid: i32) -> Result<SchedulingAttributes> {
    let mut attributes = SchedulingAttributes::default();
    // SAFETY: the kernel writes at most the size given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_getattr,
            tid,
            &raw mut attributes,
            ATTRIBUTES_BYTES,
            0,
        )
    };
    check(result, || format!("read the scheduling of thread {tid}"))?;
    Ok(attributes)
}

/// Sets what [`scheduling`] reads.
pub fn set_scheduling(tid: i32, attributes: SchedulingAttributes) -> Result<()> {
    let attributes = SchedulingAttributes {
        size: ATTRIBUTES_BYTES,
        ..attributes
    };
    // SAFETY: the kernel reads the size that stands in the structure.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &raw const attributes, 0) };
    check(result, || format!("set the scheduling of thread {tid}"))?;
    Ok(())
}

/// The CPUs that a thread may use: bit `n % 8` of byte `n / 8` is CPU `n`.
pub fn affinity(tid: i32) -> Result<Vec<u8>> {
    let mut mask = vec![0u8; AFFINITY_BYTES];
    // SAFETY: the kernel writes at most the length given.
    let result = unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid, mask.len(), mask.as_mut_ptr()) };
    let length = check(result, || format!("read the CPU affinity of thread {tid}"))?;
    mask.truncate(length as usize);
    Ok(mask)
}

/// Sets the CPUs that a thread may use.
pub fn set_affinity(tid: i32, mask: &[u8]) -> Result<()> {
    // SAFETY: `mask` is a live slice of the length given.
    let result = unsafe { libc::syscall(libc::SYS_sched_setaffinity, tid, mask.len(), mask.as_ptr()) };
    check(result, || format!("set the CPU affinity of thread {tid}"))?;
    Ok(())
}

/// One resource limit of a process: (soft, hard).
pub fn resource_limit(pid: i32, resource: u32) -> Result<(u64, u64)> {
    let mut pair = [0u64; 2];
    // SAFETY: the kernel writes one `struct rlimit64`, two words; nothing is set.
    let result = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            pid,
            resource,
            std::ptr::null::<u64>(),
            pair.as_mut_ptr(),
        )
    };
    check(result, || {
        format!("read resource limit {resource} of process {pid}")
    })?;
    Ok((pair[0], pair[1]))
}

/// Sets one resource limit. A hard limit above the present one needs CAP_SYS_RESOURCE.
pub fn set_resource_limit(pid: i32, resource: u32, limit: (u64, u64)) -> Result<()> {
    let pair = [limit.0, limit.1];
    // SAFETY: the kernel reads one `struct rlimit64`, two words; the old one is not asked for.
    let result = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            pid,
            resource,
            pair.as_ptr(),
            std::ptr::null_mut::<u64>(),
        )
    };
    check(result, || {
        format!(
            "set resource limit {resource} of process {pid} to {} (hard {})",
            limit.0, limit.1
        )
    })?;
    Ok(())
}

/// Head and length in bytes of a thread's list of robust futexes.
pub fn robust_list(tid: i32) -> Result<(u64, u64)> {
    let (mut head, mut length) = (0u64, 0u64);
    // SAFETY: the kernel writes one word to each.
    let result = unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut length) };
    check(result, || format!("read the robust futexes of thread {tid}"))?;
    Ok((head, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_childs_settings_are_read_and_set() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pid = child.id() as i32;
        let before = scheduling(pid).unwrap();
        assert_eq!((before.policy, before.nice), (libc::SCHED_OTHER as u32, 0));
        set_scheduling(pid, SchedulingAttributes { nice: 7, ..before }).unwrap();
        assert_eq!(scheduling(pid).unwrap().nice, 7);
        let mask = affinity(pid).unwrap();
        set_affinity(pid, &[1]).unwrap();
        assert_eq!(affinity(pid).unwrap().first(), Some(&1));
        set_affinity(pid, &mask).unwrap();
        let (_, hard) = resource_limit(pid, libc::RLIMIT_NOFILE).unwrap();
        set_resource_limit(pid, libc::RLIMIT_NOFILE, (33, hard)).unwrap();
        assert_eq!(resource_limit(pid, libc::RLIMIT_NOFILE).unwrap(), (33, hard));
        assert_eq!(robust_list(pid).unwrap().1, 24);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(scheduling(pid).unwrap_err().errno(), Some(libc::ESRCH));
    }
}
