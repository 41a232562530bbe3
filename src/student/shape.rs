//! How large a transformer is, and what sizes a student may have.

use cogvx_graphs::config::DitConfig;
use serde::Serialize;

use super::StudentError;
use crate::synth::transformer_parameters;

/// How far from the parameters asked for an option may be.
const NEAR: f64 = 0.1;
/// The video that options are compared by: frames, rows and columns of latents of 49x480x720.
const LATENTS: [usize; 3] = [13, 60, 90];

/// The sizes of a transformer that a student may have less of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Shape {
    /// Blocks.
    pub layers: usize,
    /// Attention heads; the width of the model is that of all heads together.
    pub heads: usize,
    /// Width between the two layers of a feed-forward.
    pub ffn: usize,
    /// Width of the time embedding.
    pub time_embed: usize,
}

/// A shape and what it takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Costs {
    /// The shape.
    pub shape: Shape,
    /// Numbers in the weights.
    pub parameters: u64,
    /// Floating-point operations of one prediction of a video of 49x480x720, multiplications and additions counted apart;
    /// guidance takes two.
    pub flops: f64,
    /// Bytes of the weights in 16 bits.
    pub bytes: u64,
    /// Whether diffusers loads it: it knows no other feed-forwards than four times as wide as the model.
    pub loads_in_diffusers: bool,
}

/// Of a model like `config` with another shape.
pub(super) fn costs(config: &DitConfig, shape: Shape) -> Result<Costs, StudentError> {
    let config = shape.apply(config);
    let own = transformer_parameters(&config)?;
    // Configurations mean feed-forwards of four times the width; each channel has two weights of that width and a bias.
    let channel = (2 * config.width() + 1) as u64;
    let (usual, layers) = (4 * config.width() as u64 * channel, shape.layers as u64);
    let parameters = own - layers * usual + layers * shape.ffn as u64 * channel;
    let loads_in_diffusers = shape.ffn == 4 * config.width();
    Ok(Costs { shape, parameters, flops: flops(&config, shape), bytes: 2 * parameters, loads_in_diffusers })
}

/// Matrix products of one prediction; the rest is some thousandths of them.
#[allow(clippy::cast_precision_loss)] // An estimate.
fn flops(config: &DitConfig, shape: Shape) -> f64 {
    let (p, pt) = (config.patch_size, config.patch_size_t.unwrap_or(1));
    let [frames, rows, columns] = LATENTS;
    let video = (frames.div_ceil(pt) * (rows / p) * (columns / p)) as f64;
    let text = config.max_text_seq_length as f64;
    let (tokens, width, ffn) = (video + text, config.width() as f64, shape.ffn as f64);
    let weights = 4.0 * width * width + 2.0 * width * ffn;
    let modulation = 12.0 * width * config.time_embed_dim as f64;
    let block = 2.0 * (tokens * weights + modulation) + 4.0 * tokens * tokens * width;
    let patch = (p * p * pt) as f64;
    let ends = video * patch * (config.in_channels + config.out_channels) as f64 + text * config.text_embed_dim as f64;
    shape.layers as f64 * block + 2.0 * width * ends
}

impl Shape {
    /// `config` with these sizes.
    pub(super) fn apply(self, config: &DitConfig) -> DitConfig {
        DitConfig {
            num_layers: self.layers,
            num_attention_heads: self.heads,
            time_embed_dim: self.time_embed,
            ..config.clone()
        }
    }
}

/// What of a shape is given; the rest is open.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Given {
    pub layers: Option<usize>,
    pub heads: Option<usize>,
    pub ffn: Option<usize>,
    /// Feed-forwards of half the width, too.
    pub halves: bool,
    pub time_embed: Option<usize>,
}

/// Shapes of about `target` parameters, the widest first: for each number of heads the number of blocks that comes nearest,
/// where that is within a tenth; the nearest of all where none is. Feed-forwards stay as many times the width as the teacher's,
/// and half as many where that is open.
#[allow(clippy::cast_precision_loss)] // A comparison of sizes.
pub(super) fn options(
    config: &DitConfig,
    teacher: Shape,
    given: Given,
    target: u64,
) -> Result<Vec<Costs>, StudentError> {
    let off = |costs: &Costs| (costs.parameters as f64 / target as f64 - 1.0).abs();
    let mut nearest = vec![];
    for heads in (1..=teacher.heads).rev().filter(|&heads| given.heads.is_none_or(|given| given == heads)) {
        let ffn = given.ffn.unwrap_or((teacher.ffn * heads).div_ceil(teacher.heads));
        let half = Some(ffn / 2).filter(|&half| given.halves && half > 0);
        for ffn in [ffn].into_iter().chain(half) {
            let time_embed = given.time_embed.unwrap_or(teacher.time_embed);
            let shape = |layers| Shape { layers, heads, ffn, time_embed };
            if shape(1).apply(config).width() % 16 != 0 {
                continue; // No positions have such a width.
            }
            // Blocks are all alike.
            let [one, two] = [costs(config, shape(1))?, costs(config, shape(2))?];
            let block = two.parameters - one.parameters;
            let layers = (target.saturating_sub(one.parameters) + block / 2) / block + 1;
            let layers = usize::try_from(layers).unwrap_or(usize::MAX).clamp(1, teacher.layers);
            let shape = shape(given.layers.unwrap_or(layers));
            if shape != teacher {
                nearest.push(costs(config, shape)?);
            }
        }
    }
    let near: Vec<_> = nearest.iter().copied().filter(|costs| off(costs) <= NEAR).collect();
    if !near.is_empty() {
        return Ok(near);
    }
    Ok(nearest.into_iter().min_by(|a, b| off(a).total_cmp(&off(b))).into_iter().collect())
}

/// The option that is made: the deepest, which is what healing made best of where both were tried (`docs/student.md`).
pub(super) fn chosen(options: &[Costs]) -> Option<&Costs> {
    options.iter().max_by_key(|costs| (costs.shape.layers, costs.shape.heads))
}
