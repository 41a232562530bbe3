//! What numbers do: how far two runs differ, and weights and activations in few bits.

pub mod attend;
pub mod balance;
pub mod compensate;
pub mod convs;
mod descend;
pub mod float8;
pub mod histogram;
pub mod islands;
pub mod metrics;
pub mod observe;
pub mod plan;
pub mod probe;
pub mod quantize;
pub mod round;
pub mod scales;
pub mod smooth;
pub mod table;
pub mod values;
