use std::fs;

use openh264::decoder::Decoder;
use openh264::formats::YUVSource;
use tempfile::TempDir;

use super::*;

/// A gradient that moves with the frame, of the sizes CogVideoX makes for tests.
#[expect(clippy::cast_possible_truncation, reason = "small numbers")]
fn gradient(width: usize, height: usize, frame: usize) -> Vec<u8> {
    let frame = frame % 12;
    let pixel =
        |x: usize, y: usize| [x * 150 / width + 6 * frame + 20, y * 180 / height + 30, (900 - 8 * frame) / 5 - x / 2];
    (0..height).flat_map(|y| (0..width).flat_map(move |x| pixel(x, y).map(|value| value as u8))).collect()
}

fn write(path: &Path, width: usize, height: usize, frames: usize) -> Result<(), VideoError> {
    let mut sink = open_sink(path, width, height, 8.0, frames)?;
    for frame in 0..frames {
        sink.write(&gradient(width, height, frame))?;
    }
    sink.finish()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The payloads of boxes of one kind at this level.
fn boxes<'a>(mut bytes: &'a [u8], kind: &[u8]) -> Vec<&'a [u8]> {
    let mut found = Vec::new();
    while let Some((size, _)) = bytes.split_first_chunk() {
        let (this, rest) = bytes.split_at(u32::from_be_bytes(*size) as usize);
        if &this[4..8] == kind {
            found.push(&this[8..]);
        }
        bytes = rest;
    }
    found
}

/// Splits NAL units that have a length of `N` bytes before them, and puts start codes there.
fn annex_b<const N: usize>(mut bytes: &[u8], count: usize) -> Vec<Vec<u8>> {
    let mut units = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<N>()
        && units.len() < count
    {
        let length = length.iter().fold(0, |length, &byte| length << 8 | usize::from(byte));
        let (unit, after) = rest.split_at(length);
        units.push([&[0, 0, 0, 1], unit].concat());
        bytes = after;
    }
    units
}

/// Decodes the file with OpenH264's own decoder; only what this crate writes is understood.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
fn decode(mp4: &[u8]) -> Vec<Vec<u8>> {
    let settings = mp4.windows(4).position(|name| name == b"avcC").expect("an avcC box") + 4;
    let sequence = annex_b::<2>(&mp4[settings + 6..], 1);
    let picture = annex_b::<2>(&mp4[settings + 6 + 2 + sequence[0].len() - 4 + 1..], 1);
    let mut decoder = Decoder::new().expect("a decoder");
    let mut frames = Vec::new();
    let data = boxes(mp4, b"mdat").concat();
    for unit in [sequence, picture, annex_b::<4>(&data, usize::MAX)].concat() {
        let Some(yuv) = decoder.decode(&unit).expect("a valid stream") else { continue };
        let (width, height) = yuv.dimensions();
        let (luma_stride, stride, _) = yuv.strides();
        let pixel = |x: usize, y: usize| {
            let chroma = y / 2 * stride + x / 2;
            let luma = (f32::from(yuv.y()[y * luma_stride + x]) - 16.0) / 219.0;
            let [blue, red] = [yuv.u(), yuv.v()].map(|plane| (f32::from(plane[chroma]) - 128.0) / 224.0);
            let (r, b) = (luma + 1.402 * red, luma + 1.772 * blue);
            [r, (luma - 0.299 * r - 0.114 * b) / 0.587, b].map(|value| (value * 255.0).round() as u8)
        };
        frames.push((0..height).flat_map(|y| (0..width).flat_map(move |x| pixel(x, y))).collect());
    }
    frames
}

/// Peak signal-to-noise ratio in decibels.
#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn psnr(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len());
    let squares: f64 = a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    10.0 * (255.0 * 255.0 * a.len() as f64 / squares).log10()
}

#[test]
fn an_mp4_decodes_to_the_frames_that_went_in() {
    let folder = TempDir::new().expect("a folder");
    for (width, height, frames) in [(48, 48, 9), (64, 32, 1), (160, 96, 60)] {
        let path = folder.path().join(format!("{width}.mp4"));
        write(&path, width, height, frames).expect("written");
        let found = decode(&fs::read(&path).expect("the file"));
        assert_eq!(found.len(), frames);
        for (i, frame) in found.iter().enumerate() {
            let ratio = psnr(frame, &gradient(width, height, i));
            assert!(ratio > 35.0, "{width}x{height}, frame {i}: expected more than 35 dB, found {ratio:.1}");
        }
    }
}

/// Bytes of no pattern.
fn noise(bytes: usize, mut state: u32) -> Vec<u8> {
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    };
    (0..bytes).map(|_| next()).collect()
}

#[test]
fn an_mp4_of_noise_decodes_to_the_frames_that_went_in() {
    let folder = TempDir::new().expect("a folder");
    for (width, height) in [(16, 16), (48, 48), (96, 64), (256, 256), (352, 288)] {
        let path = folder.path().join(format!("{width}.mp4"));
        let mut sink = open_sink(&path, width, height, 8.0, 4).expect("a sink");
        // Noise in the first frame, in the middle and after another noise.
        let frames = [
            noise(width * height * 3, 1),
            gradient(width, height, 0),
            noise(width * height * 3, 2),
            noise(width * height * 3, 3),
        ];
        for frame in &frames {
            sink.write(frame).unwrap_or_else(|e| panic!("{width}x{height}: {e}"));
        }
        sink.finish().expect("written");
        let found = decode(&fs::read(&path).expect("the file"));
        assert_eq!(found.len(), frames.len(), "{width}x{height}");
        for (i, (found, frame)) in found.iter().zip(&frames).enumerate() {
            // Chroma of noise goes with every fourth pixel's; luma stays.
            let luma = |rgb: &[u8]| -> Vec<u8> {
                rgb.as_chunks()
                    .0
                    .iter()
                    .map(|&[r, g, b]| {
                        ((u32::from(r) * 77 + u32::from(g) * 150 + u32::from(b) * 29) >> 8).to_le_bytes()[0]
                    })
                    .collect()
            };
            let ratio = psnr(&luma(found), &luma(frame));
            assert!(ratio > 20.0, "{width}x{height}, frame {i}: expected more than 20 dB, found {ratio:.1}");
        }
    }
}

#[test]
fn an_array_has_numpys_header_and_the_bytes_that_went_in() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("a.npy");
    write(&path, 20, 10, 3).expect("written");
    let bytes = fs::read(&path).expect("the file");
    let (header, data) = bytes.split_at(128);
    assert_eq!(&header[..10], b"\x93NUMPY\x01\x00\x76\x00");
    let text = String::from_utf8_lossy(&header[10..]);
    assert_eq!(text.trim_end(), "{'descr': '|u1', 'fortran_order': False, 'shape': (3, 10, 20, 3), }");
    assert_eq!(data, [gradient(20, 10, 0), gradient(20, 10, 1), gradient(20, 10, 2)].concat());
}

#[test]
fn a_gif_keeps_count_time_and_repeats() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("a.GIF");
    write(&path, 16, 16, 4).expect("written");
    let mut decoder = ::gif::DecodeOptions::new().read_info(fs::File::open(&path).expect("the file")).expect("a GIF");
    assert_eq!(decoder.repeat(), ::gif::Repeat::Infinite);
    let mut delays = Vec::new();
    while let Some(frame) = decoder.read_next_frame().expect("a frame") {
        assert_eq!((frame.width, frame.height), (16, 16));
        delays.push(frame.delay);
    }
    assert_eq!(delays, [13, 12, 13, 12]);
}

fn read_png(path: &Path) -> (usize, Vec<u8>) {
    let decoder = ::png::Decoder::new(std::io::BufReader::new(fs::File::open(path).expect("the file")));
    let mut reader = decoder.read_info().expect("a PNG");
    let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
    let info = reader.next_frame(&mut pixels).expect("an image");
    (info.width as usize, pixels)
}

#[test]
fn a_sheet_shows_every_frame_with_gaps_between() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("a.png");
    write(&path, 6, 4, 5).expect("written");
    let (width, pixels) = read_png(&path);
    assert_eq!((width, pixels.len()), (3 * 10 + 4, (2 * 8 + 4) * 34 * 3));
    let at = |x: usize, y: usize| &pixels[(y * width + x) * 3..][..3];
    assert_eq!(at(3, 3), [32; 3]);
    assert_eq!(at(4, 4), &gradient(6, 4, 0)[..3]);
    assert_eq!(at(14, 12), &gradient(6, 4, 4)[..3]);
    assert_eq!(at(24, 12), [32; 3]);
}

#[test]
fn a_folder_takes_numbered_images_and_replaces_only_its_own() {
    let parent = TempDir::new().expect("a folder");
    let folder = parent.path().join("frames");
    write(&folder, 6, 4, 3).expect("written");
    assert_eq!(names(&folder), ["00000.png", "00001.png", "00002.png"]);
    write(&parent.path().join("frames/"), 6, 4, 2).expect("written again");
    assert_eq!(names(&folder), ["00000.png", "00001.png"]);
    assert_eq!(read_png(&folder.join("00001.png")), (6, gradient(6, 4, 1)));
    fs::write(folder.join("notes.txt"), "mine").expect("a file");
    let message = write(&folder, 6, 4, 1).expect_err("refused").to_string();
    assert!(message.ends_with("expected a folder with nothing but frames in it, found `notes.txt`"), "{message}");
    assert_eq!(names(parent.path()), ["frames"]);
}

#[test]
fn a_dropped_sink_leaves_what_was_there() {
    let folder = TempDir::new().expect("a folder");
    for name in ["a.mp4", "a.gif", "a.png", "a.npy"] {
        let path = folder.path().join(name);
        fs::write(&path, "before").expect("a file");
        let mut sink = open_sink(&path, 16, 16, 8.0, 2).expect("valid");
        sink.write(&gradient(16, 16, 0)).expect("written");
        drop(sink);
        let unfinished = open_sink(&path, 16, 16, 8.0, 2).expect("valid").finish();
        assert!(unfinished.expect_err("refused").to_string().ends_with("expected at least 1 frame, found none"));
        assert_eq!(fs::read(&path).expect("the file"), b"before");
    }
    let mut sink = open_sink(&folder.path().join("frames/"), 16, 16, 8.0, 2).expect("valid");
    sink.write(&gradient(16, 16, 0)).expect("written");
    drop(sink);
    assert_eq!(names(folder.path()), ["a.gif", "a.mp4", "a.npy", "a.png"]);
}

#[test]
fn a_file_that_was_there_is_replaced() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("a.npy");
    fs::write(&path, "before").expect("a file");
    write(&path, 16, 16, 1).expect("written");
    assert_eq!(fs::metadata(&path).expect("the file").len(), 128 + 16 * 16 * 3);
}

#[test]
fn targets_that_cannot_be_written_are_refused_before_any_frame() {
    let folder = TempDir::new().expect("a folder");
    let inside = |name: &str| folder.path().join(name);
    fs::write(inside("file"), "").expect("a file");
    for (name, width, fps, wanted) in [
        (
            "a.avi",
            16,
            8.0,
            "expected `.mp4`, `.gif`, `.png` (contact sheet), `.npy`, or a folder for PNG frames, found `.avi`",
        ),
        ("file", 16, 8.0, "expected a folder, found a file"),
        ("a.mp4", 17, 8.0, "expected even sides from 16x16 to 3840x2160 pixels, found 17x16"),
        ("a.mp4", 14, 8.0, "found 14x16"),
        ("a.mp4", 4000, 8.0, "found 4000x16"),
        ("a.gif", 0, 8.0, "expected 1 to 65535 pixels a side, found 0x16"),
        ("a.npy", 70_000, 8.0, "found 70000x16"),
        ("a.mp4", 16, 0.0, "frame rate: expected more than 0 and at most 1000, found 0"),
        ("a.mp4", 16, f64::NAN, "found NaN"),
        ("no/a.mp4", 16, 8.0, "cannot write `"),
        ("no/frames/", 16, 8.0, "cannot write `"),
    ] {
        let refused = open_sink(&inside(name), width, 16, fps, 1);
        let message = refused.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(message.contains(wanted), "{name}: expected {wanted:?}, found {message:?}");
    }
    assert_eq!(names(folder.path()), ["file"]);
}

#[test]
fn a_frame_of_another_size_is_refused() {
    let folder = TempDir::new().expect("a folder");
    for name in ["a.mp4", "a.gif", "a.png", "a.npy", "frames"] {
        let mut sink = open_sink(&folder.path().join(name), 16, 16, 8.0, 1).expect("valid");
        let message = sink.write(&[0; 5]).expect_err("refused").to_string();
        assert_eq!(message, "frame 0: expected 768 bytes, found 5");
    }
}

#[test]
fn floats_become_bytes_as_numpy_rounds_them() {
    let halves = [0.5 / 255.0, 1.5 / 255.0, 2.5 / 255.0, 254.5 / 255.0];
    assert_eq!(to_rgb8(&halves), [0, 2, 2, 254]);
    assert_eq!(to_rgb8(&[-1.0, 0.0, 1.0, 2.0, f32::NAN, f32::INFINITY]), [0, 0, 255, 255, 0, 255]);
}
