//! System calls that neither nix nor rustix offers, one file each. Nothing here decides anything.
pub mod pid_in_namespace;
pub mod seccomp;
