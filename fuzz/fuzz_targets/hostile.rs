//! What containers, runtimes and administrators send: packets of liblxc's protocol, messages of
//! OCI runtimes, configurations, registers of trapped calls.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use ambit::Config;
use ambit_intercept::fuzzing::{Calls, oci_message};
use libfuzzer_sys::fuzz_target;

static CALLS: LazyLock<Calls> = LazyLock::new(Calls::new);

fuzz_target!(|bytes: &[u8]| {
    CALLS.lxc_packet(bytes);
    if let Some(registers) = bytes.first_chunk() {
        CALLS.registers(registers);
    }
    oci_message(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Config::parse(text, Path::new("/etc/ambit.toml"));
    }
});
