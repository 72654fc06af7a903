//! Bytes of a destination on the stream for faults.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    whimbrel_wire::hostile::wishes(bytes);
});
