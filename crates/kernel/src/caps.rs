//! Capabilities of the calling process (capabilities(7)).

use crate::error::{Error, Result};
use crate::proc::Status;

/// A capability: its number and its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    number: u32,
    name: &'static str,
}

impl Capability {
    /// Its name, `CAP_…`.
    pub fn name(self) -> &'static str {
        self.name
    }

    const fn new(number: u32, name: &'static str) -> Self {
        Self { number, name }
    }
}

/// Signals to processes of others.
pub const KILL: Capability = Capability::new(5, "CAP_KILL");
/// Network interfaces, addresses, TCP repair.
pub const NET_ADMIN: Capability = Capability::new(12, "CAP_NET_ADMIN");
/// Other processes' memory, registers and descriptors.
pub const SYS_PTRACE: Capability = Capability::new(19, "CAP_SYS_PTRACE");
/// Namespaces and mounts.
pub const SYS_ADMIN: Capability = Capability::new(21, "CAP_SYS_ADMIN");
/// Resource limits above the present ones.
pub const SYS_RESOURCE: Capability = Capability::new(24, "CAP_SYS_RESOURCE");
/// Clocks of a time namespace.
pub const SYS_TIME: Capability = Capability::new(25, "CAP_SYS_TIME");
/// Processes with chosen numbers, `/proc/pid/map_files`.
pub const CHECKPOINT_RESTORE: Capability = Capability::new(40, "CAP_CHECKPOINT_RESTORE");

/// The effective set of the calling process: bit n is capability n.
pub fn effective() -> Result<u64> {
    Status::read(std::process::id() as i32)?
        .hex("CapEff")
        .ok_or_else(|| Error::other("/proc/self/status does not show CapEff"))
}

/// Those of `wanted` that are not in `set`.
pub fn missing(set: u64, wanted: &[Capability]) -> Vec<Capability> {
    wanted
        .iter()
        .copied()
        .filter(|capability| set >> capability.number & 1 == 0)
        .collect()
}

/// Fails with one sentence that names every capability of `wanted` that the calling process lacks.
pub fn require(wanted: &[Capability]) -> Result<()> {
    let missing = missing(effective()?, wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|capability| capability.name).collect();
    Err(Error::other(format!(
        "this needs {}: run it as root",
        names.join(" and ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_has_what_we_need() {
        require(&[KILL, NET_ADMIN, SYS_PTRACE, SYS_ADMIN, CHECKPOINT_RESTORE]).unwrap();
    }

    #[test]
    fn what_is_missing_is_named() {
        let set = 1 << 19 | 1 << 21;
        assert_eq!(
            missing(set, &[SYS_PTRACE, NET_ADMIN, SYS_ADMIN, KILL]),
            [NET_ADMIN, KILL]
        );
        assert_eq!(missing(u64::MAX, &[SYS_TIME, SYS_RESOURCE]), []);
    }
}
