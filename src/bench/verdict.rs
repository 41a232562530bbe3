//! Where quantizing pays, by measurement.

use std::collections::BTreeSet;

use serde::Serialize;

use super::groups::{ends_of, has_layers};
use super::{GroupTime, Timing, by_kind};

/// Layers are called slower where they are no more than this much as fast as in float: what is closer is noise, and quantized they
/// are smaller.
const SLOWER: f64 = 0.9;
/// Layers that are this much faster or slower are so whatever else the machine did.
const CLEAR: f64 = 2.0;

/// Said of layers that are better left as they are.
const KEEP_FLOAT: &str = "keep float";
/// Said where there is nothing to choose.
const SAME: &str = "same";

/// A kind of layer in a float bundle and in a quantized one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// The component's name.
    pub component: &'static str,
    /// What the layers are.
    pub group: String,
    /// How many there are.
    pub layers: usize,
    /// Seconds that one run spends in them in float.
    pub float_seconds: f64,
    /// The operators whose kernels ran there, the longest first.
    pub float_operators: Vec<String>,
    /// Seconds that one run spends in them in the quantized bundle.
    pub seconds: f64,
    /// The operators whose kernels ran there, the longest first.
    pub operators: Vec<String>,
    /// How many times faster the quantized ones are.
    pub speedup: f64,
    /// `quantize`, `keep float` where that is faster by more than noise, or `same` where the same kernels ran or nothing can be
    /// quantized.
    pub verdict: &'static str,
}

impl Verdict {
    /// Whether measuring again would hardly say something else.
    #[must_use]
    pub fn is_clear(&self) -> bool {
        self.verdict == SAME || self.speedup >= CLEAR || self.speedup <= CLEAR.recip()
    }
}

/// Compare timings of the same component, each with its nodes timed.
#[must_use]
pub fn verdict(float: &Timing, quantized: &Timing) -> Vec<Verdict> {
    let floats = by_kind(&float.nodes);
    let compare = |group: GroupTime| {
        let float = floats.iter().find(|float| float.name == group.name)?;
        let speedup = float.seconds / group.seconds;
        Some(Verdict {
            component: quantized.component.name(),
            verdict: judge(float, &group, speedup),
            group: group.name,
            layers: group.layers,
            float_seconds: float.seconds,
            float_operators: float.operators.clone(),
            seconds: group.seconds,
            operators: group.operators,
            speedup,
        })
    };
    by_kind(&quantized.nodes).into_iter().filter_map(compare).collect()
}

/// The ends of the names of the layers that a verdict, as it is stored in a manifest, leaves in float.
///
/// # Errors
/// What is there instead of a verdict.
pub fn kept_float(stored: &serde_json::Value) -> Result<Vec<String>, String> {
    let Some(rows) = stored["layers"].as_array() else {
        return Err("expected `layers`, found none".into());
    };
    let mut kept = vec![];
    for row in rows {
        let text =
            |field: &str| row[field].as_str().ok_or_else(|| format!("expected `{field}` of each kind, found none"));
        let (group, verdict) = (text("group")?, text("verdict")?);
        if verdict == KEEP_FLOAT {
            let ends = ends_of(group).ok_or_else(|| format!("expected a kind of layer, found `{group}`"))?;
            kept.extend(ends.iter().map(|end| format!(".{end}.")));
        }
    }
    Ok(kept)
}

fn judge(float: &GroupTime, group: &GroupTime, speedup: f64) -> &'static str {
    let kernels = |group: &GroupTime| group.operators.iter().cloned().collect::<BTreeSet<_>>();
    if kernels(float) == kernels(group) || !has_layers(&group.name) {
        SAME
    } else if speedup <= SLOWER {
        KEEP_FLOAT
    } else {
        "quantize"
    }
}

#[cfg(test)]
mod tests {
    use super::super::{NodeTime, Part};
    use super::*;

    fn timing(nodes: &[(&str, &str, f64)]) -> Timing {
        let node = |&(path, op, seconds): &(&str, &str, f64)| NodeTime {
            name: format!("transformer_blocks.0.{path}/{op}"),
            op: op.into(),
            seconds,
        };
        Timing {
            component: Part::Transformer,
            shape: vec![],
            load_seconds: 0.0,
            runs: vec![],
            memory: None,
            nodes: nodes.iter().map(node).collect(),
        }
    }

    #[test]
    fn only_what_is_not_slower_is_to_be_quantized() {
        let float = timing(&[
            ("attn1.to_q", "Gemm", 4.0),
            ("attn1.to_out.0", "Gemm", 1.0),
            ("attn1", "MultiHeadAttention", 2.0),
            ("ff.net.0.proj", "Gemm", 1.0),
            ("ff.net.2", "Gemm", 1.0),
        ]);
        let quantized = timing(&[
            ("attn1.to_q", "MatMulIntegerToFloat", 1.0),
            ("attn1.to_q", "QuantizeLinear", 1.0),
            // Within noise.
            ("attn1.to_out.0", "MatMulNBits", 1.1),
            // What is around attention may differ: there is nothing to leave in float.
            ("attn1", "MultiHeadAttention", 3.0),
            ("attn1", "Cast", 1.0),
            ("ff.net.0.proj", "MatMulNBits", 1.25),
            ("ff.net.2", "MatMulNBits", 2.0),
        ]);
        let verdicts = verdict(&float, &quantized);
        let found: Vec<_> = verdicts.iter().map(|v| (v.group.as_str(), v.speedup, v.verdict, v.is_clear())).collect();
        let expected = [
            ("attention q, k, v", 2.0, "quantize", true),
            ("attention out", 1.0 / 1.1, "quantize", false),
            ("feed-forward up", 1.0 / 1.25, "keep float", false),
            ("feed-forward down", 0.5, "keep float", true),
            ("attention itself", 0.5, "same", true),
        ];
        assert_eq!(found, expected);
        let stored = serde_json::json!({"layers": verdicts});
        assert_eq!(kept_float(&stored), Ok([".ff.net.0.proj.", ".ff.net.2."].map(String::from).to_vec()));
        assert_eq!(kept_float(&serde_json::json!({})), Err("expected `layers`, found none".into()));
    }
}
