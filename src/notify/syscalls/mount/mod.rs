//! mount(2)
mod filesystem;
mod flags;
mod options;
mod plan;
