//! How fast the linear layer is, with fp16 weights:
//! `cargo run --release -p cogvx-kernels --example linear [THREADS]`.

use std::time::Instant;

use cogvx_kernels::Scoped;
use cogvx_kernels::linear::{Linear, Weights};
use half::f16;

fn main() {
    let threads = Scoped(std::env::args().nth(1).map_or(1, |count| count.parse().expect("a number of threads")));
    for (rows, inputs, outputs, gelu) in [
        (1506, 1920, 1920, false),
        (753, 1920, 7680, true),
        (753, 7680, 1920, false),
        (8888, 7680, 1920, false),
        (17776, 1920, 1920, false),
        (226, 4096, 4096, false),
        (226, 4096, 10240, true),
        (226, 10240, 4096, false),
        (226, 4096, 1920, false),
        (1, 512, 11520, false),
    ] {
        let x: Vec<f32> = (0..rows * inputs).map(|i| f32::from(u8::try_from(i % 17).unwrap_or(0)) / 17.).collect();
        let weight: Vec<_> =
            (0..outputs * inputs).map(|i| f16::from_f32(if i % 13 == 0 { 0.1 } else { -0.01 })).collect();
        let bias = vec![0.5; outputs];
        let mut y = vec![0.; rows * outputs];
        let layer = Linear { weight: Weights::F16(&weight), bias: Some(&bias), features: [outputs, inputs], gelu };
        let mut seconds: Vec<_> = (0..8)
            .map(|_| {
                let start = Instant::now();
                layer.run(&x, &mut y, &threads);
                start.elapsed().as_secs_f64()
            })
            .collect();
        seconds.sort_by(f64::total_cmp);
        #[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^53")]
        let operations = 2. * rows as f64 * inputs as f64 * outputs as f64;
        println!(
            "{rows} x {inputs} x {outputs}: {:.2} ms ({:.2} best), {:.1} GFLOP/s ({:.1} best)",
            seconds[3] * 1e3,
            seconds[0] * 1e3,
            operations / seconds[3] / 1e9,
            operations / seconds[0] / 1e9
        );
    }
}
