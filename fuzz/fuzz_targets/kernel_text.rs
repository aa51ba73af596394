//! Every parser of text that comes from the kernel, on the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    ambit_sysinfo::fuzzing::parse_all(text);
    // Paths and sources in it are names that containers choose.
    assert!(ambit_fuse::mountinfo::all(text).count() <= text.len());
});
