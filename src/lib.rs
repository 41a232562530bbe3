//! CogVideoX checkpoints to ONNX engines, and prompts to videos, without Python or PyTorch.

pub mod bench;
pub mod blueprint;
pub mod bundle;
pub mod calibrate;
pub mod cli;
pub mod engines;
pub mod export;
pub mod gpu;
pub mod inspect;
mod page;
mod pending;
pub mod picture;
pub mod pipeline;
pub mod plan;
pub mod positions;
pub mod preflight;
pub mod quality;
pub mod report;
pub mod rng;
pub mod runtime;
pub mod scheduler;
pub mod sensitivity;
pub mod stats;
pub mod synth;
pub mod tokenizer;
pub mod verify;
pub mod video;
