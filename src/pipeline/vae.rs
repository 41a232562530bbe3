//! The VAE, loaded: a few frames at a time, the convolutions' caches handed from call to call.

use cogvx_graphs::model::vae::{FRAME_CHUNK, LATENT_CHUNK, first_chunk};
use ndarray::{ArrayD, Axis, Slice};

use super::PipelineError;
use crate::runtime::{Input, Session, State};

/// One direction of a VAE, loaded: latents to pixels, or pixels to moments of latents.
pub struct Vae {
    first: Session,
    next: Session,
    chunk: usize,
    input: &'static str,
    output: &'static str,
}

impl Vae {
    /// From `latents`, already divided by the scaling factor, to `sample`.
    pub(super) fn decoder([first, next]: [Session; 2]) -> Self {
        Self { first, next, chunk: LATENT_CHUNK, input: "latents", output: "sample" }
    }

    /// From `sample`, in -1..1, to `moments`: means, then log variances.
    pub(super) fn encoder([first, next]: [Session; 2]) -> Self {
        Self { first, next, chunk: FRAME_CHUNK, input: "sample", output: "moments" }
    }

    /// Run all frames of `[batch, channels, frames, height, width]`; `each` gets the results, of the same axes, as they come.
    ///
    /// # Errors
    /// Nothing to run, or a failure of the runtime or of `each`.
    pub fn run(
        &mut self,
        x: &ArrayD<f32>,
        mut each: impl FnMut(ArrayD<f32>) -> Result<(), PipelineError>,
    ) -> Result<(), PipelineError> {
        let &[batch @ (1..), _, frames @ (1..), _, _] = x.shape() else {
            let (name, expected) = (self.input.into(), "[batch, channels, frames, height, width]".into());
            return Err(PipelineError::Shape { name, expected, found: x.shape().to_vec() });
        };
        let mut start = 0;
        let mut end = first_chunk(frames, self.chunk);
        let mut caches: Vec<(String, State)> = vec![];
        while start < frames {
            let chunk = x.slice_axis(Axis(2), Slice::from(start..end)).as_standard_layout().into_owned();
            let graph = if start == 0 { &mut self.first } else { &mut self.next };
            let mut inputs = vec![(self.input, Input::Float(chunk.view()))];
            inputs.extend(caches.iter().map(|(name, state)| (name.as_str(), Input::State(state))));
            let outputs = graph.run(&inputs)?;
            let result = outputs.array(self.output)?;
            if !matches!(result.shape(), &[b, (1..), (1..), (1..), (1..)] if b == batch) {
                let (name, expected) = (self.output.into(), format!("[{batch}, channels, frames, height, width]"));
                return Err(PipelineError::Shape { name, expected, found: result.shape().to_vec() });
            }
            each(result)?;
            // What a call leaves as `<layer>.cache` is the next one's `<layer>.past`.
            let past = |name: String| name.strip_suffix(".cache").map_or(name.clone(), |layer| format!("{layer}.past"));
            caches = outputs.into_states(self.output).map(|(name, state)| (past(name), state)).collect();
            (start, end) = (end, end + self.chunk);
        }
        Ok(())
    }
}

/// How many frames the decoder makes of so many latent frames: an odd count's first frame is one frame, all others
/// `ratio` each.
pub(super) fn decoded_frames(latents: usize, ratio: usize) -> usize {
    if latents % 2 == 1 { (latents - 1) * ratio + 1 } else { latents * ratio }
}
