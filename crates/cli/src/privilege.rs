//! What a command may do, looked at before it does anything.

use whimbrel_kernel::proc::Status;

use crate::exit::refused;

/// A capability: its number in linux/capability.h and its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability(u32, &'static str);

/// Namespaces, control groups, memory tracking of others.
pub const SYS_ADMIN: Capability = Capability(21, "CAP_SYS_ADMIN");
/// Stopping, reading and changing other processes.
pub const SYS_PTRACE: Capability = Capability(19, "CAP_SYS_PTRACE");
/// Interfaces, and the repair mode of TCP sockets.
pub const NET_ADMIN: Capability = Capability(12, "CAP_NET_ADMIN");
/// Offsets of clocks.
pub const SYS_TIME: Capability = Capability(25, "CAP_SYS_TIME");

/// Refuses if one of them is missing.
pub fn require(needed: &[Capability]) -> anyhow::Result<()> {
    let status = Status::read(std::process::id() as i32)?;
    let effective = status.hex("CapEff").unwrap_or(0);
    match missing(effective, needed) {
        None => Ok(()),
        Some(Capability(_, name)) => Err(refused(format!(
            "this needs the capability {name}; run it as root"
        ))),
    }
}

fn missing(effective: u64, needed: &[Capability]) -> Option<Capability> {
    needed
        .iter()
        .copied()
        .find(|Capability(number, _)| effective >> number & 1 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_missing_capability_is_named() {
        let needed = [SYS_ADMIN, SYS_PTRACE];
        assert_eq!(missing(1 << 21 | 1 << 19, &needed), None);
        assert_eq!(missing(1 << 21, &needed), Some(SYS_PTRACE));
        assert_eq!(missing(0, &needed), Some(SYS_ADMIN));
        require(&needed).unwrap();
    }
}
