//! All memory of a machine at both ends of a move, byte for byte. Reads by itself: what is under test does not.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;
use whimbrel_kernel::maps::{self, VmFlags};
use whimbrel_policy::PAGE_SIZE;
use whimbrel_qemu::blocks::{Backing, Block};
use whimbrel_qemu::device_state::Way;
use whimbrel_qemu::machine::Machine;
use whimbrel_qemu::qmp::Qmp;

use crate::rig::{How, Rig, Side, LONG};

/// A second monitor of the machine, while whimbrel uses the first one, and of what becomes of it at the destination.
const MONITOR: &str = "/run/second.qmp";

/// What gives a machine that monitor.
pub(crate) fn second_monitor() -> Vec<String> {
    vec!["-qmp".to_string(), format!("unix:{MONITOR},server=on,wait=off")]
}

/// When the guest is paused: it is so at the destination as well, and nothing changes what is to be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paused {
    /// Before the move begins.
    Before,
    /// While pages are sent, this long after the first of them.
    Meanwhile(Duration),
}

/// Moves a running machine, pauses it there, and compares all of its memory as soon as all of it has come. Then it runs on. Gives the last
/// line of the record.
pub(crate) fn moves_exactly(rig: &Rig, from: Side, how: &How, paused: Paused) -> serde_json::Value {
    let monitor = |side| rig.host(side).path(MONITOR);
    let pause = || {
        let mut qmp = Qmp::connect(&monitor(from)).unwrap();
        qmp.execute("stop", json!({})).unwrap();
    };
    if paused == Paused::Before {
        pause();
    }
    // Then all is there, and the source's QEMU has not been ended yet.
    let how = How {
        pause_source_at: Some("release"),
        ..how.clone()
    };
    let mut moving = rig.begin_move(from, &how);
    if let Paused::Meanwhile(after) = paused {
        rig.wait_for_phase(from, "round", &mut moving);
        sleep(after);
        pause();
    }
    if let Err(error) = moving.migrate.wait_stopped(LONG) {
        panic!("{error}\nreceive:\n{}", moving.receive.output());
    }
    let started = Instant::now();
    let compared = assert_same(&Memory::of(&monitor(from)), &Memory::of(&monitor(from.other())));
    moving.migrate.go_on().unwrap();
    let record = rig.arrived(from, moving);
    let mut qmp = Qmp::connect(&monitor(from.other())).unwrap();
    qmp.execute("cont", json!({})).unwrap();
    println!(
        "{:?}: all {} pages are the same, {} of them not empty; compared in {} ms",
        how.arguments,
        compared.pages,
        compared.filled,
        started.elapsed().as_millis()
    );
    assert!(compared.filled > 0);
    if paused != Paused::Before {
        let again = record["rounds"][1]["pages_owed"].as_u64();
        assert!(
            again.is_some_and(|pages| pages > 0),
            "nothing was written meanwhile: {record}"
        );
    }
    record
}

/// How much is compared at once.
const PIECE: u64 = 1 << 20;
/// This many differing pages of a block are shown.
const SHOWN: usize = 8;

/// The memory of a machine, to be looked at as long as its process lives. Memory in shared files outlives that.
struct Memory {
    blocks: Vec<Block>,
    process: File,
}

/// What was compared.
#[derive(Clone, Copy, Debug, Default)]
struct Compared {
    /// Pages in all blocks.
    pages: u64,
    /// Those that hold anything but zeros.
    filled: u64,
}

impl Memory {
    /// Of the machine behind a monitor that nobody else uses. The guest must be paused.
    fn of(monitor: &Path) -> Self {
        let mut machine = Machine::attach(monitor).unwrap();
        assert!(!machine.is_running().unwrap(), "{}", monitor.display());
        // Also what QEMU carries by itself because it is not shared.
        let blocks = machine.memory(Way::DevicesOnly).unwrap();
        let process = File::open(format!("/proc/{}/mem", machine.pid())).unwrap();
        wait_until_whole(machine.pid(), &blocks);
        Self { blocks, process }
    }

    fn read(&self, block: &Block, offset: u64, buffer: &mut [u8]) {
        let read = match &block.backing {
            Backing::Shared(file, base) => file.read_exact_at(buffer, base + offset),
            Backing::Private => self.process.read_exact_at(buffer, block.host + offset),
        };
        read.unwrap_or_else(|error| panic!("block {} at {offset:#x}: {error}", block.name));
    }
}

/// Whoever reads what is still waited for gets EIO. That ends after the source has been told that all is there.
fn wait_until_whole(pid: i32, blocks: &[Block]) {
    let deadline = Instant::now() + LONG;
    let is_whole = || {
        let vmas = maps::read_with_flags(pid).unwrap();
        let mut spans = blocks.iter().map(Block::span);
        !spans.any(|span| {
            let mut inside = vmas
                .iter()
                .filter(|vma| vma.start < span.end && span.start < vma.end);
            inside.any(|vma| vma.flags.has(VmFlags::UFFD_MISSING))
        })
    };
    while !is_whole() {
        assert!(Instant::now() < deadline, "pages are still missing");
        sleep(Duration::from_millis(2));
    }
}

/// Both must hold the same in every block.
fn assert_same(source: &Memory, destination: &Memory) -> Compared {
    let mut compared = Compared::default();
    let mut faults = Vec::new();
    assert_eq!(source.blocks.len(), destination.blocks.len());
    for ours in &source.blocks {
        let mut others = destination.blocks.iter();
        let theirs = others.find(|theirs| theirs.name == ours.name);
        let theirs = theirs.unwrap_or_else(|| panic!("no block {} at the destination", ours.name));
        assert_eq!(ours.bytes, theirs.bytes, "{}", ours.name);
        let mut differ = Vec::new();
        for at in (0..ours.bytes).step_by(PIECE as usize) {
            let mut pieces = [(); 2].map(|()| vec![0; PIECE.min(ours.bytes - at) as usize]);
            source.read(ours, at, &mut pieces[0]);
            destination.read(theirs, at, &mut pieces[1]);
            let [left, right] = &pieces;
            let pages = left
                .chunks(PAGE_SIZE as usize)
                .zip(right.chunks(PAGE_SIZE as usize));
            let numbers = (at / PAGE_SIZE)..;
            for (number, (left, right)) in numbers.zip(pages) {
                compared.pages += 1;
                compared.filled += u64::from(left != &[0; PAGE_SIZE as usize][..]);
                differ.extend(first_difference(left, right).map(|byte| (number, byte)));
            }
        }
        if !differ.is_empty() {
            let (count, first) = (differ.len(), &differ[..differ.len().min(SHOWN)]);
            faults.push(format!(
                "{}: {count} pages differ, the first are (page, byte, here, there) {first:x?}",
                ours.name
            ));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    compared
}

fn first_difference(left: &[u8], right: &[u8]) -> Option<(usize, u8, u8)> {
    if left == right {
        return None;
    }
    let at = left.iter().zip(right).position(|(left, right)| left != right)?;
    Some((at, left[at], right[at]))
}
