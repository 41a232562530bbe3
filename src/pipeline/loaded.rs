//! A graph that is loaded, with its weights or without.

use std::time::Duration;

use crate::runtime::{Input, NodeRun, Outputs, RuntimeError, Session, Streamed};

/// A loaded graph.
pub(crate) enum Loaded {
    /// With its weights.
    Whole(Session),
    /// With the weights of some of its blocks; those of the others come when they run.
    Streamed(Box<Streamed>),
}

impl Loaded {
    /// Run the graph.
    pub fn run(&mut self, inputs: &[(&str, Input<'_>)]) -> Result<Outputs, RuntimeError> {
        match self {
            Self::Whole(session) => session.run(inputs),
            Self::Streamed(streamed) => streamed.run(inputs),
        }
    }

    /// How long ONNX Runtime has run it, all runs together.
    pub fn busy(&self) -> Duration {
        match self {
            Self::Whole(session) => session.busy(),
            Self::Streamed(streamed) => streamed.busy(),
        }
    }

    /// What each node took in each run, if that was asked for; what is streamed is not profiled.
    pub fn profile(self) -> Result<Vec<NodeRun>, RuntimeError> {
        match self {
            Self::Whole(session) => session.profile(),
            Self::Streamed(_) => Ok(vec![]),
        }
    }
}

/// How many blocks of text encoder and transformer keep their weights on the device; where it is not said, all do.
///
/// The last block always does, and so does one at the beginning. Of fewer than three blocks all do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streaming {
    /// Of the text encoder.
    pub text_encoder: Option<usize>,
    /// Of the transformer.
    pub transformer: Option<usize>,
}
