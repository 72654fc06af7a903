//! QEMU's own migration.
//!
//! What it is given is what is best for it. `max-bandwidth` is above the link, so that the link alone limits it: QEMU 7.2
//! predicts the downtime from the rate that it measures, not from this number. `downtime-limit` is its default, 300 ms.
//! The destination's QEMU is started before the clock; whimbrel has to start its own within the measured time.

use std::thread;
use std::time::Duration;

use serde_json::{json, Value};
use whimbrel_qemu::qmp::{Qmp, QmpError};
use whimbrel_testbed::at;
use whimbrel_testbed::vm::{Vm, VmOptions};

use super::bed::Bed;
use super::watch::{Measured, Meter};
use super::{Moved, CAP};
use crate::rig::LONG;

const PORT: u16 = 4444;

/// How often it is asked how far it is.
const PERIOD: Duration = Duration::from_millis(5);

/// All that is ever switched on; the rest of them is switched off each time.
const CAPABILITIES: [&str; 3] = ["postcopy-ram", "postcopy-preempt", "multifd"];

/// In bytes per second.
const NO_LIMIT: u64 = 10_000_000_000;

/// Channels of multifd; each has a thread that compresses.
const CHANNELS: u32 = 2;

/// How QEMU shall migrate.
#[derive(Clone, Copy, PartialEq)]
pub enum Way {
    Precopy,
    /// Post-copy after so many passes over all memory, urgent pages on a channel of their own.
    Postcopy {
        passes: u64,
    },
    /// Several channels, compressed with zstd.
    Multifd,
}

impl Way {
    fn capabilities(self) -> &'static [&'static str] {
        match self {
            Self::Precopy => &[],
            Self::Postcopy { .. } => &["postcopy-ram", "postcopy-preempt"],
            Self::Multifd => &["multifd"],
        }
    }

    fn configure(self, qmp: &mut Qmp) -> Result<(), QmpError> {
        configure(qmp, self.capabilities())
    }
}

fn configure(qmp: &mut Qmp, wanted: &[&str]) -> Result<(), QmpError> {
    let state = |name: &&str| json!({ "capability": name, "state": wanted.contains(name) });
    let states: Vec<Value> = CAPABILITIES.iter().map(state).collect();
    qmp.execute("migrate-set-capabilities", json!({ "capabilities": states }))?;
    let multifd = wanted.contains(&"multifd");
    let parameters = json!({
        "max-bandwidth": NO_LIMIT,
        "max-postcopy-bandwidth": NO_LIMIT,
        "downtime-limit": 300,
        "multifd-channels": CHANNELS,
        "multifd-compression": if multifd { "zstd" } else { "none" },
    });
    qmp.execute("migrate-set-parameters", parameters).map(drop)
}

/// Moves the guest. If it fails, the guest is of no use any more.
pub fn moves(bed: &mut Bed, way: Way) -> Result<Moved, String> {
    let there = bed.side.other();
    let options = VmOptions {
        more: ["-incoming", "defer"].map(str::to_string).to_vec(),
        ..bed.options.clone()
    };
    let vm = Vm::start(bed.host(there), &bed.guest, &options).map_err(|error| error.to_string())?;
    let measured = between(bed, &vm, way);
    let said = || format!("destination: {}", vm.running.output().trim());
    let measured = measured.map_err(|error| format!("{error}; {}", said()))?;
    // It stays when it has completed. A command is lost if its sender does not wait for the answer.
    let ended = Qmp::connect(&bed.monitor()).and_then(|mut source| source.execute("quit", json!({})));
    ended.map_err(|error| format!("the source stays: {error}"))?;
    bed.qemu = Some(vm.running);
    Ok(Moved {
        measured,
        heard: vm.serial,
        record: None,
    })
}

fn between(bed: &Bed, vm: &Vm, way: Way) -> Result<Measured, String> {
    let text = |error: QmpError| error.to_string();
    let mut source = Qmp::connect(&bed.monitor()).map_err(text)?;
    let mut destination = monitor_of(vm)?;
    let address = at(bed.rig.hosts.address_of(bed.host(bed.side.other())), PORT);
    let uri = json!({ "uri": format!("tcp:{address}") });
    for qmp in [&mut source, &mut destination] {
        way.configure(qmp).map_err(text)?;
    }
    destination
        .execute("migrate-incoming", uri.clone())
        .map_err(text)?;
    let meter = Meter::start(bed);
    source.execute("migrate", uri).map_err(text)?;
    if let Way::Postcopy { passes } = way {
        until(&mut source, &meter, |state| passed(state, passes))?;
        // It may have come to its end during the pass.
        let _ = source.execute("migrate-start-postcopy", json!({}));
    }
    until(&mut source, &meter, |state| state["status"] == "completed")?;
    until(&mut destination, &meter, |state| state["status"] == "completed")?;
    let measured = meter.stop(bed);
    configure(&mut destination, &[]).map_err(text)?;
    Ok(measured)
}

fn passed(state: &Value, passes: u64) -> bool {
    let count = state["ram"]["dirty-sync-count"].as_u64().unwrap_or(0);
    // It is counted at the beginning of each pass.
    state["status"] == "completed" || (state["status"] == "active" && count > passes)
}

fn monitor_of(vm: &Vm) -> Result<Qmp, String> {
    let mut left = LONG;
    loop {
        match Qmp::connect(vm.qmp()) {
            Ok(qmp) => return Ok(qmp),
            Err(error) if left.is_zero() => return Err(error.to_string()),
            Err(_) => thread::sleep(PERIOD),
        }
        left = left.saturating_sub(PERIOD);
    }
}

/// Waits until the migration is in such a state. Cancels it when it takes too long.
fn until(qmp: &mut Qmp, meter: &Meter, reached: impl Fn(&Value) -> bool) -> Result<(), String> {
    loop {
        let state = qmp.execute("query-migrate", json!({}));
        let state = state.map_err(|error| error.to_string())?;
        if reached(&state) {
            return Ok(());
        }
        let status = state["status"].as_str().unwrap_or("none");
        if ["failed", "cancelled", "postcopy-paused"].contains(&status) {
            return Err(format!("{status}: {}", state["error-desc"]));
        }
        if meter.begun().elapsed() > CAP {
            let _ = qmp.execute("migrate_cancel", json!({}));
            return Err(format!("does not converge ({status} after {} s)", CAP.as_secs()));
        }
        thread::sleep(PERIOD);
    }
}
