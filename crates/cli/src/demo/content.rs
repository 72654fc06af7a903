//! What the sample server keeps in memory. The content of a page follows from its place and its generation, so
//! that a client can tell from a digest whether the server's memory is right, and from the generation whether it is old.

/// 64-bit words in a page.
pub const WORDS: usize = 512;

/// Pages that one thread of the server owns and rewrites.
pub struct Region {
    number: u64,
    words: Vec<u64>,
    generations: Vec<u64>,
}

/// The word at `index` of a page. The finalizer of SplitMix64 (Steele, Lea, Flood 2014) spreads the bits.
fn word(region: u64, page: u64, generation: u64, index: u64) -> u64 {
    let mut x = (region << 56 ^ page << 32 ^ generation << 10) + index;
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// FNV-1a over words.
fn digest(words: impl Iterator<Item = u64>) -> u64 {
    words.fold(0xcbf2_9ce4_8422_2325, |hash, word| {
        (hash ^ word).wrapping_mul(0x100_0000_01b3)
    })
}

/// The digest that a page of this generation must have.
pub fn expected_digest(region: u64, page: u64, generation: u64) -> u64 {
    digest((0..WORDS as u64).map(|index| word(region, page, generation, index)))
}

impl Region {
    /// A region of `pages` pages, all of generation 1.
    pub fn new(number: u64, pages: usize) -> Self {
        let mut region = Self {
            number,
            words: vec![0; pages * WORDS],
            generations: vec![0; pages],
        };
        (0..pages).for_each(|page| region.rewrite(page));
        region
    }

    /// How many pages it has.
    pub fn pages(&self) -> usize {
        self.generations.len()
    }

    /// The page's generation and the digest of what is really there; `None` if there is no such page.
    pub fn look(&self, page: usize) -> Option<(u64, u64)> {
        let words = self.words.get(page * WORDS..(page + 1) * WORDS)?;
        Some((*self.generations.get(page)?, digest(words.iter().copied())))
    }

    /// Whether the page holds what it should.
    pub fn right(&self, page: usize) -> bool {
        self.look(page)
            .is_some_and(|(generation, found)| found == expected_digest(self.number, page as u64, generation))
    }

    /// Writes the page's next generation. Pages that do not exist are left alone.
    pub fn rewrite(&mut self, page: usize) {
        let Some(generation) = self.generations.get_mut(page) else {
            return;
        };
        *generation += 1;
        let words = self.words.iter_mut().skip(page * WORDS).take(WORDS);
        for (index, slot) in words.enumerate() {
            *slot = word(self.number, page as u64, *generation, index as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wrong_word_is_noticed() {
        let mut region = Region::new(3, 4);
        assert!((0..4).all(|page| region.right(page)));
        region.words[2 * WORDS + 7] ^= 1;
        assert!(region.right(1) && !region.right(2) && region.right(3));
        region.rewrite(2);
        assert!(region.right(2));
    }

    #[test]
    fn the_digest_tells_places_and_generations_apart() {
        let of = expected_digest;
        let region = Region::new(1, 2);
        assert_eq!(region.look(1), Some((1, of(1, 1, 1))));
        assert_eq!(region.look(2), None);
        assert_ne!(of(1, 1, 1), of(1, 1, 2));
        assert_ne!(of(1, 1, 1), of(1, 2, 1));
        assert_ne!(of(1, 1, 1), of(2, 1, 1));
    }
}
