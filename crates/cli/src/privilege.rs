//! What a command and the kernel below it may do, looked at before anything is done.

use whimbrel_kernel::caps::{self, Capability};
use whimbrel_kernel::features;

pub use whimbrel_kernel::caps::{NET_ADMIN, SYS_ADMIN, SYS_PTRACE, SYS_TIME};

use crate::exit::refused;

/// Refuses if a capability is missing.
pub fn require(needed: &[Capability]) -> anyhow::Result<()> {
    caps::require(needed).map_err(|error| refused(error.to_string()))
}

/// Refuses to move something away on a kernel that cannot tell what it writes.
pub fn require_kernel_of_source() -> anyhow::Result<()> {
    features::require_tracking().map_err(|error| refused(error.to_string()))
}

/// Refuses to take something in on a kernel that cannot rebuild it, or could not move it on.
pub fn require_kernel_of_destination() -> anyhow::Result<()> {
    require_kernel_of_source()?;
    features::require_restore().map_err(|error| refused(error.to_string()))
}
