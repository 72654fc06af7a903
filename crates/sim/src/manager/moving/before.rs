//! Up to the switch-over: carries the orders of [`Migration`] out.

use std::collections::VecDeque;

use whimbrel_policy::postcopy::{Path, Residual};
use whimbrel_policy::{Event, Order, Scan, Sent, PAGE_SIZE};

use super::{pages_of, registers, Done, Hall, Move, Moves, STATE_BYTES};
use crate::manager::record::Asked;
use crate::manager::settings::Policy;

/// A batch of a round on its way.
#[derive(Debug)]
pub(super) struct Batch {
    left: VecDeque<u64>,
    skip_rewritten: bool,
    asked: Asked,
    sent: Sent,
}

impl Hall {
    /// Carries orders out until one takes time.
    pub(super) fn drive(&mut self, moved: &mut Move) -> Done {
        loop {
            let event = match moved.migration.poll(moved.clock(self.now)) {
                Order::Scan => Event::Scanned(self.scan(moved, false)),
                Order::ScanLast => Event::Scanned(self.scan(moved, true)),
                Order::Sample => Event::Sampled {
                    written_pages: self.vms[moved.vm].written.len() as u64,
                },
                Order::Send { runs, skip_rewritten } => {
                    moved.batch = Some(Batch {
                        left: pages_of(&runs).collect(),
                        skip_rewritten,
                        asked: moved.round(),
                        sent: Sent::default(),
                    });
                    return self.send_next(moved);
                }
                // The destination's memory is what the page table names: what is not in it is forgotten there anyway.
                Order::Drop { .. } => continue,
                Order::Freeze => self.freeze(moved),
                Order::Capture => self.capture(moved),
                Order::Wait { until } => {
                    let due = moved.record.begun + until;
                    self.moving_at(due, moved.number, Moves::Round);
                    return Ok(());
                }
                Order::HandOver => {
                    self.hand_over(moved);
                    return Ok(());
                }
            };
            self.happened(moved, event)?;
        }
    }

    fn happened(&mut self, moved: &mut Move, event: Event) -> Done {
        let now = moved.clock(self.now);
        moved.migration.handle(now, event).map_err(|e| e.to_string())
    }

    fn scan(&mut self, moved: &Move, is_last: bool) -> Scan {
        let vm = &mut self.vms[moved.vm];
        let is_first = moved.migration.rounds().is_empty() && !is_last;
        let memory = vm.context.memory();
        let scan = Scan {
            written: match is_first {
                true => moved.runs(memory),
                false => moved.runs(&vm.written),
            },
            lost: moved.runs(&vm.lost),
            present: is_last.then(|| moved.runs(memory)),
            urgent: Vec::new(),
        };
        vm.written.clear();
        vm.lost.clear();
        scan
    }

    /// The next page of a batch, or the answer when it is through.
    pub(super) fn send_next(&mut self, moved: &mut Move) -> Done {
        let Some(mut batch) = moved.batch.take() else {
            return self.drive(moved);
        };
        let vm = &self.vms[moved.vm];
        while let Some(page) = batch.left.pop_front() {
            if batch.skip_rewritten && vm.written.contains(&page) {
                batch.sent.rewritten.extend(moved.runs([&page]));
            } else if vm.context.holds(page) {
                self.send_page(moved, batch, page);
                return Ok(());
            } else {
                batch.sent.failed.extend(moved.runs([&page]));
            }
        }
        self.happened(moved, Event::Sent(batch.sent))?;
        self.drive(moved)
    }

    fn send_page(&mut self, moved: &mut Move, mut batch: Batch, page: u64) {
        let asked = batch.asked;
        let left = self.send(moved, PAGE_SIZE);
        batch.sent.wire_bytes += PAGE_SIZE;
        batch.sent.page_bytes += PAGE_SIZE;
        batch.sent.busy += left.saturating_sub(self.now);
        moved.batch = Some(batch);
        let there = left + self.settings.link_latency;
        self.moving_at(there, moved.number, Moves::Came { page, asked });
        self.moving_at(left, moved.number, Moves::Round);
    }

    fn freeze(&mut self, moved: &mut Move) -> Event {
        moved.rest = self.halt(moved.vm);
        moved.record.frozen = Some(self.now);
        let why = moved.migration.stop_reason().map(|reason| reason.to_string());
        let context = &self.vms[moved.vm].context;
        let line = format!(
            "{} is frozen at {} ({}); {}",
            moved.record.vm,
            moved.record.source,
            why.unwrap_or_default(),
            registers(context)
        );
        self.say(&line);
        Event::Frozen
    }

    fn capture(&mut self, moved: &mut Move) -> Event {
        self.send(moved, STATE_BYTES);
        Event::Captured {
            state_bytes: STATE_BYTES,
        }
    }

    fn hand_over(&mut self, moved: &mut Move) {
        self.moving_at(moved.there_at, moved.number, Moves::Started);
        if !moved.migration.may_leave_residue() {
            return;
        }
        let residual = moved.migration.residual().clone();
        self.vms[moved.vm].missing = residual.runs().flat_map(|run| pages_of(&[run])).collect();
        // What a handshake would have told.
        let path = Path {
            round_trip: Some(self.settings.link_latency * 2),
            bandwidth: Some(self.settings.link_rate),
        };
        let now = moved.clock(self.now);
        let prepaging = moved.policy.prepaging();
        moved.residual = Some(Residual::new(now, residual, prepaging, moved.after_limits, path));
        if moved.policy == Policy::LazyCopy && self.vms[moved.vm].is_running {
            self.begin_guide(moved);
        }
        self.send_residual(moved);
    }
}
