//! Bytes on a bulk stream.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    whimbrel_wire::hostile::bulk(bytes);
});
