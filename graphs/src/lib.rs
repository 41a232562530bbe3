//! ONNX graphs of CogVideoX, built directly from configs and weights.
//!
//! A model ([`model`]) is written in the operations of [`Value`] below a [`Scope`]; passes ([`pass`]) choose its precision
//! and target; [`onnx`] writes it. Nothing here runs a graph.

pub mod config;
pub mod cost;
mod dim;
mod dtype;
mod error;
pub mod graph;
mod infer;
pub mod model;
pub mod onnx;
pub mod op;
pub mod pass;
pub mod proto;
pub mod quantized;
mod scope;
pub mod source;
mod text;
mod value;
pub mod weights;

pub use dim::{Dim, Monomial};
pub use dtype::DType;
pub use error::{BuildError, Problem};
pub use graph::Graph;
pub use model::VideoDims;
pub use scope::Scope;
pub use source::SourceError;
pub use value::Value;
pub use weights::Weights;
