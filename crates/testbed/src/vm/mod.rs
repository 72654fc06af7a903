//! Virtual machines in the hosts: QEMU without KVM, and a guest that checks its memory, its disk and its clocks.
//!
//! [`Guest`] is what runs in them (`tests/guest`), [`VmOptions`] says what a machine is made of, [`Vm`] is one that
//! runs, [`Serial`] hears what the guest says, and [`gap`] tells what a move did to it. [`TinyGuest`] is another guest, for
//! machines with KVM.

mod cpio;
mod guest;
mod machine;
mod options;
mod serial;
mod ticks;
mod tiny;

pub use guest::{Guest, INITRD, KERNEL};
pub use machine::{disk_image, make_tap, remove_tap, Vm};
pub use options::{Machine, Ram, VmOptions, Writer, GUEST, GUEST_PORT};
pub use serial::Serial;
pub use ticks::{gap, sound, Gap, Line, Record, Tick};
pub use tiny::{passes, Pass, TinyGuest, TinyOptions};
