//! What the processor saves of a thread (CPUID leaf 0xD; Intel SDM volume 1, chapter 13).

use std::arch::x86_64::__cpuid_count;

const XSAVE_LEAF: u32 = 0xd;

/// The layout of the extended registers (XSAVE area) on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedState {
    /// Bit per component: x87, SSE, AVX, … AMX tiles.
    pub components: u64,
    /// Size of the area in bytes, with the components that the kernel has switched on.
    pub bytes: u32,
}

/// Asks the processor.
pub fn extended_state() -> ExtendedState {
    // SAFETY: every x86-64 processor has the CPUID instruction; an unknown leaf only gives other numbers.
    #[allow(unused_unsafe)]
    let leaf = unsafe { __cpuid_count(XSAVE_LEAF, 0) };
    ExtendedState {
        components: u64::from(leaf.eax) | u64::from(leaf.edx) << 32,
        bytes: leaf.ebx,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_machine_saves_at_least_x87_and_sse() {
        let state = super::extended_state();
        assert_eq!(state.components & 3, 3);
        assert!(state.bytes >= 576);
    }
}
