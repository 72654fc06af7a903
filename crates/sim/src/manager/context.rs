//! A VM of the third seed: a queue of references that goes round, and a memory that replaces by LRU.

use std::collections::BTreeSet;

/// The seed's VM: `pageQueue[100]`, numbers below 50, `memorySize = 20`.
pub(super) const SEED_REFERENCES: usize = 100;
pub(super) const SEED_PAGES: u64 = 50;
pub(super) const SEED_MEMORY: usize = 20;

/// The generator of the seed, `java.util.Random`: a linear congruence modulo 2^48 (Knuth, "The Art of Computer Programming",
/// volume 2, section 3.2.1; the constants are those of the Java API's documentation), so that a queue can be had again in Java.
struct JavaRandom(u64);

impl JavaRandom {
    const FACTOR: u64 = 0x5_DEEC_E66D;
    const MASK: u64 = (1 << 48) - 1;

    fn new(seed: u64) -> Self {
        JavaRandom((seed ^ Self::FACTOR) & Self::MASK)
    }

    fn next_int(&mut self) -> i32 {
        self.0 = self.0.wrapping_mul(Self::FACTOR).wrapping_add(0xB) & Self::MASK;
        (self.0 >> 16) as u32 as i32
    }
}

/// `count` references to pages below `pages`, as the seed fills its queue: `Math.abs(random.nextInt()) % 50`.
pub(super) fn references(seed: u64, count: usize, pages: u64) -> Vec<u64> {
    let mut random = JavaRandom::new(seed);
    (0..count)
        .map(|_| u64::from(random.next_int().unsigned_abs()) % pages.max(1))
        .collect()
}

/// Processor and page table: what travels as the state of a migration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Context {
    queue: Vec<u64>,
    /// Where the next reference stands in the queue.
    pub pc: usize,
    /// Pages in memory, the one that was used longest ago first.
    memory: Vec<u64>,
    memory_pages: usize,
    pub hits: u64,
    pub misses: u64,
}

impl Context {
    /// An empty memory of `memory_pages`. A queue without references would have nothing to run: it is one reference to page 0.
    pub fn new(mut queue: Vec<u64>, memory_pages: usize) -> Self {
        if queue.is_empty() {
            queue.push(0);
        }
        Context {
            queue,
            memory_pages: memory_pages.max(1),
            ..Context::default()
        }
    }

    /// The page of the next reference.
    pub fn wanted(&self) -> u64 {
        self.queue[self.pc]
    }

    pub fn holds(&self, page: u64) -> bool {
        self.memory.contains(&page)
    }

    pub fn memory(&self) -> &[u64] {
        &self.memory
    }

    pub fn memory_pages(&self) -> usize {
        self.memory_pages
    }

    pub fn distinct(&self) -> usize {
        self.queue.iter().collect::<BTreeSet<_>>().len()
    }

    pub fn queue_length(&self) -> usize {
        self.queue.len()
    }

    /// References done.
    pub fn done(&self) -> u64 {
        self.hits + self.misses
    }

    /// Misses of all references, in percent; `None` before the first.
    pub fn miss_percent(&self) -> Option<f64> {
        (self.done() > 0).then(|| self.misses as f64 * 100.0 / self.done() as f64)
    }

    /// The wanted page is in memory: it becomes the last that was used.
    pub fn hit(&mut self) {
        let page = self.wanted();
        if let Some(at) = self.memory.iter().position(|&known| known == page) {
            self.memory[at..].rotate_left(1);
        }
        self.hits += 1;
        self.go_on();
    }

    /// The wanted page was loaded. Gives the page that made room for it.
    pub fn load(&mut self) -> Option<u64> {
        let is_full = self.memory.len() >= self.memory_pages;
        let replaced = is_full.then(|| self.memory.remove(0));
        self.memory.push(self.wanted());
        self.misses += 1;
        self.go_on();
        replaced
    }

    fn go_on(&mut self) {
        self.pc = (self.pc + 1) % self.queue.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{prop, prop_assert, prop_assert_eq, proptest};

    /// Runs so many references; the pages that were replaced.
    fn run(context: &mut Context, references: usize) -> Vec<u64> {
        let step = |_| match context.holds(context.wanted()) {
            true => {
                context.hit();
                None
            }
            false => context.load(),
        };
        (0..references).filter_map(step).collect()
    }

    #[test]
    fn it_is_lru_as_on_paper() {
        // 1 2 3 fill it; 1 is hit and becomes the last; 4 replaces 2; 2 replaces 3; then from the beginning: 1 is hit, 2 is hit, 3
        // replaces 4.
        let mut context = Context::new(vec![1, 2, 3, 1, 4, 2], 3);
        assert!(run(&mut context, 4).is_empty());
        assert_eq!(context.memory(), [2, 3, 1]);
        assert_eq!(run(&mut context, 2), [2, 3]);
        assert_eq!(
            (context.memory(), context.pc, context.hits, context.misses),
            (&[1, 4, 2][..], 0, 1, 5)
        );
        assert_eq!(run(&mut context, 3), [4]);
        assert_eq!((context.memory(), context.pc), (&[1, 2, 3][..], 3));
        assert_eq!(
            context.miss_percent(),
            Some(600.0 / 9.0),
            "6 of 9 references missed"
        );
    }

    #[test]
    fn its_random_numbers_are_those_of_java() {
        // `new Random(42)`, four times `nextInt()`.
        let mut random = JavaRandom::new(42);
        let numbers = [(); 4].map(|()| random.next_int());
        assert_eq!(
            numbers,
            [-1_170_105_035, 234_785_527, -1_360_544_799, 205_897_768]
        );
        assert_eq!(references(42, 4, 50), [35, 27, 49, 18]);
    }

    proptest! {
        #[test]
        fn memory_holds_the_pages_that_were_used_last(
            queue in prop::collection::vec(0u64..30, 1..60), memory in 1usize..12, steps in 0usize..200,
        ) {
            let mut context = Context::new(queue.clone(), memory);
            run(&mut context, steps);
            let mut last = Vec::new();
            for page in (0..steps).rev().map(|step| queue[step % queue.len()]) {
                if last.len() < memory && !last.contains(&page) {
                    last.insert(0, page);
                }
            }
            prop_assert_eq!(context.memory(), last);
            prop_assert!(context.done() == steps as u64);
        }
    }
}
