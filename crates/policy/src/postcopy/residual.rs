//! The source after the switch-over: what to send next.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;

use super::pace::{Mark, PIECE_PAGES_MAX};
use super::readahead::ReadAhead;
use super::{
    Answer, Event, Fault, Limits, Metrics, Order, Pace, Path, PieceId, PrePaging, Push, ThreadId, Unsent,
};
use crate::estimate::time_for;
use crate::pages::{Page, PageRun, Pages, PAGE_SIZE};

/// Pages that are waited for at once, at most. A thread waits for one page at a time.
pub const FAULTS_MAX: usize = 1 << 16;
/// Pieces of the push under way at most, however small zero pages make them.
pub const PIECES_MAX: usize = 1024;
/// Under a limit, what a caller who comes late has not used is made up for as far as this goes back.
const CATCH_UP: Duration = Duration::from_millis(10);

/// Something that was ordered and is not acknowledged.
#[derive(Clone, Debug)]
struct Piece {
    runs: Vec<PageRun>,
    is_push: bool,
    /// The bandwidth limit counts it.
    is_limited: bool,
    /// Assumed until it was sent.
    bytes: u64,
    is_sent: bool,
    is_acked: bool,
    mark: Mark,
}

/// The decisions of one residual phase. See the module's head for events, orders and states.
#[derive(Debug)]
pub struct Residual {
    prepaging: Box<dyn PrePaging>,
    limits: Limits,
    /// Owed at the switch-over.
    residue: Pages,
    /// Those of them that are not gone at the destination since.
    alive: Pages,
    unsent: Unsent,
    in_flight: Pages,
    unreadable: Pages,
    /// Pages that threads wait for, until they are acknowledged, with the first thread that asked.
    waiting: BTreeMap<Page, ThreadId>,
    /// Those of them that were not sent when they were asked for.
    replies: VecDeque<Fault>,
    /// At least one thread has waited for them.
    faulted: Pages,
    read_ahead: ReadAhead,
    pieces: BTreeMap<PieceId, Piece>,
    next_piece: PieceId,
    /// A push that was ordered and not sent yet; there is one at a time.
    push_out: Option<PieceId>,
    pushes: usize,
    pace: Pace,
    /// The bandwidth limit forbids to push before.
    push_from: Duration,
    is_linked: bool,
    metrics: Metrics,
}

impl Residual {
    /// A residual phase that begins now: the destination lacks exactly `pages` (see [`crate::Migration::residual`]).
    pub fn new(
        now: Duration,
        pages: Pages,
        prepaging: Box<dyn PrePaging>,
        limits: Limits,
        path: Path,
    ) -> Self {
        let metrics = Metrics {
            pages: pages.len(),
            begun: now,
            ended: pages.is_empty().then_some(now),
            ..Metrics::default()
        };
        Residual {
            prepaging,
            limits,
            residue: pages.clone(),
            alive: pages.clone(),
            unsent: Unsent::new(pages),
            in_flight: Pages::new(),
            unreadable: Pages::new(),
            waiting: BTreeMap::new(),
            replies: VecDeque::new(),
            faulted: Pages::new(),
            read_ahead: ReadAhead::default(),
            pieces: BTreeMap::new(),
            next_piece: PieceId::default(),
            push_out: None,
            pushes: 0,
            pace: Pace::new(limits.window_max, path),
            push_from: now,
            is_linked: true,
            metrics,
        }
    }

    /// The push begins around this page, which `thread` is about to touch: what its instruction and stack pointers say.
    pub fn aim(&mut self, thread: ThreadId, page: Page) {
        self.prepaging.about_to_touch(thread, page);
    }

    /// Everything shall be there soon: from now on all of it is pushed, as fast as the link goes.
    pub fn hurry(&mut self) {
        self.prepaging = Box::new(Push::default());
        self.limits.bandwidth_max = None;
        self.push_from = Duration::ZERO;
    }

    /// The name of the pre-paging order.
    pub fn prepaging(&self) -> &'static str {
        self.prepaging.name()
    }

    /// Pages that are not known to be settled.
    pub fn owed_pages(&self) -> u64 {
        self.unsent.pages().len() + self.in_flight.len() + self.unreadable.len()
    }

    /// Pages that could not be read here. They stay owed until they are gone at the destination or the link was lost.
    pub fn unreadable(&self) -> &Pages {
        &self.unreadable
    }

    /// What happened so far.
    pub fn metrics(&self) -> Metrics {
        Metrics {
            steps: self.unsent.steps(),
            ..self.metrics.clone()
        }
    }

    /// What is known of the link.
    pub fn pace(&self) -> &Pace {
        &self.pace
    }

    /// The destination reports a fault. Whatever it names, nothing is sent that is not owed.
    pub fn fault(&mut self, fault: Fault) -> Answer {
        let Fault { page, thread, .. } = fault;
        let is_unreadable = self.unreadable.contains(page);
        if is_unreadable || !self.residue.contains(page) {
            self.metrics.faults_refused += 1;
            return match is_unreadable {
                true => Answer::Unreadable,
                false => Answer::Unknown,
            };
        }
        let is_unsent = self.unsent.contains(page);
        if !is_unsent && !self.in_flight.contains(page) {
            self.metrics.faults_settled += 1;
            return Answer::Settled;
        }
        let asked_by = self.waiting.get(&page).copied();
        if asked_by.is_none() && self.waiting.len() >= FAULTS_MAX {
            return Answer::Busy;
        }
        if asked_by == Some(thread) || (fault.repeated && asked_by.is_some()) {
            self.metrics.faults_repeated += 1;
        } else {
            self.count(thread, page, !is_unsent);
        }
        if asked_by.is_none() {
            self.waiting.insert(page, thread);
            if is_unsent {
                self.replies.push_back(fault);
            }
        }
        if is_unsent {
            Answer::Queued
        } else {
            Answer::OnItsWay
        }
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Duration, event: Event) {
        match event {
            Event::Sent {
                piece,
                wire_bytes,
                zero_pages,
                unreadable,
            } => self.sent(now, piece, wire_bytes, zero_pages, &unreadable),
            Event::Acked { piece } => self.acked(now, piece),
            Event::Gone { runs } => self.gone(&runs),
            Event::LinkLost => self.link_lost(),
            Event::LinkBack { missing } => self.link_back(missing),
        }
        if self.metrics.ended.is_none() && self.owed_pages() == 0 {
            self.metrics.ended = Some(now);
        }
    }

    /// What to do next. Each reply and each push is ordered once, and wants an [`Event::Sent`]. There is one push at a time; replies
    /// come without waiting for it.
    pub fn poll(&mut self, now: Duration) -> Order {
        if self.owed_pages() == 0 {
            return Order::Done;
        }
        if !self.is_linked {
            return Order::Wait { until: None };
        }
        self.next_reply(now).unwrap_or_else(|| self.next_push(now))
    }

    /// Counts a network fault, which moves the pivot and the read-ahead.
    fn count(&mut self, thread: ThreadId, page: Page, is_in_flight: bool) {
        self.prepaging.fault(thread, page);
        let unsent = &mut self.unsent;
        self.read_ahead
            .fault(thread, page, |from| unsent.above(page.space, from));
        self.metrics.network_fault(thread, is_in_flight);
        if !self.faulted.contains(page) {
            self.metrics.pages_faulted += 1;
            insert(&mut self.faulted, one(page));
        }
    }

    fn next_reply(&mut self, now: Duration) -> Option<Order> {
        while let Some(fault) = self.replies.pop_front() {
            let pages = self.read_ahead.pages(fault.thread).min(self.reply_pages_max());
            // Not there any more: it went with a neighbour, or is gone.
            let Some(run) = self.unsent.take_up(fault.page, pages) else {
                continue;
            };
            self.read_ahead.replied(fault.thread, run);
            self.metrics.pages_replied += run.count;
            let piece = self.begin_piece(now, Vec::from([run]), false, false);
            return Some(Order::Reply { piece, run, fault });
        }
        None
    }

    fn reply_pages_max(&self) -> u64 {
        let by_link = self.pace.reply_pages().unwrap_or(u64::MAX);
        self.limits.reply_pages_max.min(by_link).clamp(1, PIECE_PAGES_MAX)
    }

    fn next_push(&mut self, now: Duration) -> Order {
        let pages = self.push_pages();
        let is_full = self.pushes >= PIECES_MAX || !self.pace.has_room(self.pace.expected_bytes(pages));
        if self.push_out.is_some() || is_full {
            return Order::Wait { until: None };
        }
        // What somebody is about to touch is not held back.
        let guided = self
            .prepaging
            .next_guided(&mut self.unsent, self.pace.piece_pages().max(1));
        if !guided.is_empty() {
            self.metrics.pages_guided += pages_in(&guided);
            return self.push(now, guided, false);
        }
        if now < self.push_from {
            self.pace.idle();
            return Order::Wait {
                until: Some(self.push_from),
            };
        }
        let runs = self.prepaging.next(&mut self.unsent, pages);
        if runs.is_empty() {
            self.pace.idle();
            return Order::Wait { until: None };
        }
        self.push_from = self.push_from.max(now.saturating_sub(CATCH_UP));
        self.push(now, runs, true)
    }

    fn push(&mut self, now: Duration, runs: Vec<PageRun>, is_limited: bool) -> Order {
        self.metrics.pages_pushed += pages_in(&runs);
        let piece = self.begin_piece(now, runs.clone(), true, is_limited);
        self.push_out = Some(piece);
        self.pushes += 1;
        Order::Push { piece, runs }
    }

    /// Pages of the next push: a hundredth of a second under a limit, so that the rate is even.
    fn push_pages(&self) -> u64 {
        let even = self
            .limits
            .bandwidth_max
            .map_or(u64::MAX, |max| max / PAGE_SIZE / 100);
        self.pace.piece_pages().min(even).max(1)
    }

    fn begin_piece(&mut self, now: Duration, runs: Vec<PageRun>, is_push: bool, is_limited: bool) -> PieceId {
        let id = self.next_piece;
        self.next_piece = PieceId(id.0 + 1);
        let bytes = pages_in(&runs) * PAGE_SIZE;
        runs.iter().for_each(|&run| insert(&mut self.in_flight, run));
        let piece = Piece {
            runs,
            is_push,
            is_limited,
            bytes,
            is_sent: false,
            is_acked: false,
            mark: self.pace.sent(now, bytes),
        };
        self.pieces.insert(id, piece);
        id
    }

    fn sent(&mut self, now: Duration, id: PieceId, bytes: u64, zero_pages: u64, unreadable: &[PageRun]) {
        let Some(piece) = self.pieces.get_mut(&id).filter(|piece| !piece.is_sent) else {
            return;
        };
        piece.is_sent = true;
        self.pace.corrected(piece.bytes, bytes);
        piece.bytes = bytes;
        self.metrics.pages_zero += zero_pages.min(pages_in(&piece.runs));
        let (is_push, is_limited, is_acked) = (piece.is_push, piece.is_limited, piece.is_acked);
        if is_push {
            self.push_out = None;
            self.metrics.bytes_pushed = self.metrics.bytes_pushed.saturating_add(bytes);
            let limit = self.limits.bandwidth_max.filter(|_| is_limited);
            let time = limit.map(|max| time_for(bytes, max));
            self.push_from = self.push_from.saturating_add(time.unwrap_or_default());
        } else {
            self.metrics.bytes_replied = self.metrics.bytes_replied.saturating_add(bytes);
        }
        if !unreadable.is_empty() {
            let runs = piece.runs.clone();
            self.not_read(&runs, is_push, unreadable);
        }
        if is_acked {
            self.acked(now, id);
        }
    }

    /// Pages of a piece could not be read: they were never sent.
    fn not_read(&mut self, piece: &[PageRun], is_push: bool, unreadable: &[PageRun]) {
        let mut failed = Pages::new();
        piece.iter().for_each(|&run| insert(&mut failed, run));
        let mut read = failed.clone();
        unreadable.iter().for_each(|&run| read.remove(run));
        failed.subtract(&read);
        // What is gone meanwhile is not missed.
        failed.intersect_with(&self.in_flight);
        self.in_flight.subtract(&failed);
        self.unreadable.union_with(&failed);
        let pages = match is_push {
            true => &mut self.metrics.pages_pushed,
            false => &mut self.metrics.pages_replied,
        };
        *pages -= failed.len();
    }

    fn acked(&mut self, now: Duration, id: PieceId) {
        let Some(piece) = self.pieces.get_mut(&id) else {
            return;
        };
        if !piece.is_sent {
            // By another thread than the one that sends: its word comes next.
            piece.is_acked = true;
            return;
        }
        let Some(piece) = self.pieces.remove(&id) else {
            return;
        };
        self.pushes -= usize::from(piece.is_push);
        self.pace.acked(now, &piece.mark, piece.bytes);
        let before = self.in_flight.len();
        for &run in &piece.runs {
            self.in_flight.remove(run);
            self.nobody_waits_for(run);
        }
        self.metrics.pages_placed += before - self.in_flight.len();
    }

    fn gone(&mut self, runs: &[PageRun]) {
        let before = self.unsent.pages().len();
        for &run in runs {
            self.unsent.forget(run);
            for pages in [&mut self.alive, &mut self.in_flight, &mut self.unreadable] {
                pages.remove(run);
            }
            self.nobody_waits_for(run);
        }
        self.metrics.pages_spared += before - self.unsent.pages().len();
    }

    fn nobody_waits_for(&mut self, run: PageRun) {
        let first = Page {
            space: run.space,
            number: run.first,
        };
        while let Some((&page, _)) = self.waiting.range(first..run.end()).next() {
            self.waiting.remove(&page);
        }
    }

    fn link_lost(&mut self) {
        self.is_linked = false;
        self.pieces.clear();
        self.push_out = None;
        self.pushes = 0;
        // The next link may be another one.
        self.pace = Pace::new(self.limits.window_max, Path::default());
    }

    /// Both ends agree on what is missing: everything that was sent and not placed is owed again, and what is there is
    /// settled, also when its acknowledgement was lost.
    fn link_back(&mut self, missing: Pages) {
        self.link_lost();
        self.is_linked = true;
        let mut owed = missing;
        owed.intersect_with(&self.alive);

        let mut again = owed.clone();
        again.subtract(self.unsent.pages());
        again.subtract(&self.unreadable);
        self.metrics.pages_again += again.len();
        let mut placed = self.in_flight.clone();
        placed.subtract(&owed);
        self.metrics.pages_placed += placed.len();
        let mut spared = self.unsent.pages().clone();
        spared.subtract(&owed);
        self.metrics.pages_spared += spared.len();

        self.in_flight = Pages::new();
        self.unreadable = Pages::new();
        self.prepaging.restart();
        self.waiting.retain(|&page, _| owed.contains(page));
        let ask_again = |(&page, &thread)| Fault {
            page,
            thread,
            repeated: true,
        };
        self.replies = self.waiting.iter().map(ask_again).collect();
        self.unsent.reset(owed);
    }
}

/// For runs that were in a set before, so that they fit into one.
fn insert(pages: &mut Pages, run: PageRun) {
    let inserted = pages.insert(run);
    debug_assert!(inserted.is_ok(), "{inserted:?}");
}

fn one(page: Page) -> PageRun {
    PageRun {
        space: page.space,
        first: page.number,
        count: 1,
    }
}

fn pages_in(runs: &[PageRun]) -> u64 {
    runs.iter().map(|run| run.count).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::SpaceId;
    use crate::postcopy::{Bubbling, Demand};
    use core::time::Duration;
    use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest, Just};
    use proptest::strategy::Strategy as Values;
    use std::collections::BTreeSet;
    use std::vec;

    const T0: Duration = Duration::ZERO;

    fn run(first: u64, count: u64) -> PageRun {
        PageRun {
            space: SpaceId(0),
            first,
            count,
        }
    }

    fn page(number: u64) -> Page {
        Page {
            space: SpaceId(0),
            number,
        }
    }

    fn fault(thread: u32, number: u64) -> Fault {
        Fault {
            page: page(number),
            thread: ThreadId(thread),
            repeated: false,
        }
    }

    fn residual(prepaging: impl PrePaging + 'static, pages: u64) -> Residual {
        let pages = Pages::from_runs(&[run(0, pages)]).unwrap();
        Residual::new(T0, pages, Box::new(prepaging), Limits::default(), Path::default())
    }

    #[test]
    fn who_hurries_pushes_everything_without_a_limit() {
        let mut residual = residual(Demand, 100);
        residual.limits.bandwidth_max = Some(1);
        assert_eq!(residual.poll(T0), Order::Wait { until: None });
        residual.hurry();
        let Order::Push { runs, .. } = residual.poll(T0) else {
            panic!("no push");
        };
        assert!(!runs.is_empty());
        assert_eq!(pages_in(&runs), residual.metrics().pages_pushed);
    }

    /// What it orders until it waits, every order carried out at once. Not acknowledged.
    fn orders(residual: &mut Residual, now: Duration) -> Vec<Order> {
        let mut orders = Vec::new();
        loop {
            let order = residual.poll(now);
            let (Order::Reply { piece, .. } | Order::Push { piece, .. }) = order else {
                return orders;
            };
            sent(residual, now, piece, &[]);
            orders.push(order);
        }
    }

    fn sent(residual: &mut Residual, now: Duration, piece: PieceId, unreadable: &[PageRun]) {
        let sent = Event::Sent {
            piece,
            wire_bytes: PAGE_SIZE,
            zero_pages: 0,
            unreadable: unreadable.to_vec(),
        };
        residual.handle(now, sent);
    }

    fn ack(residual: &mut Residual, orders: &[Order]) {
        for order in orders {
            if let Order::Reply { piece, .. } | Order::Push { piece, .. } = *order {
                residual.handle(T0, Event::Acked { piece });
            }
        }
    }

    fn runs_of(orders: &[Order]) -> Vec<PageRun> {
        let of = |order: &Order| match order {
            Order::Reply { run, .. } => vec![*run],
            Order::Push { runs, .. } => runs.clone(),
            Order::Wait { .. } | Order::Done => vec![],
        };
        orders.iter().flat_map(of).collect()
    }

    #[test]
    fn replies_come_before_any_push_and_take_neighbours_along() {
        let mut residual = residual(Push::default(), 1000);
        assert!(matches!(residual.poll(T0), Order::Push { .. }));
        assert_eq!(residual.fault(fault(1, 500)), Answer::Queued);
        assert_eq!(residual.fault(fault(2, 700)), Answer::Queued);
        // A push is out, and replies do not wait for it.
        for number in [500, 700] {
            let Order::Reply {
                run: replied, fault, ..
            } = residual.poll(T0)
            else {
                unreachable!("a reply is due");
            };
            assert_eq!((replied, fault.page), (run(number, 2), page(number)));
        }
        assert_eq!(
            residual.poll(T0),
            Order::Wait { until: None },
            "one push at a time"
        );
        assert_eq!(residual.metrics().faults_unsent, 2);
    }

    #[test]
    fn a_page_on_its_way_is_not_sent_again_but_counts_and_moves_the_pivot() {
        let mut residual = residual(Bubbling::default(), 10_000);
        residual.aim(ThreadId(9), page(5000));
        let first = orders(&mut residual, T0);
        assert_eq!(runs_of(&first)[0], run(5000, 1));
        // By a thread that comes upon it, by the same one again, and by another.
        assert_eq!(residual.fault(fault(9, 5001)), Answer::OnItsWay);
        assert_eq!(residual.fault(fault(9, 5001)), Answer::OnItsWay);
        assert_eq!(residual.fault(fault(3, 5001)), Answer::OnItsWay);
        let metrics = residual.metrics();
        assert_eq!(
            (
                metrics.faults_in_flight,
                metrics.faults_repeated,
                metrics.pages_faulted
            ),
            (2, 1, 1)
        );
        assert_eq!(
            metrics.threads,
            BTreeMap::from([(ThreadId(3), 1), (ThreadId(9), 1)])
        );
        ack(&mut residual, &first);
        let pushed = runs_of(&orders(&mut residual, T0));
        assert!(
            pushed.len() > 1 && pushed[..2].iter().all(|run| run.first.abs_diff(5001) < 200),
            "{pushed:?}"
        );
        assert!(!pushed.contains(&run(5001, 1)));
    }

    #[test]
    fn faults_for_what_is_not_owed_send_nothing() {
        let mut residual = residual(Demand, 10);
        assert_eq!(residual.fault(fault(1, 10)), Answer::Unknown);
        assert_eq!(residual.fault(fault(1, u64::MAX)), Answer::Unknown);
        residual.handle(
            T0,
            Event::Gone {
                runs: vec![run(4, u64::MAX), run(0, 0)],
            },
        );
        assert_eq!(residual.fault(fault(1, 7)), Answer::Settled);
        assert_eq!(residual.fault(fault(1, 0)), Answer::Queued);
        let replies = orders(&mut residual, T0);
        ack(&mut residual, &replies);
        assert_eq!(residual.fault(fault(2, 0)), Answer::Settled);
        assert_eq!(orders(&mut residual, T0), []);
        let metrics = residual.metrics();
        assert_eq!(
            (
                metrics.faults_refused,
                metrics.faults_settled,
                metrics.network_faults()
            ),
            (2, 2, 1)
        );
        assert_eq!((metrics.pages_spared, metrics.pages_placed), (6, 2));
    }

    #[test]
    fn a_fault_that_a_neighbour_has_answered_is_not_answered_twice() {
        let mut residual = residual(Demand, 10);
        for number in [3, 4] {
            assert_eq!(residual.fault(fault(1, number)), Answer::Queued);
        }
        assert_eq!(runs_of(&orders(&mut residual, T0)), [run(3, 4)]);
        assert_eq!(residual.owed_pages(), 10);
    }

    #[test]
    fn demand_is_done_only_when_every_page_was_asked_for_or_is_gone() {
        let mut residual = residual(Demand, 5);
        residual.fault(fault(1, 0));
        let replies = orders(&mut residual, T0);
        ack(&mut residual, &replies);
        assert_eq!(residual.poll(T0), Order::Wait { until: None });
        residual.handle(
            Duration::from_secs(3),
            Event::Gone {
                runs: vec![run(2, 3)],
            },
        );
        assert_eq!(residual.poll(T0), Order::Done);
        assert_eq!(residual.metrics().duration(Duration::MAX), Duration::from_secs(3));
    }

    #[test]
    fn nothing_owed_is_done_at_once() {
        let mut residual = residual(Bubbling::default(), 0);
        assert_eq!(residual.poll(T0), Order::Done);
        assert_eq!(residual.metrics().ended, Some(T0));
    }

    #[test]
    fn what_cannot_be_read_stays_owed_and_is_refused() {
        let mut residual = residual(Push::default(), 3);
        let Order::Push { piece, runs } = residual.poll(T0) else {
            unreachable!("a push is due");
        };
        assert_eq!(runs, [run(0, 1)]);
        // More than was asked for is not believed.
        sent(&mut residual, T0, piece, &[run(0, u64::MAX)]);
        let rest = orders(&mut residual, T0);
        ack(&mut residual, &rest);
        residual.handle(T0, Event::Acked { piece });
        assert_eq!(residual.unreadable(), &Pages::from_runs(&[run(0, 1)]).unwrap());
        assert_eq!(residual.poll(T0), Order::Wait { until: None });
        assert_eq!(residual.fault(fault(1, 0)), Answer::Unreadable);
        assert_eq!(
            (residual.metrics().pages_pushed, residual.metrics().pages_placed),
            (2, 2)
        );
        // The destination gives it up.
        residual.handle(
            T0,
            Event::Gone {
                runs: vec![run(0, 1)],
            },
        );
        assert_eq!(residual.poll(T0), Order::Done);
    }

    #[test]
    fn after_a_lost_link_what_is_missing_is_owed_again_and_those_who_wait_come_first() {
        let mut residual = residual(Push::default(), 100);
        residual.fault(fault(1, 50));
        let before = orders(&mut residual, T0);
        assert_eq!(runs_of(&before)[0], run(50, 2));
        let sent_pages: u64 = pages_in(&runs_of(&before));
        residual.fault(fault(2, 3));
        residual.handle(
            T0,
            Event::Gone {
                runs: vec![run(90, 10)],
            },
        );
        residual.handle(T0, Event::LinkLost);
        assert_eq!(residual.poll(T0), Order::Wait { until: None });
        // It got 50 and 51, and the word of that was lost. 90 to 99 are gone, whatever it says.
        let missing = Pages::from_runs(&[run(0, 50), run(52, 48), run(5000, 1)]).unwrap();
        residual.handle(T0, Event::LinkBack { missing });
        ack(&mut residual, &before);
        assert_eq!(residual.owed_pages(), 88, "old acknowledgements say nothing");
        assert_eq!(residual.fault(fault(1, 50)), Answer::Settled);
        let after = orders(&mut residual, T0);
        assert!(
            matches!(after[0], Order::Reply { run, .. } if run.first == 3),
            "{after:?}"
        );
        let metrics = residual.metrics();
        assert_eq!((metrics.pages_again, metrics.pages_placed), (sent_pages - 2, 2));
        assert_eq!((metrics.pages_spared, metrics.faults_repeated), (10, 0));
    }

    #[test]
    fn an_acknowledgement_may_overtake_the_word_that_it_was_sent() {
        let mut residual = residual(Push::default(), 1);
        let Order::Push { piece, .. } = residual.poll(T0) else {
            unreachable!("a push is due");
        };
        residual.handle(T0, Event::Acked { piece });
        assert_eq!(residual.owed_pages(), 1);
        sent(&mut residual, T0, piece, &[]);
        assert_eq!(residual.poll(T0), Order::Done);
        assert_eq!(residual.pace().in_flight(), 0);
    }

    #[test]
    fn too_many_who_wait_are_turned_away_and_may_come_again() {
        let pages = FAULTS_MAX as u64 * 4;
        let mut residual = residual(Demand, pages);
        residual.limits.reply_pages_max = 1;
        for number in 0..FAULTS_MAX as u64 {
            assert_eq!(residual.fault(fault(1, number * 4)), Answer::Queued);
        }
        assert_eq!(residual.fault(fault(1, 1)), Answer::Busy);
        assert_eq!(
            residual.fault(fault(2, 4)),
            Answer::Queued,
            "it is waited for already"
        );
        let replies = orders(&mut residual, T0);
        assert_eq!(residual.fault(fault(1, pages - 1)), Answer::Busy);
        ack(&mut residual, &replies);
        assert_eq!(residual.fault(fault(1, pages - 1)), Answer::Queued);
    }

    #[test]
    fn a_limit_on_the_push_is_waited_for_and_holds_up_no_reply() {
        let mut residual = residual(Push::default(), 1000);
        residual.limits.bandwidth_max = Some(100 * PAGE_SIZE);
        // What is saved up for a caller who comes late is a page here.
        let first = orders(&mut residual, T0);
        assert_eq!(pages_in(&runs_of(&first)), 1);
        let at = Duration::from_millis(10);
        assert_eq!(residual.poll(T0), Order::Wait { until: Some(at) });
        residual.fault(fault(1, 500));
        assert!(matches!(residual.poll(T0), Order::Reply { .. }));
        assert_eq!(residual.poll(T0), Order::Wait { until: Some(at) });
        assert_eq!(orders(&mut residual, at).len(), 1);
        // A second later a second's worth is not made up for.
        assert_eq!(orders(&mut residual, Duration::from_secs(2)).len(), 2);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Fault(u32, u64, bool),
        Acked(u64),
        Sent(u64, u64, Vec<PageRun>),
        Gone(PageRun),
        Lost,
        Back(Vec<PageRun>),
        Poll,
    }

    fn step() -> impl Values<Value = Step> {
        let number = || prop_oneof![0u64..300, Just(u64::MAX), any::<u64>()];
        let piece = || prop_oneof![0u64..60, any::<u64>()];
        let short = || (0u64..300, 0u64..40).prop_map(|(first, count)| run(first, count));
        let any_run =
            (0u32..2, number(), prop_oneof![0u64..9, any::<u64>()]).prop_map(|(space, first, count)| {
                PageRun {
                    space: SpaceId(space),
                    first,
                    count,
                }
            });
        prop_oneof![
            3 => (0u32..5, number(), any::<bool>()).prop_map(|(thread, number, again)| Step::Fault(thread, number, again)),
            2 => piece().prop_map(Step::Acked),
            3 => (piece(), any::<u64>(), prop::collection::vec(short(), 0..3)).prop_map(|(p, b, u)| Step::Sent(p, b, u)),
            1 => any_run.prop_map(Step::Gone),
            1 => Just(Step::Lost),
            1 => prop::collection::vec(short(), 0..9).prop_map(Step::Back),
            6 => Just(Step::Poll),
        ]
    }

    proptest! {
        #[test]
        fn whatever_is_said_to_it_nothing_is_sent_that_is_not_owed(
            steps in prop::collection::vec(step(), 0..200), which in 0u32..3, cap in prop::option::of(1u64..1_000_000),
        ) {
            let mut residual = match which {
                0 => residual(Demand, 200),
                1 => residual(Push::default(), 200),
                _ => residual(Bubbling::new(2), 200),
            };
            residual.limits.bandwidth_max = cap;
            // What may be sent, as far as everything said to it was true.
            let mut owed: BTreeSet<u64> = (0..200).collect();
            let mut gone = BTreeSet::new();
            let mut is_linked = true;
            for (ms, step) in steps.into_iter().enumerate() {
                let now = Duration::from_millis(ms as u64);
                match step {
                    Step::Fault(thread, number, repeated) => {
                        let fault = Fault { repeated, ..fault(thread, number) };
                        let answer = residual.fault(fault);
                        prop_assert_eq!(answer == Answer::Unknown, number >= 200);
                        prop_assert!(answer != Answer::Queued || owed.contains(&number));
                    }
                    Step::Acked(piece) => residual.handle(now, Event::Acked { piece: PieceId(piece) }),
                    Step::Sent(piece, wire_bytes, unreadable) => {
                        let sent = Event::Sent { piece: PieceId(piece), wire_bytes, zero_pages: 0, unreadable };
                        residual.handle(now, sent);
                    }
                    Step::Gone(run) => {
                        let inside = |n: &u64| run.space == SpaceId(0) && *n >= run.first && *n < run.end().number;
                        gone.extend((0..200).filter(|n| inside(n)));
                        owed.retain(|n| !inside(n));
                        residual.handle(now, Event::Gone { runs: vec![run] });
                    }
                    Step::Lost => {
                        is_linked = false;
                        residual.handle(now, Event::LinkLost);
                    }
                    Step::Back(missing) => {
                        is_linked = true;
                        let missing = Pages::from_runs(&missing).unwrap();
                        owed = (0..200).filter(|&n| missing.contains(page(n)) && !gone.contains(&n)).collect();
                        residual.handle(now, Event::LinkBack { missing });
                    }
                    Step::Poll => {
                        let order = residual.poll(now);
                        let runs = runs_of(std::slice::from_ref(&order));
                        prop_assert!(runs.is_empty() || is_linked);
                        for number in runs.iter().flat_map(|run| run.first..run.end().number) {
                            prop_assert!(owed.remove(&number), "{} in {:?}", number, order);
                        }
                        if let Order::Wait { until: Some(until) } = order {
                            prop_assert!(until > now);
                        }
                    }
                }
                prop_assert_eq!(residual.unsent.pages().len(), owed.len() as u64);
                prop_assert!(residual.waiting.len() <= 200 && residual.owed_pages() <= 200);
            }
        }
    }
}
