//! The transformer, loaded: predictions from latents, text and timestep.

use cogvx_graphs::config::DitConfig;
use ndarray::{Array2, ArrayD, arr1};

use super::PipelineError;
use crate::positions::sincos_3d;
use crate::runtime::{Input, Session};

/// A loaded transformer.
pub struct Transformer<'a> {
    session: Session,
    config: &'a DitConfig,
    /// Position table of the last latent size, `[video tokens, width]`.
    positions: Option<([usize; 3], ArrayD<f32>)>,
}

impl<'a> Transformer<'a> {
    pub(super) fn new(session: Session, config: &'a DitConfig) -> Self {
        Self { session, config, positions: None }
    }

    /// The prediction for latents `[batch, frames, channels, height, width]`, text embeddings `[batch, tokens, width]` and a
    /// timestep; shaped as the latents.
    ///
    /// # Errors
    /// Latents that are not whole patches, or a failure of the runtime.
    #[allow(clippy::cast_precision_loss)] // Timesteps are below 2^24.
    pub fn predict(
        &mut self,
        latents: &ArrayD<f32>,
        text: &ArrayD<f32>,
        timestep: i64,
    ) -> Result<ArrayD<f32>, PipelineError> {
        let patch = self.config.patch_size;
        let wrong = || PipelineError::Shape {
            name: "hidden_states".into(),
            expected: format!(
                "[batch, frames, {}, height, width] in whole patches of {patch}",
                self.config.in_channels
            ),
            found: latents.shape().to_vec(),
        };
        let &[batch @ (1..), frames, channels, height, width] = latents.shape() else { return Err(wrong()) };
        if channels != self.config.in_channels || height % patch != 0 || width % patch != 0 {
            return Err(wrong());
        }
        let embedding = self.config.text_embed_dim;
        if !matches!(text.shape(), &[b, _, e] if b == batch && e == embedding) {
            let (name, expected) = ("encoder_hidden_states".into(), format!("[{batch}, tokens, {embedding}]"));
            return Err(PipelineError::Shape { name, expected, found: text.shape().to_vec() });
        }
        let grid = [frames, height / patch, width / patch];
        let positions = match self.positions.take() {
            Some((made_for, table)) if made_for == grid => table,
            _ => self.positions_of(grid)?,
        };
        let timestep = arr1(&[timestep as f32]).into_dyn();
        let inputs = [
            ("hidden_states", Input::Float(latents.view())),
            ("encoder_hidden_states", Input::Float(text.view())),
            ("timestep", Input::Float(timestep.view())),
            ("positions", Input::Float(positions.view())),
        ];
        let sample = self.session.run(&inputs)?.array("sample")?;
        self.positions = Some((grid, positions));
        if sample.shape() != latents.shape() {
            let (name, expected) = ("sample".into(), format!("{:?}", latents.shape()));
            return Err(PipelineError::Shape { name, expected, found: sample.shape().to_vec() });
        }
        Ok(sample)
    }

    fn positions_of(&self, grid: [usize; 3]) -> Result<ArrayD<f32>, PipelineError> {
        let width = self.config.width();
        let (space, time) = (self.config.spatial_interpolation_scale, self.config.temporal_interpolation_scale);
        let table = sincos_3d(width, grid, space, time)?;
        Ok(Array2::from_shape_fn((table.len() / width, width), |(row, i)| table[row * width + i]).into_dyn())
    }
}
