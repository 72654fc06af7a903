//! The process under construction at the destination: at first an empty shell that only runs system calls for us.
//!
//! It is a child of the container's init, stopped by ptrace from its first moment. [`Stub::seize`] unmaps everything that it was
//! born with except one hole: a place where the workload has nothing, with our scratch area and, under a foreign kernel, the vdso of
//! this one. Should the workload map something there later, the hole moves.

use whimbrel_kernel::error::{Error as KernelError, Result as KernelResult};
use whimbrel_kernel::memory;
use whimbrel_kernel::ptrace::{self, Stopped};
use whimbrel_kernel::remote::{find_gadget, Remote, SCRATCH_BYTES};
use whimbrel_kernel::{maps, proc};

use crate::calls::{Plan, Scratch};
use crate::layout::{Span, ADDRESS_MAX};
use crate::survey::kernel_mappings;
use crate::vdso::{redirect, syscall_instruction, KernelMappings, VdsoError};

/// Where the hole is looked for: away from where programs, libraries, the JVM's heaps and sanitizers' shadows lie.
const HOLE_START: u64 = 0x2b00_0000_0000;
/// Distance of the places that are tried.
const HOLE_STEP: u64 = 1 << 30;
/// Places that are tried.
const HOLE_TRIES_MAX: u64 = 1 << 14;
/// The scratch area, then room for the vdso of this kernel.
const HOLE_BYTES: u64 = 2 * SCRATCH_BYTES;
/// The lowest address that munmap(2) is asked for.
const LOWEST: u64 = 0x1000;
/// `RSEQ_FLAG_UNREGISTER` of rseq(2).
const RSEQ_UNREGISTER: u64 = 1;

/// What can go wrong with a stub.
#[derive(Debug, thiserror::Error)]
pub enum StubError {
    /// A system call failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The two kernels' vdsos do not go together.
    #[error(transparent)]
    Vdso(#[from] VdsoError),
    /// Nothing free.
    #[error("the workload's address space is too full: {HOLE_BYTES} bytes are needed for a moment")]
    Full,
    /// The kernel here gives no vdso.
    #[error("the destination's kernel maps no vdso; start it without vdso=0")]
    NoVdso,
}

type Result<T> = std::result::Result<T, StubError>;

/// How the workload's calls into the vdso are served here.
#[derive(Debug)]
enum Vdso {
    /// The same code: this kernel's mappings lie where the source's did.
    Same,
    /// This kernel's mappings lie in the hole; the source's code is plain memory that jumps there.
    Foreign { own: KernelMappings },
}

/// A stopped process that is becoming the workload.
#[derive(Debug)]
pub struct Stub {
    pid: i32,
    stopped: Stopped,
    remote: Remote,
    hole: Span,
    /// The source's kernel mappings, which the layout leaves free.
    theirs: KernelMappings,
    vdso: Vdso,
}

impl Stub {
    /// Takes over process `pid`, which has one thread and nothing to do, and empties it. `theirs` are the kernel's mappings of the
    /// workload at the source. The process dies with us from here on.
    ///
    /// # Errors
    /// It cannot be traced or driven, or its kernel lacks what the workload's vdso has.
    pub fn seize(pid: i32, theirs: &KernelMappings) -> Result<Stub> {
        let stopped = Stopped::stop(pid)?;
        ptrace::set_options(pid, ptrace::OPTION_EXITKILL | ptrace::OPTION_TRACECLONE)?;
        let vmas = maps::read(pid)?;
        let own = kernel_mappings(pid, &vmas)?;
        let mut remote = Remote::new(pid, pid, find_gadget(pid, &vmas)?)?;
        unregister_rseq(&mut remote)?;
        let born: Vec<Span> = vmas
            .iter()
            .map(|vma| Span {
                start: vma.start,
                end: vma.end,
            })
            .collect();
        let hole = find_hole(&born, theirs)?;
        remote.install(Some(hole.start))?;
        remote.use_scratch_gadget()?;
        let parked = move_mappings(&mut remote, &own, hole.start + SCRATCH_BYTES)?;
        empty(&mut remote, hole)?;
        let mut stub = Stub {
            pid,
            stopped,
            remote,
            hole,
            theirs: theirs.clone(),
            vdso: Vdso::Same,
        };
        stub.furnish_vdso(parked)?;
        Ok(stub)
    }

    /// Puts this kernel's vdso where the source's was, or code that leads to it.
    fn furnish_vdso(&mut self, parked: KernelMappings) -> Result<()> {
        if !self.theirs.is_like(&parked) {
            self.write_trampolines(&parked, true)?;
            self.vdso = Vdso::Foreign { own: parked };
            return Ok(());
        }
        for ((_, from), (_, to)) in parked.mappings.iter().zip(&self.theirs.mappings) {
            move_mapping(&mut self.remote, *from, to.start)?;
        }
        Ok(())
    }

    fn write_trampolines(&mut self, own: &KernelMappings, map: bool) -> Result<()> {
        let (Some(theirs), Some(ours)) = (self.theirs.vdso(), own.vdso()) else {
            return if self.theirs.vdso().is_none() {
                Ok(())
            } else {
                Err(StubError::NoVdso)
            };
        };
        let image = redirect(&self.theirs.image, &own.image, ours.start)?;
        if map {
            let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
            let protection = (libc::PROT_READ | libc::PROT_EXEC) as u64;
            let args = [theirs.start, theirs.len(), protection, flags, u64::MAX, 0];
            self.remote
                .call("mmap of the source's vdso", libc::SYS_mmap, &args)?;
        }
        memory::MemFile::open(self.pid)?.write(theirs.start, &image)?;
        Ok(())
    }

    /// Its PID as we see it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its only thread.
    pub fn remote(&mut self) -> &mut Remote {
        &mut self.remote
    }

    /// Where the layout must leave room: the kernel's mappings of the source.
    pub fn reserved(&self) -> Vec<Span> {
        self.theirs.mappings.iter().map(|(_, span)| *span).collect()
    }

    /// Address of a `syscall` instruction that will stay, for the last call.
    ///
    /// # Errors
    /// This kernel has no vdso.
    pub fn last_gadget(&self) -> Result<u64> {
        let mappings = match &self.vdso {
            Vdso::Same => &self.theirs,
            Vdso::Foreign { own } => own,
        };
        let base = mappings.vdso().ok_or(StubError::NoVdso)?;
        syscall_instruction(&mappings.image)
            .map(|offset| base.start + offset)
            .ok_or(StubError::NoVdso)
    }

    /// Where foreign code of the kernel lies, in which no thread may stand when it arrives: its data is not there.
    pub fn forbidden(&self) -> Option<Span> {
        match self.vdso {
            Vdso::Same => None,
            Vdso::Foreign { .. } => self.theirs.vdso(),
        }
    }

    /// Lets every thread of the finished workload go; something else holds it.
    ///
    /// # Errors
    /// It has other threads than were built: it is not whole.
    pub fn detach(mut self, tids: &[i32]) -> KernelResult<()> {
        let mut alive = proc::tasks(self.pid)?;
        let mut built = tids.to_vec();
        alive.sort_unstable();
        built.sort_unstable();
        if alive != built {
            let (there, made) = (alive.len(), built.len());
            let what = format!("process {} has {there} threads after {made} were built", self.pid);
            return Err(KernelError::other(what));
        }
        self.adopt(tids);
        self.stopped.detach();
        Ok(())
    }

    /// Threads that were made by remote calls are our tracees as well.
    fn adopt(&mut self, tids: &[i32]) {
        let known = self.stopped.tids().to_vec();
        let new: Vec<i32> = tids.iter().copied().filter(|tid| !known.contains(tid)).collect();
        self.stopped.add(&new);
    }

    /// Ends it, with all threads that it may have got. `thaw` is called when it is doomed.
    ///
    /// # Errors
    /// It does not end.
    pub fn kill(mut self, thaw: impl FnOnce()) -> KernelResult<()> {
        if let Ok(tids) = proc::tasks(self.pid) {
            self.adopt(&tids);
        }
        whimbrel_kernel::namespace::kill(self.pid);
        thaw();
        self.stopped.kill()
    }

    /// An empty plan of calls with the whole scratch area.
    ///
    /// # Errors
    /// There is no scratch area.
    pub(crate) fn plan(&self) -> KernelResult<Plan> {
        Ok(Plan::new(Scratch::of(&self.remote)?))
    }

    /// Moves the hole away if the workload wants its place. `mapped` is what will be mapped, what is mapped stays free too.
    ///
    /// # Errors
    /// There is no other place.
    pub fn make_room(&mut self, wanted: &[Span]) -> Result<()> {
        if !wanted.iter().any(|span| span.overlaps(&self.hole)) {
            return Ok(());
        }
        let mapped = maps::read(self.pid)?;
        let mut taken: Vec<Span> = mapped
            .iter()
            .map(|vma| Span {
                start: vma.start,
                end: vma.end,
            })
            .collect();
        taken.extend_from_slice(wanted);
        taken.push(self.hole);
        let (old, new) = (self.hole, find_hole(&taken, &self.theirs)?);
        self.remote.install(Some(new.start))?;
        self.remote.use_scratch_gadget()?;
        if let Vdso::Foreign { own } = &self.vdso {
            let own = own.clone();
            let moved = move_mappings(&mut self.remote, &own, new.start + SCRATCH_BYTES)?;
            self.write_trampolines(&moved, false)?;
            self.vdso = Vdso::Foreign { own: moved };
        }
        self.remote.call(
            "munmap of the old hole",
            libc::SYS_munmap,
            &[old.start, old.len()],
        )?;
        self.hole = new;
        Ok(())
    }
}

/// The first place that nothing lies in.
fn find_hole(taken: &[Span], theirs: &KernelMappings) -> Result<Span> {
    let places = (0..HOLE_TRIES_MAX).map(|i| HOLE_START + i * HOLE_STEP);
    let mut holes = places.map(|start| Span {
        start,
        end: start + HOLE_BYTES,
    });
    let is_free = |hole: &Span| {
        let kernel = theirs.mappings.iter().map(|(_, span)| span);
        !taken.iter().chain(kernel).any(|span| span.overlaps(hole))
    };
    holes.find(is_free).ok_or(StubError::Full)
}

/// The thread that forked it had restartable sequences; their memory is about to go.
fn unregister_rseq(remote: &mut Remote) -> Result<()> {
    let rseq = ptrace::rseq(remote.tid())?;
    if rseq.pointer != 0 {
        let args = [
            rseq.pointer,
            u64::from(rseq.size),
            RSEQ_UNREGISTER,
            u64::from(rseq.signature),
        ];
        remote.call("rseq", libc::SYS_rseq, &args)?;
    }
    Ok(())
}

/// Moves the kernel's mappings so that the first begins at `to`; they keep their distances.
fn move_mappings(remote: &mut Remote, own: &KernelMappings, to: u64) -> Result<KernelMappings> {
    let whole = own.whole().ok_or(StubError::NoVdso)?;
    let mut moved = KernelMappings {
        mappings: Vec::new(),
        image: own.image.clone(),
    };
    for (name, span) in &own.mappings {
        let start = to + (span.start - whole.start);
        move_mapping(remote, *span, start)?;
        moved.mappings.push((
            name.clone(),
            Span {
                start,
                end: start + span.len(),
            },
        ));
    }
    Ok(moved)
}

fn move_mapping(remote: &mut Remote, from: Span, to: u64) -> Result<()> {
    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    remote.call(
        "mremap of the vdso",
        libc::SYS_mremap,
        &[from.start, from.len(), from.len(), flags, to],
    )?;
    Ok(())
}

/// Unmaps everything but the hole.
fn empty(remote: &mut Remote, hole: Span) -> Result<()> {
    for (start, end) in [(LOWEST, hole.start), (hole.end, ADDRESS_MAX)] {
        remote.call("munmap", libc::SYS_munmap, &[start, end - start])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    /// A process that can be emptied.
    fn victim() -> Child {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        // It has mapped everything when it sleeps.
        while proc::text(child.id() as i32, "syscall").map_or(true, |line| !line.starts_with("230 ")) {
            std::thread::yield_now();
        }
        child
    }

    fn mapped(pid: i32) -> Vec<Span> {
        let vmas = maps::read(pid).unwrap();
        let ours = vmas.iter().filter(|vma| vma.path != "[vsyscall]");
        ours.map(|vma| Span {
            start: vma.start,
            end: vma.end,
        })
        .collect()
    }

    fn own_kernel(pid: i32) -> KernelMappings {
        kernel_mappings(pid, &maps::read(pid).unwrap()).unwrap()
    }

    #[test]
    fn an_emptied_stub_has_the_hole_and_the_vdso_where_the_source_had_it() {
        let mut child = victim();
        let pid = child.id() as i32;
        let mut theirs = own_kernel(pid);
        for (_, span) in &mut theirs.mappings {
            *span = Span {
                start: span.start - (1 << 30),
                end: span.end - (1 << 30),
            };
        }
        let mut stub = Stub::seize(pid, &theirs).unwrap();
        let left = mapped(pid);
        assert!(
            left.iter()
                .all(|span| span.overlaps(&stub.hole) || stub.reserved().contains(span)),
            "{left:?}"
        );
        assert!(own_kernel(pid).image == theirs.image);
        assert!(stub.forbidden().is_none());
        let gadget = stub.last_gadget().unwrap();
        stub.remote().set_gadget(gadget);
        assert_eq!(
            stub.remote().raw(libc::SYS_getppid, &[]).unwrap(),
            i64::from(std::process::id())
        );
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_foreign_vdso_leads_to_the_one_of_this_kernel() {
        let mut child = victim();
        let pid = child.id() as i32;
        let mut theirs = own_kernel(pid);
        let last = theirs.image.len() - 1;
        theirs.image[last] ^= 1; // not ours any more
        for (_, span) in &mut theirs.mappings {
            *span = Span {
                start: span.start - (1 << 30),
                end: span.end - (1 << 30),
            };
        }
        let mut stub = Stub::seize(pid, &theirs).unwrap();
        let old = theirs.vdso().unwrap();
        assert_eq!(stub.forbidden(), Some(old));
        let text = |pid| {
            let mut text = vec![0; old.len() as usize];
            memory::read(pid, old.start, &mut text).unwrap();
            text
        };
        let before = text(pid);
        assert!(before != theirs.image);
        // The hole moves away and takes the real vdso along.
        let hole = stub.hole;
        stub.make_room(&[Span {
            start: hole.start + 0x3000,
            end: hole.end + 0x3000,
        }])
        .unwrap();
        assert_ne!(stub.hole, hole);
        assert!(!mapped(pid).iter().any(|span| span.overlaps(&hole)));
        let real = own_kernel(pid).vdso().unwrap();
        assert!(real.overlaps(&stub.hole));
        assert_eq!(
            text(pid),
            redirect(&theirs.image, &own_kernel(pid).image, real.start).unwrap()
        );
        assert!(stub.remote().call("getpid", libc::SYS_getpid, &[]).is_ok());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
