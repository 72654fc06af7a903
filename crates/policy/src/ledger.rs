//! What is owed, what was copied, and what the destination has touched: plain algebra on sets of pages.

use alloc::vec::Vec;

use crate::migration::{Scan, Sent};
use crate::pages::{PageRun, Pages, RunTooLong};

/// The accounts of one migration. `owed` and `copied` never share a page: a page that was written after it was
/// copied is owed, and only owed. So at the end `owed OR (present AND NOT copied)`, restricted to what is present, is
/// `present AND NOT copied`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    owed: Pages,
    copied: Pages,
    /// The destination has something of its own there. Holds `copied`.
    touched: Pages,
}

/// How many pages of a batch went which way. Their sum is the batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub sent: u64,
    pub zero: u64,
    pub rewritten: u64,
    pub failed: u64,
}

impl Ledger {
    pub fn owed(&self) -> &Pages {
        &self.owed
    }

    /// Pages that exist at the source, as far as is known while it runs.
    pub fn known_pages(&self) -> u64 {
        self.owed.len() + self.copied.len()
    }

    /// Takes a scan in. `written` are its pages as a set.
    pub fn scanned(&mut self, scan: &Scan, written: &Pages) {
        for &run in &scan.lost {
            for pages in [&mut self.owed, &mut self.copied, &mut self.touched] {
                pages.remove(run);
            }
        }
        self.owed.union_with(written);
        self.copied.subtract(written);
    }

    /// Takes in what became of the pages `asked`. What a list names beyond them is not believed.
    pub fn sent(&mut self, asked: &[PageRun], sent: &Sent) -> Result<Counts, RunTooLong> {
        let mut arrived = Pages::from_runs(asked)?;
        let asked = arrived.len();
        arrived.subtract(&Pages::from_runs(&sent.rewritten)?);
        let read = arrived.len();
        arrived.subtract(&Pages::from_runs(&sent.failed)?);
        let mut zero = Pages::from_runs(&sent.zero)?;
        zero.intersect_with(&arrived);
        self.owed.subtract(&arrived);
        self.copied.union_with(&arrived);
        // Zero pages too: only the replica knows whether zeros made it change anything, and to forget an untouched
        // page costs nothing.
        self.touched.union_with(&arrived);
        Ok(Counts {
            sent: arrived.len() - zero.len(),
            zero: zero.len(),
            rewritten: asked - read,
            failed: read - arrived.len(),
        })
    }

    /// The destination has these pages from elsewhere.
    pub fn arrived(&mut self, pages: &Pages) {
        self.owed.subtract(pages);
        self.copied.union_with(pages);
        self.touched.union_with(pages);
    }

    /// The destination may have something of its own there from now on.
    pub fn may_be_touched(&mut self, run: PageRun) -> Result<(), RunTooLong> {
        self.touched.insert(run)
    }

    /// The workload is frozen and exactly `present` exists: what is owed from now on is final. Returns what the
    /// destination has to forget: what it has of its own and the source has not, and, if what is owed is to arrive
    /// `after_start`, the older copies of that, too. A page that is there is not faulted for, so the workload would read it.
    pub fn frozen(&mut self, present: &Pages, after_start: bool) -> Vec<PageRun> {
        self.owed = present.clone();
        self.owed.subtract(&self.copied);
        self.copied.intersect_with(present);
        let mut drop = core::mem::replace(&mut self.touched, self.copied.clone());
        drop.subtract(if after_start { &self.copied } else { present });
        drop.runs().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::SpaceId;
    use std::vec;

    fn run(first: u64, count: u64) -> PageRun {
        PageRun {
            space: SpaceId(0),
            first,
            count,
        }
    }

    fn scan(ledger: &mut Ledger, written: &[PageRun], lost: &[PageRun]) {
        let scan = Scan {
            lost: lost.to_vec(),
            ..Scan::default()
        };
        ledger.scanned(&scan, &Pages::from_runs(written).unwrap());
    }

    #[test]
    fn the_last_set_is_written_or_never_copied_and_the_drop_is_touched_but_gone() {
        let mut ledger = Ledger::default();
        scan(&mut ledger, &[run(0, 10)], &[]);
        ledger
            .sent(
                &[run(0, 10)],
                &Sent {
                    failed: vec![run(9, 1)],
                    ..Sent::default()
                },
            )
            .unwrap();
        scan(&mut ledger, &[run(2, 2)], &[]);
        // 2 written and there; 3 written and gone; 4 gone; 9 never read; 20 appeared without having been seen.
        let present = Pages::from_runs(&[run(0, 3), run(5, 5), run(20, 1)]).unwrap();
        assert_eq!(ledger.frozen(&present, false), [run(3, 2)]);
        assert_eq!(
            ledger.owed().runs().collect::<Vec<_>>(),
            [run(2, 1), run(9, 1), run(20, 1)]
        );
    }

    #[test]
    fn what_arrives_after_the_start_must_not_find_an_older_copy_of_itself() {
        let mut ledger = Ledger::default();
        scan(&mut ledger, &[run(0, 10)], &[]);
        ledger.sent(&[run(0, 8)], &Sent::default()).unwrap();
        scan(&mut ledger, &[run(2, 2)], &[]);
        // 2 and 3 were copied and written again, 5 is gone, 8 and 9 never went.
        let present = Pages::from_runs(&[run(0, 5), run(6, 4)]).unwrap();
        assert_eq!(ledger.frozen(&present, true), [run(2, 2), run(5, 1)]);
        assert_eq!(ledger.owed().runs().collect::<Vec<_>>(), [run(2, 2), run(8, 2)]);
    }

    #[test]
    fn a_lost_range_leaves_all_three_sets_and_comes_back_only_if_it_is_written_again() {
        let mut ledger = Ledger::default();
        scan(&mut ledger, &[run(0, 8)], &[]);
        ledger.sent(&[run(0, 4)], &Sent::default()).unwrap();
        scan(&mut ledger, &[run(6, 1)], &[run(0, u64::MAX)]);
        assert_eq!(ledger.owed().runs().collect::<Vec<_>>(), [run(6, 1)]);
        assert_eq!(ledger.frozen(&Pages::from_runs(&[run(6, 1)]).unwrap(), false), []);
        assert_eq!(ledger.owed().len(), 1);
    }

    #[test]
    fn lists_that_name_more_than_was_asked_for_change_nothing_else() {
        let mut ledger = Ledger::default();
        scan(&mut ledger, &[run(0, 10)], &[]);
        let sent = Sent {
            zero: vec![run(0, 100)],
            rewritten: vec![run(2, 1), run(50, 5)],
            failed: vec![run(2, 2)],
            ..Sent::default()
        };
        let counts = ledger.sent(&[run(0, 5)], &sent).unwrap();
        assert_eq!(
            counts,
            Counts {
                sent: 0,
                zero: 3,
                rewritten: 1,
                failed: 1
            }
        );
        assert_eq!(ledger.owed().runs().collect::<Vec<_>>(), [run(2, 2), run(5, 5)]);
    }
}
