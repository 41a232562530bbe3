//! Animated GIF: 256 colours a frame, played without end.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use super::pending::PendingFile;
use super::{FrameSink, Size, VideoError};

/// Largest frame, in pixels, whose colours are searched thoroughly; it takes some 0.3 s for a frame of 720x480.
const SMALL: usize = 256 * 256;

/// Writes frames as they come.
pub(super) struct Gif {
    encoder: gif::Encoder<BufWriter<File>>,
    file: PendingFile,
    size: Size,
    fps: f64,
    frames: u32,
}

impl Gif {
    pub(super) fn open(path: &Path, size: Size, fps: f64) -> Result<Self, VideoError> {
        let file = PendingFile::create(path)?;
        let writer = BufWriter::new(file.handle()?);
        let encoder = gif::Encoder::new(writer, size.width, size.height, &[]);
        let mut encoder = encoder.map_err(|e| file.refused(&e))?;
        encoder.set_repeat(gif::Repeat::Infinite).map_err(|e| file.refused(&e))?;
        Ok(Self { encoder, file, size, fps, frames: 0 })
    }

    /// When a frame starts, in hundredths of a second: rounding does not add up over the frames.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
    fn start(&self, frame: u32) -> u64 {
        (f64::from(frame) * 100.0 / self.fps).round() as u64
    }
}

impl FrameSink for Gif {
    fn write(&mut self, rgb: &[u8]) -> Result<(), VideoError> {
        self.size.check(self.frames as usize, rgb)?;
        let speed = if self.size.width() * self.size.height() <= SMALL { 1 } else { 10 };
        let mut frame = gif::Frame::from_rgb_speed(self.size.width, self.size.height, rgb, speed);
        let delay = self.start(self.frames + 1) - self.start(self.frames);
        frame.delay = u16::try_from(delay).unwrap_or(u16::MAX);
        self.encoder.write_frame(&frame).map_err(|e| self.file.refused(&e))?;
        self.frames += 1;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), VideoError> {
        let Self { encoder, file, frames, .. } = *self;
        if frames == 0 {
            return Err(VideoError::NoFrames(file.path().to_owned()));
        }
        let mut writer = encoder.into_inner().map_err(|e| file.refused(&e))?;
        writer.flush().map_err(|e| file.failed(e))?;
        drop(writer);
        file.finish()
    }
}
