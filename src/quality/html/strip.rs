//! Filmstrips: some frames of both videos and of their difference, as images in the page.

use std::io::{self, Write};

use super::FramePair;
use crate::video::{encode_png, to_rgb8};

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
/// How much brighter differences are shown than they are.
pub(super) const GAIN: f32 = 16.0;

/// The strips of one video.
#[derive(Default)]
pub(super) struct Strips {
    /// Frames of the reference, the judged video, and the difference: `[height, width, 3]` each.
    rows: [Vec<Vec<u8>>; 3],
    size: [usize; 2],
}

impl Strips {
    pub fn frame(&mut self, pair: FramePair<'_>) {
        // Frames evenly apart, the first and the last among them.
        let shown = FRAMES.min(pair.frames).max(1);
        let place = |i: usize| i * (pair.frames - 1) / (shown - 1).max(1);
        if !(0..shown).any(|i| place(i) == pair.frame) {
            return;
        }
        let difference: Vec<_> = pair.judged.iter().zip(pair.reference).map(|(a, b)| (a - b).abs() * GAIN).collect();
        let by = pair.size[1].div_ceil(COLUMNS);
        for (row, frame) in self.rows.iter_mut().zip([pair.reference, pair.judged, &difference]) {
            let (size, smaller) = shrunk(frame, pair.size, by);
            self.size = size;
            row.push(to_rgb8(&smaller));
        }
    }

    pub fn write(self, out: &mut impl Write) -> io::Result<()> {
        let [height, width] = self.size;
        let count = self.rows[0].len();
        if count == 0 {
            return Ok(());
        }
        let across = count * (width + GAP) - GAP;
        let zoom = SHOWN.div_ceil(width);
        writeln!(out, "<div class=\"scroll\" tabindex=\"0\">")?;
        for (row, name) in self.rows.iter().zip(["reference", "judged", "difference"]) {
            let mut strip = vec![GREY; across * height * 3];
            for (i, frame) in row.iter().enumerate() {
                for (y, line) in frame.chunks_exact(width * 3).enumerate() {
                    let start = (y * across + i * (width + GAP)) * 3;
                    strip[start..start + line.len()].copy_from_slice(line);
                }
            }
            let mut png = vec![];
            encode_png(&mut png, across, height, &strip).map_err(io::Error::other)?;
            writeln!(
                out,
                "<img alt=\"{name}\" width=\"{}\" height=\"{}\" src=\"data:image/png;base64,{}\">",
                across * zoom,
                height * zoom,
                base64(&png)
            )?;
        }
        writeln!(out, "</div>")
    }
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

/// Base64 with padding (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = (0..3).fold(0_usize, |bits, i| bits << 8 | usize::from(chunk.get(i).copied().unwrap_or(0)));
        for digit in 0..4 {
            let is_there = digit <= chunk.len();
            text.push(if is_there { char::from(DIGITS[bits >> (18 - 6 * digit) & 63]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        let cases = ["", "f", "fo", "foo", "foob", "fooba", "foobar"];
        let expected = ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"];
        assert_eq!(cases.map(|case| base64(case.as_bytes())), expected);
        assert_eq!(base64(&[0xff, 0xfe, 0xfb]), "//77");
    }

    #[test]
    fn pixels_are_averaged_and_the_rest_at_the_edges_too() {
        let frame: Vec<f32> = [1.0, 3.0, 5.0, 5.0, 7.0, 9.0].into_iter().flat_map(|v| [v, 0.0, -v]).collect();
        let (size, smaller) = shrunk(&frame, [2, 3], 2);
        assert_eq!((size, smaller), ([1, 2], vec![4.0, 0.0, -4.0, 7.0, 0.0, -7.0]));
    }

    #[test]
    fn the_first_and_the_last_frame_are_shown() {
        for (frames, shown) in [(1_u8, 1), (2, 2), (9, 9), (49, 9), (10, 9)] {
            let mut strips = Strips::default();
            for frame in 0..frames {
                let value = [f32::from(frame) / 255.0; 3];
                let (frame, frames) = (frame.into(), frames.into());
                strips.frame(FramePair { frame, frames, size: [1, 1], reference: &value, judged: &value });
            }
            let [row, ..] = &strips.rows;
            assert_eq!((row.len(), row.last()), (shown, Some(&vec![frames - 1; 3])), "{frames}");
        }
    }
}
