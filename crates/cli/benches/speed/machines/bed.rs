//! The two hosts, and a guest that is moved back and forth between them.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use whimbrel_testbed::vm::{disk_image, make_tap, Guest, Ram, Serial, Tick, Vm, VmOptions};
use whimbrel_testbed::vm::{Writer, GUEST, GUEST_PORT};
use whimbrel_testbed::{at, Host, Running, TwoHosts, SHARED};

use super::Row;
use crate::rig::{Rig, Side, LONG};

/// The machine's name.
pub const VM: &str = "vm";

/// Its memory, where each host has it. What is left over of one that has gone is not read by the next one.
const MEMORY: &str = "/dev/shm/vm";

/// Under TCG, QEMU 7.2's own migration damages guests whose memory is a power of two.
const MEMORY_EXTRA: u64 = 8192;

/// Milliseconds between two ticks.
const TICK_MS: u32 = 10;

/// Hosts with a guest on one of them.
pub struct Bed {
    pub rig: Rig,
    pub side: Side,
    /// What the guest says where it is now.
    pub serial: Serial,
    /// QEMU, if it was started here and not by `whimbrel receive`.
    pub qemu: Option<Running>,
    pub guest: Guest,
    pub options: VmOptions,
    row: Row,
    _scratch: Scratch,
}

/// A directory of the machine for the disk, removed in the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        // A fresh guest is made before the old one is gone, which still has its disk.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(format!("whimbrel-bench-vm-{process}-{count}"));
        std::fs::create_dir_all(&path).unwrap();
        disk_image(&path.join("disk"), 4).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Bed {
    /// Boots a guest on alpha. When it is there, all of its memory that counts is filled.
    pub fn boot(row: Row) -> Self {
        let scratch = Scratch::new();
        let rig = Rig::with(TwoHosts::builder().shared(&scratch.0), &[]);
        let guest = Guest::build().unwrap();
        for host in [&rig.hosts.alpha, &rig.hosts.beta] {
            make_tap(host, "tap0").unwrap();
            guest.install(host).unwrap();
        }
        let options = options(row);
        let vm = Vm::start(&rig.hosts.alpha, &guest, &options).unwrap();
        let bed = Self {
            rig,
            side: Side::Alpha,
            serial: vm.serial,
            qemu: Some(vm.running),
            guest,
            options,
            row,
            _scratch: scratch,
        };
        bed.fill();
        bed
    }

    /// A fresh guest. The old one goes with its hosts.
    pub fn boot_anew(&mut self) {
        *self = Self::boot(self.row);
    }

    fn fill(&self) {
        let ready = |tick: &Tick| tick.pages >= self.row.writer_pages() && tick.disk_passes > 0;
        let late = |error| panic!("{error}\n{:?}", self.qemu.as_ref().map(Running::output));
        self.serial.wait_tick(ready, LONG).unwrap_or_else(late);
        if self.row.held_mb > 0 {
            let asked = format!("hold {}", self.row.held_mb);
            assert_eq!(self.client().ask(&asked).unwrap(), format!("{asked} ok"));
        }
    }

    pub fn host(&self, side: Side) -> &Host {
        self.rig.host(side)
    }

    /// Where the machine (not the host) finds the guest's monitor.
    pub fn monitor(&self) -> PathBuf {
        self.host(self.side).path(format!("/run/{VM}.qmp"))
    }

    /// Removes the memory of a machine that is not there any more.
    pub fn forget_memory(&self, side: Side) {
        let _ = std::fs::remove_file(self.host(side).path(MEMORY));
    }

    /// A connection to the guest.
    pub fn client(&self) -> Client {
        let stream = self
            .rig
            .hosts
            .client
            .connect(at(GUEST, GUEST_PORT), LONG)
            .unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client(BufReader::new(stream))
    }

    /// What the guest has found wrong so far: pages and blocks of its disk.
    pub fn errors(&self) -> u64 {
        let ticks = self.serial.ticks();
        ticks.last().map_or(0, |tick| tick.errors + tick.disk_errors)
    }

    /// Waits until the guest has looked at all of its memory, and gives what was wrong by then.
    pub fn check(&self) -> Result<u64, String> {
        let before = self.serial.ticks().last().map_or(0, |tick| tick.pages);
        let all = before + self.row.writer_pages();
        let seen = self.serial.wait_tick(|tick| tick.pages >= all, LONG);
        seen.map_err(|error| error.to_string())?;
        let answer = self.client().ask("check").map_err(|error| error.to_string())?;
        let bad = answer
            .rsplit_once("bad=")
            .and_then(|(_, bad)| bad.parse::<u64>().ok());
        Ok(self.errors() + bad.ok_or_else(|| format!("the guest answers {answer}"))?)
    }
}

fn options(row: Row) -> VmOptions {
    VmOptions {
        memory_mib: row.memory_mib,
        memory_extra: MEMORY_EXTRA,
        ram: Ram::SharedFile {
            path: PathBuf::from(MEMORY),
        },
        writer: Writer {
            mb: row.writer_mb,
            mb_per_s: row.rate,
            tick_ms: TICK_MS,
            threads: 0,
        },
        disk: Some(Path::new(SHARED).join("disk")),
        tap: Some("tap0".to_string()),
        // QEMU's own migration is a part of the QEMU that runs the guest: it must not be the only one that gives way.
        nice: 0,
        ..VmOptions::new(VM)
    }
}

/// One connection to the guest that lasts.
pub struct Client(BufReader<TcpStream>);

impl Client {
    pub fn ask(&mut self, line: &str) -> std::io::Result<String> {
        self.0.get_mut().write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        self.0.read_line(&mut answer)?;
        Ok(answer.trim_end().to_string())
    }
}
