//! What numbers do: how far two runs differ, and weights and activations in few bits.

pub mod metrics;
pub mod plan;
pub mod quantize;
pub mod round;
