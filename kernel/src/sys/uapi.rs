//! Structures of the kernel's headers (`include/uapi/linux`) that libc lacks, for [`raw`](super::raw).

/// `struct loop_info64` of loop.h.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct LoopInfo {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) rdevice: u64,
    pub(super) offset: u64,
    pub(super) size_limit: u64,
    pub(super) number: u32,
    pub(super) encrypt_type: u32,
    pub(super) encrypt_key_size: u32,
    pub(super) flags: u32,
    pub(super) file_name: [u8; 64],
    pub(super) crypt_name: [u8; 64],
    pub(super) encrypt_key: [u8; 32],
    pub(super) init: [u64; 2],
}

impl LoopInfo {
    pub(super) const EMPTY: Self = Self {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

/// `struct loop_config` of loop.h.
#[repr(C)]
#[derive(Debug)]
pub(super) struct LoopConfig {
    pub(super) fd: u32,
    pub(super) block_size: u32,
    pub(super) info: LoopInfo,
    pub(super) reserved: [u64; 8],
}

/// `union bpf_attr` of bpf.h for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct BpfLoad {
    pub(super) kind: u32,
    pub(super) count: u32,
    pub(super) instructions: u64,
    pub(super) license: u64,
    pub(super) log_level: u32,
    pub(super) log_size: u32,
    pub(super) log: u64,
    pub(super) kernel_version: u32,
    pub(super) flags: u32,
    pub(super) name: [u8; 16],
}

/// `union bpf_attr` for `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct BpfAttach {
    pub(super) target: u32,
    pub(super) program: u32,
    pub(super) kind: u32,
    pub(super) flags: u32,
    pub(super) replaced: u32,
    /// The kernel reads fields of eight bytes after this.
    pub(super) padding: u32,
}

/// `union bpf_attr` for `BPF_PROG_QUERY`.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct BpfQuery {
    pub(super) target: u32,
    pub(super) kind: u32,
    pub(super) query_flags: u32,
    pub(super) attach_flags: u32,
    pub(super) ids: u64,
    pub(super) count: u32,
    pub(super) padding: u32,
}

/// `union bpf_attr` for `BPF_PROG_GET_FD_BY_ID`.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct BpfById {
    pub(super) id: u32,
    pub(super) next: u32,
    pub(super) flags: u32,
}

/// `union bpf_attr` for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct BpfInfo {
    pub(super) file: u32,
    pub(super) length: u32,
    pub(super) place: u64,
}

// The layout is the kernel's.
const _: () = assert!(size_of::<LoopInfo>() == 232 && size_of::<LoopConfig>() == 304);
const _: () = assert!(size_of::<BpfLoad>() == 64 && std::mem::offset_of!(BpfLoad, log) == 32);
const _: () = assert!(size_of::<BpfAttach>() == 24 && size_of::<BpfQuery>() == 32);
const _: () = assert!(size_of::<BpfById>() == 12 && size_of::<BpfInfo>() == 16);
