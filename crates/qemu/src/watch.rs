//! A userfaultfd in a QEMU, also in one that may not make one itself.

use std::fs::File;
use std::os::fd::AsFd;

use serde_json::json;
use whimbrel_kernel::proc;
use whimbrel_kernel::uffd::{self, Injection, Uffd};

use crate::error::{MachineError, Result};
use crate::machine::Machine;

/// The device that gives userfaultfds to whoever may open it (Linux 6.1).
const DEVICE: &str = "/dev/userfaultfd";
const FD_NAME: &str = "whimbrel-userfaultfd";

/// A userfaultfd.
#[derive(Debug)]
pub struct Made {
    /// Ours.
    pub uffd: Uffd,
    /// Its number in QEMU, if it was to be kept there.
    pub inside: i32,
}

/// Makes one in QEMU: by userfaultfd(2), or, for one without the privilege, with a descriptor of the device that is handed in.
///
/// # Errors
/// Another tracer has QEMU, or neither way is open.
pub fn make(machine: &mut Machine, features: u64, keep: bool) -> Result<Made> {
    let how = Injection {
        features,
        keep,
        ..Injection::default()
    };
    let pid = machine.pid();
    match uffd::inject(pid, how) {
        Ok((uffd, inside)) => Ok(Made { uffd, inside }),
        Err(error) if error.errno() == Some(libc::EPERM) => by_device(machine, how).map_err(|second| {
            MachineError::refused(format!(
                "QEMU (process {pid}) may not use userfaultfd ({error}), and cannot be given one ({second}); give it the right, or a kernel with {DEVICE}"
            ))
        }),
        Err(error) => Err(error.into()),
    }
}

fn by_device(machine: &mut Machine, how: Injection) -> Result<Made> {
    let device = File::options().read(true).write(true).open(DEVICE);
    let device = device.map_err(MachineError::file("open", DEVICE))?;
    let pid = machine.pid();
    machine
        .qmp
        .execute_with_fd("getfd", json!({ "fdname": FD_NAME }), device.as_fd())?;
    let made = number_of(pid).and_then(|device| {
        let how = Injection {
            device: Some(device),
            ..how
        };
        Ok(uffd::inject(pid, how)?)
    });
    machine.qmp.execute("closefd", json!({ "fdname": FD_NAME }))?;
    let (uffd, inside) = made?;
    Ok(Made { uffd, inside })
}

fn number_of(pid: i32) -> Result<i32> {
    let is_device = |fd: &i32| proc::link(pid, &format!("fd/{fd}")).is_ok_and(|link| link == DEVICE);
    let found = proc::descriptors(pid)?.into_iter().find(is_device);
    found.ok_or_else(|| MachineError::unfit(format!("process {pid} did not get {DEVICE}")))
}
