//! The VAE's decoder, loaded: two latent frames at a time, the convolutions' caches handed from call to call.

use ndarray::{ArrayD, Axis, Slice};

use super::PipelineError;
use crate::runtime::{Input, Session, State};

/// Latent frames of every call but the first.
const CHUNK: usize = 2;

/// A loaded decoder.
pub struct Decoder {
    first: Session,
    next: Session,
}

impl Decoder {
    pub(super) fn new(first: Session, next: Session) -> Self {
        Self { first, next }
    }

    /// Decode latents `[batch, channels, frames, height, width]`, already divided by the scaling factor; `each` gets pixels
    /// `[batch, 3, frames, height, width]` as they come.
    ///
    /// The first call takes the odd frame, as `AutoencoderKLCogVideoX._decode` does.
    ///
    /// # Errors
    /// Latents without frames, or a failure of the runtime or of `each`.
    pub fn decode(
        &mut self,
        latents: &ArrayD<f32>,
        mut each: impl FnMut(ArrayD<f32>) -> Result<(), PipelineError>,
    ) -> Result<(), PipelineError> {
        let &[batch @ (1..), _, frames @ (1..), _, _] = latents.shape() else {
            let (name, expected) = ("latents".into(), "[batch, channels, frames, height, width]".into());
            return Err(PipelineError::Shape { name, expected, found: latents.shape().to_vec() });
        };
        let mut start = 0;
        let mut end = (CHUNK + frames % CHUNK).min(frames);
        let mut caches: Vec<(String, State)> = vec![];
        while start < frames {
            let chunk = latents.slice_axis(Axis(2), Slice::from(start..end)).as_standard_layout().into_owned();
            let graph = if start == 0 { &mut self.first } else { &mut self.next };
            let mut inputs = vec![("latents", Input::Float(chunk.view()))];
            inputs.extend(caches.iter().map(|(name, state)| (name.as_str(), Input::State(state))));
            let mut outputs = graph.run(&inputs)?;
            let sample = outputs.array("sample")?;
            if !matches!(sample.shape(), &[b, 3, (1..), (1..), (1..)] if b == batch) {
                let (name, expected) = ("sample".into(), format!("[{batch}, 3, frames, height, width]"));
                return Err(PipelineError::Shape { name, expected, found: sample.shape().to_vec() });
            }
            each(sample)?;
            // What a call leaves as `<layer>.cache` is the next one's `<layer>.past`.
            let past = |name: String| name.strip_suffix(".cache").map_or(name.clone(), |layer| format!("{layer}.past"));
            caches = outputs.into_states("sample").map(|(name, state)| (past(name), state)).collect();
            (start, end) = (end, end + CHUNK);
        }
        Ok(())
    }
}

/// How many frames the decoder makes of so many latent frames: an odd count's first frame is one frame, all others
/// `ratio` each.
pub(super) fn frames(latents: usize, ratio: usize) -> usize {
    if latents % 2 == 1 { (latents - 1) * ratio + 1 } else { latents * ratio }
}
