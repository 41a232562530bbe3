//! How fast attention is: `cargo run --release -p cogvx-kernels --example attention [THREADS]`.

#![allow(clippy::cast_precision_loss)]

use cogvx_kernels::Scoped;
use cogvx_kernels::attention::{Attention, HeadNorm, Precision};
use std::time::Instant;

fn main() {
    let threads = Scoped(std::env::args().nth(1).map_or(1, |count| count.parse().expect("a number of threads")));
    for (asking, tokens, heads, width) in
        [(1506, 1506, 30, 64), (1280, 1506, 30, 64), (6976, 6976, 6, 64), (1506, 1506, 30, 32), (1506, 1506, 15, 128)]
    {
        let numbers = |count: usize| (0..count).map(|i| (i * 7919 % 1000) as f32 / 500.0 - 1.0).collect::<Vec<_>>();
        let [q, k, v] = [asking, tokens, tokens].map(|tokens| numbers(tokens * heads * width));
        let (weight, bias, mut y) = (vec![1.0; width], vec![0.0; width], vec![0.0; q.len()]);
        let norms = [(); 2].map(|()| HeadNorm { weight: &weight, bias: &bias, epsilon: 1e-6 });
        let scale = (width as f32).powf(-0.5);
        let mut attention = Attention { heads, width, scale, norms: Some(norms), precision: Precision::Whole };
        for precision in [Precision::Whole, Precision::Sixteen] {
            attention.precision = precision;
            let seconds = (0..8).map(|_| {
                let start = Instant::now();
                attention.run(1, &q, &k, &v, &mut y, &threads);
                start.elapsed().as_secs_f64()
            });
            let seconds = seconds.fold(f64::INFINITY, f64::min);
            let gigaflops = (4 * asking * tokens * heads * width) as f64 / seconds / 1e9;
            println!(
                "{asking} x {tokens} tokens, {heads} heads of {width}, {precision:?}: {seconds:.4} s, {gigaflops:.1} GFLOP/s"
            );
        }
    }
}
