//! The state of a machine beside its memory: QEMU writes it and reads it, we carry it.
//!
//! There are two ways to make QEMU write it without the memory:
//!
//! - [`Way::IgnoreShared`]: RAM lies in a shared file, and QEMU's own migration runs with the capability `x-ignore-shared`, which leaves such memory
//!   out. Small blocks that are not shared (firmware) are in the stream.
//! - [`Way::DevicesOnly`]: `xen-save-devices-state`, which needs no Xen and leaves all memory out. Its stream lacks the section that names the machine
//!   (migration/savevm.c, `QEMU_VM_CONFIGURATION`), which an ordinary incoming machine insists on: it is put in.
//!
//! In both the descriptor that QEMU writes to is handed in, so that nothing depends on paths that both see.

use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{memfd_create, MemfdFlags};
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};

use crate::error::{MachineError, Result};
use crate::qmp::{Qmp, QmpError};

/// No machine's devices have more state, in bytes: what `wire` takes.
const STATE_MAX: u64 = 60 << 20;
/// How long QEMU may take to write it, and to read it.
const WRITE_MAX: Duration = Duration::from_secs(20);
const READ_MAX: Duration = Duration::from_secs(60);
/// How long it may take to stop writing.
const CANCEL_MAX: Duration = Duration::from_secs(10);
/// Between two questions whether it is done.
const ASK_EVERY: Duration = Duration::from_micros(200);
/// Under which QEMU knows our descriptor.
const FD_NAME: &str = "whimbrel-state";
/// Bytes a second at which QEMU writes: as fast as it can.
const BANDWIDTH: u64 = 100 << 30;
/// `QEMU_VM_FILE_MAGIC` and the version, then sections; `QEMU_VM_CONFIGURATION` is one.
const HEADER_BYTES: usize = 8;
const MAGIC: &[u8] = b"QEVM";
const SECTION_CONFIGURATION: u8 = 7;
/// Releases from 8.1 on leave out only memory that lies in a file with a name.
pub const NAMED_SINCE: (u32, u32, u32) = (8, 1, 0);

/// How the state is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Way {
    /// QEMU's own migration, which leaves shared memory out.
    IgnoreShared,
    /// Nothing but devices.
    DevicesOnly,
}

/// The settings of QEMU's migration that a user may have made, to be put back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Capabilities that are on.
    on: Vec<String>,
    bandwidth: Option<u64>,
    tls: Option<String>,
}

impl Settings {
    /// As they are.
    pub fn read(qmp: &mut Qmp) -> Result<Settings> {
        let parameters = qmp.execute("query-migrate-parameters", json!({}))?;
        Ok(Settings {
            on: capabilities(qmp)?
                .into_iter()
                .filter_map(|(name, on)| on.then_some(name))
                .collect(),
            bandwidth: parameters["max-bandwidth"].as_u64(),
            tls: parameters["tls-creds"]
                .as_str()
                .map(str::to_owned)
                .filter(|tls| !tls.is_empty()),
        })
    }

    /// As our way needs them.
    pub fn make(&self, qmp: &mut Qmp, way: Way) -> Result<()> {
        let ours: &[&str] = match way {
            Way::IgnoreShared => &["x-ignore-shared"],
            Way::DevicesOnly => &[],
        };
        set(qmp, |name| ours.contains(&name))?;
        let mut parameters = json!({ "max-bandwidth": BANDWIDTH });
        if self.tls.is_some() {
            parameters["tls-creds"] = "".into();
        }
        qmp.execute("migrate-set-parameters", parameters)?;
        Ok(())
    }

    /// As they were.
    pub fn restore(&self, qmp: &mut Qmp) -> Result<()> {
        set(qmp, |name| self.on.iter().any(|on| on == name))?;
        let mut parameters = json!({});
        if let Some(bandwidth) = self.bandwidth {
            parameters["max-bandwidth"] = bandwidth.into();
        }
        if let Some(tls) = &self.tls {
            parameters["tls-creds"] = tls.as_str().into();
        }
        qmp.execute("migrate-set-parameters", parameters)?;
        Ok(())
    }
}

fn capabilities(qmp: &mut Qmp) -> Result<Vec<(String, bool)>> {
    let told = qmp.execute("query-migrate-capabilities", json!({}))?;
    let one = |one: &Value| Some((one["capability"].as_str()?.to_owned(), one["state"].as_bool()?));
    Ok(told.as_array().into_iter().flatten().filter_map(one).collect())
}

/// Only what is to change: some of them this QEMU may know but refuse to hear of.
fn set(qmp: &mut Qmp, wanted: impl Fn(&str) -> bool) -> Result<()> {
    let change = |(name, on): (String, bool)| {
        let state = wanted(&name);
        (state != on).then(|| json!({ "capability": name, "state": state }))
    };
    let changes: Vec<Value> = capabilities(qmp)?.into_iter().filter_map(change).collect();
    if !changes.is_empty() {
        qmp.execute("migrate-set-capabilities", json!({ "capabilities": changes }))?;
    }
    Ok(())
}

/// Whether this QEMU knows the capability of [`Way::IgnoreShared`].
pub fn knows_ignore_shared(qmp: &mut Qmp) -> Result<bool> {
    Ok(capabilities(qmp)?
        .iter()
        .any(|(name, _)| name == "x-ignore-shared"))
}

/// Where QEMU is going to write the state.
#[derive(Debug)]
pub enum Saver {
    /// The other end of what QEMU writes to.
    Stream(UnixStream),
    /// What QEMU writes to, and the number of its set of descriptors.
    File(File, u64),
}

impl Saver {
    /// Hands the descriptor in, while the machine still runs.
    pub fn prepare(qmp: &mut Qmp, way: Way) -> Result<Saver> {
        match way {
            Way::IgnoreShared => {
                let (ours, theirs) =
                    UnixStream::pair().map_err(MachineError::file("make", "a pair of sockets"))?;
                qmp.execute_with_fd("getfd", json!({ "fdname": FD_NAME }), theirs.as_fd())?;
                Ok(Saver::Stream(ours))
            }
            Way::DevicesOnly => {
                let memfd = memfd_create(FD_NAME, MemfdFlags::CLOEXEC).map_err(std::io::Error::from);
                let file = File::from(memfd.map_err(MachineError::file("make", "a file in memory"))?);
                let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
                // A set of descriptors is asked for one with exactly the right mode.
                let writable = File::options().write(true).open(&path);
                let writable = writable.map_err(MachineError::file("open", path))?;
                let set = qmp.execute_with_fd("add-fd", json!({ "opaque": FD_NAME }), writable.as_fd())?;
                let number = set["fdset-id"].as_u64().ok_or_else(|| QmpError::Strange {
                    command: "add-fd".into(),
                    what: set.to_string(),
                })?;
                Ok(Saver::File(file, number))
            }
        }
    }

    /// Lets the paused machine write its state. Its disks are let go, for the destination to take.
    ///
    /// # Errors
    /// QEMU fails, takes too long, or writes too much. `cont` takes it all back.
    pub fn save(self, qmp: &mut Qmp, machine: &str) -> Result<Vec<u8>> {
        match self {
            Saver::Stream(stream) => save_stream(qmp, stream),
            Saver::File(file, set) => {
                let name = format!("/dev/fdset/{set}");
                let saved = qmp.execute(
                    "xen-save-devices-state",
                    json!({ "filename": name, "live": true }),
                );
                let removed = qmp.execute("remove-fd", json!({ "fdset-id": set }));
                saved?;
                removed?;
                let mut state = Vec::new();
                // Another opening than QEMU's, so that it begins at the beginning.
                let read = file.take(STATE_MAX + 1).read_to_end(&mut state);
                read.map_err(MachineError::file("read", name))?;
                with_configuration(limited(state)?, machine)
            }
        }
    }

    /// It is not needed after all.
    pub fn dismiss(self, qmp: &mut Qmp) {
        let _ = match self {
            Saver::Stream(_) => qmp.execute("closefd", json!({ "fdname": FD_NAME })),
            Saver::File(_, set) => qmp.execute("remove-fd", json!({ "fdset-id": set })),
        };
    }
}

/// Ends a migration of QEMU's own that somebody began for us: its settings can be changed again then.
///
/// # Errors
/// It does not end.
pub fn cancel(qmp: &mut Qmp) -> Result<()> {
    let deadline = Instant::now() + CANCEL_MAX;
    // There may be nothing to be cancelled.
    let _ = qmp.execute("migrate_cancel", json!({}));
    loop {
        let told = qmp.execute("query-migrate", json!({}))?;
        match told["status"].as_str() {
            None | Some("none" | "completed" | "failed" | "cancelled") => return Ok(()),
            Some(status) if Instant::now() > deadline => {
                return Err(MachineError::unfit(format!(
                    "QEMU's migration of the machine cannot be cancelled: its state is \"{status}\""
                )))
            }
            Some(_) => thread::sleep(ASK_EVERY),
        }
    }
}

/// What a dead one has handed in is not needed any more.
pub fn dismiss_left(qmp: &mut Qmp) {
    let _ = qmp.execute("closefd", json!({ "fdname": FD_NAME }));
    let sets = qmp.execute("query-fdsets", json!({})).unwrap_or(Value::Null);
    for set in sets.as_array().into_iter().flatten() {
        let fds = set["fds"].as_array();
        let ours = fds.is_some_and(|fds| fds.iter().any(|fd| fd["opaque"] == FD_NAME));
        if ours {
            let _ = qmp.execute("remove-fd", json!({ "fdset-id": set["fdset-id"] }));
        }
    }
}

fn limited(state: Vec<u8>) -> Result<Vec<u8>> {
    match state.len() as u64 > STATE_MAX {
        true => Err(MachineError::refused(format!(
            "the devices of the machine have more than {STATE_MAX} bytes of state; which memory does it keep outside of its memory backends?"
        ))),
        false => Ok(state),
    }
}

fn save_stream(qmp: &mut Qmp, stream: UnixStream) -> Result<Vec<u8>> {
    let failed = || MachineError::file("read", "the state that QEMU writes");
    stream.set_read_timeout(Some(WRITE_MAX)).map_err(failed())?;
    let reader = thread::Builder::new().name("device state".into()).spawn(move || {
        let mut state = Vec::with_capacity(1 << 20);
        stream.take(STATE_MAX + 1).read_to_end(&mut state).map(|_| state)
    });
    let reader = reader.map_err(MachineError::file("start", "a thread"))?;
    qmp.execute("migrate", json!({ "uri": format!("fd:{FD_NAME}") }))?;
    let done = wait_written(qmp);
    if done.is_err() {
        let _ = cancel(qmp);
    }
    let state = reader.join().unwrap_or_else(|_| Ok(Vec::new()));
    done?;
    limited(state.map_err(failed())?)
}

fn wait_written(qmp: &mut Qmp) -> Result<()> {
    let deadline = Instant::now() + WRITE_MAX;
    loop {
        let told = qmp.execute("query-migrate", json!({}))?;
        match told["status"].as_str() {
            Some("completed") => return Ok(()),
            Some(status @ ("failed" | "cancelled")) => {
                let why = told["error-desc"].as_str().unwrap_or("it says no more");
                return Err(MachineError::unfit(format!(
                    "QEMU could not write the state of its devices: {status} ({why})"
                )));
            }
            _ if Instant::now() > deadline => {
                return Err(MachineError::unfit(format!(
                    "QEMU has not written the state of its devices for {} s",
                    WRITE_MAX.as_secs()
                )))
            }
            _ => thread::sleep(ASK_EVERY),
        }
    }
}

/// Puts in the section that names the machine, unless it is there.
fn with_configuration(state: Vec<u8>, machine: &str) -> Result<Vec<u8>> {
    let Some((header, sections)) = state
        .split_at_checked(HEADER_BYTES)
        .filter(|(header, _)| header.starts_with(MAGIC))
    else {
        return Err(MachineError::unfit(
            "QEMU has written a state of its devices that begins in an unknown way",
        ));
    };
    if sections.first() == Some(&SECTION_CONFIGURATION) {
        return Ok(state);
    }
    let mut whole = Vec::with_capacity(state.len() + 64);
    whole.extend_from_slice(header);
    whole.push(SECTION_CONFIGURATION);
    whole.extend_from_slice(&(machine.len() as u32).to_be_bytes());
    whole.extend_from_slice(machine.as_bytes());
    whole.extend_from_slice(sections);
    Ok(whole)
}

/// Hands the state to a machine that waits for it, and waits until it is taken in. The machine is paused then.
///
/// # Errors
/// QEMU refuses it; an older release ends itself then, and says why only in its log.
pub fn restore(qmp: &mut Qmp, state: &[u8]) -> Result<()> {
    let (mut ours, theirs) = UnixStream::pair().map_err(MachineError::file("make", "a pair of sockets"))?;
    qmp.execute_with_fd("getfd", json!({ "fdname": FD_NAME }), theirs.as_fd())?;
    drop(theirs);
    let stop = ours
        .try_clone()
        .map_err(MachineError::file("share", "a socket"))?;
    let taken = thread::scope(|scope| {
        let writer = scope.spawn(move || {
            let _ = ours.set_write_timeout(Some(READ_MAX));
            // It reads to the end.
            ours.write_all(state)
                .and_then(|()| ours.shutdown(Shutdown::Write))
        });
        let uri = json!({ "uri": format!("fd:{FD_NAME}") });
        let taken = match qmp.execute("migrate-incoming", uri) {
            Ok(_) => wait_taken(qmp),
            Err(error) => Err(error.into()),
        };
        if taken.is_err() {
            // Nobody reads any more, and the writer must not wait for that.
            let _ = stop.shutdown(Shutdown::Both);
        }
        // What QEMU did not want of it does not matter.
        let _ = writer.join();
        taken
    });
    taken
}

fn wait_taken(qmp: &mut Qmp) -> Result<()> {
    let deadline = Instant::now() + READ_MAX;
    loop {
        let status = qmp.execute_within("query-status", json!({}), READ_MAX)?;
        if status["status"] != "inmigrate" {
            return Ok(());
        }
        let told = qmp.execute_within("query-migrate", json!({}), READ_MAX)?;
        if told["status"] == "failed" {
            let why = told["error-desc"].as_str().unwrap_or("its log says why");
            return Err(MachineError::unfit(format!(
                "the destination's QEMU does not take the state of the devices: {why}"
            )));
        }
        if Instant::now() > deadline {
            return Err(MachineError::unfit(format!(
                "the destination's QEMU has not taken the state of the devices for {} s",
                READ_MAX.as_secs()
            )));
        }
        thread::sleep(ASK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_named_once() {
        let bare = [b"QEVM\0\0\0\x03".as_slice(), b"\x04rest"].concat();
        let whole = with_configuration(bare, "pc-q35-7.2").unwrap();
        let expected = [
            b"QEVM\0\0\0\x03\x07\0\0\0\x0a".as_slice(),
            b"pc-q35-7.2",
            b"\x04rest",
        ]
        .concat();
        assert_eq!(whole, expected);
        assert_eq!(with_configuration(whole.clone(), "pc-q35-7.2").unwrap(), whole);
        assert!(with_configuration(b"QE".to_vec(), "x").is_err());
        assert!(with_configuration(b"notQEVM!".to_vec(), "x").is_err());
    }
}
