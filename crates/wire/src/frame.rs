//! The eight bytes before everything that is sent after the handshake, all numbers little-endian:
//!
//! ```text
//! 0 length of the payload u32   4 kind u8   5 flags u8   6 reserved u16, 0
//! ```
//!
//! Each kind has a limit for its length, which is checked before anything of the payload is read.

use crate::error::{Error, Result};

/// Bytes in a frame's header.
pub const HEADER_BYTES: usize = 8;
/// Another frame of the same kind goes on where this one ends.
pub const MORE: u8 = 1;
/// A fault was told before.
pub const REPEATED: u8 = 2;

const KIB: u32 = 1 << 10;
const MIB: u32 = 1 << 20;

/// Bytes in a page.
pub const PAGE_BYTES: usize = 4096;
/// Pages in one frame at most: a megabyte stays in the processor's cache between reading and sending.
pub const FRAME_PAGES_MAX: u32 = 256;
/// Bytes in one part of a spec.
pub const PART_BYTES_MAX: u32 = MIB;
/// Bytes in one layout: 65,530 mappings (the kernel's `vm.max_map_count`) of some 300 bytes.
pub const LAYOUT_BYTES_MAX: u32 = 24 * MIB;
/// Bytes in a state: it carries the contents of pipes and of socket queues, and the tail of a log.
pub const STATE_BYTES_MAX: u32 = 512 * MIB;
/// Bytes in one message.
pub const MESSAGE_BYTES_MAX: u32 = 64 * KIB;

/// What a frame holds. 0 is reserved: zeros never look like a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Control: one message.
    Message = 1,
    /// Control: a part of what the destination checks and prepares.
    Spec = 2,
    /// Bulk: the layout that everything after it is meant for.
    Layout = 16,
    /// Bulk: a run of pages with their content.
    Pages = 17,
    /// Bulk: a run of pages that are zero.
    Zero = 18,
    /// Bulk: a run of pages that are gone.
    Drop = 19,
    /// Bulk: to be acknowledged when everything before it was applied.
    Barrier = 20,
    /// Bulk: the state beside the memory.
    State = 21,
    /// Bulk: runs of pages and their contents, packed together.
    Packed = 23,
    /// Bulk: bytes that mean nothing, to see how fast they travel.
    Padding = 24,
    /// Bulk: nothing will come; it was only a question.
    Enough = 25,
    /// Bulk, and faults to the source: a run of pages that the destination lacks.
    Missing = 22,
    /// Faults, to the destination: a run of pages that the source takes for settled; look again and wake.
    Settled = 32,
    /// Faults, to the destination: a run of pages that the source cannot or will not send.
    Refused = 33,
    /// Faults, to the destination: hold the workload until everything has arrived.
    Hurry = 34,
    /// Faults, both ways: nothing to say, but alive.
    Alive = 35,
    /// Faults, to the source: a thread waits for a page.
    Fault = 48,
    /// Faults, to the source: every page of a piece was placed.
    Acked = 49,
    /// Faults, to the source: a run of pages that is not wanted any more.
    Gone = 50,
    /// Faults, to the source: all missing pages were named.
    Listed = 51,
    /// Faults, to the source: how long faults took.
    Times = 52,
    /// Faults, to the source: the workload has ended, or lacks nothing.
    Ended = 53,
}

impl Kind {
    fn decode(kind: u8) -> Result<Self> {
        Ok(match kind {
            1 => Kind::Message,
            2 => Kind::Spec,
            16 => Kind::Layout,
            17 => Kind::Pages,
            18 => Kind::Zero,
            19 => Kind::Drop,
            20 => Kind::Barrier,
            21 => Kind::State,
            22 => Kind::Missing,
            23 => Kind::Packed,
            24 => Kind::Padding,
            25 => Kind::Enough,
            32 => Kind::Settled,
            33 => Kind::Refused,
            34 => Kind::Hurry,
            35 => Kind::Alive,
            48 => Kind::Fault,
            49 => Kind::Acked,
            50 => Kind::Gone,
            51 => Kind::Listed,
            52 => Kind::Times,
            53 => Kind::Ended,
            other => {
                return Err(Error::Unknown {
                    what: "frame kind",
                    value: u64::from(other),
                })
            }
        })
    }

    /// The name for error messages.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Message => "a message",
            Kind::Spec => "a description",
            Kind::State => "a state",
            Kind::Layout => "a layout",
            Kind::Pages => "a run of pages",
            Kind::Packed => "packed pages",
            Kind::Padding => "padding",
            Kind::Enough => "the end of a question",
            Kind::Zero => "a run of zero pages",
            Kind::Drop => "a run of dropped pages",
            Kind::Barrier => "a barrier",
            Kind::Missing => "a run of missing pages",
            Kind::Settled => "a run of settled pages",
            Kind::Refused => "a run of refused pages",
            Kind::Hurry => "a call to hurry",
            Kind::Alive => "a sign of life",
            Kind::Fault => "a fault",
            Kind::Acked => "an acknowledgement",
            Kind::Gone => "a run of unwanted pages",
            Kind::Listed => "the end of a list",
            Kind::Times => "times of faults",
            Kind::Ended => "the end of the faults",
        }
    }

    /// The longest payload, in bytes.
    pub fn length_max(self) -> u32 {
        match self {
            Kind::Message => MESSAGE_BYTES_MAX,
            Kind::Spec | Kind::Padding => PART_BYTES_MAX,
            Kind::State => STATE_BYTES_MAX,
            Kind::Layout => LAYOUT_BYTES_MAX,
            Kind::Pages => RUN_BYTES as u32 + FRAME_PAGES_MAX * PAGE_BYTES as u32,
            // As many runs as pages at most; and content that packing makes longer is not packed.
            Kind::Packed => 4 + FRAME_PAGES_MAX * (RUN_BYTES + PAGE_BYTES) as u32,
            Kind::Zero | Kind::Drop | Kind::Missing | Kind::Settled | Kind::Refused | Kind::Gone => {
                RUN_BYTES as u32
            }
            Kind::Barrier | Kind::Acked => 8,
            Kind::Fault => FAULT_BYTES as u32,
            Kind::Hurry | Kind::Alive | Kind::Listed | Kind::Ended | Kind::Enough => 0,
            Kind::Times => MESSAGE_BYTES_MAX,
        }
    }

    fn flags_allowed(self) -> u8 {
        match self {
            Kind::Spec => MORE,
            Kind::Fault => REPEATED,
            _ => 0,
        }
    }
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes that follow the header.
    pub length: u32,
    /// What they are.
    pub kind: Kind,
    /// [`MORE`] or 0.
    pub flags: u8,
}

impl Header {
    /// As it travels.
    pub fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[4] = self.kind as u8;
        bytes[5] = self.flags;
        bytes
    }

    /// Refuses unknown kinds and flags, and lengths over the limit of the kind.
    pub fn decode(bytes: [u8; HEADER_BYTES]) -> Result<Self> {
        let [a, b, c, d, kind, flags, reserved @ ..] = bytes;
        let kind = Kind::decode(kind)?;
        let length = u32::from_le_bytes([a, b, c, d]);
        if flags & !kind.flags_allowed() != 0 || reserved != [0, 0] {
            return Err(Error::Unknown {
                what: "frame flags",
                value: u64::from(flags),
            });
        }
        if length > kind.length_max() {
            return Err(too_long(kind, u64::from(length), u64::from(kind.length_max())));
        }
        Ok(Self { length, kind, flags })
    }
}

pub(crate) fn too_long(kind: Kind, bytes: u64, bytes_max: u64) -> Error {
    Error::TooLong {
        what: kind.name(),
        bytes,
        bytes_max,
    }
}

/// Bytes of a fault on the wire: space u32, thread u32, page u64.
pub const FAULT_BYTES: usize = 16;

/// Bytes of a [`Run`] on the wire.
pub const RUN_BYTES: usize = 24;

/// `count` pages from page number `first` on, in space `space`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The space that holds the run.
    pub space: u32,
    /// Number of its first page.
    pub first: u64,
    /// How many pages; never 0, and `first + count` does not overflow.
    pub count: u64,
}

impl Run {
    pub(crate) fn encode(self) -> [u8; RUN_BYTES] {
        let mut bytes = [0; RUN_BYTES];
        bytes[..4].copy_from_slice(&self.space.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.first.to_le_bytes());
        bytes[16..].copy_from_slice(&self.count.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; RUN_BYTES]) -> Result<Self> {
        let mut space = [0; 4];
        let mut first = [0; 8];
        let mut count = [0; 8];
        space.copy_from_slice(&bytes[..4]);
        first.copy_from_slice(&bytes[8..16]);
        count.copy_from_slice(&bytes[16..]);
        let run = Self {
            space: u32::from_le_bytes(space),
            first: u64::from_le_bytes(first),
            count: u64::from_le_bytes(count),
        };
        // The last page's end as a byte address must still be a number.
        let end = run.first.checked_add(run.count);
        let fits = end.is_some_and(|end| end <= u64::MAX / PAGE_BYTES as u64);
        if run.count == 0 || !fits || bytes[4..8] != [0; 4] {
            return Err(Error::Damaged {
                what: "a run of pages",
            });
        }
        Ok(run)
    }
}
