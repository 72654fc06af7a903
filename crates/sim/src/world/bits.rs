//! One bit for each page of the memory.

use whimbrel_policy::{PageRun, SpaceId};

/// Pages whose bits are looked at or changed at once.
pub(crate) const WORD_PAGES: u64 = 64;

/// A dense set of page numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bits {
    words: Vec<u64>,
    pages: u64,
}

/// The bits of a word from `from` on, `count` of them.
fn mask(from: u64, count: u64) -> u64 {
    let ones = if count >= 64 { u64::MAX } else { (1 << count) - 1 };
    ones << from
}

impl Bits {
    /// An empty set for so many pages.
    pub fn new(pages: u64) -> Self {
        Bits {
            words: vec![0; pages.div_ceil(64) as usize],
            pages,
        }
    }

    pub fn pages(&self) -> u64 {
        self.pages
    }

    pub fn contains(&self, page: u64) -> bool {
        self.words[(page / 64) as usize] >> (page % 64) & 1 == 1
    }

    pub fn insert(&mut self, page: u64) {
        self.words[(page / 64) as usize] |= 1 << (page % 64);
    }

    pub fn len(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// Changes each word that holds pages of the range, by the bits that do.
    fn each_word(&mut self, first: u64, count: u64, mut change: impl FnMut(&mut u64, u64)) {
        let end = first.saturating_add(count).min(self.pages);
        let mut at = first;
        while at < end {
            let bits = mask(at % 64, (end - at).min(64 - at % 64));
            change(&mut self.words[(at / 64) as usize], bits);
            at = (at / 64 + 1) * 64;
        }
    }

    pub fn insert_range(&mut self, first: u64, count: u64) {
        self.each_word(first, count, |word, bits| *word |= bits);
    }

    pub fn remove_range(&mut self, first: u64, count: u64) {
        self.each_word(first, count, |word, bits| *word &= !bits);
    }

    pub fn union_with(&mut self, other: &Bits) {
        self.words
            .iter_mut()
            .zip(&other.words)
            .for_each(|(word, other)| *word |= other);
    }

    pub fn subtract(&mut self, other: &Bits) {
        self.words
            .iter_mut()
            .zip(&other.words)
            .for_each(|(word, other)| *word &= !other);
    }

    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Its runs, lowest first.
    pub fn runs(&self) -> Vec<PageRun> {
        let mut runs = Vec::new();
        self.runs_within(0, self.pages, &mut runs);
        runs
    }

    /// Appends its runs between two page numbers.
    pub fn runs_within(&self, first: u64, count: u64, runs: &mut Vec<PageRun>) {
        let end = first.saturating_add(count).min(self.pages);
        let mut at = first;
        while let Some(begin) = self.next(at, end, false) {
            at = self.next(begin, end, true).unwrap_or(end);
            runs.push(run(begin, at - begin));
        }
    }

    /// The first page from `at` on and before `end` that it holds, or that it does not if `is_gap`.
    fn next(&self, at: u64, end: u64, is_gap: bool) -> Option<u64> {
        let mut at = at;
        while at < end {
            let word = self.words[(at / 64) as usize];
            let word = if is_gap { !word } else { word } >> (at % 64);
            if word != 0 {
                let found = at + u64::from(word.trailing_zeros());
                return (found < end).then_some(found);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }
}

/// Everything lies in one space.
pub(crate) fn run(first: u64, count: u64) -> PageRun {
    PageRun {
        space: SpaceId(0),
        first,
        count,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{prop, prop_assert_eq, proptest};

    #[test]
    fn runs_cross_words_and_end_with_the_memory() {
        let mut bits = Bits::new(200);
        bits.insert_range(60, 10);
        bits.insert_range(190, 50);
        bits.insert(0);
        assert_eq!(bits.runs(), [run(0, 1), run(60, 10), run(190, 10)]);
        bits.remove_range(62, 3);
        let mut within = Vec::new();
        bits.runs_within(61, 5, &mut within);
        assert_eq!(within, [run(61, 1), run(65, 1)]);
        assert_eq!(bits.len(), 18);
    }

    proptest! {
        #[test]
        fn it_is_a_set(ranges in prop::collection::vec((0u64..300, 0u64..150, prop::bool::ANY), 0..30)) {
            let (mut bits, mut flags) = (Bits::new(300), vec![false; 300]);
            for (first, count, is_in) in ranges {
                match is_in {
                    true => bits.insert_range(first, count),
                    false => bits.remove_range(first, count),
                }
                (first..(first + count).min(300)).for_each(|page| flags[page as usize] = is_in);
            }
            let pages: Vec<u64> = bits.runs().iter().flat_map(|run| run.first..run.first + run.count).collect();
            let expected: Vec<u64> = (0..300).filter(|&page| flags[page as usize]).collect();
            prop_assert_eq!(pages, expected);
        }
    }
}
