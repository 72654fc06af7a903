//! What runs in the virtual machines: Debian's kernel, a busybox and the workload, in an archive of their own.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::error::{Doing, Error, Result};
use crate::host::Host;
use crate::programs;
use crate::vm::cpio::Cpio;

/// Where `scripts/setup` puts the kernel; the hosts see it there as well.
pub const KERNEL: &str = "/var/lib/whimbrel-guest/vmlinuz";

/// Where [`Guest::install`] puts the first file system of the guest in a host.
pub const INITRD: &str = "/usr/local/lib/whimbrel-guest/initrd";

const MODULES: &str = "/var/lib/whimbrel-guest/modules";
const BUSYBOX: &str = "/bin/busybox";

/// What init needs of busybox.
const APPLETS: [&str; 4] = ["sh", "mount", "insmod", "ip"];

/// What init may load. Which of them it does load depends on the machine.
const DRIVERS: [&str; 11] = [
    "virtio_ring",
    "virtio",
    "virtio_mmio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "virtio_balloon",
    "failover",
    "net_failover",
    "virtio_net",
];

/// The guest: its first file system, and what its kernel must be told about this machine.
#[derive(Clone, Debug)]
pub struct Guest {
    pub(crate) initrd: Vec<u8>,
    pub(crate) tsc_khz: u32,
}

impl Guest {
    /// Compiles the workload and packs it up with what it needs.
    pub fn build() -> Result<Self> {
        let program = programs::guest()?;
        let read = |path: &Path| fs::read(path).doing(|| format!("cannot read {}", path.display()));
        let mut archive = Cpio::default();
        for directory in ["dev", "proc", "bin", "modules"] {
            archive.directory(directory);
        }
        archive.file("bin/busybox", &read(Path::new(BUSYBOX))?);
        for applet in APPLETS {
            archive.link(&format!("bin/{applet}"), "busybox");
        }
        for driver in DRIVERS {
            let file = format!("{driver}.ko");
            archive.file(
                &format!("modules/{file}"),
                &read(&Path::new(MODULES).join(&file))?,
            );
        }
        archive.file("init", &read(&programs::guest_sources().join("init"))?);
        archive.file("guest", &read(&program)?);
        Ok(Self {
            initrd: archive.finish(),
            tsc_khz: tsc_khz(&program)?,
        })
    }

    /// Puts the first file system where QEMU finds it in this host, at [`INITRD`]. Starting a [`Vm`](crate::vm::Vm)
    /// does it; a host that only receives one needs it before.
    pub fn install(&self, host: &Host) -> Result<()> {
        let target = host.path(INITRD);
        let written = fs::create_dir_all(target.parent().unwrap_or(&target))
            .and_then(|()| fs::write(&target, &self.initrd));
        written.doing(|| format!("cannot write {INITRD} on {}", host.name()))
    }
}

/// The rate of this machine's time stamp counter, which is the guest's as well. The workload can measure it.
fn tsc_khz(program: &Path) -> Result<u32> {
    let output = Command::new(program)
        .arg("tsc-khz")
        .output()
        .doing(|| format!("cannot run {}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    said.trim().parse().map_err(|_| Error::Failed {
        command: format!("{} tsc-khz", program.display()),
        host: "this machine".to_string(),
        status: output.status.to_string(),
        output: said.into_owned(),
    })
}
