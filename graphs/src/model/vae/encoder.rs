//! Pixels to the distribution of latents (`CogVideoXEncoder3D`).

use super::{NORM_EPSILON, Part, causal_conv, channels, conv};
use crate::config::VaeConfig;
use crate::scope::Scope;
use crate::{BuildError, DType, Dim, Graph, Value, VideoDims, Weights, dims};

/// The graph `sample` `[batch, in_channels, frames, height, width]` in -1..1 → `moments`
/// `[batch, 2 * latent_channels, frames, height, width]`, means and then log variances, both `f32`, with the convolution
/// caches as outputs `<layer>.cache` and, in [`Part::Next`], as inputs `<layer>.past`, in the compute precision.
///
/// # Errors
/// Tensors missing, unexpected or of the wrong shape.
pub fn encoder(cfg: &VaeConfig, weights: &Weights, video: &VideoDims, part: Part) -> Result<Graph, BuildError> {
    let decoder = |name: &str| name.starts_with("decoder.");
    crate::scope::build("vae", weights, decoder, |s| {
        let VideoDims { frames, height, width } = video;
        let shape = dims![&Dim::named("batch"), cfg.in_channels, frames, height, width];
        let x = s.graph().input("sample", DType::F32, shape).narrow();
        s.graph().output("moments", encode(&s.at("encoder"), cfg, part, x));
    })
}

fn encode<'g>(s: &Scope<'g>, cfg: &VaeConfig, part: Part, x: Value<'g>) -> Value<'g> {
    let widths = &cfg.block_out_channels;
    let mut x = causal_conv(&s.at("conv_in"), part, x, widths[0]);
    let time_halvings = cfg.temporal_compression_ratio.ilog2() as usize;
    for (i, &width) in widths.iter().enumerate() {
        let down = s.at(format!("down_blocks.{i}"));
        for layer in 0..cfg.layers_per_block {
            x = resnet(&down.at(format!("resnets.{layer}")), cfg, part, x, width);
        }
        if i + 1 < widths.len() {
            x = downsample(&down.at("downsamplers.0"), x, i < time_halvings);
        }
    }
    let last = channels(x);
    for i in 0..2 {
        x = resnet(&s.at(format!("mid_block.resnets.{i}")), cfg, part, x, last);
    }
    let x = norm(&s.at("norm_out"), cfg, x, NORM_EPSILON).silu();
    causal_conv(&s.at("conv_out"), part, x, 2 * cfg.latent_channels)
}

fn resnet<'g>(s: &Scope<'g>, cfg: &VaeConfig, part: Part, x: Value<'g>, width: usize) -> Value<'g> {
    let h = norm(&s.at("norm1"), cfg, x, cfg.norm_eps).silu();
    let h = causal_conv(&s.at("conv1"), part, h, width);
    let h = norm(&s.at("norm2"), cfg, h, cfg.norm_eps).silu();
    let h = causal_conv(&s.at("conv2"), part, h, width);
    h + if channels(x) == width { x } else { conv(&s.at("conv_shortcut"), x, width, [1; 3]) }
}

fn norm<'g>(s: &Scope<'g>, cfg: &VaeConfig, x: Value<'g>, epsilon: f32) -> Value<'g> {
    let width = channels(x);
    let [weight, bias] = ["weight", "bias"].map(|name| s.weight_as(name, &[width], &[width, 1, 1, 1]));
    x.group_norm(cfg.norm_num_groups, epsilon) * weight + bias
}

/// `CogVideoXDownsample3D`: if `in_time` half the frames, then a 2D convolution that halves rows and columns.
fn downsample<'g>(s: &Scope<'g>, x: Value<'g>, in_time: bool) -> Value<'g> {
    let x = if in_time { halve_frames(x) } else { x };
    let (s, width) = (s.at("conv"), channels(x));
    let weight = s.weight_as("weight", &[width, width, 3, 3], &[width, width, 1, 3, 3]);
    x.conv(weight, Some(s.weight("bias", &[width])), [1, 2, 2], [[0, 0], [0, 1], [0, 1]])
}

/// Means of pairs of frames; of an odd number of frames, the first stands alone.
fn halve_frames(x: Value<'_>) -> Value<'_> {
    let g = x.graph;
    let before = x.dim(2);
    let (left, right) = if let Some(n) = before.fixed() {
        let odd = n % 2;
        let frames = |offset: usize| -> Vec<_> {
            (0..n.div_ceil(2))
                .map(|i| i64::try_from((2 * i + offset).saturating_sub(odd)).unwrap_or(i64::MAX))
                .collect()
        };
        let index = |frames: Vec<i64>| g.integers(&[frames.len()], &frames);
        (index(frames(0)), index(frames(1)))
    } else {
        let after = Dim::named(&format!("halve({before})"));
        let odd = g.size(&before).modulo(2);
        let twice = g.range(&after, (g.size(&before) + odd) / 2.0) * 2.0 - odd;
        (twice.max(0), twice + 1.0)
    };
    (x.gather(2, left) + x.gather(2, right)) * 0.5
}
