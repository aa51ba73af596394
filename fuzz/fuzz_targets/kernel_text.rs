//! Every parser of text that comes from the kernel, on the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    ambit_kernel::fuzzing::parse_all(text);
    ambit_sysinfo::fuzzing::parse_all(text);
    ambit_intercept::fuzzing::status(text);
    ambit_fuse::fuzzing::parse_all(text);
});
