//! Pages as they are written down: short lists of numbers, since there are many of them.

use core::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Page, PageRun, Pages, SpaceId};

/// Pages of a set that is read, at most: 16 TiB, more than any host has.
const READ_PAGES_MAX: u64 = 1 << 32;

impl From<Page> for (u32, u64) {
    fn from(page: Page) -> Self {
        (page.space.0, page.number)
    }
}

impl From<(u32, u64)> for Page {
    fn from((space, number): (u32, u64)) -> Self {
        Page {
            space: SpaceId(space),
            number,
        }
    }
}

impl From<PageRun> for (u32, u64, u64) {
    fn from(run: PageRun) -> Self {
        (run.space.0, run.first, run.count)
    }
}

impl From<(u32, u64, u64)> for PageRun {
    fn from((space, first, count): (u32, u64, u64)) -> Self {
        PageRun {
            space: SpaceId(space),
            first,
            count,
        }
    }
}

/// As runs.
impl Serialize for Pages {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.runs())
    }
}

/// From runs that may overlap. A run that no set takes, or more pages than any host has, is an error.
impl<'de> Deserialize<'de> for Pages {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Runs)
    }
}

struct Runs;

impl<'de> Visitor<'de> for Runs {
    type Value = Pages;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of runs of pages")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Pages, A::Error> {
        let mut pages = Pages::new();
        let mut named: u64 = 0;
        while let Some(run) = seq.next_element::<PageRun>()? {
            named = named.saturating_add(run.count);
            if named > READ_PAGES_MAX {
                return Err(A::Error::custom("more pages than any host has"));
            }
            pages.insert(run).map_err(A::Error::custom)?;
        }
        Ok(pages)
    }
}
