//! Filmstrips: some frames of both videos and of their difference, as images in the page.

use std::io::{self, Write};

use super::FramePair;
use crate::page::{is_shown, small, strip};
use crate::video::to_rgb8;

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
        if !is_shown(pair.frame, pair.frames) {
            return;
        }
        let difference: Vec<_> = pair.judged.iter().zip(pair.reference).map(|(a, b)| (a - b).abs() * GAIN).collect();
        for (row, frame) in self.rows.iter_mut().zip([pair.reference, pair.judged, &difference]) {
            let (size, smaller) = small(frame, pair.size);
            self.size = size;
            row.push(to_rgb8(&smaller));
        }
    }

    pub fn write(self, out: &mut impl Write) -> io::Result<()> {
        if self.rows[0].is_empty() {
            return Ok(());
        }
        writeln!(out, "<div class=\"scroll\" tabindex=\"0\">")?;
        for (row, name) in self.rows.iter().zip(["reference", "judged", "difference"]) {
            strip(out, name, row, self.size)?;
        }
        writeln!(out, "</div>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
