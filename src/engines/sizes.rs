//! The sizes that a bundle's graphs run at when videos of one size, or of a range of sizes, are made.

use std::collections::BTreeMap;
use std::fmt;

use cogvx_graphs::model::vae::{LATENT_CHUNK, first_chunk};

use crate::pipeline::Pipeline;

/// Frames, rows and columns of videos, from the least to the greatest of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// The least of each.
    pub least: [usize; 3],
    /// The greatest of each; videos of this size are made fastest.
    pub greatest: [usize; 3],
}

impl From<[usize; 3]> for Sizes {
    fn from(size: [usize; 3]) -> Self {
        Self { least: size, greatest: size }
    }
}

/// `49x480x720`, or a range such as `17x480x720..49x480x720`.
impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |size: [usize; 3]| size.map(|n| n.to_string()).join("x");
        if self.least != self.greatest {
            write!(f, "{}..", text(self.least))?;
        }
        f.write_str(&text(self.greatest))
    }
}

/// A graph of a bundle and the named sizes of each of its runs; the first one is run most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runs {
    /// Component, such as `transformer`.
    pub component: &'static str,
    /// File in its folder, such as `model.onnx`.
    pub graph: &'static str,
    /// The videos.
    pub video: Sizes,
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

/// What runs for videos of these sizes, with guidance and without. Videos that start from a video take graphs at sizes of their own
/// and are left out.
#[must_use]
pub fn runs(pipeline: &Pipeline, video: Sizes) -> Vec<Runs> {
    let Sizes { least, greatest: [frames, height, width] } = video;
    // The VAE's first graph takes two latent frames or three, whichever leaves an even number.
    let fewer = frames.saturating_sub(pipeline.vae.temporal_compression_ratio).max(least[0]);
    let mut all = runs_of(pipeline, video.greatest);
    for size in [[fewer, height, width], [frames, least[1], least[2]], least] {
        for other in runs_of(pipeline, size) {
            if let Some(runs) = all.iter_mut().find(|runs| runs.file() == other.file()) {
                let new: Vec<_> = other.sizes.into_iter().filter(|sizes| !runs.sizes.contains(sizes)).collect();
                runs.sizes.extend(new);
            }
        }
    }
    all.into_iter().map(|runs| Runs { video, ..runs }).collect()
}

/// The same for videos of one size.
fn runs_of(pipeline: &Pipeline, size: [usize; 3]) -> Vec<Runs> {
    let [frames, height, width] = size;
    let video = Sizes::from(size);
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
