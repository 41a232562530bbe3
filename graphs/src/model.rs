//! The networks of CogVideoX, written as the papers and diffusers describe them.

pub mod dit;
pub mod step;
pub mod t5;
pub mod vae;

use crate::Dim;

/// Frames, height and width of a video as a graph sees it; latent sizes for the transformer and the decoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VideoDims {
    /// Frames.
    pub frames: Dim,
    /// Rows.
    pub height: Dim,
    /// Columns.
    pub width: Dim,
}

impl VideoDims {
    /// Sizes known when the graph runs, called `frames`, `height` and `width`.
    #[must_use]
    pub fn dynamic() -> Self {
        Self { frames: Dim::named("frames"), height: Dim::named("height"), width: Dim::named("width") }
    }

    /// Sizes known now.
    #[must_use]
    pub fn fixed(frames: usize, height: usize, width: usize) -> Self {
        Self { frames: frames.into(), height: height.into(), width: width.into() }
    }
}
