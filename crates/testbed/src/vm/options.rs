//! What a virtual machine is made of, and how QEMU is told.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use crate::vm::guest::{Guest, INITRD, KERNEL};

/// Address of the guest, if it has a network.
pub const GUEST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 50));

/// The port where the guest answers.
pub const GUEST_PORT: u16 = 7;

/// What every guest's kernel is told. It shall be silent, reboot when the workload has ended, and boot fast.
/// `no_timer_check` and `tsc=reliable`: the checks fail when the machine is starved.
const KERNEL_WORDS: &str =
    "console=ttyS0 quiet loglevel=1 panic=1 cryptomgr.notests mitigations=off nokaslr \
                            random.trust_cpu=on no_timer_check tsc=reliable";

const MEBIBYTE: u64 = 1 << 20;

/// The kind of machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// PCI Express, HPET, ACPI: QEMU's modern PC.
    Q35,
    /// QEMU's old PC.
    Pc,
    /// No PCI: virtio devices at fixed addresses.
    Microvm,
}

/// What the guest's memory is, as QEMU's process sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ram {
    /// Private anonymous memory.
    Private,
    /// A file that others may map. It stays when the machine has gone.
    SharedFile {
        /// Where the host sees it, such as below `/dev/shm`.
        path: PathBuf,
    },
    /// A file without a name.
    Memfd,
}

/// What the workload writes and says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writer {
    /// Size of the memory that it writes over and over, in MiB.
    pub mb: u32,
    /// How much of it is written in a second, in MiB.
    pub mb_per_s: u32,
    /// Milliseconds between two ticks.
    pub tick_ms: u32,
    /// Threads that share the work; 0: one for each processor.
    pub threads: u32,
}

/// What a virtual machine is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmOptions {
    /// Names its sockets: `/run/NAME.qmp` and `/run/NAME.ser`.
    pub name: String,
    /// The kind of machine.
    pub machine: Machine,
    /// Size of its memory.
    pub memory_mib: u32,
    /// What the memory has beyond that, in bytes.
    pub memory_extra: u64,
    /// Number of its processors.
    pub vcpus: u32,
    /// What its memory is for the host.
    pub ram: Ram,
    /// What the workload does.
    pub writer: Writer,
    /// A raw image, where the host sees it. It is opened for reading and writing, and locked.
    pub disk: Option<PathBuf>,
    /// How fast the workload reads the disk, in MiB a second; 0: not at all.
    pub disk_mb_per_s: u32,
    /// A tap device of the host, for a network card of the guest, which is at [`GUEST`] then.
    pub tap: Option<String>,
    /// Whether there is a balloon, through which the guest also reports memory that it does not use, in blocks of
    /// 2 MiB. A guest of 128 MiB is too cramped to have such blocks.
    pub balloon: bool,
    /// How far QEMU gives way to the hosts under test, whose processors it shares: nice(1).
    pub nice: u8,
    /// More words for the guest's kernel.
    pub kernel_words: String,
    /// More arguments for QEMU, such as `-incoming defer`. (With an address there, QEMU would listen to it only after
    /// its sockets exist.)
    pub more: Vec<String>,
}

impl VmOptions {
    /// A q35 with 256 MiB of private memory and one processor, without disk and network. Its workload writes 4 MiB a
    /// second over 16 MiB, and ticks every 20 ms.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_string(),
            machine: Machine::Q35,
            memory_mib: 256,
            memory_extra: 0,
            vcpus: 1,
            ram: Ram::Private,
            writer: Writer {
                mb: 16,
                mb_per_s: 4,
                tick_ms: 20,
                threads: 0,
            },
            disk: None,
            disk_mb_per_s: 8,
            tap: None,
            balloon: false,
            nice: 5,
            kernel_words: String::new(),
            more: Vec::new(),
        }
    }

    /// Size of the guest's memory in bytes.
    pub fn memory_bytes(&self) -> u64 {
        u64::from(self.memory_mib) * MEBIBYTE + self.memory_extra
    }

    /// Where the host has QEMU's monitor.
    pub fn qmp(&self) -> String {
        format!("/run/{}.qmp", self.name)
    }

    /// Where the host has the guest's serial line.
    pub fn serial(&self) -> String {
        format!("/run/{}.ser", self.name)
    }

    /// All arguments of QEMU, without the program's name. Nothing is looked at or made for it.
    pub fn arguments(&self, guest: &Guest) -> Vec<String> {
        let mut list: Vec<String> = "-nodefaults -no-user-config -display none -accel tcg,thread=multi"
            .split(' ')
            .map(str::to_string)
            .collect();
        let mut add = |option: &str, value: String| list.extend([option.to_string(), value]);
        add("-name", self.name.clone());
        add("-object", self.ram.backend(self.memory_bytes()));
        add("-machine", format!("{},memory-backend=ram", self.machine.name()));
        add("-smp", self.vcpus.to_string());
        add("-kernel", KERNEL.to_string());
        add("-initrd", INITRD.to_string());
        add("-append", self.kernel_line(guest));
        add("-qmp", format!("unix:{},server=on,wait=off", self.qmp()));
        add("-serial", format!("unix:{},server=on,wait=off", self.serial()));
        if let Some(disk) = &self.disk {
            let file = format!(
                "file.driver=file,file.filename={},file.locking=on",
                disk.display()
            );
            add("-drive", format!("if=none,id=disk0,format=raw,{file}"));
            add("-device", format!("{},drive=disk0", self.device("blk")));
        }
        if let Some(tap) = &self.tap {
            let net = format!("tap,id=net0,ifname={tap},script=no,downscript=no");
            add("-netdev", net);
            // The card's own program for booting is in a package that nothing else needs.
            let rom = if self.machine == Machine::Microvm {
                ""
            } else {
                ",romfile="
            };
            let card = self.device("net");
            add(
                "-device",
                format!("{card},netdev=net0,mac=02:77:00:00:00:50{rom}"),
            );
        }
        if self.balloon {
            let balloon = self.device("balloon");
            add("-device", format!("{balloon},id=balloon0,free-page-reporting=on"));
        }
        list.extend(self.more.iter().cloned());
        list
    }

    fn device(&self, kind: &str) -> String {
        match self.machine {
            Machine::Microvm => format!("virtio-{kind}-device"),
            Machine::Q35 | Machine::Pc => format!("virtio-{kind}-pci"),
        }
    }

    fn kernel_line(&self, guest: &Guest) -> String {
        let Writer {
            mb,
            mb_per_s,
            tick_ms,
            threads,
        } = self.writer;
        let mut line = format!(
            "{KERNEL_WORDS} tsc_early_khz={} wl={mb},{mb_per_s},{tick_ms},{threads}",
            guest.tsc_khz
        );
        let disk_rate = if self.disk.is_some() {
            self.disk_mb_per_s
        } else {
            0
        };
        // Writing to a String cannot fail.
        let _ = write!(line, " wl.disk={disk_rate}");
        if self.machine == Machine::Microvm {
            line += " wl.bus=mmio";
        }
        if self.tap.is_some() {
            let _ = write!(line, " wl.ip={GUEST}/24");
        }
        if self.balloon {
            line += " wl.balloon";
        }
        if !self.kernel_words.is_empty() {
            let _ = write!(line, " {}", self.kernel_words);
        }
        line
    }
}

impl Ram {
    /// The object that QEMU shall make of it. Its size is also the machine's: `-m` counts in whole MiB.
    pub(crate) fn backend(&self, size: u64) -> String {
        match self {
            Ram::Private => format!("memory-backend-ram,id=ram,size={size}"),
            Ram::Memfd => format!("memory-backend-memfd,id=ram,size={size},share=on"),
            Ram::SharedFile { path } => format!(
                "memory-backend-file,id=ram,size={size},share=on,mem-path={}",
                path.display()
            ),
        }
    }
}

impl Machine {
    /// What QEMU calls it.
    pub fn name(self) -> &'static str {
        match self {
            Machine::Q35 => "q35",
            Machine::Pc => "pc",
            Machine::Microvm => "microvm",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(options: &VmOptions) -> String {
        let guest = Guest {
            initrd: Vec::new(),
            tsc_khz: 2_000_000,
        };
        options.arguments(&guest).join(" ")
    }

    #[test]
    fn memory_may_have_an_odd_size() {
        let options = VmOptions {
            memory_mib: 512,
            memory_extra: 8192,
            ram: Ram::Memfd,
            ..VmOptions::new("odd")
        };
        assert!(line(&options).contains("memory-backend-memfd,id=ram,size=536879104,share=on"));
    }

    #[test]
    fn devices_sit_on_the_bus_of_their_machine() {
        let mut options = VmOptions {
            disk: Some(PathBuf::from("/srv/shared/disk")),
            tap: Some("tap0".to_string()),
            balloon: true,
            ..VmOptions::new("bus")
        };
        let pci = line(&options);
        options.machine = Machine::Microvm;
        let mmio = line(&options);
        for kind in ["blk", "net", "balloon"] {
            assert!(pci.contains(&format!("virtio-{kind}-pci")), "{pci}");
            assert!(mmio.contains(&format!("virtio-{kind}-device")), "{mmio}");
        }
        assert!(
            mmio.contains("wl.bus=mmio") && !pci.contains("wl.bus=mmio"),
            "{mmio}"
        );
    }
}
