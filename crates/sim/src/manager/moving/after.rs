//! After the switch-over: carries the orders of [`Residual`] out at the source, and places what comes at the destination.

use std::time::Duration;

use whimbrel_policy::postcopy::{Event, Fault, Order, PieceId};
use whimbrel_policy::{PageRun, PAGE_SIZE};

use super::{pages_of, Hall, Move, Moves, STATE_BYTES, THREAD};
use crate::manager::log::clock;
use crate::manager::record::Asked;

impl Hall {
    pub(super) fn started(&mut self, moved: &mut Move) {
        moved.record.started = Some(self.now);
        moved.record.bytes += STATE_BYTES;
        let vm = &mut self.vms[moved.vm];
        vm.server = moved.destination;
        let (is_running, step) = (vm.is_running, vm.step);
        let line = format!(
            "{} goes on at {}, {} pages are missing there",
            moved.record.vm,
            moved.record.destination,
            vm.missing.len()
        );
        self.say(&line);
        if is_running {
            self.step_after(moved.vm, step, moved.rest);
        }
        if moved.residual.is_some() {
            self.send_residual(moved);
        } else {
            let heard = self.now + self.settings.link_latency;
            self.moving_at(heard, moved.number, Moves::SourceReleased);
        }
    }

    pub(super) fn tell_residual(&mut self, moved: &mut Move, event: Event) {
        let now = moved.clock(self.now);
        if let Some(residual) = &mut moved.residual {
            residual.handle(now, event);
        }
        self.send_residual(moved);
    }

    /// The source sends what may be sent now.
    pub(super) fn send_residual(&mut self, moved: &mut Move) {
        let now = moved.clock(self.now);
        while let Some(residual) = &mut moved.residual {
            match residual.poll(now) {
                Order::Reply { piece, run, .. } => self.send_piece(moved, piece, &[run], true),
                Order::Push { piece, runs } => self.send_piece(moved, piece, &runs, false),
                Order::Wait { until } => return self.wait(moved, until),
                Order::Done if moved.record.started.is_some() => return self.end(moved),
                Order::Done => return,
            }
        }
    }

    fn wait(&mut self, moved: &mut Move, until: Option<Duration>) {
        let Some(until) = until.filter(|_| moved.timer.is_none()) else {
            return;
        };
        moved.timer = Some(until);
        self.moving_at(moved.record.begun + until, moved.number, Moves::Timer);
    }

    fn send_piece(&mut self, moved: &mut Move, piece: PieceId, runs: &[PageRun], is_reply: bool) {
        let asked = |page| match (is_reply, moved.touched.contains(&page)) {
            (true, _) => Asked::Fault,
            (false, true) => Asked::Guide,
            (false, false) => Asked::Background,
        };
        let pages: Vec<_> = pages_of(runs).map(|page| (page, asked(page))).collect();
        let wire_bytes = pages.len() as u64 * PAGE_SIZE;
        let there = self.send(moved, wire_bytes) + self.settings.link_latency;
        let came = Moves::Piece {
            piece: piece.0,
            pages,
        };
        self.moving_at(there, moved.number, came);
        let sent = Event::Sent {
            piece,
            wire_bytes,
            zero_pages: 0,
            unreadable: Vec::new(),
        };
        let now = moved.clock(self.now);
        if let Some(residual) = &mut moved.residual {
            residual.handle(now, sent);
        }
    }

    /// At the destination: what is still wanted is placed, and who waits for it goes on.
    pub(super) fn place(&mut self, moved: &mut Move, piece: u64, pages: &[(u64, Asked)]) {
        for &(page, asked) in pages {
            let is_wanted = self.vms[moved.vm].missing.remove(&page);
            moved.record.placed += u64::from(is_wanted);
            let remark = if is_wanted { "" } else { ", replaced meanwhile" };
            self.came(moved, page, asked, remark);
            self.wake(moved, page);
        }
        let heard = self.now + self.settings.link_latency;
        self.moving_at(heard, moved.number, Moves::Acked { piece });
    }

    fn wake(&mut self, moved: &mut Move, page: u64) {
        let vm = &mut self.vms[moved.vm];
        let Some((_, since)) = vm.waits.take_if(|(waited, _)| *waited == page) else {
            return;
        };
        let delay = self.now.saturating_sub(since);
        moved.record.network_wait += delay;
        let line = format!(
            "page fault of {}: page {page} is there after {}",
            moved.record.vm,
            clock(delay)
        );
        self.say(&line);
        self.hit(moved.vm);
        self.note_reference(moved);
    }

    /// At the source: a report of a fault has come.
    pub(super) fn answer(&mut self, moved: &mut Move, page: u64) {
        let fault = Fault {
            page: moved.page(page),
            thread: THREAD,
            repeated: false,
        };
        if let Some(residual) = &mut moved.residual {
            residual.fault(fault);
        }
        self.guide_hears_fault(moved, page);
        self.send_residual(moved);
    }
}

/// What the following context does.
impl Hall {
    /// The migration whose following context this VM is.
    pub(in crate::manager) fn following(&mut self, vm: usize) -> Option<&mut Move> {
        let number = self.vms[vm].moving?;
        let moved = self.moves.get_mut(&number)?;
        (moved.record.started.is_some() && !moved.is_over).then_some(moved)
    }

    /// The VM touches a page that is still at the source.
    pub(in crate::manager) fn network_fault(&mut self, vm: usize, page: u64) {
        self.vms[vm].waits = Some((page, self.now));
        let heard = self.now + self.settings.link_latency;
        let Some(moved) = self.following(vm) else { return };
        moved.record.network_faults += 1;
        let number = moved.number;
        let line = format!(
            "page fault of {}: page {page} is still at the source",
            self.vms[vm].name
        );
        self.say(&line);
        self.moving_at(heard, number, Moves::Fault { page });
    }

    /// The VM touches a page that neither server has in memory.
    pub(in crate::manager) fn disk_fault(&mut self, vm: usize, page: u64, delay: Duration) {
        if let Some(moved) = self.following(vm) {
            moved.record.disk_faults += 1;
            moved.record.disk_wait += delay;
        }
        let line = format!(
            "page fault of {}: page {page} is not in the source's memory: from disk, {}",
            self.vms[vm].name,
            clock(delay)
        );
        self.say(&line);
    }

    /// The VM has replaced a page before it came.
    pub(in crate::manager) fn gone(&mut self, vm: usize, page: u64) {
        let heard = self.now + self.settings.link_latency;
        let Some(moved) = self.following(vm) else { return };
        let number = moved.number;
        let line = format!("{} has replaced page {page} before it came", self.vms[vm].name);
        self.say(&line);
        self.moving_at(heard, number, Moves::Gone { page });
    }

    /// A reference is done.
    pub(in crate::manager) fn followed(&mut self, vm: usize) {
        let Some(number) = self.following(vm).map(|moved| moved.number) else {
            return;
        };
        if let Some(mut moved) = self.moves.remove(&number) {
            self.note_reference(&mut moved);
            self.moves.insert(number, moved);
        }
    }
}
