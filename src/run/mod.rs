//! `ambit run`: a command in a fresh sandbox that sees its own bounds.

/// x
#[derive(Debug, clap::Args)]
pub struct RunArgs {}
