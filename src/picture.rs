//! Images and videos to start from, as diffusers' `VideoProcessor` prepares them: resized with Lanczos, in -1..1.

mod lanczos;

use std::io::{Cursor, Read as _};
use std::path::{Path, PathBuf};

use cogvx_graphs::source::{SourceError, open_regular};
use image::codecs::gif::GifDecoder;
use image::{AnimationDecoder, DynamicImage, ImageDecoder, ImageReader, RgbImage};
use ndarray::{Array3, ArrayD, ArrayView3, ArrayView4, Axis};
use ndarray_npy::ViewNpyExt;

pub use lanczos::resize;

/// Largest side of an input in pixels.
const MOST: u32 = 65_536;
/// Largest picture and frame in pixels: 8K video has 33 million.
const MOST_PIXELS: u64 = 1 << 27;
/// Largest input file, in bytes.
const MOST_FILE: u64 = 4 << 30;
/// Most bytes of what comes out, at 12 a pixel: ten times the longest video of a published model.
const MOST_RESULT: usize = 4 << 30;

/// Why an input cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum PictureError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("`{}`: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("`{}`: {problem}", path.display())]
    Format { path: PathBuf, problem: String },
}

fn format(path: &Path, problem: &dyn std::fmt::Display) -> PictureError {
    PictureError::Format { path: path.into(), problem: problem.to_string() }
}

/// The image at `path` (PNG, JPEG or GIF) as `[3, height, width]` in -1..1.
///
/// # Errors
/// No image there, or one of more than 2^27 pixels.
pub fn image(path: &Path, size: [usize; 2]) -> Result<ArrayD<f32>, PictureError> {
    room(path, 1, size)?;
    Ok(prepared(&read_image(path)?, size))
}

/// The hash (BLAKE3, in hexadecimal) of the image's file at `path`, by which a table knows it.
///
/// # Errors
/// No file there, or one of more than 4 GiB.
pub fn hash(path: &Path) -> Result<String, PictureError> {
    Ok(blake3::hash(&contents(path)?).to_hex().to_string())
}

/// The video at `path` as `[3, frames, height, width]` in -1..1: a NumPy array uint8 `[frames, height, width, 3]`, a GIF, or a
/// folder of images in name order. Frames are resized one by one.
///
/// # Errors
/// No video there, frames of more than 2^27 pixels, or a result of more than 4 GiB.
pub fn video(path: &Path, size: [usize; 2]) -> Result<ArrayD<f32>, PictureError> {
    let mut frames = vec![];
    let mut add = |frame: &RgbImage| -> Result<(), PictureError> {
        room(path, frames.len() + 1, size)?;
        frames.push(prepared(frame, size));
        Ok(())
    };
    if path.is_dir() {
        let read = |source| PictureError::Read { path: path.into(), source };
        let entries = std::fs::read_dir(path).map_err(read)?.collect::<Result<Vec<_>, _>>().map_err(read)?;
        let mut files: Vec<_> = entries.iter().map(std::fs::DirEntry::path).filter(|p| p.is_file()).collect();
        files.sort();
        files.iter().try_for_each(|file| add(&read_image(file)?))?;
    } else {
        read_frames(path, &mut add)?;
    }
    let views: Vec<_> = frames.iter().map(|f| f.view()).collect();
    ndarray::stack(Axis(1), &views).map_err(|_| format(path, &"expected at least one frame, found none"))
}

/// Checks that so many frames of `[height, width]` are few enough for memory.
fn room(path: &Path, frames: usize, [height, width]: [usize; 2]) -> Result<(), PictureError> {
    let bytes = [height, width, 12].iter().try_fold(frames, |product, &n| product.checked_mul(n));
    if bytes.is_some_and(|bytes| bytes > 0 && bytes <= MOST_RESULT) {
        return Ok(());
    }
    let found = format_args!("expected at most {MOST_RESULT} bytes as f32, found {frames} of {height}x{width} pixels");
    Err(format(path, &found))
}

/// Checks the size of a picture before its pixels are decoded.
fn small(path: &Path, (width, height): (u32, u32)) -> Result<(), PictureError> {
    if width <= MOST && height <= MOST && u64::from(width) * u64::from(height) <= MOST_PIXELS {
        return Ok(());
    }
    let found = format_args!("expected at most {MOST_PIXELS} pixels, {MOST} a side, found {width}x{height}");
    Err(format(path, &found))
}

/// The bytes of a regular file; decoders seek in them, and some want all at once.
fn contents(path: &Path) -> Result<Vec<u8>, PictureError> {
    let opened = open_regular(path)?;
    if opened.bytes > MOST_FILE {
        return Err(format(path, &format_args!("expected at most {MOST_FILE} bytes, found {}", opened.bytes)));
    }
    let mut bytes = vec![];
    let read = opened.file.take(MOST_FILE).read_to_end(&mut bytes);
    read.map_err(|source| PictureError::Read { path: path.into(), source })?;
    Ok(bytes)
}

fn read_image(path: &Path) -> Result<RgbImage, PictureError> {
    let bytes = contents(path)?;
    let reader = ImageReader::new(Cursor::new(&bytes)).with_guessed_format();
    let reader = reader.map_err(|source| PictureError::Read { path: path.into(), source })?;
    let decoder = reader.into_decoder().map_err(|e| format(path, &e))?;
    small(path, decoder.dimensions())?;
    Ok(DynamicImage::from_decoder(decoder).map_err(|e| format(path, &e))?.into_rgb8())
}

fn read_frames(path: &Path, add: &mut dyn FnMut(&RgbImage) -> Result<(), PictureError>) -> Result<(), PictureError> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("npy") => {
            let bytes = contents(path)?;
            // A view: the header's sizes are compared with the bytes there are before anything is made of them.
            let frames = ArrayView4::<u8>::view_npy(&bytes).map_err(|e| format(path, &e))?;
            frames.outer_iter().try_for_each(|frame| add(&rgb(path, &frame)?))
        }
        Some("gif") => {
            let bytes = contents(path)?;
            let decoder = GifDecoder::new(Cursor::new(&bytes)).map_err(|e| format(path, &e))?;
            small(path, decoder.dimensions())?;
            decoder.into_frames().try_for_each(|frame| {
                let frame = frame.map_err(|e| format(path, &e))?;
                add(&DynamicImage::ImageRgba8(frame.into_buffer()).into_rgb8())
            })
        }
        _ => Err(format(path, &"expected a video as `.npy`, `.gif` or a folder of images")),
    }
}

fn rgb(path: &Path, frame: &ArrayView3<'_, u8>) -> Result<RgbImage, PictureError> {
    let (height, width, channels) = frame.dim();
    let sides = u32::try_from(width).ok().zip(u32::try_from(height).ok());
    let sides = sides.filter(|&(width, height)| channels == 3 && width > 0 && height > 0);
    let wrong = || format(path, &format_args!("expected frames of [height, width, 3], found {:?}", frame.shape()));
    let (width, height) = sides.ok_or_else(wrong)?;
    small(path, (width, height))?;
    RgbImage::from_raw(width, height, frame.iter().copied().collect()).ok_or_else(wrong)
}

/// Resized as Pillow does, `[3, height, width]` in -1..1.
fn prepared(picture: &RgbImage, [height, width]: [usize; 2]) -> ArrayD<f32> {
    let own = [picture.height() as usize, picture.width() as usize];
    let pixels = resize(picture.as_raw(), own, [height, width]);
    let value = |(channel, row, column)| 2.0 * (f32::from(pixels[(row * width + column) * 3 + channel]) / 255.0) - 1.0;
    Array3::from_shape_fn((3, height, width), value).into_dyn()
}
