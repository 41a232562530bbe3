//! The transformer, loaded: predictions from latents, text and timestep.

use cogvx_graphs::config::DitConfig;
use ndarray::{Array2, ArrayD, ArrayViewD, arr1};

use super::resident::Fed;
use super::{Loaded, PipelineError};
use crate::positions::{RotaryGrid, rotary_3d, sincos_3d};
use crate::runtime::{Input, Outputs, Runtime, Session};

/// The offset that 1.5's image-to-video pipeline gives its model.
const OFS: f32 = 2.0;
/// The graph's output that is the prediction.
pub(super) const SAMPLE: &str = "sample";

/// A loaded transformer.
pub struct Transformer<'a> {
    graph: Loaded,
    config: &'a DitConfig,
    /// Where latents stay on the device, what makes the graphs for that.
    resident: Option<&'a Runtime>,
    /// Position tables of the last size.
    positions: Option<Positions>,
    /// What stays on the device from walk to walk.
    kept: Option<Box<Fed>>,
}

/// Position tables and the size they were made for.
struct Positions {
    /// Patches `[frames, rows, columns]`.
    grid: [usize; 3],
    /// Text tokens.
    text: usize,
    /// The graph's inputs by name.
    tables: Vec<(&'static str, ArrayD<f32>)>,
}

impl<'a> Transformer<'a> {
    pub(crate) fn new(graph: Loaded, config: &'a DitConfig, resident: Option<&'a Runtime>) -> Self {
        Self { graph, config, resident, positions: None, kept: None }
    }

    pub(super) fn config(&self) -> &DitConfig {
        self.config
    }

    /// Where latents stay on the device, what makes the graphs for that, the graph, and what stays there from walk to walk.
    pub(super) fn resident(&mut self) -> Option<(&'a Runtime, &mut Session, &mut Option<Box<Fed>>)> {
        match (self.resident, &mut self.graph) {
            (Some(runtime), Loaded::Whole(session)) => Some((runtime, session, &mut self.kept)),
            _ => None,
        }
    }

    /// The graph.
    pub(crate) fn into_graph(self) -> Loaded {
        self.graph
    }

    /// The prediction for latents `[batch, frames, channels, height, width]`, text embeddings `[batch, tokens, width]` and a
    /// timestep; shaped as the latents.
    ///
    /// # Errors
    /// Latents that are not whole patches, or a failure of the runtime.
    pub fn predict(
        &mut self,
        latents: &ArrayD<f32>,
        text: &ArrayD<f32>,
        timestep: i64,
    ) -> Result<ArrayD<f32>, PipelineError> {
        Ok(self.run(&latents.view(), &text.view(), timestep)?.array(SAMPLE)?)
    }

    /// How long ONNX Runtime has run the graph, all predictions together.
    #[must_use]
    pub fn busy(&self) -> std::time::Duration {
        self.graph.busy()
    }

    /// All outputs of the graph, of which [`SAMPLE`] is the prediction; a probed graph may have none.
    #[allow(clippy::cast_precision_loss)] // Timesteps are below 2^24.
    pub(crate) fn run(
        &mut self,
        latents: &ArrayViewD<'_, f32>,
        text: &ArrayViewD<'_, f32>,
        timestep: i64,
    ) -> Result<Outputs, PipelineError> {
        let positions = self.positions_of(latents, text)?;
        let (timestep, ofs) = (arr1(&[timestep as f32]).into_dyn(), arr1(&[OFS]).into_dyn());
        let mut inputs = vec![
            ("hidden_states", Input::Float(latents.view())),
            ("encoder_hidden_states", Input::Float(text.view())),
            ("timestep", Input::Float(timestep.view())),
        ];
        if self.config.ofs_embed_dim.is_some() {
            inputs.push(("ofs", Input::Float(ofs.view())));
        }
        inputs.extend(positions.tables.iter().map(|(name, table)| (*name, Input::Float(table.view()))));
        let outputs = self.graph.run(&inputs)?;
        self.positions = Some(positions);
        let mut expected = latents.shape().to_vec();
        expected[2] = self.config.out_channels;
        let found = match outputs.names().find(|name| *name == SAMPLE) {
            Some(sample) => outputs.view(sample)?.shape().to_vec(),
            None => expected.clone(),
        };
        if found != expected {
            let (name, expected) = (SAMPLE.into(), format!("{expected:?}"));
            return Err(PipelineError::Shape { name, expected, found });
        }
        Ok(outputs)
    }

    /// What the graph is fed with in every step of a walk, but for latents and timestep.
    pub(super) fn numbers(
        &mut self,
        latents: &ArrayD<f32>,
        text: &ArrayD<f32>,
    ) -> Result<Vec<(&'static str, ArrayD<f32>)>, PipelineError> {
        let positions = self.positions_of(&latents.view(), &text.view())?;
        let mut numbers = positions.tables.clone();
        self.positions = Some(positions);
        numbers.push(("encoder_hidden_states", text.clone()));
        if self.config.ofs_embed_dim.is_some() {
            numbers.push(("ofs", arr1(&[OFS]).into_dyn()));
        }
        Ok(numbers)
    }

    /// Position tables for latents and text, found to fit the model; those of the last size are taken from where they were left.
    fn positions_of(
        &mut self,
        latents: &ArrayViewD<'_, f32>,
        text: &ArrayViewD<'_, f32>,
    ) -> Result<Positions, PipelineError> {
        let grid = self.grid(latents)?;
        let (batch, embedding) = (latents.shape()[0], self.config.text_embed_dim);
        let &[_, tokens, _] = text.shape() else { return Err(wrong_text(text, batch, embedding)) };
        if text.shape() != [batch, tokens, embedding] {
            return Err(wrong_text(text, batch, embedding));
        }
        Ok(match self.positions.take() {
            Some(made) if made.grid == grid && made.text == tokens => made,
            _ => Positions { grid, text: tokens, tables: self.tables(grid, tokens)? },
        })
    }

    /// Patches `[frames, rows, columns]` of latents.
    fn grid(&self, latents: &ArrayViewD<'_, f32>) -> Result<[usize; 3], PipelineError> {
        let (p, pt) = (self.config.patch_size, self.config.patch_size_t.unwrap_or(1));
        let wrong = || PipelineError::Shape {
            name: "hidden_states".into(),
            expected: format!("[batch, frames, {}, height, width] in patches of {pt}x{p}x{p}", self.config.in_channels),
            found: latents.shape().to_vec(),
        };
        let learned = self.config.use_learned_positional_embeddings.then(|| self.config.sample_grid());
        let &[(1..), frames, channels, height, width] = latents.shape() else { return Err(wrong()) };
        let whole = frames % pt == 0 && height % p == 0 && width % p == 0;
        if !whole || channels != self.config.in_channels {
            return Err(wrong());
        }
        let grid = [frames / pt, height / p, width / p];
        // diffusers adds sine positions where the number of frames is not the learned one; the model never saw those.
        if let Some(learned) = learned.filter(|learned| *learned != grid) {
            let expected = format!("latents of {learned:?} patches, the size of the learned positions");
            return Err(PipelineError::Shape { name: "hidden_states".into(), expected, found: grid.to_vec() });
        }
        Ok(grid)
    }

    /// The graph's position inputs.
    fn tables(&self, grid: [usize; 3], text: usize) -> Result<Vec<(&'static str, ArrayD<f32>)>, PipelineError> {
        let config = self.config;
        if !config.use_rotary_positional_embeddings {
            let (space, time) = (config.spatial_interpolation_scale, config.temporal_interpolation_scale);
            let table = sincos_3d(config.width(), grid, space, time)?;
            return Ok(vec![("positions", rows(&table, config.width()))]);
        }
        let base = [config.sample_height / config.patch_size, config.sample_width / config.patch_size];
        let numbering = match config.patch_size_t {
            None => RotaryGrid::Fitted { base },
            Some(_) => RotaryGrid::Counted { base },
        };
        let pairs = config.attention_head_dim / 2;
        let [cos, sin] = rotary_3d(config.attention_head_dim, grid, numbering)?;
        // Text tokens come first and are not turned.
        let table = |text_value: f32, video: &[f32]| rows(&[&vec![text_value; text * pairs], video].concat(), pairs);
        Ok(vec![("rotary_cos", table(1.0, &cos)), ("rotary_sin", table(0.0, &sin))])
    }
}

/// Values as rows of `width`.
fn rows(values: &[f32], width: usize) -> ArrayD<f32> {
    Array2::from_shape_fn((values.len() / width, width), |(row, i)| values[row * width + i]).into_dyn()
}

fn wrong_text(text: &ArrayViewD<'_, f32>, batch: usize, width: usize) -> PipelineError {
    let (name, expected) = ("encoder_hidden_states".into(), format!("[{batch}, tokens, {width}]"));
    PipelineError::Shape { name, expected, found: text.shape().to_vec() }
}
