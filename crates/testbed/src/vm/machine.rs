//! A virtual machine that runs in a host.

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::error::{Doing, Result};
use crate::host::Host;
use crate::network;
use crate::running::Running;
use crate::vm::guest::Guest;
use crate::vm::options::{Ram, VmOptions};
use crate::vm::serial::Serial;

/// QEMU in a host. It is killed when this is dropped.
#[derive(Debug)]
pub struct Vm {
    /// What the guest says.
    pub serial: Serial,
    /// QEMU's process: its PID, its output, its end.
    pub running: Running,
    qmp: PathBuf,
}

impl Vm {
    /// Makes its tap device unless that is there already, starts it, and listens to its serial line.
    pub fn start(host: &Host, guest: &Guest, options: &VmOptions) -> Result<Self> {
        guest.install(host)?;
        if let Some(tap) = &options.tap {
            if !network::exists(host, tap)? {
                make_tap(host, tap)?;
            }
        }
        Self::spawn(host, &options.name, options.nice, options.arguments(guest))
    }

    /// Starts QEMU with these arguments, which name the sockets of the machine `name`.
    pub(crate) fn spawn(host: &Host, name: &str, nice: u8, arguments: Vec<String>) -> Result<Self> {
        let nice = nice.to_string();
        let program = ["nice", "-n", &nice, "qemu-system-x86_64"].map(str::to_string);
        Ok(Self {
            running: host.command(program.into_iter().chain(arguments)).spawn()?,
            serial: Serial::of(host, name),
            qmp: host.path(format!("/run/{name}.qmp")),
        })
    }

    /// Ends it, and removes all that it has in the host: sockets, tap device, and its memory if that is a file.
    pub fn remove(self, host: &Host, options: &VmOptions) -> Result<()> {
        drop(self);
        let sockets = [options.qmp(), options.serial()].map(PathBuf::from);
        let memory = match &options.ram {
            Ram::SharedFile { path } => Some(path.clone()),
            Ram::Private | Ram::Memfd => None,
        };
        for file in sockets.into_iter().chain(memory) {
            let path = host.path(file);
            match fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                done => done.doing(|| format!("cannot remove {}", path.display()))?,
            }
        }
        match &options.tap {
            Some(tap) if network::exists(host, tap)? => remove_tap(host, tap),
            _ => Ok(()),
        }
    }

    /// Where the machine (not the host) finds QEMU's monitor. Short enough for a socket's address.
    pub fn qmp(&self) -> &Path {
        &self.qmp
    }
}

/// Makes a tap device, plugged into the bridge of `host`, for a machine that is going to come. It goes with the host, or
/// by [`remove_tap`].
pub fn make_tap(host: &Host, tap: &str) -> Result<()> {
    network::make_tap(host, tap)
}

/// Removes a tap device.
pub fn remove_tap(host: &Host, tap: &str) -> Result<()> {
    network::remove_tap(host, tap)
}

/// Makes a raw image of `mib` MiB in which no two blocks are alike.
pub fn disk_image(path: &Path, mib: u32) -> Result<()> {
    let bytes: Vec<u8> = (0..u64::from(mib) << 17)
        // Fibonacci hashing: distinct for distinct words.
        .flat_map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect();
    fs::write(path, bytes).doing(|| format!("cannot write {}", path.display()))
}
