//! What the CPU is needed for: pure functions over byte slices. No PyO3, no I/O, no panics on any input.

pub mod cutter;
pub mod decode;
pub mod encode;
pub mod gear;
pub mod probe;
pub mod record;
pub mod tree;
pub mod walk;
