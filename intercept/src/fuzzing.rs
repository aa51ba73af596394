//! Entry points of the fuzz targets (`fuzz/`): packets of liblxc's protocol, messages of OCI
//! runtimes, registers of trapped calls, and texts of `/proc`.
//!
//! Compiled with the feature `fuzzing` only. No function here may have an effect outside of its
//! arguments.

use libseccomp_sys::{seccomp_data, seccomp_notif_resp};

use super::call::Call;
use super::dispatch::Dispatch;
use super::policy::Policy;
use super::syscalls::HANDLERS;
use super::{audit, lxc_packet, oci, thread_id};

/// The table of trapped calls. It is slow to build, so a fuzz target builds it once.
#[derive(Debug)]
pub struct Calls(Dispatch, Policy);

impl Calls {
    /// Builds the table of this kernel.
    pub fn new() -> Self {
        Self(Dispatch::new(), Policy::none())
    }

    /// Decodes a packet of liblxc's protocol, and looks up the call in it.
    ///
    /// # Panics
    /// The reply does not begin with the request.
    pub fn lxc_packet(&self, bytes: &[u8]) {
        let Ok(packet) = lxc_packet::decode(bytes) else { return };
        let _ = (packet.cookie(), packet.monitor_pid);
        self.look_up(packet.tid, &packet.data);
        let response = seccomp_notif_resp { id: packet.id, val: -1, error: -5, flags: 1 };
        assert_eq!(
            lxc_packet::reply(packet.fixed, &response)[..112],
            bytes[..112],
            "the reply begins with the request"
        );
    }

    /// Looks up a trapped call by its registers: architecture, number, arguments.
    pub fn registers(&self, bytes: &[u8; 64]) {
        let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|byte| bytes[at + byte]));
        let data = seccomp_data {
            nr: (word(0) as u32).cast_signed(),
            arch: (word(0) >> 32) as u32,
            instruction_pointer: word(8),
            args: [16, 24, 32, 40, 48, 56].map(word),
        };
        self.look_up(1, &data);
    }

    fn look_up(&self, tid: u32, data: &seccomp_data) {
        let Some(entry) = self.0.find(data.arch, data.nr, &self.1) else { return };
        let call = Call { tid, abi: entry.abi, syscall: entry.syscall, args: data.args };
        for index in 0..7 {
            let _ = (call.long(index), call.uint(index), call.int(index));
        }
        let _ = HANDLERS[entry.handler].prefilter(&call);
    }
}

impl Default for Calls {
    fn default() -> Self {
        Self::new()
    }
}

/// Parses the text of a caller's `/proc/<tid>/status`.
pub fn status(text: &[u8]) {
    let _ = audit::Caller::parse(text);
    let _ = thread_id::innermost(text);
}

/// Parses what an OCI runtime sends with a listener.
pub fn oci_message(bytes: &[u8]) {
    oci::parse(bytes);
}
