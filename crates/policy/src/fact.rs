//! What somebody knows about pages that spares sending them, and how long each piece of knowledge holds.
//!
//! A fact only ever *masks* pages that are owed; it never clears the debt. The final scan decides again from what is
//! present and what was copied, so a fact that is wrong, late or stale can cost time but never content.

use alloc::vec::Vec;

use crate::pages::{Page, PageRun, Pages, RunTooLong, SpaceId};

/// Facts of different kind, expiry or target that are kept at most. What comes beyond is not taken in: its pages are
/// sent, as without it.
pub const GROUPS_MAX: usize = 4096;

/// What is known. Targets are those of the run's first page; the following pages follow them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Knowledge {
    /// Full of zeros.
    Zero,
    /// Not in use by anybody (a guest's free page, free heap).
    Free,
    /// In use by nobody who will read it (dead objects).
    Garbage,
    /// Equal to the file that is mapped there, which the destination has.
    FileBacked,
    /// Equal to another page.
    SameAs(Page),
    /// Equal to the storage from this block on, in pages.
    OnStorage(u64),
}

/// Until when a fact holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Expiry {
    /// Until the page is written.
    WhenWritten,
    /// Until the layout has another generation than this, however often the page is written.
    WhenLayoutChanges(u64),
}

/// One fact about a run of pages. It must have been true after the last scan that was handed in; older knowledge
/// may already have been overtaken by writes that the scan has reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Fact {
    /// The pages.
    pub run: PageRun,
    /// What is known of them.
    pub knowledge: Knowledge,
    /// Until when.
    pub expiry: Expiry,
}

/// Pages that share one kind of knowledge. A target is kept as its distance from the page (wrapping), so that
/// neighbouring runs of one file or one copy are one group.
#[derive(Clone, Debug)]
struct Group {
    knowledge: Shift,
    expiry: Expiry,
    pages: Pages,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shift {
    None(Knowledge),
    SameAs(SpaceId, SpaceId, u64),
    OnStorage(SpaceId, u64),
}

impl Shift {
    fn of(fact: &Fact) -> Shift {
        let PageRun { space, first, .. } = fact.run;
        match fact.knowledge {
            Knowledge::SameAs(page) => Shift::SameAs(space, page.space, page.number.wrapping_sub(first)),
            Knowledge::OnStorage(block) => Shift::OnStorage(space, block.wrapping_sub(first)),
            plain => Shift::None(plain),
        }
    }

    fn at(self, page: Page) -> Knowledge {
        match self {
            Shift::None(plain) => plain,
            Shift::SameAs(_, space, by) => Knowledge::SameAs(Page {
                space,
                number: page.number.wrapping_add(by),
            }),
            Shift::OnStorage(_, by) => Knowledge::OnStorage(page.number.wrapping_add(by)),
        }
    }
}

/// All facts that hold now.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    groups: Vec<Group>,
}

impl Facts {
    /// Takes a fact in. A fact beyond [`GROUPS_MAX`] is left out.
    ///
    /// # Errors
    /// A run longer than a set takes.
    pub fn learn(&mut self, fact: &Fact) -> Result<(), RunTooLong> {
        let knowledge = Shift::of(fact);
        let known = self
            .groups
            .iter_mut()
            .find(|g| g.knowledge == knowledge && g.expiry == fact.expiry);
        if let Some(group) = known {
            return group.pages.insert(fact.run);
        }
        if self.groups.len() < GROUPS_MAX {
            let pages = Pages::from_runs(&[fact.run])?;
            self.groups.push(Group {
                knowledge,
                expiry: fact.expiry,
                pages,
            });
        }
        Ok(())
    }

    /// A scan has found these pages written and these lost (unmapped or mapped anew).
    pub fn scanned(&mut self, written: &Pages, lost: &[PageRun]) {
        for group in &mut self.groups {
            if group.expiry == Expiry::WhenWritten {
                group.pages.subtract(written);
            }
            lost.iter().for_each(|&run| group.pages.remove(run));
        }
        self.groups.retain(|group| !group.pages.is_empty());
    }

    /// The layout has this generation now.
    pub fn layout_is(&mut self, generation: u64) {
        self.groups.retain(|group| match group.expiry {
            Expiry::WhenLayoutChanges(held) => held == generation,
            Expiry::WhenWritten => true,
        });
    }

    /// Nothing is known of these pages any more.
    pub fn forget(&mut self, run: PageRun) {
        self.groups.iter_mut().for_each(|group| group.pages.remove(run));
        self.groups.retain(|group| !group.pages.is_empty());
    }

    /// The pages of which something is known that `wanted` picks and that no write has overtaken. Targets are those of the group's page 0.
    pub fn pages_of(&self, wanted: impl Fn(Knowledge) -> bool) -> Pages {
        let mut pages = Pages::new();
        let picked = self
            .groups
            .iter()
            .filter(|group| group.expiry == Expiry::WhenWritten && wanted(group.knowledge.at(Page::FIRST)));
        picked.for_each(|group| pages.union_with(&group.pages));
        pages
    }

    /// The pages of `owed` that no fact spares: what to send now.
    pub fn mask(&self, owed: &Pages) -> Pages {
        let mut send = owed.clone();
        self.groups.iter().for_each(|group| send.subtract(&group.pages));
        send
    }

    /// Everything that is known about a page.
    pub fn about(&self, page: Page) -> impl Iterator<Item = Knowledge> + '_ {
        self.groups
            .iter()
            .filter(move |g| g.pages.contains(page))
            .map(move |g| g.knowledge.at(page))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(space: u32, first: u64, count: u64) -> PageRun {
        PageRun {
            space: SpaceId(space),
            first,
            count,
        }
    }

    fn facts(list: &[(PageRun, Knowledge, Expiry)]) -> Facts {
        let mut facts = Facts::default();
        for &(run, knowledge, expiry) in list {
            facts
                .learn(&Fact {
                    run,
                    knowledge,
                    expiry,
                })
                .unwrap();
        }
        facts
    }

    fn masked(facts: &Facts, owed: PageRun) -> Vec<PageRun> {
        facts.mask(&Pages::from_runs(&[owed]).unwrap()).runs().collect()
    }

    #[test]
    fn a_write_ends_what_holds_until_written_and_nothing_else() {
        let mut facts = facts(&[
            (run(0, 10, 5), Knowledge::Zero, Expiry::WhenWritten),
            (run(0, 20, 5), Knowledge::Garbage, Expiry::WhenLayoutChanges(3)),
        ]);
        assert_eq!(
            masked(&facts, run(0, 0, 30)),
            [run(0, 0, 10), run(0, 15, 5), run(0, 25, 5)]
        );
        facts.scanned(&Pages::from_runs(&[run(0, 12, 10)]).unwrap(), &[]);
        assert_eq!(masked(&facts, run(0, 10, 15)), [run(0, 12, 8)]);
        facts.layout_is(3);
        assert_eq!(masked(&facts, run(0, 20, 5)), []);
        facts.layout_is(4);
        assert_eq!(masked(&facts, run(0, 20, 5)), [run(0, 20, 5)]);
    }

    #[test]
    fn a_lost_range_ends_every_fact_about_it() {
        let mut facts = facts(&[(run(0, 20, 5), Knowledge::Free, Expiry::WhenLayoutChanges(1))]);
        facts.scanned(&Pages::new(), &[run(0, 22, u64::MAX)]);
        assert_eq!(masked(&facts, run(0, 20, 5)), [run(0, 22, 3)]);
    }

    #[test]
    fn targets_follow_the_pages_of_a_run() {
        let original = Page {
            space: SpaceId(7),
            number: 100,
        };
        let facts = facts(&[
            (run(0, 10, 4), Knowledge::SameAs(original), Expiry::WhenWritten),
            (run(0, 12, 9), Knowledge::OnStorage(1000), Expiry::WhenWritten),
        ]);
        let about = |number| {
            facts
                .about(Page {
                    space: SpaceId(0),
                    number,
                })
                .collect::<Vec<_>>()
        };
        let same = |number| Knowledge::SameAs(Page { number, ..original });
        assert_eq!(about(11), [same(101)]);
        assert_eq!(about(13), [same(103), Knowledge::OnStorage(1001)]);
        assert_eq!(about(14), [Knowledge::OnStorage(1002)]);
        assert_eq!(about(21), []);
    }
}
