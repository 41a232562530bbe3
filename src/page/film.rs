//! Filmstrips: some frames of a video in a row.

use std::io::{self, Write};

use super::picture;

/// Most frames of a strip.
const FRAMES: usize = 9;
/// Most columns of a frame; larger ones are made smaller.
const COLUMNS: usize = 240;
/// Least columns that a frame is shown in.
const SHOWN: usize = 96;
/// Columns between frames.
const GAP: usize = 2;
/// Brightness of the gaps.
const GREY: u8 = 128;

/// Whether frame `frame` of `frames` is shown: those shown are evenly apart, the first and the last among them.
pub(crate) fn is_shown(frame: usize, frames: usize) -> bool {
    let shown = FRAMES.min(frames).max(1);
    let place = |i: usize| i * (frames - 1) / (shown - 1).max(1);
    (0..shown).any(|i| place(i) == frame)
}

/// Write frames of `rgb` bytes, `[height, width, 3]` each, in a row.
pub(crate) fn strip(
    out: &mut impl Write,
    name: &str,
    frames: &[Vec<u8>],
    [height, width]: [usize; 2],
) -> io::Result<()> {
    let across = frames.len() * (width + GAP) - GAP;
    let zoom = SHOWN.div_ceil(width);
    let mut strip = vec![GREY; across * height * 3];
    for (i, frame) in frames.iter().enumerate() {
        for (y, line) in frame.chunks_exact(width * 3).enumerate() {
            let start = (y * across + i * (width + GAP)) * 3;
            strip[start..start + line.len()].copy_from_slice(line);
        }
    }
    picture(out, name, [height, across], zoom, &strip)
}

/// A frame of `[height, width, 3]` numbers small enough for a strip, and its size.
pub(crate) fn small(frame: &[f32], size: [usize; 2]) -> ([usize; 2], Vec<f32>) {
    shrunk(frame, size, size[1].div_ceil(COLUMNS))
}

/// A frame with each `by` x `by` pixels made one, and its size.
#[expect(clippy::cast_precision_loss, reason = "few pixels")]
fn shrunk(frame: &[f32], [height, width]: [usize; 2], by: usize) -> ([usize; 2], Vec<f32>) {
    let size = [height.div_ceil(by), width.div_ceil(by)];
    let mut smaller = Vec::with_capacity(size[0] * size[1] * 3);
    for (y, x, channel) in
        (0..size[0]).flat_map(|y| (0..size[1]).flat_map(move |x| (0..3).map(move |channel| (y, x, channel))))
    {
        let (rows, columns) = (y * by..height.min((y + 1) * by), x * by..width.min((x + 1) * by));
        let count = rows.len() * columns.len();
        let sum: f32 = rows.flat_map(|y| columns.clone().map(move |x| frame[(y * width + x) * 3 + channel])).sum();
        smaller.push(sum / count as f32);
    }
    (size, smaller)
}

#[cfg(test)]
mod tests {
    use super::shrunk;

    #[test]
    fn pixels_are_averaged_and_the_rest_at_the_edges_too() {
        let frame: Vec<f32> = [1.0, 3.0, 5.0, 5.0, 7.0, 9.0].into_iter().flat_map(|v| [v, 0.0, -v]).collect();
        let (size, smaller) = shrunk(&frame, [2, 3], 2);
        assert_eq!((size, smaller), ([1, 2], vec![4.0, 0.0, -4.0, 7.0, 0.0, -7.0]));
    }
}
