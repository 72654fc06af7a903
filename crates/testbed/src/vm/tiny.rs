//! Machines with KVM: their guest is one page of assembly, in the place of the firmware.

use std::fs;
use std::path::Path;

use crate::error::{Doing, Result};
use crate::host::Host;
use crate::programs;
use crate::vm::machine::Vm;
use crate::vm::options::{Machine, Ram};
use crate::vm::ticks::{Line, Record};

/// Where the guest is in a host.
const IMAGE: &str = "/usr/local/lib/whimbrel-guest/tiny";

/// What the guest's page tables map.
const MEMORY_BYTES: u64 = 128 << 20;

/// A machine of 128 MiB with KVM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TinyOptions {
    /// Names its sockets: `/run/NAME.qmp` and `/run/NAME.ser`.
    pub name: String,
    /// The kind of machine.
    pub machine: Machine,
    /// What its memory is for the host.
    pub ram: Ram,
    /// More arguments for QEMU.
    pub more: Vec<String>,
}

/// The guest: `tests/guest/tiny.S`.
#[derive(Clone, Debug)]
pub struct TinyGuest {
    image: Vec<u8>,
}

impl TinyGuest {
    /// Assembles it.
    pub fn build() -> Result<Self> {
        let path = programs::tiny_guest()?;
        let image = fs::read(&path).doing(|| format!("cannot read {}", path.display()))?;
        Ok(Self { image })
    }

    /// Puts it where QEMU finds it in this host. A host that only receives a machine needs it, too.
    pub fn install(&self, host: &Host) -> Result<()> {
        let target = host.path(IMAGE);
        let written = fs::create_dir_all(target.parent().unwrap_or(Path::new("/")))
            .and_then(|()| fs::write(&target, &self.image));
        written.doing(|| format!("cannot write {IMAGE} on {}", host.name()))
    }

    /// Starts a machine, and listens to its serial line.
    pub fn start(&self, host: &Host, options: &TinyOptions) -> Result<Vm> {
        self.install(host)?;
        Vm::spawn(host, &options.name, 5, options.arguments())
    }
}

impl TinyOptions {
    /// All arguments of QEMU, without the program's name.
    fn arguments(&self) -> Vec<String> {
        let socket = |kind: &str| format!("unix:/run/{}.{kind},server=on,wait=off", self.name);
        let pairs = [
            ("-display", "none".to_string()),
            ("-accel", "kvm".to_string()),
            ("-name", self.name.clone()),
            ("-object", self.ram.backend(MEMORY_BYTES)),
            ("-machine", format!("{},memory-backend=ram", self.machine.name())),
            ("-bios", IMAGE.to_string()),
            ("-qmp", socket("qmp")),
            ("-serial", socket("ser")),
        ];
        let pairs = pairs
            .into_iter()
            .flat_map(|(option, value)| [option.to_string(), value]);
        let alone = ["-nodefaults", "-no-user-config"].map(str::to_string);
        alone
            .into_iter()
            .chain(pairs)
            .chain(self.more.iter().cloned())
            .collect()
    }
}

/// One line of this guest: it has written all of its memory once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Its number; the first is 0.
    pub number: u32,
    /// How many words were not as they had been written.
    pub errors: u32,
}

impl Pass {
    /// Reads a line; `None` if it is anything but a whole one.
    pub fn parse(line: &str) -> Option<Self> {
        let (number, errors) = line.strip_prefix('T')?.split_once('E')?;
        let digits = |text: &str| match text.len() {
            8 => u32::from_str_radix(text, 16).ok(),
            _ => None,
        };
        Some(Self {
            number: digits(number)?,
            errors: digits(errors)?,
        })
    }
}

/// All passes that were heard at one place.
pub fn passes(record: &Record) -> Vec<Pass> {
    let parse = |line: &Line| Pass::parse(&line.text);
    record.lines.iter().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_is_whole_or_none() {
        let whole = "T0000001aE00000002";
        let pass = Pass {
            number: 26,
            errors: 2,
        };
        assert_eq!(Pass::parse(whole), Some(pass));
        for end in 0..whole.len() {
            assert_eq!(Pass::parse(&whole[..end]), None, "{end}");
        }
    }
}
