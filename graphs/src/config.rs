//! The `config.json` of each component, checked before anything is computed from it.

mod dit;
mod fields;
mod pipeline;
mod t5;
#[cfg(test)]
mod tests;
mod vae;

pub use dit::DitConfig;
pub use fields::ConfigError;
pub use pipeline::{Component, PipelineClass, PipelineIndex};
pub use t5::T5Config;
pub use vae::VaeConfig;
