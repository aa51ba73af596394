//! All programs show the same numbers: readers of every kind, under every kind of limit, must
//! report the limits, and the same as each other.
//!
//! A contradiction is a program that reports a quantity otherwise than the container's limits,
//! its own control group and the clock outside say, beyond the program's own rounding and the
//! passing of time. Nothing that ambit printed decides what is right.
//!
//! Start reading at `matrix.rs`; `readers.rs` is the list of programs. The other files look at what
//! a table cannot show: counters over time, a busy container, clocks, affinity, and what is left
//! where others use memory as well.

mod affinity;
mod bursts;
mod busy;
mod claims;
mod clocks;
mod columns;
mod container;
mod counters;
mod kinds;
mod left;
mod matrix;
mod readers;
mod resize;
mod restarts;
mod verify;
mod waiting;
