//! Latents to pixels (`CogVideoXDecoder3D`).

use super::{NORM_EPSILON, Part, causal_conv, channels, conv};
use crate::config::VaeConfig;
use crate::scope::Scope;
use crate::{BuildError, DType, Dim, Graph, Value, VideoDims, Weights, dims};

/// The graph `latents` `[batch, latent_channels, frames, height, width]` → `sample`
/// `[batch, out_channels, frames, height, width]` in pixels, both `f32`, with the convolution caches as outputs
/// `<layer>.cache` and, in [`Part::Next`], as inputs `<layer>.past`, in the compute precision.
///
/// # Errors
/// Tensors missing, unexpected or of the wrong shape.
pub fn decoder(cfg: &VaeConfig, weights: &Weights, latents: &VideoDims, part: Part) -> Result<Graph, BuildError> {
    let encoder = |name: &str| name.starts_with("encoder.");
    crate::scope::build("vae", weights, encoder, |s| {
        let VideoDims { frames, height, width } = latents;
        let shape = dims![&Dim::named("batch"), cfg.latent_channels, frames, height, width];
        let z = s.graph().input("latents", DType::F32, shape).narrow();
        let decoder = Decoder { cfg, part, z };
        s.graph().output("sample", decoder.decode(&s.at("decoder")));
    })
}

/// Features and when they happen: for each frame, the latent frame it stems from.
#[derive(Clone, Copy)]
struct Frames<'g> {
    /// `[batch, channels, frames, height, width]`.
    x: Value<'g>,
    /// Factor from latent to feature height and width.
    scale: usize,
    /// i64 `[frames]`; absent while features have the latents' frames.
    latent_frame: Option<Value<'g>>,
}

struct Decoder<'a, 'g> {
    cfg: &'a VaeConfig,
    part: Part,
    /// Latents, `[batch, latent channels, latent frames, height, width]`: they condition every norm.
    z: Value<'g>,
}

impl<'g> Decoder<'_, 'g> {
    fn decode(&self, s: &Scope<'g>) -> Value<'g> {
        let cfg = self.cfg;
        let widths: Vec<_> = cfg.block_out_channels.iter().rev().copied().collect();
        let x = causal_conv(&s.at("conv_in"), self.part, self.z, widths[0]);
        let mut f = Frames { x, scale: 1, latent_frame: None };
        for i in 0..2 {
            f = self.resnet(&s.at(format!("mid_block.resnets.{i}")), f, widths[0]);
        }
        let time_doublings = cfg.temporal_compression_ratio.ilog2() as usize;
        for (i, &width) in widths.iter().enumerate() {
            let up = s.at(format!("up_blocks.{i}"));
            for layer in 0..=cfg.layers_per_block {
                f = self.resnet(&up.at(format!("resnets.{layer}")), f, width);
            }
            if i + 1 < widths.len() {
                f = upsample(&up.at("upsamplers.0"), f, width, i < time_doublings);
            }
        }
        let x = self.spatial_norm(&s.at("norm_out"), f).silu();
        causal_conv(&s.at("conv_out"), self.part, x, cfg.out_channels)
    }

    fn resnet(&self, s: &Scope<'g>, f: Frames<'g>, width: usize) -> Frames<'g> {
        let h = self.spatial_norm(&s.at("norm1"), f).silu();
        let h = causal_conv(&s.at("conv1"), self.part, h, width);
        let h = self.spatial_norm(&s.at("norm2"), Frames { x: h, ..f }).silu();
        let h = causal_conv(&s.at("conv2"), self.part, h, width);
        let shortcut = if channels(f.x) == width { f.x } else { conv(&s.at("conv_shortcut"), f.x, width, [1; 3]) };
        Frames { x: h + shortcut, ..f }
    }

    /// `CogVideoXSpatialNorm3D`: group norm, scaled and shifted by two 1x1x1 convolutions of the latents.
    ///
    /// These convolutions commute with nearest-neighbour upsampling, so they run at latent resolution. Scale and shift are
    /// widened along columns only and broadcast along rows.
    fn spatial_norm(&self, s: &Scope<'g>, f: Frames<'g>) -> Value<'g> {
        let width = channels(f.x);
        let norm = s.at("norm_layer");
        let [weight, bias] = ["weight", "bias"].map(|name| norm.weight_as(name, &[width], &[width, 1, 1, 1]));
        drop(norm);
        let [scale, shift] = ["conv_y", "conv_b"].map(|name| conv(&s.at(name).at("conv"), self.z, width, [1; 3]));
        // (w n + b) y + c = (w y) n + (b y + c)
        let widened = [weight * scale, bias * scale + shift].map(|y| {
            let y = f.latent_frame.map_or(y, |index| y.gather(2, index));
            let [batch, _, frames, rows, columns] = [0, 1, 2, 3, 4].map(|axis| y.dim(axis));
            let rows = Dim::product([&frames, &rows]);
            let wide = y.reshape(dims![&batch, width, &rows, &columns]).upsample([1, 1, 1, f.scale]);
            wide.reshape(dims![&batch, width, &rows, 1, &(&columns * f.scale)])
        });
        let n = f.x.group_norm(self.cfg.norm_num_groups, NORM_EPSILON);
        let [batch, _, frames, rows, columns] = [0, 1, 2, 3, 4].map(|axis| n.dim(axis));
        let latent_rows = &Dim::product([&frames, &rows]) / f.scale;
        let n = n.reshape(dims![&batch, width, &latent_rows, f.scale, &columns]);
        (n * widened[0] + widened[1]).reshape(f.x.shape())
    }
}

/// `CogVideoXUpsample3D`: twice the rows and columns, if `in_time` twice the frames, then a 2D convolution.
///
/// The convolution sees each frame alone, so frames are doubled after it.
fn upsample<'g>(s: &Scope<'g>, f: Frames<'g>, width: usize, in_time: bool) -> Frames<'g> {
    let s = s.at("conv");
    let weight = s.weight_as("weight", &[width, width, 3, 3], &[width, width, 1, 3, 3]);
    let x =
        f.x.upsample([1, 1, 1, 2, 2]).conv(weight, Some(s.weight("bias", &[width])), [1; 3], [[0; 2], [1; 2], [1; 2]]);
    let f = Frames { x, scale: 2 * f.scale, ..f };
    if in_time { double_frames(f) } else { f }
}

/// Each frame twice; of an odd number of frames, the first only once.
fn double_frames(f: Frames<'_>) -> Frames<'_> {
    let g = f.x.graph;
    let before = f.x.dim(2);
    let (size, index) = if let Some(n) = before.fixed() {
        let odd = n % 2;
        let source: Vec<_> = (0..2 * n - odd).map(|i| i64::try_from((i + odd) >> 1).unwrap_or(i64::MAX)).collect();
        (Dim::Fixed(source.len()), g.integers(&[source.len()], &source))
    } else {
        let after = Dim::named(&format!("double({before})"));
        let odd = g.size(&before).modulo(2);
        let frame = g.range(&after, g.size(&before) * 2.0 - odd);
        (after, (frame + odd) / 2.0)
    };
    debug_assert_eq!(index.dim(0), size);
    let latent_frame = f.latent_frame.map_or(index, |frame| frame.gather(0, index));
    Frames { x: f.x.gather(2, index), latent_frame: Some(latent_frame), ..f }
}
