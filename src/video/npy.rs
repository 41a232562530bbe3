//! NumPy arrays: a header that is filled in at the end, then the frames.

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use super::pending::PendingFile;
use super::{FrameSink, Size, VideoError};

/// Bytes before the data, a multiple of 64 as the format asks for.
const HEADER: usize = 128;

/// Writes `[frames, height, width, 3]` bytes in version 1.0 of the format.
#[derive(Debug)]
pub(super) struct Npy {
    file: PendingFile,
    size: Size,
    frames: usize,
}

impl Npy {
    pub(super) fn open(path: &Path, size: Size) -> Result<Self, VideoError> {
        let mut npy = Self { file: PendingFile::create(path)?, size, frames: 0 };
        npy.file.file().write_all(&[0; HEADER]).map_err(|e| npy.file.failed(e))?;
        Ok(npy)
    }

    fn header(&self) -> Vec<u8> {
        let Self { size, frames, .. } = self;
        let shape = format!("({frames}, {}, {}, 3)", size.height, size.width);
        let text = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}");
        let mut header = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
        header.extend(text.bytes());
        header.resize(HEADER - 1, b' ');
        header.push(b'\n');
        header
    }
}

impl FrameSink for Npy {
    fn write(&mut self, rgb: &[u8]) -> Result<(), VideoError> {
        self.size.check(self.frames, rgb)?;
        self.file.file().write_all(rgb).map_err(|e| self.file.failed(e))?;
        self.frames += 1;
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), VideoError> {
        if self.frames == 0 {
            return Err(VideoError::NoFrames(self.file.path().to_owned()));
        }
        let header = self.header();
        let file = self.file.file();
        let written = file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(&header));
        written.map_err(|e| self.file.failed(e))?;
        self.file.finish()
    }
}
