//! `portcullis_checks::targets::parser` under a fuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_checks::targets::parser(data));
