//! What numbers do: how far two runs differ. Ranges, calibration tables and quantization build on these measures.

pub mod metrics;
