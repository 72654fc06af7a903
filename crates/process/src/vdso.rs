//! The code that the kernel maps into every process (vdso(7)), when the workload meets another kernel.
//!
//! With the same vdso at both ends the destination's is moved to the source's addresses. With another one the old text
//! stays where it was, as plain memory, since the program has pointers to its functions, and each function
//! becomes a jump to the function of that name in the real vdso, which lies elsewhere.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::layout::Span;

/// The largest vdso that is accepted from a peer (today's have two pages).
const IMAGE_BYTES_MAX: usize = 1 << 18;
/// `mov $address,%rax; jmp *%rax`: the functions of the vdso follow the C calling convention, in which rax is free at
/// their entry.
const JUMP_BYTES: usize = 12;
const SECTION_DYNSYM: u32 = 11;
const SYMBOL_BYTES: usize = 24;
const SECTION_BYTES: usize = 64;
const FUNCTION: u8 = 2;

/// The kernel's mappings in a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelMappings {
    /// `[vvar]`, `[vvar_vclock]`, `[vdso]` in the order of their addresses, whatever this kernel has of them.
    pub mappings: Vec<(String, Span)>,
    /// The content of `[vdso]`.
    #[serde(with = "serde_bytes")]
    pub image: Vec<u8>,
}

/// What is wrong with a vdso.
#[derive(Debug, thiserror::Error)]
pub enum VdsoError {
    /// It cannot be read as a shared library.
    #[error("the vdso of the {0} is not an ELF library that whimbrel understands; run the same kernel at both ends")]
    Malformed(&'static str),
    /// The destination's kernel lacks a function.
    #[error("the destination's kernel has no vdso function {0}, which the workload may call; run the same kernel at both ends")]
    Missing(String),
    /// A function is too small for a jump.
    #[error(
        "the vdso function {0} of the source is too small to be redirected; run the same kernel at both ends"
    )]
    TooSmall(String),
}

/// A function of a vdso, relative to its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Function {
    offset: u64,
    size: u64,
}

impl KernelMappings {
    /// The mapping `[vdso]`.
    pub fn vdso(&self) -> Option<Span> {
        self.mappings
            .iter()
            .find(|(name, _)| name == "[vdso]")
            .map(|(_, span)| *span)
    }

    /// From the first to the last of the mappings.
    pub fn whole(&self) -> Option<Span> {
        let (first, last) = (self.mappings.first()?.1, self.mappings.last()?.1);
        Some(Span {
            start: first.start,
            end: last.end,
        })
    }

    /// Whether a process under our kernel can have these mappings in place of its own: same code, same data layout.
    pub fn is_like(&self, own: &KernelMappings) -> bool {
        let shape = |m: &KernelMappings| {
            m.mappings
                .iter()
                .map(|(n, s)| (n.clone(), s.len()))
                .collect::<Vec<_>>()
        };
        shape(self) == shape(own) && self.image == own.image
    }

    /// Whether it can be what a peer says: ascending, of sane size.
    pub fn is_sane(&self) -> bool {
        let ascending = self.mappings.windows(2).all(|w| w[0].1.end <= w[1].1.start);
        let whole = self
            .whole()
            .is_none_or(|w| !w.is_empty() && w.end <= crate::layout::ADDRESS_MAX);
        let spans = self
            .mappings
            .iter()
            .all(|(_, s)| !s.is_empty() && s.start % 4096 == 0 && s.end % 4096 == 0);
        let image = self.vdso().map_or(0, |s| s.len()) == self.image.len() as u64;
        ascending
            && whole
            && spans
            && image
            && self.mappings.len() <= 8
            && self.image.len() <= IMAGE_BYTES_MAX
    }
}

/// The image of `old` with every function redirected to the one in `new`, which is mapped at `new_base`.
///
/// # Errors
/// Images that are not ELF, and functions that only `old` has.
pub fn redirect(old: &[u8], new: &[u8], new_base: u64) -> Result<Vec<u8>, VdsoError> {
    let theirs = functions(old).ok_or(VdsoError::Malformed("source"))?;
    let ours = functions(new).ok_or(VdsoError::Malformed("destination"))?;
    let mut image = old.to_vec();
    for (name, function) in theirs {
        let target = ours.get(&name).ok_or_else(|| VdsoError::Missing(name.clone()))?;
        let at = usize::try_from(function.offset).map_err(|_| VdsoError::Malformed("source"))?;
        let place = at.checked_add(JUMP_BYTES).and_then(|end| image.get_mut(at..end));
        match place {
            Some(place) if function.size >= JUMP_BYTES as u64 => {
                place.copy_from_slice(&jump(new_base.wrapping_add(target.offset)));
            }
            _ => return Err(VdsoError::TooSmall(name)),
        }
    }
    Ok(image)
}

fn jump(target: u64) -> [u8; JUMP_BYTES] {
    let mut code = [0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xe0];
    code[2..10].copy_from_slice(&target.to_le_bytes());
    code
}

/// The offset of a `syscall` instruction.
pub fn syscall_instruction(image: &[u8]) -> Option<u64> {
    image
        .windows(2)
        .position(|w| w == [0x0f, 0x05])
        .map(|at| at as u64)
}

/// The functions in the dynamic symbol table (System V ABI, chapters 4 and 5); `None` if this is no ELF library.
fn functions(image: &[u8]) -> Option<BTreeMap<String, Function>> {
    if image.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let table = usize::try_from(u64_at(image, 0x28)?).ok()?;
    let count = usize::from(u16_at(image, 0x3c)?);
    let section = |index: usize| image.get(table.checked_add(index.checked_mul(SECTION_BYTES)?)?..);
    let symbols = (0..count)
        .filter_map(section)
        .find(|s| u32_at(s, 4) == Some(SECTION_DYNSYM))?;
    let names = section(u32_at(symbols, 40)? as usize)?;
    let (names_at, names_size) = extent(names)?;
    let names = image.get(names_at..names_at.checked_add(names_size)?)?;
    let (at, size) = extent(symbols)?;
    let table = image.get(at..at.checked_add(size)?)?;
    let mut functions = BTreeMap::new();
    for symbol in table.chunks_exact(SYMBOL_BYTES) {
        let defined = u16_at(symbol, 6)? != 0;
        if defined && symbol.get(4)? & 15 == FUNCTION {
            let name = names
                .get(u32_at(symbol, 0)? as usize..)?
                .split(|b| *b == 0)
                .next()?;
            let function = Function {
                offset: u64_at(symbol, 8)?,
                size: u64_at(symbol, 16)?,
            };
            functions.insert(String::from_utf8_lossy(name).into_owned(), function);
        }
    }
    Some(functions)
}

/// Offset and size of a section in the file.
fn extent(section: &[u8]) -> Option<(usize, usize)> {
    Some((
        u64_at(section, 24)?.try_into().ok()?,
        u64_at(section, 32)?.try_into().ok()?,
    ))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(
        bytes.get(at..at.checked_add(2)?)?.try_into().ok()?,
    ))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(
        bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(
        bytes.get(at..at.checked_add(8)?)?.try_into().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::FileExt;

    /// The vdso of this very process.
    fn own_image() -> Vec<u8> {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps.lines().find(|l| l.ends_with("[vdso]")).unwrap();
        let (start, rest) = line.split_once('-').unwrap();
        let end = rest.split(' ').next().unwrap();
        let parse = |s| u64::from_str_radix(s, 16).unwrap();
        let mut image = vec![0; (parse(end) - parse(start)) as usize];
        std::fs::File::open("/proc/self/mem")
            .unwrap()
            .read_exact_at(&mut image, parse(start))
            .unwrap();
        image
    }

    #[test]
    fn the_real_vdso_is_understood() {
        let image = own_image();
        let functions = functions(&image).unwrap();
        for name in [
            "__vdso_clock_gettime",
            "__vdso_gettimeofday",
            "__vdso_getcpu",
            "__vdso_time",
        ] {
            assert!(functions.contains_key(name), "{functions:?}");
        }
        let at = syscall_instruction(&image).unwrap() as usize;
        assert_eq!(image[at..at + 2], [0x0f, 0x05]);
    }

    #[test]
    fn every_function_becomes_a_jump_to_its_namesake() {
        let image = own_image();
        let patched = redirect(&image, &image, 0x7000_0000).unwrap();
        for (name, function) in functions(&image).unwrap() {
            let at = function.offset as usize;
            assert_eq!(
                patched[at..at + JUMP_BYTES],
                jump(0x7000_0000 + function.offset),
                "{name}"
            );
        }
        assert_eq!(functions(&patched), functions(&image), "still a library");
    }

    #[test]
    fn a_function_that_only_the_source_has_is_named() {
        let image = own_image();
        let mut other = image.clone();
        let name = b"__vdso_getcpu\0";
        let at = other.windows(name.len()).position(|w| w == name).unwrap();
        other[at] = b'X';
        assert!(redirect(&image, &other, 0)
            .unwrap_err()
            .to_string()
            .contains("__vdso_getcpu"));
        assert!(redirect(&image[..100], &image, 0).is_err());
    }

    proptest! {
        #[test]
        fn damaged_images_never_panic(at in any::<prop::sample::Index>(), value: u8, cut in any::<prop::sample::Index>()) {
            let mut image = own_image();
            let place = at.index(image.len().min(0x1000));
            image[place] = value;
            let _ = redirect(&image, &image, 4096);
            let _ = redirect(&image[..cut.index(image.len())], &image, 4096);
        }
    }
}
