//! A place to land: code behind the vdso, from which a thread finds back to itself when we die during a single call.
//!
//! Before there is a scratch area, and while it goes, a thread can only use a `syscall` instruction that its process has anyway.
//! What follows that is not meant for it. The vdso is the one mapping that every process has and that can be executed, and its
//! last page has room behind the text. We write there as a debugger does: the process gets its own copy of the page.
//!
//! ```text
//! vdso   text, zeros   syscall, the area's code for a thread without a tracer   frame
//! ```

use std::cell::Cell;

use super::batch;
use crate::error::Result;
use crate::maps::Vma;
use crate::memory::{self, MemFile};
use crate::ptrace::Regs;

const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// One thread's place behind the vdso of its process.
#[derive(Debug)]
pub(super) struct Landing {
    memory: MemFile,
    address: u64,
    /// Code and frame.
    bytes: Vec<u8>,
    is_laid: Cell<bool>,
}

impl Landing {
    /// Lays it for a thread with these registers and this mask. `None` if there is no room, or the kernel lets nobody write there.
    pub fn lay_for(pid: i32, vdso: &Vma, regs: &Regs, mask: u64) -> Result<Option<Self>> {
        let mut bytes = code();
        bytes.extend(batch::encode_frame(regs, mask));
        let Some(address) = vdso.end.checked_sub(bytes.len() as u64) else {
            return Ok(None);
        };
        let mut present = vec![0; bytes.len()];
        if address < vdso.start || memory::read(pid, address, &mut present).is_err() {
            return Ok(None);
        }
        blank_landing(&mut present);
        let landing = Self {
            memory: MemFile::open(pid)?,
            address,
            bytes,
            is_laid: Cell::new(false),
        };
        let is_free = present.iter().all(|byte| *byte == 0);
        Ok((is_free && landing.lay().is_ok()).then_some(landing))
    }

    /// Address of the `syscall` instruction.
    pub fn gadget(&self) -> u64 {
        self.address
    }

    /// Address of the frame, for r15.
    pub fn frame(&self) -> u64 {
        self.address + code().len() as u64
    }

    /// Puts it there, if it is not.
    pub fn lay(&self) -> Result<()> {
        if !self.is_laid.get() {
            self.memory.write(self.address, &self.bytes)?;
            self.is_laid.set(true);
        }
        Ok(())
    }

    /// Leaves zeros. No thread may stand there.
    pub fn erase(&self) -> Result<()> {
        if self.is_laid.replace(false) {
            self.memory.write(self.address, &vec![0; self.bytes.len()])?;
        }
        Ok(())
    }
}

/// The code, up to the frame.
fn code() -> Vec<u8> {
    let mut code = SYSCALL.to_vec();
    code.extend(batch::code_without_tracer());
    code.resize(code.len().next_multiple_of(16), 0);
    code
}

/// Takes out of the image of a vdso what a killed tracer has left behind it.
pub fn blank_landing(image: &mut [u8]) {
    let code = code();
    let length = code.len() + batch::FRAME_BYTES_USED;
    let landing = image.len().checked_sub(length).and_then(|at| image.get_mut(at..));
    if let Some(landing) = landing.filter(|landing| landing.starts_with(&code)) {
        landing.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_landing_is_blanked() {
        let mut image = vec![7; 4096];
        blank_landing(&mut image);
        assert_eq!(image, [7; 4096]);
        let code = code();
        let at = image.len() - code.len() - batch::FRAME_BYTES_USED;
        image[at..at + code.len()].copy_from_slice(&code);
        blank_landing(&mut image);
        assert!(image[..at].iter().all(|byte| *byte == 7));
        assert!(image[at..].iter().all(|byte| *byte == 0));
        blank_landing(&mut []);
    }
}
