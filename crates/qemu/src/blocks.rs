//! RAM blocks: what memory a machine has, and where it lies in QEMU's address space.
//!
//! QEMU tells names and lengths (`info ramblock`). Where a block lies it tells only for what the guest sees at this moment: `info mtree -f`
//! gives guest physical ranges with the block's name and the offset in it, also above the hole below 4 GB, and `gpa2hva` the host's
//! address of one (newer releases say it in `info ramblock`). What lies behind that address /proc/PID/maps says.

use std::fs::File;
use std::ops::Range;

use whimbrel_kernel::maps::{self, Vma};
use whimbrel_policy::PAGE_SIZE;

use crate::error::{MachineError, Result};
use crate::qmp::{Qmp, QmpError};

/// More blocks than any machine has.
pub const BLOCKS_MAX: usize = 1024;
/// No block is longer, in bytes: what a set of pages takes at once.
pub const BLOCK_BYTES_MAX: u64 = (1 << 30) * PAGE_SIZE;

/// What QEMU says of one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The name by which both ends know it.
    pub name: String,
    /// Bytes to a page of what lies behind it.
    pub page_bytes: u64,
    /// Bytes in use.
    pub used: u64,
    /// Bytes reserved.
    pub total: u64,
    /// Where it lies, in releases that say it.
    pub host: Option<u64>,
}

/// What lies behind a block.
#[derive(Debug)]
pub enum Backing {
    /// Private anonymous memory.
    Private,
    /// A file in memory that is mapped shared; the block begins at this offset in it.
    Shared(File, u64),
}

/// A block and its place.
#[derive(Debug)]
pub struct Block {
    /// The name by which both ends know it.
    pub name: String,
    /// Whole pages in use, in bytes.
    pub bytes: u64,
    /// Bytes to a page of what lies behind it.
    pub page_bytes: u64,
    /// Address of its first byte in QEMU.
    pub host: u64,
    /// What lies behind it.
    pub backing: Backing,
}

/// Where a block lies, for whoever comes after us: its name, its bytes, its address in QEMU.
pub type Place = (String, u64, u64);

impl Block {
    /// For a journal.
    pub fn place(&self) -> Place {
        (self.name.clone(), self.bytes, self.host)
    }

    /// Its addresses in QEMU.
    pub fn span(&self) -> Range<u64> {
        self.host..self.host + self.bytes
    }

    /// Whether other processes could see it.
    pub fn is_shared(&self) -> bool {
        matches!(self.backing, Backing::Shared(..))
    }
}

/// What there is: blocks with a place, and names of those without.
#[derive(Debug, Default)]
pub struct Blocks {
    /// With a place.
    pub placed: Vec<Block>,
    /// The guest does not see them at this moment.
    pub unplaced: Vec<Listed>,
}

/// Asks the monitor and /proc of process `pid`.
///
/// # Errors
/// The monitor fails or says what cannot be understood; the process has ended.
pub fn find(qmp: &mut Qmp, pid: i32) -> Result<Blocks> {
    let listed = parse_blocks(&qmp.human("info ramblock")?)?;
    let seen = match listed.iter().all(|block| block.host.is_some()) {
        true => Vec::new(),
        false => parse_views(&qmp.human("info mtree -f")?),
    };
    let vmas = maps::read(pid)?;
    let mut blocks = Blocks::default();
    for block in listed {
        match place(qmp, &block, &seen)? {
            Some(host) => blocks.placed.push(open(pid, &vmas, block, host)?),
            None => blocks.unplaced.push(block),
        }
    }
    Ok(blocks)
}

/// A part of a block that the guest sees.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    guest: u64,
    /// The region's own name: the end of the block's.
    region: String,
    offset: u64,
}

fn place(qmp: &mut Qmp, block: &Listed, seen: &[Seen]) -> Result<Option<u64>> {
    if block.host.is_some() {
        return Ok(block.host);
    }
    for part in seen.iter().filter(|part| is_of(&part.region, &block.name)) {
        let said = qmp.human(&format!("gpa2hva {:#x}", part.guest))?;
        // "Host virtual address for 0x0 (pc.ram) is 0x7f0000000000"
        let host = said.split_whitespace().last().and_then(hex);
        if let Some(base) = host.and_then(|host| host.checked_sub(part.offset)) {
            return Ok(Some(base));
        }
    }
    Ok(None)
}

/// A block of a device is called by the device's path and the region's name.
fn is_of(region: &str, block: &str) -> bool {
    block == region || block.strip_suffix(region).is_some_and(|rest| rest.ends_with('/'))
}

/// Looks at what lies behind it.
pub(crate) fn open(pid: i32, vmas: &[Vma], listed: Listed, host: u64) -> Result<Block> {
    let (name, bytes) = (listed.name, listed.used.next_multiple_of(PAGE_SIZE));
    if bytes > BLOCK_BYTES_MAX || host % PAGE_SIZE != 0 {
        return Err(MachineError::unfit(format!(
            "QEMU says that block {name} has {bytes} bytes at {host:#x}, which cannot be"
        )));
    }
    let mut parts = vmas
        .iter()
        .filter(|vma| vma.start < host + bytes && host < vma.end);
    let first = parts.next().filter(|first| first.start <= host).ok_or_else(|| {
        MachineError::unfit(format!(
            "nothing is mapped at {host:#x}, where QEMU says that block {name} lies"
        ))
    })?;
    let (mut end, mut alike) = (first.end, true);
    for part in parts {
        alike &= part.start == end && part.shared == first.shared && part.inode == first.inode;
        end = part.end;
    }
    if !alike || end < host + bytes {
        return Err(MachineError::refused(format!(
            "block {name} of the machine lies in several different mappings ({host:#x}-{:#x} of process {pid}); start it with one memory backend for each",
            host + bytes
        )));
    }
    let backing = match first.shared {
        true => {
            let path = format!("/proc/{pid}/map_files/{:x}-{:x}", first.start, first.end);
            let file = File::options().read(true).write(true).open(&path);
            let file = file.map_err(MachineError::file("open", path))?;
            Backing::Shared(file, first.offset + (host - first.start))
        }
        false if first.has_inode() => {
            return Err(MachineError::refused(format!(
                "block {name} of the machine is a private mapping of {}, whose unwritten pages nobody tracks; start it with share=on or with another memory backend",
                first.path
            )))
        }
        false => Backing::Private,
    };
    Ok(Block {
        name,
        bytes,
        page_bytes: listed.page_bytes,
        host,
        backing,
    })
}

/// The lines of `info ramblock`: name, page size, offset, used, total, and in newer releases the host's address.
fn parse_blocks(text: &str) -> Result<Vec<Listed>> {
    let blocks: Vec<Listed> = text.lines().filter_map(parse_block).collect();
    if blocks.is_empty() || blocks.len() > BLOCKS_MAX {
        return Err(strange("info ramblock", text).into());
    }
    Ok(blocks)
}

fn parse_block(line: &str) -> Option<Listed> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let first = words.iter().position(|word| word.starts_with("0x"))?;
    let numbers: Vec<u64> = words.iter().skip(first).map_while(|word| hex(word)).collect();
    let (&used, &total) = (numbers.get(1)?, numbers.get(2)?);
    // "pc.ram    4 KiB": the name may have blanks, too.
    let (name, size) = words.get(..first)?.split_at_checked(first.checked_sub(2)?)?;
    let unit = match *size.get(1)? {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    Some(Listed {
        name: name.join(" "),
        page_bytes: size.first()?.parse::<u64>().ok()?.checked_mul(unit)?,
        used,
        total,
        host: numbers.get(3).copied(),
    })
}

/// The lines of `info mtree -f` that name memory: "  start-end (prio 0, ram): name @offset KVM".
fn parse_views(text: &str) -> Vec<Seen> {
    text.lines().filter_map(parse_view).collect()
}

fn parse_view(line: &str) -> Option<Seen> {
    let (range, rest) = line.trim().split_once(" (prio ")?;
    let (kind, rest) = rest.split_once("): ")?;
    let kind = kind.rsplit(", ").next()?;
    if !matches!(kind, "ram" | "rom" | "romd" | "nv-ram") {
        return None;
    }
    let mut words: Vec<&str> = rest.split_whitespace().collect();
    if words.last() == Some(&"KVM") {
        words.pop();
    }
    let offset = words
        .last()
        .and_then(|word| word.strip_prefix('@'))
        .and_then(|digits| u64::from_str_radix(digits, 16).ok());
    if offset.is_some() {
        words.pop();
    }
    Some(Seen {
        guest: u64::from_str_radix(range.split_once('-')?.0, 16).ok()?,
        region: words.join(" "),
        offset: offset.unwrap_or(0),
    })
}

fn hex(word: &str) -> Option<u64> {
    u64::from_str_radix(word.strip_prefix("0x")?, 16).ok()
}

fn strange(command: &str, text: &str) -> QmpError {
    QmpError::Strange {
        command: command.to_owned(),
        what: text.chars().take(200).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As QEMU 7.2 prints them.
    const BLOCKS: &str =
        "              Block Name    PSize              Offset               Used              Total
                  pc.ram    4 KiB  0x0000000000000000 0x00000000c0000000 0x00000000c0000000
    /rom@etc/acpi/tables    4 KiB  0x00000000c0080000 0x0000000000020000 0x0000000000200000
                    huge    2 MiB  0x00000000c0000000 0x0000000000040000 0x0000000000040000";

    #[test]
    fn blocks_are_read_with_and_without_addresses() {
        let blocks = parse_blocks(BLOCKS).unwrap();
        assert_eq!(blocks.len(), 3);
        let first = Listed {
            name: "pc.ram".into(),
            page_bytes: 4096,
            used: 0xc000_0000,
            total: 0xc000_0000,
            host: None,
        };
        assert_eq!(blocks[0], first);
        assert_eq!(
            (blocks[1].used, blocks[1].total, blocks[2].page_bytes),
            (0x2_0000, 0x20_0000, 2 << 20)
        );
        let newer = "  /objects/ram 0    4 KiB  0x0000000000000000 0x0000000020000000 0x0000000020000000 0x00007f0c40000000  rw";
        let block = parse_block(newer).unwrap();
        assert_eq!(
            (block.name.as_str(), block.host),
            ("/objects/ram 0", Some(0x7f0c_4000_0000))
        );
        assert!(parse_blocks("unknown command: 'info ramblock'").is_err());
    }

    #[test]
    fn what_the_guest_sees_is_found_above_the_hole_too() {
        let text = "
  0000000000000000-00000000000bffff (prio 0, ram): pc.ram KVM
  00000000000c0000-00000000000dffff (prio 1, rom): pc.rom
  00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic
  0000000100000000-000000013fffffff (prio 0, ram): pc.ram @0000000080000000 KVM
";
        let seen = parse_views(text);
        let part = |guest, region: &str, offset| Seen {
            guest,
            region: region.into(),
            offset,
        };
        let expected = [
            part(0, "pc.ram", 0),
            part(0xc_0000, "pc.rom", 0),
            part(0x1_0000_0000, "pc.ram", 0x8000_0000),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_region_belongs_to_the_block_that_ends_with_its_name() {
        assert!(is_of("pc.ram", "pc.ram"));
        assert!(is_of("vga.vram", "0000:00:02.0/vga.vram"));
        assert!(!is_of("vram", "0000:00:02.0/vga.vram"));
        assert!(!is_of("ram", "pc.ram"));
    }
}
