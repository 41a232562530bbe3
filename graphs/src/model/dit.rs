//! The diffusion transformer (diffusers `models/transformers/cogvideox_transformer_3d.py`).

use crate::config::DitConfig;
use crate::scope::Scope;
use crate::{BuildError, DType, Dim, Graph, Value, VideoDims, Weights, dims};

/// Epsilon of the layer norms on queries and keys; fixed in `CogVideoXBlock`.
const QK_NORM_EPSILON: f32 = 1e-6;

/// Most that a feed-forward may be wide inside.
const MAX_INNER_WIDTH: usize = 1 << 20;

/// The two streams of one sample, each `[batch, tokens, width]`.
#[derive(Clone, Copy)]
pub struct Tokens<'g> {
    /// Text.
    pub text: Value<'g>,
    /// Video patches, frame by frame, row by row.
    pub video: Value<'g>,
}

impl<'g> Tokens<'g> {
    /// What `f` makes of both streams as one sequence, text first.
    fn joint(self, f: impl FnOnce(Value<'g>) -> Value<'g>) -> Self {
        let (text, video) = (self.text.dim(1), self.video.dim(1));
        let y = f(self.text.graph.concat(1, &[self.text, self.video]));
        Self { text: y.slice(1, 0, &text), video: y.slice(1, &text, &video) }
    }

    fn zip(self, other: Self, f: impl Fn(Value<'g>, Value<'g>) -> Value<'g>) -> Self {
        Self { text: f(self.text, other.text), video: f(self.video, other.video) }
    }
}

impl std::ops::Add for Tokens<'_> {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
}

impl std::ops::Mul for Tokens<'_> {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
}

/// The graph of one prediction. `latents` are latent sizes.
///
/// | input | shape |
/// |---|---|
/// | `hidden_states` | `[batch, frames, in_channels, height, width]` |
/// | `encoder_hidden_states` | `[batch, tokens, text_embed_dim]` |
/// | `timestep` | `[1]`, one for the whole batch |
/// | `positions`, for sine positions | `[video tokens, width]` |
/// | `rotary_cos`, `rotary_sin`, for rotary positions | `[text and video tokens, head width / 2]`, 1 and 0 for text |
/// | `ofs`, where the model has its embedding | `[1]` |
///
/// and `sample` `[batch, frames, out_channels, height, width]`, all `f32`.
///
/// # Errors
/// Tensors missing, unexpected or of the wrong shape.
pub fn build(cfg: &DitConfig, weights: &Weights, latents: &VideoDims, tokens: &Dim) -> Result<Graph, BuildError> {
    // Sine positions are computed by the runtime for each size, whether or not the checkpoint stores a table. A table beside
    // rotary positions is a learned one, which the configuration then denies.
    let ignored = |name: &str| name == "patch_embed.pos_embedding" && !cfg.use_rotary_positional_embeddings;
    crate::scope::build("transformer", weights, ignored, |s| {
        let VideoDims { frames, height, width } = latents;
        let (g, batch) = (s.graph(), &Dim::named("batch"));
        let latents = g.input("hidden_states", DType::F32, dims![batch, frames, cfg.in_channels, height, width]);
        let text = g.input("encoder_hidden_states", DType::F32, dims![batch, tokens, cfg.text_embed_dim]);
        // Every use of the time embedding starts with this SiLU.
        let temb = time_embedding(s, cfg).silu();

        let (mut x, grid) = patch_embedding(&s.at("patch_embed"), cfg, text.narrow(), latents.narrow());
        let rotary = cfg.use_rotary_positional_embeddings.then(|| rotary_tables(s, cfg, x));
        let last = cfg.num_layers - 1;
        for i in 0..last {
            x = block(&s.at(format!("transformer_blocks.{i}")), cfg, x, temb, rotary);
        }
        let video = last_block(&s.at(format!("transformer_blocks.{last}")), cfg, x, temb, rotary);
        g.output("sample", head(s, cfg, video, temb, &grid));
    })
}

/// Cosines and sines of the rotary positions, `[tokens, head width / 2]`.
type Rotary<'g> = [Value<'g>; 2];

fn rotary_tables<'g>(s: &Scope<'g>, cfg: &DitConfig, x: Tokens<'g>) -> Rotary<'g> {
    let tokens = &x.text.dim(1) + &x.video.dim(1);
    let shape = dims![&tokens, cfg.attention_head_dim / 2];
    ["rotary_cos", "rotary_sin"].map(|name| s.graph().input(name, DType::F32, shape.clone()).narrow())
}

/// The timestep and, in 1.5's image-to-video model, the offset, embedded: `[1, time_embed_dim]`.
fn time_embedding<'g>(s: &Scope<'g>, cfg: &DitConfig) -> Value<'g> {
    let temb = number_embedding(s, cfg, "timestep", "time_embedding", cfg.width(), cfg.time_embed_dim);
    match cfg.ofs_embed_dim {
        None => temb,
        Some(width) => temb + number_embedding(s, cfg, "ofs", "ofs_embedding", width, width),
    }
}

/// Sinusoids of the input `name`, a number (diffusers `get_timestep_embedding`), then two layers: `[1, out]`.
fn number_embedding<'g>(
    s: &Scope<'g>,
    cfg: &DitConfig,
    name: &str,
    layers: &str,
    waves: usize,
    out: usize,
) -> Value<'g> {
    let half = waves / 2;
    let number = s.graph().input(name, DType::F32, dims![1]);
    let angle = number.reshape(dims![1, 1]) * s.graph().floats(&[1, half], &frequencies(half, cfg.freq_shift));
    let waves = if cfg.flip_sin_to_cos { [angle.cos(), angle.sin()] } else { [angle.sin(), angle.cos()] };
    let s = s.at(layers);
    let x = s.linear("linear_1", s.graph().concat(1, &waves).narrow(), out, true);
    s.linear("linear_2", x.silu(), out, true)
}

/// Of the sinusoids that a timestep is embedded by: `10000^(-i / (half - shift))`, rounded where torch rounds.
#[must_use]
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)] // Widths are far below 2^24.
pub fn frequencies(half: usize, shift: usize) -> Vec<f32> {
    let log_period = -(10_000_f64.ln()) as f32;
    let exponent = |i: usize| log_period * i as f32 / (half - shift) as f32;
    (0..half).map(|i| f64::from(exponent(i)).exp() as f32).collect()
}

/// Text and latents as tokens of the model's width, and the grid `[frames, rows, columns]` of the patches.
fn patch_embedding<'g>(s: &Scope<'g>, cfg: &DitConfig, text: Value<'g>, latents: Value<'g>) -> (Tokens<'g>, [Dim; 3]) {
    let (p, pt, width) = (cfg.patch_size, cfg.patch_size_t.unwrap_or(1), cfg.width());
    // CogVideoX 1.0 stores the projection as a 2D convolution, 1.5 as a linear layer: both are this 3D convolution.
    let stored = match cfg.patch_size_t {
        None => vec![width, cfg.in_channels, p, p],
        Some(_) => vec![width, cfg.in_channels * pt * p * p],
    };
    let proj = s.at("proj");
    let weight = proj.weight_as("weight", &stored, &[width, cfg.in_channels, pt, p, p]);
    // 1.5's linear layer has a bias whatever `patch_bias` says.
    let bias = (cfg.patch_bias || cfg.patch_size_t.is_some()).then(|| proj.weight("bias", &[width]));
    let patches = latents.transpose([0, 2, 1, 3, 4]).conv(weight, bias, [pt, p, p], [[0; 2]; 3]);
    drop(proj);
    let grid = [patches.dim(2), patches.dim(3), patches.dim(4)];
    let video_tokens = &Dim::product(&grid);
    let video = patches.reshape(dims![&patches.dim(0), width, video_tokens]).transpose([0, 2, 1]);
    let x = Tokens { text: s.linear("text_proj", text, width, true), video };
    (add_positions(s, cfg, x), grid)
}

/// Sine positions are an input, for the video alone; learned ones a weight of one size, for text and video.
fn add_positions<'g>(s: &Scope<'g>, cfg: &DitConfig, x: Tokens<'g>) -> Tokens<'g> {
    let (text, video, width) = (cfg.max_text_seq_length, x.video.dim(1), cfg.width());
    if cfg.use_learned_positional_embeddings {
        let patches = cfg.sample_grid().iter().product::<usize>();
        let table = s.weight("pos_embedding", &[1, text + patches, width]);
        return x + Tokens { text: table.slice(1, 0, text), video: table.slice(1, text, patches) };
    }
    if cfg.use_rotary_positional_embeddings {
        return x;
    }
    let positions = s.graph().input("positions", DType::F32, dims![&video, width]).narrow();
    Tokens { video: x.video + positions, ..x }
}

/// One expert block: AdaLN-Zero, joint attention, AdaLN-Zero, joint feed-forward.
fn block<'g>(s: &Scope<'g>, cfg: &DitConfig, x: Tokens<'g>, temb: Value<'g>, rotary: Option<Rotary<'g>>) -> Tokens<'g> {
    let (h, gate) = ada_norm(&s.at("norm1"), cfg, x, temb);
    let x = x + gate * h.joint(|h| attention(&s.at("attn1"), cfg, h, rotary, None));
    let (h, gate) = ada_norm(&s.at("norm2"), cfg, x, temb);
    x + gate * h.joint(|h| feed_forward(&s.at("ff"), h))
}

/// The video's tokens after the last block. What becomes of the text there nobody reads: it is only attended to.
fn last_block<'g>(
    s: &Scope<'g>,
    cfg: &DitConfig,
    x: Tokens<'g>,
    temb: Value<'g>,
    rotary: Option<Rotary<'g>>,
) -> Value<'g> {
    let (h, gate) = ada_norm(&s.at("norm1"), cfg, x, temb);
    let joint = s.graph().concat(1, &[h.text, h.video]);
    let y = attention(&s.at("attn1"), cfg, joint, rotary, Some(&(x.text.dim(1), x.video.dim(1))));
    let video = x.video + gate.video * y;
    let (h, gate) = ada_norm(&s.at("norm2"), cfg, Tokens { video, ..x }, temb);
    video + gate.video * feed_forward(&s.at("ff"), h.video)
}

/// `CogVideoXLayerNormZero`: each stream normalized, scaled and shifted by the timestep; and the gates `[width]`.
fn ada_norm<'g>(s: &Scope<'g>, cfg: &DitConfig, x: Tokens<'g>, temb: Value<'g>) -> (Tokens<'g>, Tokens<'g>) {
    let modulation = s.linear("linear", temb, 6 * cfg.width(), true).reshape(dims![6 * cfg.width()]);
    let [shift, scale, gate, text_shift, text_scale, text_gate] = modulation.split(0);
    let norm = s.at("norm");
    let text = modulated_norm(&norm, cfg, x.text, text_scale, text_shift);
    let video = modulated_norm(&norm, cfg, x.video, scale, shift);
    (Tokens { text, video }, Tokens { text: text_gate, video: gate })
}

/// `norm(x) * (1 + scale) + shift` as one layer norm: `(w n + b)(1 + s) + h = w(1 + s) n + (b(1 + s) + h)`.
fn modulated_norm<'g>(s: &Scope<'g>, cfg: &DitConfig, x: Value<'g>, scale: Value<'g>, shift: Value<'g>) -> Value<'g> {
    let scale = scale + 1.0;
    if !cfg.norm_elementwise_affine {
        return x.layer_norm(scale, shift, cfg.norm_eps);
    }
    let [weight, bias] = ["weight", "bias"].map(|name| s.weight(name, &[cfg.width()]));
    x.layer_norm(weight * scale, bias * scale + shift, cfg.norm_eps)
}

/// `only`: the start and number of the tokens that ask; else all of them do.
fn attention<'g>(
    s: &Scope<'g>,
    cfg: &DitConfig,
    x: Value<'g>,
    rotary: Option<Rotary<'g>>,
    only: Option<&(Dim, Dim)>,
) -> Value<'g> {
    let [q, k, v] = ["to_q", "to_k", "to_v"].map(|name| s.linear(name, x, cfg.width(), cfg.attention_bias));
    let asking = |x: Value<'g>, axis| only.map_or(x, |(start, count)| x.slice(axis, start, count));
    // Cut after `to_q`, not before: so it reads what `to_k` and `to_v` do, and that is quantized once.
    let (q, k) = (head_norm(&s.at("norm_q"), cfg, asking(q, 1)), head_norm(&s.at("norm_k"), cfg, k));
    let turn = |x: Value<'g>, [cos, sin]: Rotary<'g>| x.rotary(cos, sin, cfg.num_attention_heads);
    let q = rotary.map_or(q, |tables| turn(q, tables.map(|table| asking(table, 0))));
    let k = rotary.map_or(k, |tables| turn(k, tables));
    #[allow(clippy::cast_precision_loss)] // Head widths are small.
    let scale = 1.0 / (cfg.attention_head_dim as f32).sqrt();
    let y = q.attention(k, v, None, cfg.num_attention_heads, scale);
    s.linear("to_out.0", y, cfg.width(), true)
}

/// Layer norm of each head on its own.
fn head_norm<'g>(s: &Scope<'g>, cfg: &DitConfig, x: Value<'g>) -> Value<'g> {
    let head = cfg.attention_head_dim;
    let heads = x.reshape(dims![&x.dim(0), &x.dim(1), cfg.num_attention_heads, head]);
    heads.layer_norm(s.weight("weight", &[head]), s.weight("bias", &[head]), QK_NORM_EPSILON).reshape(x.shape())
}

fn feed_forward<'g>(s: &Scope<'g>, x: Value<'g>) -> Value<'g> {
    let width = x.dim(2).fixed().unwrap_or(0);
    let inner = s.linear("net.0.proj", x, inner_width(s, width), true).gelu();
    s.linear("net.2", inner, width, true)
}

/// Width between the two layers of a feed-forward, which no configuration tells: four times the model's in all published
/// models, but students have others. It is the one that most of the checkpoint's three tensors have, so that a damaged one
/// is reported and not the others.
fn inner_width(s: &Scope<'_>, width: usize) -> usize {
    let usual = 4 * width;
    let sizes = [("net.0.proj.weight", 0), ("net.0.proj.bias", 0), ("net.2.weight", 1)]
        .map(|(name, axis)| s.shape(name).and_then(|shape| shape.get(axis).copied()));
    let found = sizes.iter().flatten().copied().filter(|size| (1..=MAX_INNER_WIDTH).contains(size));
    let votes = |size: usize| sizes.iter().filter(|&&s| s == Some(size)).count();
    found.filter(|&size| votes(size) > 1).max_by_key(|&size| votes(size)).unwrap_or(usual)
}

/// Final norms and projection, patches put back in their places: `[batch, frames, channels, height, width]`.
fn head<'g>(
    s: &Scope<'g>,
    cfg: &DitConfig,
    x: Value<'g>,
    temb: Value<'g>,
    [frames, rows, columns]: &[Dim; 3],
) -> Value<'g> {
    let (width, p, pt, channels) = (cfg.width(), cfg.patch_size, cfg.patch_size_t.unwrap_or(1), cfg.out_channels);
    let x = final_norm(&s.at("norm_final"), cfg, x);
    let norm_out = s.at("norm_out");
    let modulation = norm_out.linear("linear", temb, 2 * width, true).reshape(dims![2 * width]);
    let [shift, scale] = modulation.split(0);
    let x = modulated_norm(&norm_out.at("norm"), cfg, x, scale, shift);
    drop(norm_out);
    let batch = &x.dim(0);
    s.linear("proj_out", x, channels * pt * p * p, true)
        .reshape(dims![batch, frames, rows, columns, channels, pt, p, p])
        .transpose([0, 1, 5, 4, 2, 6, 3, 7])
        .reshape(dims![batch, &(frames * pt), channels, &(rows * p), &(columns * p)])
}

fn final_norm<'g>(s: &Scope<'g>, cfg: &DitConfig, x: Value<'g>) -> Value<'g> {
    let width = cfg.width();
    let [weight, bias] = if cfg.norm_elementwise_affine {
        ["weight", "bias"].map(|name| s.weight(name, &[width]))
    } else {
        [1.0, 0.0].map(|value| s.graph().floats(&[width], &vec![value; width]))
    };
    x.layer_norm(weight, bias, cfg.norm_eps)
}
