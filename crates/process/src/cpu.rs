//! Which features of the processor a workload may have found, and whether another machine has them too.
//!
//! A program looks for features once, when it starts (libc picks its memcpy, a JVM its instructions). On a processor that lacks one of
//! them it would die later, so all of them must be there, used or not.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

/// Flags of /proc/cpuinfo that name something a program in user mode can use. The others speak to the kernel.
const VISIBLE: &[&str] = &[
    "3dnowprefetch",
    "abm",
    "adx",
    "aes",
    "amx_bf16",
    "amx_complex",
    "amx_fp16",
    "amx_int8",
    "amx_tile",
    "avx",
    "avx2",
    "avx512_4fmaps",
    "avx512_4vnniw",
    "avx512_bf16",
    "avx512_bitalg",
    "avx512_fp16",
    "avx512_vbmi2",
    "avx512_vnni",
    "avx512_vp2intersect",
    "avx512_vpopcntdq",
    "avx512bw",
    "avx512cd",
    "avx512dq",
    "avx512er",
    "avx512f",
    "avx512ifma",
    "avx512pf",
    "avx512vbmi",
    "avx512vl",
    "avx_ifma",
    "avx_ne_convert",
    "avx_vnni",
    "avx_vnni_int16",
    "avx_vnni_int8",
    "avx10",
    "bmi1",
    "bmi2",
    "cldemote",
    "clflush",
    "clflushopt",
    "clwb",
    "clzero",
    "cmov",
    "cmpccxadd",
    "cx16",
    "cx8",
    "enqcmd",
    "erms",
    "f16c",
    "fma",
    "fma4",
    "fsgsbase",
    "fsrc",
    "fsrm",
    "fsrs",
    "fxsr",
    "gfni",
    "hle",
    "lahf_lm",
    "mmx",
    "movbe",
    "movdir64b",
    "movdiri",
    "ospke",
    "pclmulqdq",
    "pni",
    "popcnt",
    "prefetchi",
    "rdpid",
    "rdrand",
    "rdseed",
    "rdtscp",
    "rtm",
    "serialize",
    "sha512",
    "sha_ni",
    "sm3",
    "sm4",
    "sse",
    "sse2",
    "sse4_1",
    "sse4_2",
    "sse4a",
    "ssse3",
    "tbm",
    "uintr",
    "user_shstk",
    "vaes",
    "vpclmulqdq",
    "waitpkg",
    "wbnoinvd",
    "xgetbv1",
    "xop",
    "xsave",
    "xsavec",
    "xsaveopt",
];

/// What a workload may have found on its machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuFeatures {
    /// Names as in /proc/cpuinfo.
    pub flags: BTreeSet<String>,
    /// Components of the extended registers, a bit each.
    pub components: u64,
    /// Size of the extended registers in bytes.
    pub bytes: u32,
}

impl CpuFeatures {
    /// Those of this machine.
    ///
    /// # Errors
    /// /proc/cpuinfo cannot be read.
    pub fn here() -> io::Result<CpuFeatures> {
        let state = whimbrel_kernel::cpu::extended_state();
        let flags = visible(&fs::read_to_string("/proc/cpuinfo")?);
        Ok(CpuFeatures {
            flags,
            components: state.components,
            bytes: state.bytes,
        })
    }

    /// What the workload may rely on and `here` lacks, as a sentence; none when it can run here.
    pub fn missing(&self, here: &CpuFeatures) -> Option<String> {
        let absent: Vec<&str> = self.flags.difference(&here.flags).map(String::as_str).collect();
        if !absent.is_empty() {
            return Some(format!(
                "the destination's processor lacks {}, which the source's has: choose a destination with at least the same features",
                absent.join(", ")
            ));
        }
        if (self.components, self.bytes) != (here.components, here.bytes) {
            return Some(format!(
                "the destination's processor keeps other extended registers ({:#x}, {} bytes) than the source's ({:#x}, {} bytes): \
                 choose a destination with the same kind of processor",
                here.components, here.bytes, self.components, self.bytes
            ));
        }
        None
    }
}

fn visible(cpuinfo: &str) -> BTreeSet<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("flags"));
    let words = line
        .and_then(|line| line.split_once(':'))
        .map_or("", |(_, words)| words);
    words
        .split_whitespace()
        .filter(|word| VISIBLE.contains(word))
        .map(str::to_string)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_can_run_what_runs_here() {
        let here = CpuFeatures::here().unwrap();
        assert!(here.flags.contains("sse2") && !here.flags.contains("vmx"));
        assert_eq!(here.missing(&here), None);
    }

    #[test]
    fn what_is_missing_is_named() {
        let old = CpuFeatures {
            flags: visible("flags\t\t: fpu sse2 avx\n"),
            components: 7,
            bytes: 832,
        };
        let new = CpuFeatures {
            flags: visible("flags\t\t: fpu sse2 avx avx2\n"),
            ..old.clone()
        };
        assert_eq!(old.missing(&new), None);
        assert!(new.missing(&old).unwrap().contains("lacks avx2,"));
        let wide = CpuFeatures {
            components: 0xe7,
            bytes: 2696,
            ..old.clone()
        };
        assert!(old.missing(&wide).unwrap().contains("other extended registers"));
    }
}
