//! The T5 encoder (transformers `models/t5/modeling_t5.py`), without attention mask, as CogVideoX's pipelines run it.

use crate::config::T5Config;
use crate::scope::Scope;
use crate::{BuildError, DType, Dim, Graph, Value, Weights, dims};

/// The graph `input_ids` i64 `[batch, tokens]` → `last_hidden_state` `[batch, tokens, d_model]`.
///
/// # Errors
/// Tensors missing, unexpected or of the wrong shape.
pub fn build(cfg: &T5Config, weights: &Weights, tokens: &Dim) -> Result<Graph, BuildError> {
    // The table is stored under one or both of its two names.
    let table = ["shared", "encoder.embed_tokens"];
    let is_table = |name: &str| name.strip_suffix(".weight").is_some_and(|name| table.contains(&name));
    crate::scope::build("text_encoder", weights, is_table, |s| {
        let ids = s.graph().input("input_ids", DType::I64, dims![&Dim::named("batch"), tokens]);
        let table = if s.at(table[0]).has("weight") { table[0] } else { table[1] };
        let x = s.at(table).weight("weight", &[cfg.vocab_size, cfg.d_model]).gather(0, ids).wide();
        s.graph().output("last_hidden_state", encoder(&s.at("encoder"), cfg, x, tokens));
    })
}

/// The stack of blocks; the residual stream stays wide, for the feed-forward outputs exceed `float16`'s range.
fn encoder<'g>(s: &Scope<'g>, cfg: &T5Config, mut x: Value<'g>, tokens: &Dim) -> Value<'g> {
    let bias = relative_bias(&s.at("block.0.layer.0.SelfAttention"), cfg, tokens);
    for i in 0..cfg.num_layers {
        let attn = s.at(format!("block.{i}.layer.0"));
        x = x + self_attention(&attn.at("SelfAttention"), cfg, norm(&attn, "layer_norm", cfg, x).narrow(), bias);
        drop(attn);
        let ff = s.at(format!("block.{i}.layer.1"));
        x = x + feed_forward(&ff.at("DenseReluDense"), cfg, norm(&ff, "layer_norm", cfg, x).narrow());
    }
    norm(s, "final_layer_norm", cfg, x).narrow()
}

fn norm<'g>(s: &Scope<'g>, name: &str, cfg: &T5Config, x: Value<'g>) -> Value<'g> {
    let s = s.at(name);
    x.rms_norm(s.weight("weight", &[cfg.d_model]), cfg.layer_norm_epsilon)
}

/// Attention with relative positions and, as everywhere in T5, unscaled scores.
fn self_attention<'g>(s: &Scope<'g>, cfg: &T5Config, x: Value<'g>, bias: Value<'g>) -> Value<'g> {
    let [q, k, v] = ["q", "k", "v"].map(|name| s.linear(name, x, cfg.inner(), false));
    s.linear("o", q.attention(k, v, Some(bias), cfg.num_heads, 1.0), cfg.d_model, false)
}

fn feed_forward<'g>(s: &Scope<'g>, cfg: &T5Config, x: Value<'g>) -> Value<'g> {
    let gate = s.linear("wi_0", x, cfg.d_ff, false).gelu();
    let up = s.linear("wi_1", x, cfg.d_ff, false);
    s.linear("wo", (gate * up).wide(), cfg.d_model, false)
}

/// The bias `[1, heads, tokens, tokens]` of key position minus query position, learned per bucket of distances.
fn relative_bias<'g>(s: &Scope<'g>, cfg: &T5Config, tokens: &Dim) -> Value<'g> {
    let s = s.at("relative_attention_bias");
    let g = s.graph();
    let position = g.range(tokens, g.size(tokens));
    let distance = position.reshape(dims![1, tokens]) - position.reshape(dims![tokens, 1]);
    // From the largest distance on, all positions share a bucket.
    let far = i64::try_from(cfg.relative_attention_max_distance).unwrap_or(i64::MAX);
    let buckets: Vec<_> = (-far..=far).map(|d| bucket(d, cfg)).collect();
    let bucket =
        g.integers(&[buckets.len()], &buckets).gather(0, distance.max(-far).min(far) + g.integers(&[], &[far]));
    let table = s.weight("weight", &[cfg.relative_attention_num_buckets, cfg.num_heads]);
    table.gather(0, bucket).transpose([2, 0, 1]).reshape(dims![1, cfg.num_heads, tokens, tokens])
}

/// `T5Attention._relative_position_bucket`, both directions: half of the buckets for each sign; of these, half for exact
/// distances and half spaced by logarithm.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_possible_wrap)] // Distances and buckets are small.
fn bucket(distance: i64, cfg: &T5Config) -> i64 {
    let half = cfg.relative_attention_num_buckets as i64 / 2;
    let exact = half / 2;
    let offset = if distance > 0 { half } else { 0 };
    let n = distance.abs();
    if n < exact {
        return offset + n;
    }
    let ratio =
        (n as f32 / exact as f32).ln() / (cfg.relative_attention_max_distance as f64 / exact as f64).ln() as f32;
    offset + (exact + (ratio * (half - exact) as f32) as i64).min(half - 1)
}
