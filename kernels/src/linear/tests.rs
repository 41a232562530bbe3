use half::{bf16, f16};

use super::{Linear, Weights, feed_forward};
use crate::{Scoped, Serial, Threads, processor::Processor};

fn random(count: usize, mut seed: u64) -> Vec<f32> {
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f32::from(i16::from_ne_bytes([(seed >> 32).to_le_bytes()[0], (seed >> 40).to_le_bytes()[0]])) / 32768.
    };
    (0..count).map(|_| next()).collect()
}

fn expected(layer: &Linear, weight: &[f32], x: &[f32], rows: usize) -> Vec<f64> {
    let [outputs, features] = layer.features;
    let mut y = Vec::new();
    for row in 0..rows {
        for output in 0..outputs {
            let (x, weight) = (&x[row * features..][..features], &weight[output * features..][..features]);
            let mut sum = x.iter().zip(weight).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>();
            sum += layer.bias.map_or(0., |bias| f64::from(bias[output]));
            let u = (2. / std::f64::consts::PI).sqrt() * (sum + 0.044_715 * sum.powi(3));
            y.push(if layer.gelu { sum / (1. + (-2. * u).exp()) } else { sum });
        }
    }
    y
}

fn check(processor: Processor, layer: &Linear, weight: &[f32], rows: usize, threads: &dyn Threads) {
    let [outputs, features] = layer.features;
    let x = random(rows * features, 3);
    let mut y = vec![f32::NAN; rows * outputs];
    // Sums of random numbers, and what rounding takes from them, grow by the root of how many they are.
    let allowed = 5e-6 * (f64::from(u32::try_from(features).expect("few features")).sqrt() + 1.);
    layer.run_on(processor, &x, &mut y, threads);
    for (place, (y, expected)) in y.iter().zip(expected(layer, weight, &x, rows)).enumerate() {
        let error = (f64::from(*y) - expected).abs();
        assert!(error <= allowed, "{rows} rows of {:?} at {place}: {y} for {expected}", layer.features);
    }
}

#[test]
fn is_a_product_with_any_rows_on_any_processor() {
    for processor in Processor::all() {
        for rows in [1, 2, 5, 7, 9, 14, 15, 29, 226] {
            for features in [[1, 1], [33, 17], [70, 48], [31, 129]] {
                let weight = random(features[0] * features[1], 5);
                let bias = random(features[0], 7);
                let layer = Linear { weight: Weights::F32(&weight), bias: Some(&bias), features, gelu: rows == 9 };
                check(processor, &layer, &weight, rows, &Serial);
                check(processor, &Linear { bias: None, ..layer }, &weight, rows, &Scoped(2));
            }
        }
    }
}

#[test]
fn feed_forwards_are_two_layers() {
    let [rows, width, inner] = [1001, 18, 7001];
    let weights = [random(inner * width, 5), random(width * inner, 6)];
    let [x, bias] = [random(rows * width, 7), random(inner, 8)];
    let layer = |weight, bias, features, gelu| Linear { weight: Weights::F32(weight), bias, features, gelu };
    let up = layer(&weights[0], Some(&bias[..]), [inner, width], true);
    let down = layer(&weights[1], Some(&bias[..width]), [width, inner], false);
    let (mut between, mut expected, mut found) = (vec![0.; rows * inner], vec![0.; x.len()], vec![0.; x.len()]);
    up.run(&x, &mut between, &Serial);
    down.run(&between, &mut expected, &Serial);
    for _ in 0..2 {
        feed_forward(&up, &down, &x, &mut found, &Serial);
        // Rows are the same whatever tile they are in.
        assert_eq!(found, expected);
    }
}

#[test]
fn takes_many_features_and_outputs_piece_by_piece() {
    for (rows, features) in [(3, [500, 4100]), (16, [500, 4100]), (30, [101, 7681])] {
        let weight = random(features[0] * features[1], 5);
        let bias = random(features[0], 7);
        let layer = Linear { weight: Weights::F32(&weight), bias: Some(&bias), features, gelu: true };
        check(Processor::new(), &layer, &weight, rows, &Serial);
        check(Processor::new(), &layer, &weight, rows, &Scoped(2));
    }
}

#[test]
fn reads_halves_of_both_kinds() {
    let features = [45, 70];
    let weight = random(features[0] * features[1], 5);
    let short: Vec<_> = weight.iter().map(|x| f16::from_f32(*x)).collect();
    let brain: Vec<_> = weight.iter().map(|x| bf16::from_f32(*x)).collect();
    let short_wide: Vec<_> = short.iter().map(|x| x.to_f32()).collect();
    let brain_wide: Vec<_> = brain.iter().map(|x| x.to_f32()).collect();
    for processor in Processor::all() {
        for rows in [1, 20] {
            let layer = Linear { weight: Weights::F16(&short), bias: None, features, gelu: false };
            check(processor, &layer, &short_wide, rows, &Serial);
            check(processor, &Linear { weight: Weights::BF16(&brain), ..layer }, &brain_wide, rows, &Serial);
        }
    }
}
#[test]
fn is_as_exact_as_float32_in_tiles() {
    let features = [64, 1920];
    let [x, weight] = [(32, 3), (64, 5)].map(|(rows, seed)| random(rows * features[1], seed));
    let short: Vec<_> = weight.iter().map(|x| f16::from_f32(*x)).collect();
    let brain: Vec<_> = weight.iter().map(|x| bf16::from_f32(*x)).collect();
    let stored = [
        (Weights::F32(&weight), weight.clone()),
        (Weights::F16(&short), short.iter().map(|x| x.to_f32()).collect()),
        (Weights::BF16(&brain), brain.iter().map(|x| x.to_f32()).collect()),
    ];
    for (weight, wide) in stored {
        let layer = Linear { weight, bias: None, features, gelu: false };
        let expected = expected(&layer, &wide, &x, 32);
        for processor in Processor::all() {
            let mut y = vec![f32::NAN; 32 * 64];
            layer.run_on(processor, &x, &mut y, &Serial);
            let errors: f64 = y.iter().zip(&expected).map(|(y, expected)| (f64::from(*y) - expected).powi(2)).sum();
            let apart = (errors / expected.iter().map(|y| y * y).sum::<f64>()).sqrt();
            assert!(apart < if processor.tiles { 4e-7 } else { 2e-6 }, "{apart:.1e} on {processor:?}");
        }
    }
}
