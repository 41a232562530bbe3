//! The sizes that a bundle's graphs run at when videos of one size are made.

use std::collections::BTreeMap;

use cogvx_graphs::model::vae::{LATENT_CHUNK, first_chunk};

use crate::pipeline::Pipeline;

/// A graph of a bundle and the named sizes of each of its runs; the first one is run most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runs {
    /// Component, such as `transformer`.
    pub component: &'static str,
    /// File in its folder, such as `model.onnx`.
    pub graph: &'static str,
    /// Frames, rows and columns of the videos.
    pub video: [usize; 3],
    /// Sizes by name, as the graph's inputs have them.
    pub sizes: Vec<BTreeMap<String, u64>>,
}

impl Runs {
    /// The graph's path in its bundle.
    #[must_use]
    pub fn file(&self) -> String {
        format!("{}/{}", self.component, self.graph)
    }
}

/// What runs for a video of so many frames, rows and columns, with guidance and without. Videos that start from a video take graphs
/// at sizes of their own and are left out.
#[must_use]
pub fn runs(pipeline: &Pipeline, video: [usize; 3]) -> Vec<Runs> {
    let [frames, height, width] = video;
    let (dit, vae) = (&pipeline.dit, &pipeline.vae);
    let space = vae.spatial_compression_ratio();
    let latents = frames.saturating_sub(1) / vae.temporal_compression_ratio + 1;
    let padded = latents.next_multiple_of(dit.patch_size_t.unwrap_or(1));
    let first = first_chunk(latents, LATENT_CHUNK);
    let sizes = |named: &[(&str, usize)]| named.iter().map(|&(name, n)| (name.to_string(), n as u64)).collect();
    let tokens = ("tokens", dit.max_text_seq_length);
    let [rows, columns] = [("height", height / space), ("width", width / space)];
    let batches = |rest: &[(&str, usize)]| [2, 1].map(|n| sizes(&[&[("batch", n)], rest].concat())).to_vec();
    let mut all = vec![
        Runs { video, component: "text_encoder", graph: "model.onnx", sizes: batches(&[tokens]) },
        Runs {
            video,
            component: "transformer",
            graph: "model.onnx",
            sizes: batches(&[tokens, ("frames", padded), rows, columns]),
        },
        Runs {
            video,
            component: "vae_decoder",
            graph: "first.onnx",
            sizes: vec![sizes(&[("batch", 1), ("frames", first), rows, columns])],
        },
    ];
    if latents > first {
        let sizes = vec![sizes(&[("batch", 1), rows, columns])];
        all.push(Runs { video, component: "vae_decoder", graph: "next.onnx", sizes });
    }
    if pipeline.takes_image() {
        let sizes = vec![sizes(&[("batch", 1), ("frames", 1), ("height", height), ("width", width)])];
        all.push(Runs { video, component: "vae_encoder", graph: "first.onnx", sizes });
    }
    all
}
