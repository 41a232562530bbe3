//! A checkpoint's transformer, made to tell what happens inside it.

use std::path::Path;

use cogvx_calibration::probe::Probe;
use ndarray::{Array2, Array3, Ix3};
use tempfile::TempDir;

use super::{Job, StudentError};
use crate::bundle::Bundle;
use crate::export::{Component, ExportOptions, export};
use crate::pipeline::Pipeline;
use crate::runtime::{Device, Outputs, Runtime};

/// A checkpoint exported for the occasion.
pub(super) struct Probed {
    pub pipeline: Pipeline,
    _folder: TempDir,
}

impl Probed {
    pub fn open(
        checkpoint: &Path,
        probe: Probe,
        components: Vec<Component>,
        job: &Job<'_>,
    ) -> Result<Self, StudentError> {
        job.options.go_on()?;
        let folder = TempDir::new_in(&job.aside).map_err(StudentError::io(&job.aside))?;
        let bundle = folder.path().join("bundle");
        let stop = job.options.stop.clone();
        export(
            checkpoint,
            &bundle,
            &ExportOptions { probe: Some(probe), components, stop, ..ExportOptions::default() },
            |_| {},
        )?;
        let runtime = Runtime::start(Device::Cpu, job.options.threads)?;
        (job.options.started)(runtime.interrupt());
        Ok(Self { pipeline: Pipeline::open(Bundle::open(&bundle)?, runtime)?, _folder: folder })
    }

    /// With the transformer alone, telling `tell`.
    pub fn telling(checkpoint: &Path, tell: &[String], job: &Job<'_>) -> Result<Self, StudentError> {
        let probe = Probe { tell: tell.iter().cloned().collect(), ..Probe::default() };
        Self::open(checkpoint, probe, vec![Component::Transformer], job)
    }

    /// The same without a prediction: nothing is computed that `tell` does not need.
    pub fn telling_alone(checkpoint: &Path, tell: &[String], job: &Job<'_>) -> Result<Self, StudentError> {
        let probe = Probe { tell: tell.iter().cloned().collect(), alone: true, ..Probe::default() };
        Self::open(checkpoint, probe, vec![Component::Transformer], job)
    }
}

/// Path of a block.
pub(super) fn block(layer: usize) -> String {
    format!("transformer_blocks.{layer}")
}

/// What a linear layer reads, and what it makes.
pub(super) fn linear(path: &str) -> [String; 2] {
    [format!("{path}/Linear.input"), format!("{path}/Linear")]
}

/// Half of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    Attention,
    FeedForward,
}

/// Names of the residual streams after half a block, the text's, where there is one, and the video's. The last block of a model
/// has no text.
pub(super) fn streams(layer: usize, half: Half, last: bool) -> Vec<String> {
    numbered(layer, "Add", half, last, "")
}

/// Names of what half a block's outputs are multiplied by before they are added to those streams.
pub(super) fn gates(layer: usize, half: Half, last: bool) -> Vec<String> {
    numbered(layer, "Mul", half, last, ".input")
}

fn numbered(layer: usize, operation: &str, half: Half, last: bool, end: &str) -> Vec<String> {
    let number = |n: usize| if n == 0 { String::new() } else { format!(".{n}") };
    let named = |path: String, n: usize| format!("{path}/{operation}{}{end}", number(n));
    match (last, half) {
        (false, Half::Attention) => (0..2).map(|n| named(block(layer), n)).collect(),
        (false, Half::FeedForward) => (2..4).map(|n| named(block(layer), n)).collect(),
        (true, Half::Attention) => vec![named(block(layer), 0)],
        // In the last block these are named by the feed-forward.
        (true, Half::FeedForward) => vec![named(format!("{}.ff", block(layer)), 0)],
    }
}

/// Paths of the additions to the streams in a block.
pub(super) fn additions(layer: usize) -> [String; 2] {
    [block(layer), format!("{}.ff", block(layer))]
}

/// The outputs of a block by their streams.
pub(super) fn blocks_output(layer: usize, last: bool) -> Vec<(&'static str, String)> {
    let names = streams(layer, Half::FeedForward, last);
    let streams = if last { &["video"][..] } else { &["text", "video"] };
    streams.iter().copied().zip(names).collect()
}

/// The output `name` as rows of features.
pub(super) fn rows(outputs: &Outputs, name: &str) -> Result<Array2<f32>, StudentError> {
    let value = outputs.array(name)?;
    let features = value.shape().last().copied().unwrap_or(1).max(1);
    let count = value.len() / features;
    Ok(Array2::from_shape_vec((count, features), value.into_raw_vec_and_offset().0).expect("whole rows"))
}

/// The output `name`, `[batch, tokens, features]`, text before video where it has both.
pub(super) fn tokens(outputs: &Outputs, name: &str) -> Result<Array3<f32>, StudentError> {
    let value = outputs.array(name)?;
    Ok(value.into_dimensionality::<Ix3>().expect("tokens of a batch"))
}
