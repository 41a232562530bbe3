//! Images and videos that a run starts from.

use crate::scene::Scene;
use crate::{Case, check, refused};

fn bundle(scene: &Scene) {
    let said = scene.run("cogvx-export CKPT -o BUNDLE --weights copy");
    assert_eq!(said.code, Some(0), "{}", said.stderr);
}

/// The start of a PNG, and its end, with nothing for pixels between.
fn png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = vec![];
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().expect("a header");
    writer.write_chunk(png::chunk::IDAT, &[]).expect("written");
    drop(writer);
    bytes
}

/// A GIF of this canvas with one pixel in it.
fn gif(width: u16, height: u16) -> Vec<u8> {
    let canvas = [width.to_le_bytes(), height.to_le_bytes()].concat();
    let frame = [0x2c, 0, 0, 0, 0, 1, 0, 1, 0, 0, 2, 2, 0x4c, 1, 0];
    [b"GIF89a", &canvas[..], &[0x80, 0, 0], &[0; 6], &frame, b";"].concat()
}

/// A bundle, and a NumPy file of so many zeros.
fn numpy(scene: &Scene, of: &str, shape: &str, zeros: usize) {
    bundle(scene);
    let header = format!("{{'descr': '{of}', 'fortran_order': False, 'shape': {shape}}}\n");
    let length = u16::try_from(header.len()).expect("short").to_le_bytes();
    scene.write("CKPT/in.npy", [b"\x93NUMPY\x01\0", &length[..], header.as_bytes(), &vec![0; zeros]].concat());
}

const fn image(name: &'static str, breaks: fn(&Scene), message: &'static str) -> Case {
    Case { name, breaks, line: "cogvx run BUNDLE -p fox --image CKPT/in.png -o OUT.npy", message }
}

const fn array(name: &'static str, breaks: fn(&Scene), message: &'static str) -> Case {
    Case { name, breaks, line: "cogvx run BUNDLE -p fox --video CKPT/in.npy -o OUT.npy", message }
}

#[test]
fn images_that_are_none_or_too_large_are_refused() {
    let cases = [
        image("no image", bundle, "`CKPT/in.png`: expected a file, found nothing"),
        image(
            "an image that is a FIFO",
            |s| (bundle(s), s.fifo("CKPT/in.png")).0,
            "`CKPT/in.png`: expected a regular file, found a fifo",
        ),
        image(
            "an image that is a folder",
            |s| (bundle(s), s.folder("CKPT/in.png")).0,
            "`CKPT/in.png`: expected a regular file, found a directory",
        ),
        image(
            "an empty image",
            |s| (bundle(s), s.write("CKPT/in.png", b"")).0,
            "`CKPT/in.png`: The image format could not be determined",
        ),
        image(
            "an image of 50000 x 50000 pixels",
            |s| (bundle(s), s.write("CKPT/in.png", png(50_000, 50_000))).0,
            "`CKPT/in.png`: expected at most 134217728 pixels, 65536 a side, found 50000x50000",
        ),
        image(
            "an image without its pixels",
            |s| (bundle(s), s.write("CKPT/in.png", png(16, 16))).0,
            "`CKPT/in.png`: Format error decoding Png: Corrupt deflate stream. InsufficientInput",
        ),
        refused(
            "an image for a video larger than memory",
            "cogvx run BUNDLE -p fox --image CKPT/in.png --height 1099511627776 -o OUT.npy",
            bundle,
            "`--height`: expected a multiple of 16, at most 65536, found 1099511627776",
        ),
        refused(
            "an image for frames larger than memory",
            "cogvx run BUNDLE -p fox --image CKPT/in.png --height 65536 --width 65536 -o OUT.npy",
            bundle,
            "`CKPT/in.png`: expected at most 4294967296 bytes as f32, found 1 of 65536x65536 pixels",
        ),
    ];
    check("2b-fp32", &cases);
}

#[test]
fn videos_that_are_none_or_too_large_are_refused() {
    let cases = [
        array("no video", bundle, "`CKPT/in.npy`: expected a file, found nothing"),
        array(
            "a video that is a FIFO",
            |s| (bundle(s), s.fifo("CKPT/in.npy")).0,
            "`CKPT/in.npy`: expected a regular file, found a fifo",
        ),
        array(
            "an array of more frames than there are bytes",
            |s| numpy(s, "|u1", "(1000000, 64, 64, 3)", 48),
            "`CKPT/in.npy`: missing 12287999952 bytes of data specified in header",
        ),
        array(
            "an array of more elements than numbers count",
            |s| numpy(s, "|u1", "(9223372036854775807, 65535, 65535, 3)", 48),
            "`CKPT/in.npy`: overflow computing length from shape",
        ),
        array(
            "an array of numbers that are no bytes",
            |s| numpy(s, "<f4", "(1, 2, 2, 3)", 48),
            "`CKPT/in.npy`: incorrect descriptor ('<f4') for this type",
        ),
        array(
            "an array of four channels",
            |s| numpy(s, "|u1", "(1, 2, 2, 4)", 16),
            "`CKPT/in.npy`: expected frames of [height, width, 3], found [2, 2, 4]",
        ),
        array(
            "an array without frames",
            |s| numpy(s, "|u1", "(0, 2, 2, 3)", 0),
            "`CKPT/in.npy`: expected at least one frame, found none",
        ),
        array(
            "an array without columns",
            |s| numpy(s, "|u1", "(1, 2, 0, 3)", 0),
            "`CKPT/in.npy`: expected frames of [height, width, 3], found [2, 0, 3]",
        ),
        refused(
            "a GIF of 60000 x 60000 pixels",
            "cogvx run BUNDLE -p fox --video CKPT/in.gif -o OUT.npy",
            |s| (bundle(s), s.write("CKPT/in.gif", gif(60_000, 60_000))).0,
            "`CKPT/in.gif`: expected at most 134217728 pixels, 65536 a side, found 60000x60000",
        ),
        refused(
            "a folder without images",
            "cogvx run BUNDLE -p fox --video CKPT/vae -o OUT.npy",
            |s| (bundle(s), s.remove("CKPT/vae"), s.folder("CKPT/vae")).0,
            "`CKPT/vae`: expected at least one frame, found none",
        ),
    ];
    check("2b-fp32", &cases);
}
