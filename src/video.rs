//! Frames to a file: MP4, GIF, a PNG contact sheet, a NumPy array, or a folder of PNG images.
//!
//! A sink takes frames one by one. What it writes lies beside its target under a temporary name until
//! [`FrameSink::finish`]; a sink that is dropped before leaves nothing.

mod gif;
mod mp4;
mod npy;
mod pending;
mod png;
mod yuv;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

pub(crate) use png::encode as encode_png;

/// The extensions that name a format, for messages.
const EXTENSIONS: &str = "`.mp4`, `.gif`, `.png` (contact sheet), `.npy`, or a folder for PNG frames";
/// Largest frame rate accepted: beyond, a frame is shorter than the formats' clocks can tell.
const MAX_FPS: f64 = 1000.0;

/// Why a video could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VideoError {
    /// No format has this extension.
    #[error("`{}`: expected {EXTENSIONS}, found `.{found}`", path.display())]
    Extension {
        /// The target.
        path: PathBuf,
        /// Its extension.
        found: String,
    },
    /// The format cannot hold frames of this size.
    #[error("`{}`: expected {expected}, found {width}x{height}", path.display())]
    Size {
        /// The target.
        path: PathBuf,
        /// What the format can hold.
        expected: &'static str,
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
    },
    /// The frame rate is out of range.
    #[error("frame rate: expected more than 0 and at most {MAX_FPS}, found {0}")]
    Fps(f64),
    /// A frame is not of the video's size.
    #[error("frame {frame}: expected {expected} bytes, found {found}")]
    Frame {
        /// Index of the frame.
        frame: usize,
        /// Bytes of a frame: width x height x 3.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// A video needs frames.
    #[error("`{}`: expected at least 1 frame, found none", .0.display())]
    NoFrames(PathBuf),
    /// The target cannot be replaced without losing what is there.
    #[error("`{}`: expected {expected}, found {found}", path.display())]
    Occupied {
        /// The target.
        path: PathBuf,
        /// What may be there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// The system refused.
    #[error("cannot write `{}`: {source}", path.display())]
    Write {
        /// The target.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An encoder refused.
    #[error("cannot encode `{}`: {problem}", path.display())]
    Encode {
        /// The target.
        path: PathBuf,
        /// What the encoder said.
        problem: String,
    },
}

/// Takes the frames of one video.
pub trait FrameSink {
    /// Adds a frame: `[height, width, 3]` bytes, red first, rows from the top.
    ///
    /// # Errors
    /// A frame of another size, or a failure to encode or write.
    fn write(&mut self, rgb: &[u8]) -> Result<(), VideoError>;

    /// Completes the file and puts it in its place.
    ///
    /// # Errors
    /// No frames, or a failure to encode or write; the target is then as it was.
    fn finish(self: Box<Self>) -> Result<(), VideoError>;
}

/// What a path asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// H.264 video.
    Mp4,
    /// Animated image.
    Gif,
    /// All frames in one image.
    Sheet,
    /// Array `[frames, height, width, 3]` of bytes.
    Npy,
    /// A folder of numbered PNG images.
    Frames,
}

impl Format {
    /// The format of a path: a folder if it is one, ends with a separator or has no extension, else by extension.
    ///
    /// # Errors
    /// An extension that no format has, or a folder path where a file is.
    pub fn of(path: &Path) -> Result<Self, VideoError> {
        let text = path.as_os_str().to_string_lossy();
        let is_folder = path.is_dir() || text.ends_with(std::path::is_separator);
        let extension = path.extension().map(OsStr::to_string_lossy).filter(|_| !is_folder);
        let Some(extension) = extension else {
            return if path.exists() && !path.is_dir() {
                Err(VideoError::Occupied { path: path.to_owned(), expected: "a folder", found: "a file".to_owned() })
            } else {
                Ok(Self::Frames)
            };
        };
        match extension.to_ascii_lowercase().as_str() {
            "mp4" => Ok(Self::Mp4),
            "gif" => Ok(Self::Gif),
            "png" => Ok(Self::Sheet),
            "npy" => Ok(Self::Npy),
            _ => Err(VideoError::Extension { path: path.to_owned(), found: extension.into_owned() }),
        }
    }
}

/// Opens a sink for frames of `width` x `height` pixels at `fps` frames a second; the path decides the [`Format`].
///
/// `frames_hint` is the number of frames to come, as far as known; any number may follow. Formats without time ignore
/// `fps`. Everything that can be refused without frames is refused here, so open the sink before the work.
///
/// # Errors
/// An unknown extension, a size or rate that the format cannot hold, a folder with other files in it, or a folder that
/// cannot be written to.
pub fn open_sink(
    path: &Path,
    width: usize,
    height: usize,
    fps: f64,
    frames_hint: usize,
) -> Result<Box<dyn FrameSink>, VideoError> {
    let format = Format::of(path)?;
    if fps.is_nan() || fps <= 0.0 || fps > MAX_FPS {
        return Err(VideoError::Fps(fps));
    }
    let size = Size::new(path, width, height)?;
    Ok(match format {
        Format::Mp4 => Box::new(mp4::Mp4::open(path, size, fps)?),
        Format::Gif => Box::new(gif::Gif::open(path, size, fps)?),
        Format::Sheet => Box::new(png::Sheet::open(path, size, frames_hint)?),
        Format::Npy => Box::new(npy::Npy::open(path, size)?),
        Format::Frames => Box::new(png::Frames::open(path, size)?),
    })
}

/// Bytes of frames with values from 0 to 1, as diffusers makes them: `(x * 255).round()`, halves to even.
///
/// Values outside are cut off; what is not a number becomes 0.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 255 after the clamp")]
#[must_use]
pub fn to_rgb8(frames: &[f32]) -> Vec<u8> {
    frames.iter().map(|value| (value.clamp(0.0, 1.0) * 255.0).round_ties_even() as u8).collect()
}

/// Size of every frame in pixels: at least 1x1, at most 65,535 a side.
#[derive(Clone, Copy, Debug)]
struct Size {
    width: u16,
    height: u16,
}

impl Size {
    fn new(path: &Path, width: usize, height: usize) -> Result<Self, VideoError> {
        match (u16::try_from(width), u16::try_from(height)) {
            (Ok(width @ 1..), Ok(height @ 1..)) => Ok(Self { width, height }),
            _ => Err(VideoError::Size { path: path.to_owned(), expected: "1 to 65535 pixels a side", width, height }),
        }
    }

    fn width(self) -> usize {
        usize::from(self.width)
    }

    fn height(self) -> usize {
        usize::from(self.height)
    }

    /// Refuses a frame of another size.
    fn check(self, frame: usize, rgb: &[u8]) -> Result<(), VideoError> {
        let expected = self.width() * self.height() * 3;
        if rgb.len() == expected { Ok(()) } else { Err(VideoError::Frame { frame, expected, found: rgb.len() }) }
    }
}

#[cfg(test)]
mod tests;
