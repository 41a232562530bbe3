//! RGB to the luma and chroma that video codecs store: BT.601, limited range, 4:2:0.

use openh264::formats::YUVSource;

/// One frame: luma for every pixel, chroma for every 2x2.
#[derive(Debug)]
pub(super) struct Yuv {
    size: (usize, usize),
    luma: Vec<u8>,
    blue: Vec<u8>,
    red: Vec<u8>,
}

impl Yuv {
    /// Converts a frame of even width and height.
    pub(super) fn from_rgb(rgb: &[u8], width: usize, height: usize) -> Self {
        let luma = rgb.as_chunks().0.iter().map(|&pixel| byte(16.0 + 219.0 * brightness(pixel.map(unit)))).collect();
        let (mut blue, mut red) = (Vec::with_capacity(width * height / 4), Vec::with_capacity(width * height / 4));
        for rows in rgb.chunks_exact(width * 6) {
            let (upper, lower) = rows.split_at(width * 3);
            for (above, below) in upper.chunks_exact(6).zip(lower.chunks_exact(6)) {
                let mean =
                    |c: usize| [above[c], above[c + 3], below[c], below[c + 3]].map(unit).iter().sum::<f32>() / 4.0;
                let [r, g, b] = [mean(0), mean(1), mean(2)];
                let luma = brightness([r, g, b]);
                blue.push(byte(128.0 + 224.0 * (b - luma) / 1.772));
                red.push(byte(128.0 + 224.0 * (r - luma) / 1.402));
            }
        }
        Self { size: (width, height), luma, blue, red }
    }
}

impl YUVSource for Yuv {
    fn dimensions(&self) -> (usize, usize) {
        self.size
    }

    fn strides(&self) -> (usize, usize, usize) {
        (self.size.0, self.size.0 / 2, self.size.0 / 2)
    }

    fn y(&self) -> &[u8] {
        &self.luma
    }

    fn u(&self) -> &[u8] {
        &self.blue
    }

    fn v(&self) -> &[u8] {
        &self.red
    }
}

fn unit(value: u8) -> f32 {
    f32::from(value) / 255.0
}

fn brightness([r, g, b]: [f32; 3]) -> f32 {
    0.299 * r + 0.587 * g + 0.114 * b
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
fn byte(value: f32) -> u8 {
    value.round() as u8
}
