//! The time embedding of a narrower student.
//!
//! It is a function of the timestep alone, so it is fitted on all timesteps, exactly known, without running the model. Two things
//! change: with the model's width the waves that the embedding begins with; and with its own width the features that the
//! modulations of all blocks are linear in. Those are smooth functions of one number, so a few of them span the others.

use cogvx_graphs::config::DitConfig;
use cogvx_graphs::model::dit;
use ndarray::{Array1, Array2, Axis, Slice};

use super::StudentError;
use super::least_squares::{fit, with_ones};

/// Of the features' mean square, added to the normal equations.
const RIDGE: f64 = 1e-9;

/// A linear layer, `[out, in]` and `[out]`.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    pub weight: Array2<f64>,
    pub bias: Array1<f64>,
}

impl Linear {
    fn of(&self, x: &Array2<f64>) -> Array2<f64> {
        x.dot(&self.weight.t()) + &self.bias
    }

    /// From a map with the bias in its last row.
    fn from_map(map: &Array2<f64>) -> Self {
        let last = map.nrows() - 1;
        Self { weight: map.slice_axis(Axis(0), Slice::from(..last)).t().to_owned(), bias: map.row(last).to_owned() }
    }

    fn rows(&self, rows: &[usize]) -> Self {
        Self { weight: self.weight.select(Axis(0), rows), bias: self.bias.select(Axis(0), rows) }
    }

    /// As it is read from a file of another precision.
    fn rounded(mut self, round: &impl Fn(f64) -> f64) -> Self {
        self.weight.mapv_inplace(round);
        self.bias.mapv_inplace(round);
        self
    }
}

/// The student's time embedding.
#[derive(Debug)]
pub(super) struct Time {
    /// `linear_1` and `linear_2`.
    pub layers: [Linear; 2],
    /// Where the embedding is narrower: the map `[student's + 1, teacher's]` from its features and a 1 to the teacher's.
    pub map: Option<Array2<f64>>,
    /// Relative error of the features that modulations read.
    pub error: f64,
}

/// Fit the embedding of `student` to that of `teacher`, whose layers are `layers`; `round` is what the file's precision does.
pub(super) fn refit(
    [teacher, student]: [&DitConfig; 2],
    layers: &[Linear; 2],
    timesteps: usize,
    round: impl Fn(f64) -> f64,
) -> Result<Time, StudentError> {
    let failed = || StudentError::Numbers { what: "the time embedding" };
    let waves = |config| waves(config, timesteps);
    let [from, to] = [waves(teacher), waves(student)];
    let first = layers[0].of(&from);
    let hidden = first.mapv(silu);
    let second = layers[1].of(&hidden);
    let features = second.mapv(silu);

    let narrow = student.time_embed_dim < teacher.time_embed_dim;
    let kept = |of: &Array2<f64>| {
        if narrow { spanning(of, student.time_embed_dim) } else { (0..teacher.time_embed_dim).collect() }
    };
    let [inner, outer] = [kept(&hidden), kept(&features)];
    let linear_1 = if from == to {
        layers[0].rows(&inner)
    } else {
        Linear::from_map(&fit(&to, &first.select(Axis(1), &inner), RIDGE).ok_or_else(failed)?)
    };
    let linear_1 = linear_1.rounded(&round);
    let hidden = linear_1.of(&to).mapv(silu);
    let linear_2 = if narrow {
        Linear::from_map(&fit(&hidden, &second.select(Axis(1), &outer), RIDGE).ok_or_else(failed)?)
    } else {
        layers[1].clone()
    };
    let linear_2 = linear_2.rounded(&round);
    let found = linear_2.of(&hidden).mapv(silu);
    let map = narrow.then(|| fit(&found, &features, RIDGE).ok_or_else(failed)).transpose()?;
    let mapped = map.as_ref().map_or(found.clone(), |map| with_ones(&found).dot(map));
    let square = |x: &Array2<f64>| x.iter().map(|x| x * x).sum::<f64>();
    let error = (square(&(mapped - &features)) / square(&features).max(f64::MIN_POSITIVE)).sqrt();
    Ok(Time { layers: [linear_1, linear_2], map, error })
}

/// What the embedding of each timestep begins with, `[timesteps, width]`.
#[allow(clippy::cast_precision_loss)] // Few timesteps.
fn waves(config: &DitConfig, timesteps: usize) -> Array2<f64> {
    let half = config.width() / 2;
    let frequencies = dit::frequencies(half, config.freq_shift);
    Array2::from_shape_fn((timesteps, 2 * half), |(t, i)| {
        let angle = f64::from(t as f32 * frequencies[i % half]);
        if (i < half) == config.flip_sin_to_cos { angle.cos() } else { angle.sin() }
    })
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// `count` of the columns that span the others best, ascending: again and again the one that those before say least of
/// (Cholesky's decomposition with pivots).
fn spanning(columns: &Array2<f64>, count: usize) -> Vec<usize> {
    let mean = columns.mean_axis(Axis(0)).unwrap_or_default();
    let mut rest = columns - &mean;
    let mut chosen = vec![];
    while chosen.len() < count {
        let square = |i: &usize| rest.column(*i).dot(&rest.column(*i));
        let left = (0..rest.ncols()).filter(|i| !chosen.contains(i));
        let Some(next) = left.max_by(|a, b| square(a).total_cmp(&square(b))) else { break };
        chosen.push(next);
        let norm = square(&next).sqrt();
        if norm > 1e-9 {
            let direction = rest.column(next).mapv(|x| x / norm);
            let along = rest.t().dot(&direction);
            for (mut row, &x) in rest.rows_mut().into_iter().zip(&direction) {
                row.scaled_add(-x, &along);
            }
        }
    }
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::rng::TorchGenerator;

    fn config(heads: usize, time_embed_dim: usize) -> DitConfig {
        let json = serde_json::json!({
            "_class_name": "CogVideoXTransformer3DModel", "num_attention_heads": heads, "attention_head_dim": 64,
            "time_embed_dim": time_embed_dim,
        });
        DitConfig::from_value(Path::new("config.json"), json).expect("a sound configuration")
    }

    fn linear(inputs: usize, outputs: usize, seed: u64, scale: f32) -> Linear {
        let random = |n, seed| TorchGenerator::new(seed).randn(n).into_iter().map(|x| f64::from(scale * x));
        let weight = Array2::from_shape_vec((outputs, inputs), random(outputs * inputs, seed).collect()).expect("all");
        Linear { weight, bias: random(outputs, seed + 100).collect() }
    }

    /// Layers of an embedding that, as trained ones do, hardly listens to waves of a few timesteps.
    fn layers() -> [Linear; 2] {
        let mut first = linear(256, 128, 1, 0.5);
        for (i, mut column) in first.weight.columns_mut().into_iter().enumerate() {
            let frequency = f64::from(dit::frequencies(128, 0)[i % 128]);
            column /= 1.0 + 300.0 * frequency;
        }
        [first, linear(128, 128, 2, 0.1)]
    }

    #[test]
    fn a_narrower_model_has_the_same_modulations() {
        let layers = layers();
        let time = refit([&config(4, 128), &config(2, 128)], &layers, 1000, |x| x).expect("fitted");
        assert!(time.map.is_none() && time.layers[0].weight.dim() == (128, 128));
        assert!(time.error < 0.03, "{}", time.error);
        let same = refit([&config(4, 128), &config(4, 128)], &layers, 1000, |x| x).expect("fitted");
        assert!(same.error < 1e-12 && same.layers[0].weight == layers[0].weight, "{}", same.error);
    }

    #[test]
    fn a_quarter_of_the_embedding_says_nearly_all_of_it() {
        let layers = layers();
        let mut errors = vec![];
        for width in [8, 32, 64] {
            let time = refit([&config(4, 128), &config(4, width)], &layers, 1000, |x| x).expect("fitted");
            assert_eq!(time.map.expect("narrower").dim(), (width + 1, 128));
            errors.push(time.error);
        }
        assert!(errors[0] > errors[1] && errors[1] > errors[2] && errors[1] < 0.05, "{errors:?}");
    }
}
