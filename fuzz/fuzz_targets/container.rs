//! A container all of whose files hold whatever bytes: its view keeps its promises, and every
//! file of the overlay can be rendered from it. The files are separated by NUL bytes.
#![no_main]

use ambit_fuse::{FILES, Text};
use ambit_sysinfo::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let texts: Vec<&[u8]> = bytes.split(|&byte| byte == 0).collect();
    let view = fuzzing::view(&texts);
    fuzzing::check(&view);
    let mut text = Text::new();
    for file in FILES {
        text.clear();
        (file.render)(&view, &mut text);
    }
});
