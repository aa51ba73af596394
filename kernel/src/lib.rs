//! The kernel's interfaces that nix and rustix lack.
//!
//! [`sys`] has raw system calls and ioctls, [`text`] has parsers of what the kernel writes in
//! `/proc`. This package decides nothing and knows no other package of ambit.

#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod sys;
pub mod text;
