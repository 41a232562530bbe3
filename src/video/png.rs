//! PNG images: one for each frame in a folder, or all frames in one contact sheet.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use super::pending::{PendingFile, PendingFolder};
use super::{FrameSink, Size, VideoError};

/// Pixels between the frames of a contact sheet.
const GAP: usize = 4;
/// Grey level of the gaps.
const BACKGROUND: u8 = 32;

/// Writes a folder of images named `00000.png` and so on.
#[derive(Debug)]
pub(super) struct Frames {
    folder: PendingFolder,
    size: Size,
    written: usize,
}

impl Frames {
    pub(super) fn open(path: &Path, size: Size) -> Result<Self, VideoError> {
        let is_frame = |name: &str| {
            let number = name.strip_suffix(".png");
            number.is_some_and(|number| number.len() >= 5 && number.bytes().all(|c| c.is_ascii_digit()))
        };
        Ok(Self { folder: PendingFolder::create(path, is_frame)?, size, written: 0 })
    }
}

impl FrameSink for Frames {
    fn write(&mut self, rgb: &[u8]) -> Result<(), VideoError> {
        self.size.check(self.written, rgb)?;
        let path = self.folder.folder().join(format!("{:05}.png", self.written));
        let file = File::create_new(&path);
        let file = file.map_err(|source| VideoError::Write { path: self.folder.path().to_owned(), source })?;
        let written = encode(file, self.size.width(), self.size.height(), rgb);
        written.map_err(|problem| VideoError::Encode { path: self.folder.path().to_owned(), problem })?;
        self.written += 1;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), VideoError> {
        if self.written == 0 {
            return Err(VideoError::NoFrames(self.folder.path().to_owned()));
        }
        self.folder.finish()
    }
}

/// Collects the frames and writes them as one image, in rows of about as many frames as there are rows.
#[derive(Debug)]
pub(super) struct Sheet {
    file: PendingFile,
    size: Size,
    frames: Vec<Vec<u8>>,
}

impl Sheet {
    pub(super) fn open(path: &Path, size: Size, frames_hint: usize) -> Result<Self, VideoError> {
        Ok(Self { file: PendingFile::create(path)?, size, frames: Vec::with_capacity(frames_hint.min(1024)) })
    }
}

impl FrameSink for Sheet {
    fn write(&mut self, rgb: &[u8]) -> Result<(), VideoError> {
        self.size.check(self.frames.len(), rgb)?;
        self.frames.push(rgb.to_vec());
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), VideoError> {
        if self.frames.is_empty() {
            return Err(VideoError::NoFrames(self.file.path().to_owned()));
        }
        let (width, height) = (self.size.width(), self.size.height());
        let columns = self.frames.len().isqrt() + usize::from(self.frames.len().isqrt().pow(2) < self.frames.len());
        let rows = self.frames.len().div_ceil(columns);
        let across = columns * (width + GAP) + GAP;
        let down = rows * (height + GAP) + GAP;
        let mut sheet = vec![BACKGROUND; across * down * 3];
        for (i, frame) in self.frames.iter().enumerate() {
            let (left, top) = (GAP + i % columns * (width + GAP), GAP + i / columns * (height + GAP));
            for (row, line) in frame.chunks_exact(width * 3).enumerate() {
                let start = ((top + row) * across + left) * 3;
                sheet[start..start + line.len()].copy_from_slice(line);
            }
        }
        let written = encode(self.file.file(), across, down, &sheet);
        written.map_err(|problem| self.file.refused(&problem))?;
        self.file.finish()
    }
}

/// Encodes one image of 8-bit RGB in sRGB.
pub(crate) fn encode(file: impl Write, width: usize, height: usize, rgb: &[u8]) -> Result<(), String> {
    let side = |length: usize| u32::try_from(length).map_err(|_| format!("expected fewer pixels, found {length}"));
    let mut buffered = BufWriter::new(file);
    let mut encoder = png::Encoder::new(&mut buffered, side(width)?, side(height)?);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_source_srgb(png::SrgbRenderingIntent::Perceptual);
    let mut writer = encoder.write_header().map_err(|e| e.to_string())?;
    writer.write_image_data(rgb).and_then(|()| writer.finish()).map_err(|e| e.to_string())?;
    buffered.flush().map_err(|e| e.to_string())
}
