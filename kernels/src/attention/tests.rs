use super::{Attention, HeadNorm, Precision};
use crate::processor::Processor;
use crate::threads::{Scoped, Serial, Threads};

/// Numbers of -1 to 1, the same for the same seed.
fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn normed(x: &[f32], norm: Option<&HeadNorm>) -> Vec<f64> {
    let x: Vec<_> = x.iter().map(|x| f64::from(*x)).collect();
    let Some(norm) = norm else { return x };
    let width = x.len() as f64;
    let mean = x.iter().sum::<f64>() / width;
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width;
    let deviation = (variance + f64::from(norm.epsilon)).sqrt();
    let parameters = norm.weight.iter().zip(norm.bias);
    x.iter().zip(parameters).map(|(x, (w, b))| (x - mean) / deviation * f64::from(*w) + f64::from(*b)).collect()
}

/// The same by the formula, in twice as many bits.
fn formula(attention: &Attention, batch: usize, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
    let (heads, width) = (attention.heads, attention.width);
    let features = heads * width;
    let norm = |which: usize| attention.norms.as_ref().map(|norms| &norms[which]);
    let asking = q.len() / batch / features;
    let mut y = vec![0.0; q.len()];
    for part in 0..batch {
        for head in 0..heads {
            let of = |x: &[f32]| -> Vec<Vec<f32>> {
                let rows = x.chunks(x.len() / batch).nth(part).unwrap().chunks(features);
                rows.map(|row| row[head * width..][..width].to_vec()).collect()
            };
            let (k, v) = (of(k), of(v));
            let k: Vec<_> = k.iter().map(|k| normed(k, norm(1))).collect();
            for (row, q) in of(q).iter().enumerate() {
                let q = normed(q, norm(0));
                let dot = |k: &Vec<f64>| q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() * f64::from(attention.scale);
                let scores: Vec<_> = k.iter().map(dot).collect();
                let most = scores.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
                let powers: Vec<_> = scores.iter().map(|score| (score - most).exp()).collect();
                let total: f64 = powers.iter().sum();
                for feature in 0..width {
                    let sum: f64 = powers.iter().zip(&v).map(|(power, v)| power * f64::from(v[feature])).sum();
                    y[(part * asking + row) * features + head * width + feature] = sum / total;
                }
            }
        }
    }
    y
}

/// The largest difference from the formula on any processor.
fn difference(attention: &Attention, batch: usize, [q, k, v]: [&[f32]; 3]) -> f64 {
    let expected = formula(attention, batch, q, k, v);
    let mut largest = 0.0;
    for processor in Processor::all() {
        for threads in [&Serial as &dyn Threads, &Scoped(2)] {
            let mut y = vec![f32::NAN; q.len()];
            attention.run_on(processor, batch, q, k, v, &mut y, threads);
            for (y, expected) in y.iter().zip(&expected) {
                let difference = (f64::from(*y) - expected).abs();
                assert!(difference < 1e-2, "{y} is not {expected} on {processor:?}");
                largest = difference.max(largest);
            }
        }
    }
    largest
}

#[test]
fn attention_is_the_formula_at_any_size() {
    for (asking, tokens, heads, width) in [
        (1, 1, 1, 64),
        (7, 500, 2, 64),
        (9, 49, 7, 32),
        (226, 9, 2, 80),
        (226, 33, 1, 128),
        (50, 226, 3, 48),
        (7, 7, 2, 5),
    ] {
        for batch in [1, 2] {
            let size = |tokens| batch * tokens * heads * width;
            let [q, k, v] = [(1, asking), (2, tokens), (3, tokens)].map(|(seed, tokens)| random(seed, size(tokens)));
            let (weight, bias) = (random(4, width), random(5, width));
            let norms = [(&weight, &bias), (&bias, &weight)];
            let norms = norms.map(|(weight, bias)| HeadNorm { weight, bias, epsilon: 1e-6 });
            for norms in [None, Some(norms)] {
                let scale = (width as f32).powf(-0.5);
                let mut attention = Attention { heads, width, scale, norms, precision: Precision::Whole };
                for (precision, limit) in [(Precision::Whole, 2e-6), (Precision::Sixteen, 2e-5)] {
                    attention.precision = precision;
                    let largest = difference(&attention, batch, [&q, &k, &v]);
                    assert!(largest < limit, "{largest} of {asking} x {tokens} x {heads} x {width}, {precision:?}");
                }
            }
        }
    }
}

#[test]
fn scores_that_grow_from_block_to_block_keep_their_weights() {
    let (tokens, width) = (1600, 16);
    let [q, mut k, v] = [1, 2, 3].map(|seed| random(seed, tokens * width));
    for (token, k) in k.chunks_mut(width).enumerate() {
        for k in k {
            *k *= 0.01 * token as f32;
        }
    }
    for scale in [1.0, -1.0, 20.0] {
        for (precision, limit) in [(Precision::Whole, 2e-5), (Precision::Sixteen, 5e-4)] {
            let attention = Attention { heads: 1, width, scale, norms: None, precision };
            let largest = difference(&attention, 1, [&q[..48 * width + width], &k, &v]);
            assert!(largest < limit * f64::from(scale.abs()), "{largest}, {precision:?}");
        }
    }
}

#[test]
fn what_is_no_number_stays_none() {
    for precision in [Precision::Whole, Precision::Sixteen] {
        let attention = Attention { heads: 1, width: 16, scale: 1.0, norms: None, precision };
        for processor in Processor::all() {
            let (mut q, mut y) = (random(1, 160), vec![0.0; 160]);
            q[20] = f32::NAN;
            attention.run_on(processor, 1, &q, &random(2, 800), &random(3, 800), &mut y, &Serial);
            assert!(y[16..32].iter().all(|y| y.is_nan()), "{processor:?}");
            assert!(y[..16].iter().chain(&y[32..]).all(|y| y.is_finite()), "{processor:?}");
        }
    }
}
