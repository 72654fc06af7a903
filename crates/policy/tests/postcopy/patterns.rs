//! In which order threads touch pages.

use crate::world::Setting;

/// xorshift64*, so that a failure repeats from its seed.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.max(1);
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) % end.max(1)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Each thread walks through all pages, from a place of its own on.
    Sequential,
    /// Each thread touches every eighth page, and then those beside them.
    Strided,
    /// 80 of 100 accesses go to a fifth of the pages.
    HotCold,
    /// Any page, all alike.
    Uniform,
}

const STRIDE: u64 = 8;

impl Pattern {
    pub const ALL: [Pattern; 4] = [
        Pattern::Sequential,
        Pattern::Strided,
        Pattern::HotCold,
        Pattern::Uniform,
    ];

    /// The page that a thread touches after so many others.
    pub fn index(self, thread: u32, setting: &Setting, access: u64, random: &mut Random) -> u64 {
        let pages = setting.pages;
        let begin = pages * u64::from(thread) / u64::from(setting.threads);
        let offset = match self {
            Pattern::Sequential => access,
            Pattern::Strided => {
                let row = pages.div_ceil(STRIDE);
                access % row * STRIDE + access / row
            }
            Pattern::HotCold if random.below(100) < 80 => return pages / 2 + random.below(pages / 5),
            Pattern::HotCold | Pattern::Uniform => random.below(pages),
        };
        (begin + offset) % pages
    }
}
