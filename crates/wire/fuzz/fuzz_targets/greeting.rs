//! Bytes of a peer that greets us.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    assert!(!whimbrel_wire::hostile::greeting(bytes), "a stranger was believed");
});
