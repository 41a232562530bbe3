//! Images and videos to start from, as diffusers' `VideoProcessor` prepares them: resized with Lanczos, in -1..1.

mod lanczos;

use std::fs::File;
use std::path::{Path, PathBuf};

use image::codecs::gif::GifDecoder;
use image::{AnimationDecoder, ImageReader, RgbImage};
use ndarray::{Array3, Array4, ArrayD, Axis};
use ndarray_npy::ReadNpyExt;

pub use lanczos::resize;

/// Largest side of an input in pixels, and most frames.
const MOST: u32 = 65_536;

/// Why an input cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum PictureError {
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
/// No image there.
pub fn image(path: &Path, size: [usize; 2]) -> Result<ArrayD<f32>, PictureError> {
    Ok(prepared(&read_image(path)?, size))
}

/// The video at `path` as `[3, frames, height, width]` in -1..1: a NumPy array uint8 `[frames, height, width, 3]`, a GIF, or a
/// folder of images in name order.
///
/// # Errors
/// No video there.
pub fn video(path: &Path, size: [usize; 2]) -> Result<ArrayD<f32>, PictureError> {
    let frames = read_video(path)?;
    let frames: Vec<_> = frames.iter().map(|frame| prepared(frame, size)).collect();
    let views: Vec<_> = frames.iter().map(|f| f.view()).collect();
    ndarray::stack(Axis(1), &views).map_err(|_| format(path, &"expected at least one frame, found none"))
}

fn read_image(path: &Path) -> Result<RgbImage, PictureError> {
    let read = |source| PictureError::Read { path: path.into(), source };
    let mut reader = ImageReader::open(path).map_err(read)?.with_guessed_format().map_err(read)?;
    let mut limits = image::Limits::default();
    (limits.max_image_width, limits.max_image_height) = (Some(MOST), Some(MOST));
    reader.limits(limits);
    Ok(reader.decode().map_err(|e| format(path, &e))?.into_rgb8())
}

fn read_video(path: &Path) -> Result<Vec<RgbImage>, PictureError> {
    let read = |source| PictureError::Read { path: path.into(), source };
    if path.is_dir() {
        let entries = std::fs::read_dir(path).map_err(read)?.collect::<Result<Vec<_>, _>>().map_err(read)?;
        let mut files: Vec<_> = entries.iter().map(std::fs::DirEntry::path).filter(|p| p.is_file()).collect();
        files.sort();
        return files.iter().map(|file| read_image(file)).collect();
    }
    let file = File::open(path).map_err(read)?;
    match path.extension().and_then(|e| e.to_str()) {
        Some("npy") => {
            let frames = Array4::<u8>::read_npy(file).map_err(|e| format(path, &e))?;
            frames.outer_iter().map(|frame| rgb(path, &frame.to_owned())).collect()
        }
        Some("gif") => {
            let decoder = GifDecoder::new(std::io::BufReader::new(file)).map_err(|e| format(path, &e))?;
            let frames = decoder.into_frames().collect_frames().map_err(|e| format(path, &e))?;
            let rgb = |frame: image::Frame| image::DynamicImage::ImageRgba8(frame.into_buffer()).into_rgb8();
            Ok(frames.into_iter().map(rgb).collect())
        }
        _ => Err(format(path, &"expected a video as `.npy`, `.gif` or a folder of images")),
    }
}

fn rgb(path: &Path, frame: &Array3<u8>) -> Result<RgbImage, PictureError> {
    let (height, width, channels) = frame.dim();
    let sides = (u32::try_from(width).ok(), u32::try_from(height).ok());
    let image = match sides {
        (Some(width), Some(height)) if channels == 3 => {
            RgbImage::from_raw(width, height, frame.iter().copied().collect())
        }
        _ => None,
    };
    image.ok_or_else(|| format(path, &format_args!("expected [frames, height, width, 3], found {:?}", frame.shape())))
}

/// Resized as Pillow does, `[3, height, width]` in -1..1.
fn prepared(picture: &RgbImage, [height, width]: [usize; 2]) -> ArrayD<f32> {
    let own = [picture.height() as usize, picture.width() as usize];
    let pixels = resize(picture.as_raw(), own, [height, width]);
    let value = |(channel, row, column)| 2.0 * (f32::from(pixels[(row * width + column) * 3 + channel]) / 255.0) - 1.0;
    Array3::from_shape_fn((3, height, width), value).into_dyn()
}
