//! What passes over a transformer's rows take, on one thread: `cargo run --release -p cogvx-kernels --example rows`.

use std::time::Instant;

use cogvx_kernels::Serial;
use cogvx_kernels::rows::{Added, Map, Out, Rescale, Rounding, Stream, join_norms, map_rows};

const ROUNDING: Rounding =
    Rounding { zero: 128, both_sides: true, least: 1e-30, inverse: 1.0 / 127.0, rotation: 1, differences: false };

fn main() {
    let (text, video, width) = (226, 1280, 1920);
    let rows = text + video;
    let x = vec![0.5; rows * 4 * width];
    let (of_text, of_video, one) = (vec![0.5; text * width], vec![0.5; video * width], vec![0.5; 4 * width]);
    let (mut values, mut steps) = (vec![0; rows * 4 * width], vec![0.0; rows]);
    let (mut next_text, mut next_video) = (of_text.clone(), of_video.clone());
    let mut floats = vec![0.0; rows * width];
    let of_rows = vec![0.5; rows];
    let rescale = Some(Rescale { steps: &of_rows, bias: &one, differences: false, excess: None });
    for _ in 0..5 {
        let since = Instant::now();
        map_rows(
            &x,
            [1, 4 * width],
            rescale,
            Map::Gelu,
            Out::Bytes { values: &mut values, steps: &mut steps, rounding: ROUNDING },
            &Serial,
        );
        let gelu = since.elapsed();
        let since = Instant::now();
        map_rows(
            &x[..rows * width],
            [1, width],
            rescale.map(|r| Rescale { bias: &one[..width], ..r }),
            Map::Keep,
            Out::Floats(&mut floats),
            &Serial,
        );
        let rescaled = since.elapsed();
        let stream = |x, tokens| Stream { x, tokens, scale: &one[..width], shift: &one[..width], gate: &one[..width] };
        let streams = [stream(&of_text[..], text), stream(&of_video[..], video)];
        let added = Added { y: &x[..rows * width], rescale: rescale.map(|r| Rescale { bias: &one[..width], ..r }) };
        let since = Instant::now();
        let out = Out::Bytes { values: &mut values[..rows * width], steps: &mut steps, rounding: ROUNDING };
        join_norms(&streams, Some(added), &mut [&mut next_text, &mut next_video], out, (width, 1e-5), &Serial);
        let joined = since.elapsed();
        println!("GELU to bytes {gelu:?}, rescaled {rescaled:?}, residual, norm and rounding {joined:?}");
    }
}
