//! CogVideoX checkpoints to ONNX engines, and prompts to videos, without Python or PyTorch.

pub mod bench;
pub mod bundle;
pub mod calibrate;
pub mod cli;
pub mod export;
mod pending;
pub mod picture;
pub mod pipeline;
pub mod positions;
pub mod quality;
pub mod rng;
pub mod runtime;
pub mod scheduler;
pub mod sensitivity;
pub mod stats;
pub mod student;
pub mod synth;
pub mod tokenizer;
pub mod verify;
pub mod video;
