//! Bytes on a control stream.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: (u16, Vec<u8>)| {
    whimbrel_wire::hostile::control(&input.1, usize::from(input.0));
});
