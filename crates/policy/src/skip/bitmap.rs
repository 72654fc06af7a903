//! The transfer bitmap: which pages travel.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::migration::Scan;
use crate::pages::{Page, PageRun, Pages, RunTooLong, RUN_PAGES_MAX};

/// Applications that take part at most. The pages of others are sent.
pub const APPLICATIONS_MAX: usize = 64;

/// Runs of one list of a claim that are read at most: 1 GiB in frames of which no two are neighbours. Pages beyond,
/// or beyond [`RUN_PAGES_MAX`] in all, are neither skipped nor owned.
pub const RUNS_MAX: usize = 1 << 18;

/// An application that owns skip areas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ApplicationId(pub u32);

/// What an application wants to be skipped, as found by one walk over its page tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// The pages of its skip areas.
    pub areas: Vec<PageRun>,
    /// All pages that belong to it alone. Not the application's word: whoever walks the page tables says so.
    pub owned: Vec<PageRun>,
}

/// Bits of the transfer bitmap that an update changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Not sent from now on.
    pub cleared: Pages,
    /// Sent again.
    pub set: Pages,
}

#[derive(Clone, Debug, Default)]
struct Share {
    skipped: Pages,
    owned: Pages,
}

/// One bit for each page: set if it travels. All are set at first (JAVMM, "Updating the transfer bitmap"). There are
/// two updates, each of which takes one claim of each application: the first one, and the final one, which forgets the
/// first. In between, bits can only be set again.
#[derive(Clone, Debug, Default)]
pub struct TransferBitmap {
    /// The bits that are not set, by whom they were cleared. No page is skipped by two.
    shares: BTreeMap<ApplicationId, Share>,
    refused_pages: u64,
}

impl TransferBitmap {
    /// Whether a page travels.
    pub fn is_set(&self, page: Page) -> bool {
        !self.shares.values().any(|share| share.skipped.contains(page))
    }

    /// All pages that do not travel.
    pub fn skipped(&self) -> Pages {
        let mut skipped = Pages::new();
        self.shares
            .values()
            .for_each(|share| skipped.union_with(&share.skipped));
        skipped
    }

    /// Pages that applications wanted to be skipped, and that were not theirs, or shared, or beyond a limit.
    pub fn refused_pages(&self) -> u64 {
        self.refused_pages
    }

    /// Takes a claim in. The first one of an application in an update clears bits; any further one says what the areas
    /// have become, and only sets bits: what they grew by waits for the final update. A page that two applications own is
    /// shared, and neither can give it away.
    pub fn update(&mut self, application: ApplicationId, claim: &Claim) -> Change {
        let (asked, unread) = read(&claim.areas);
        self.refused_pages = self.refused_pages.saturating_add(unread);
        let before = self.shares.remove(&application);
        if before.is_none() && self.shares.len() >= APPLICATIONS_MAX {
            self.refused_pages = self.refused_pages.saturating_add(asked.len());
            return Change::default();
        }
        let (owned, _) = read(&claim.owned);
        let skipped = self.allowed(asked, &owned);
        let mut change = Change {
            cleared: Pages::new(),
            set: self.share_out(&owned),
        };
        let skipped = match before {
            Some(Share { skipped: old, .. }) => shrunk(old, &skipped, &mut change.set),
            None => {
                change.cleared = skipped.clone();
                skipped
            }
        };
        self.shares.insert(application, Share { skipped, owned });
        change
    }

    /// Parts of an application's areas are needed again: their bits are set at once. Returns those that were not set.
    /// A run may be as long as it likes.
    pub fn shrink(&mut self, application: ApplicationId, runs: &[PageRun]) -> Pages {
        let Some(share) = self.shares.get_mut(&application) else {
            return Pages::new();
        };
        let mut set = share.skipped.clone();
        runs.iter().for_each(|&run| share.skipped.remove(run));
        set.subtract(&share.skipped);
        set
    }

    /// An application takes part no longer: all its bits are set. Returns those that were not.
    pub fn withdraw(&mut self, application: ApplicationId) -> Pages {
        self.shares
            .remove(&application)
            .map_or_else(Pages::new, |share| share.skipped)
    }

    /// All bits are set, and each application may claim anew. Frames of the earlier walk may have changed hands since.
    pub fn begin_final_update(&mut self) {
        self.shares.clear();
    }

    /// Takes the skipped pages out of what the last scan found written and present: they are not owed then, and the
    /// destination forgets what it has of them. Returns how many of the present pages that spares.
    ///
    /// # Errors
    /// A run that no set can hold; the scan is as it was then.
    pub fn strip(&self, scan: &mut Scan) -> Result<u64, RunTooLong> {
        let skipped = self.skipped();
        let (written, _) = without(&scan.written, &skipped)?;
        if let Some(runs) = &scan.present {
            let (present, spared) = without(runs, &skipped)?;
            scan.present = Some(present);
            scan.written = written;
            return Ok(spared);
        }
        scan.written = written;
        Ok(0)
    }

    /// The pages of `asked` that belong to the claimer and to nobody else.
    fn allowed(&mut self, asked: Pages, owned: &Pages) -> Pages {
        let count = asked.len();
        let mut allowed = asked;
        allowed.intersect_with(owned);
        self.shares
            .values()
            .for_each(|share| allowed.subtract(&share.owned));
        self.refused_pages = self.refused_pages.saturating_add(count - allowed.len());
        allowed
    }

    /// Somebody else owns these pages, too: the others cannot give them away any more. Returns what they had given away.
    fn share_out(&mut self, owned: &Pages) -> Pages {
        let mut set = Pages::new();
        for share in self.shares.values_mut() {
            let mut shared = share.skipped.clone();
            shared.intersect_with(owned);
            share.skipped.subtract(&shared);
            set.union_with(&shared);
        }
        set
    }
}

/// What is left of `old` within `new`; the rest goes to `set`.
fn shrunk(old: Pages, new: &Pages, set: &mut Pages) -> Pages {
    let mut left = old.clone();
    left.intersect_with(new);
    let mut gone = old;
    gone.subtract(&left);
    set.union_with(&gone);
    left
}

/// The runs as a set, as far as the limits go, and how many pages lie beyond.
fn read(runs: &[PageRun]) -> (Pages, u64) {
    let mut pages = Pages::new();
    let mut unread: u64 = 0;
    // Over all runs: a list that names the same long run again and again costs no more time than one.
    let mut room = RUN_PAGES_MAX;
    for (i, &run) in runs.iter().enumerate() {
        if i >= RUNS_MAX || run.count > room || pages.insert(run).is_err() {
            unread = unread.saturating_add(run.count);
        } else {
            room -= run.count;
        }
    }
    (pages, unread)
}

/// The runs without some pages, and how many pages that spares.
fn without(runs: &[PageRun], skipped: &Pages) -> Result<(Vec<PageRun>, u64), RunTooLong> {
    let mut pages = Pages::from_runs(runs)?;
    let before = pages.len();
    pages.subtract(skipped);
    Ok((pages.runs().collect(), before - pages.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::SpaceId;
    use std::vec;

    const A: ApplicationId = ApplicationId(1);
    const B: ApplicationId = ApplicationId(2);

    fn run(first: u64, count: u64) -> PageRun {
        PageRun {
            space: SpaceId(0),
            first,
            count,
        }
    }

    fn claim(area: PageRun, owned: PageRun) -> Claim {
        Claim {
            areas: vec![area],
            owned: vec![owned],
        }
    }

    fn runs(pages: &Pages) -> Vec<PageRun> {
        pages.runs().collect()
    }

    #[test]
    fn all_bits_are_set_and_an_area_that_shrinks_is_sent_again_at_once() {
        let mut bitmap = TransferBitmap::default();
        assert!(bitmap.skipped().is_empty());
        let change = bitmap.update(A, &claim(run(10, 10), run(0, 100)));
        assert_eq!(
            (runs(&change.cleared), runs(&change.set)),
            (vec![run(10, 10)], vec![])
        );
        assert_eq!(runs(&bitmap.shrink(A, &[run(15, u64::MAX)])), [run(15, 5)]);
        assert_eq!(runs(&bitmap.skipped()), [run(10, 5)]);
        assert_eq!(runs(&bitmap.shrink(B, &[run(0, 100)])), []);
    }

    #[test]
    fn an_area_that_grew_waits_for_the_final_update() {
        let mut bitmap = TransferBitmap::default();
        bitmap.update(A, &claim(run(10, 10), run(0, 100)));
        let change = bitmap.update(A, &claim(run(12, 20), run(0, 100)));
        assert_eq!(
            (runs(&change.cleared), runs(&change.set)),
            (vec![], vec![run(10, 2)])
        );
        assert_eq!(runs(&bitmap.skipped()), [run(12, 8)]);
        bitmap.begin_final_update();
        assert!(bitmap.skipped().is_empty(), "the earlier claims do not count");
        bitmap.update(A, &claim(run(12, 20), run(0, 100)));
        assert_eq!(runs(&bitmap.skipped()), [run(12, 20)]);
    }

    #[test]
    fn nobody_gives_away_what_is_not_his_alone() {
        let mut bitmap = TransferBitmap::default();
        bitmap.update(A, &claim(run(0, 20), run(10, 20)));
        assert_eq!(runs(&bitmap.skipped()), [run(10, 10)]);
        assert_eq!(bitmap.refused_pages(), 10);
        // 15..20 belong to both: neither may skip them.
        let change = bitmap.update(B, &claim(run(15, 30), run(15, 100)));
        assert_eq!(runs(&change.set), [run(15, 5)]);
        assert_eq!(runs(&bitmap.skipped()), [run(10, 5), run(30, 15)]);
        assert_eq!(bitmap.refused_pages(), 10 + 15);
        assert_eq!(runs(&bitmap.withdraw(A)), [run(10, 5)]);
        let at = |number| Page {
            space: SpaceId(0),
            number,
        };
        assert!(bitmap.is_set(at(10)) && !bitmap.is_set(at(30)));
    }

    #[test]
    fn what_is_beyond_the_limits_is_sent() {
        let mut bitmap = TransferBitmap::default();
        let many: Vec<PageRun> = (0..=RUNS_MAX as u64).map(|i| run(2 * i, 1)).collect();
        let areas = Claim {
            areas: many,
            owned: vec![run(0, 2 * RUNS_MAX as u64 + 1)],
        };
        bitmap.update(A, &areas);
        assert_eq!(bitmap.skipped().len(), RUNS_MAX as u64);
        assert_eq!(bitmap.refused_pages(), 1);
        bitmap.update(B, &claim(run(0, RUN_PAGES_MAX + 1), run(0, 1)));
        assert_eq!(bitmap.refused_pages(), RUN_PAGES_MAX + 2);

        let mut bitmap = TransferBitmap::default();
        for id in 0..=APPLICATIONS_MAX as u64 {
            let own = run(id * 2, 1);
            bitmap.update(ApplicationId(id as u32), &claim(own, own));
        }
        assert_eq!(bitmap.skipped().len(), APPLICATIONS_MAX as u64);
        assert_eq!(bitmap.refused_pages(), 1);
    }

    #[test]
    fn the_last_scan_is_stripped_of_what_is_skipped_and_of_nothing_else() {
        let mut bitmap = TransferBitmap::default();
        bitmap.update(A, &claim(run(10, 10), run(0, 100)));
        let scan = Scan {
            written: vec![run(5, 10)],
            lost: vec![run(12, 1)],
            present: Some(vec![run(0, 18)]),
            urgent: vec![run(11, 1)],
        };
        let mut stripped = scan.clone();
        assert_eq!(bitmap.strip(&mut stripped), Ok(8));
        assert_eq!(
            stripped,
            Scan {
                written: vec![run(5, 5)],
                present: Some(vec![run(0, 10)]),
                ..scan.clone()
            }
        );
        let bad = Scan {
            present: Some(vec![run(0, u64::MAX)]),
            ..scan
        };
        let mut kept = bad.clone();
        assert!(bitmap.strip(&mut kept).is_err());
        assert_eq!(kept, bad);
    }
}
