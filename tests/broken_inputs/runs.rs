//! `cogvx run`: bundles, requests and outputs.

use crate::scene::Scene;
use crate::{Case, check, refused};

const MANIFEST: &str = "BUNDLE/cogvx.json";

fn bundle(scene: &Scene) {
    let said = scene.run("cogvx-export CKPT -o BUNDLE --weights copy");
    assert_eq!(said.code, Some(0), "{}", said.stderr);
}

fn first_file(scene: &Scene, field: &str, value: &str) {
    scene.json(MANIFEST, |m| m["files"][0][field] = value.into());
}

/// A bundle whose text encoder's graph is damaged, of the size that the manifest says.
fn graph(scene: &Scene, damage: impl FnOnce(&mut Vec<u8>)) {
    const GRAPH: &str = "BUNDLE/text_encoder/model.onnx";
    bundle(scene);
    scene.bytes(GRAPH, damage);
    let bytes = std::fs::metadata(scene.path(GRAPH)).expect("there").len();
    scene.json(MANIFEST, |m| {
        let files = m["files"].as_array_mut().expect("a list");
        files.iter_mut().find(|f| f["path"] == "text_encoder/model.onnx").expect("there")["bytes"] = bytes.into();
    });
}

/// Put `to` where `from` is first.
fn replace(bytes: &mut [u8], from: &[u8], to: &[u8]) {
    let at = bytes.windows(from.len()).position(|window| window == from).expect("there");
    bytes[at..at + to.len()].copy_from_slice(to);
}

/// A bundle that is refused.
const fn run(name: &'static str, breaks: fn(&Scene), message: &'static str) -> Case {
    Case { name, breaks, line: "cogvx run BUNDLE -p fox --steps 2 -o OUT.npy", message }
}

#[test]
fn damaged_bundles_are_refused() {
    let cases = [
        run("no bundle", |_| {}, "`BUNDLE`: expected a cogvx bundle, found no `cogvx.json`"),
        run(
            "an empty folder for a bundle",
            |s| s.folder("BUNDLE"),
            "`BUNDLE`: expected a cogvx bundle, found no `cogvx.json`",
        ),
        run(
            "a manifest of garbage",
            |s| (bundle(s), s.write(MANIFEST, "garbage")).0,
            "`BUNDLE/cogvx.json`: expected JSON, found expected value at line 1 column 1",
        ),
        run(
            "a manifest without fields",
            |s| (bundle(s), s.write(MANIFEST, r#"{"format_version": 1}"#)).0,
            "`BUNDLE/cogvx.json`: expected a manifest, found missing field `cogvx`",
        ),
        run(
            "a manifest of another version",
            |s| (bundle(s), s.set(MANIFEST, "format_version", 2)).0,
            "`BUNDLE/cogvx.json`: expected format version 1, found 2: export it again",
        ),
        run(
            "a manifest that is a FIFO",
            |s| (bundle(s), s.fifo(MANIFEST)).0,
            "`BUNDLE/cogvx.json`: expected a regular file, found a special file",
        ),
        run(
            "a path that climbs",
            |s| (bundle(s), first_file(s, "path", "../../etc/passwd")).0,
            "`../../etc/passwd`: expected a plain relative path (`BUNDLE/cogvx.json`)",
        ),
        run(
            "an absolute path",
            |s| (bundle(s), first_file(s, "path", "/etc/passwd")).0,
            "`/etc/passwd`: expected a plain relative path (`BUNDLE/cogvx.json`)",
        ),
        run(
            "a file that is listed and gone",
            |s| (bundle(s), s.remove("BUNDLE/scheduler/scheduler_config.json")).0,
            "`BUNDLE/scheduler/scheduler_config.json`: listed in `cogvx.json`, not there",
        ),
        run(
            "a weight file cut short",
            |s| (bundle(s), s.bytes("BUNDLE/text_encoder/model.safetensors", |b| b.truncate(b.len() - 4))).0,
            "`BUNDLE/text_encoder/model.safetensors`: expected 60040 bytes, found 60036",
        ),
        run(
            "a graph of garbage",
            |s| (bundle(s), s.bytes("BUNDLE/text_encoder/model.onnx", |b| b.fill(0xff))).0,
            "`BUNDLE/text_encoder/model.onnx`: the file: expected an ONNX model as cogvx writes it, found a \
             ModelProto that ends inside a field",
        ),
        run(
            "a configuration that does not fit",
            |s| (bundle(s), s.json(MANIFEST, |m| m["config"]["transformer"]["patch_size"] = 0.into())).0,
            "`patch_size`: expected a whole number from 1 to 16, found `0` (`BUNDLE/cogvx.json`)",
        ),
        run(
            "a configuration of another model than the graphs'",
            |s| (bundle(s), s.json(MANIFEST, |m| m["config"]["transformer"]["in_channels"] = 8.into())).0,
            "`--image`: expected an image: this is an image-to-video model, found none",
        ),
        run(
            "graphs of one component for those of another",
            |s| {
                bundle(s);
                std::fs::copy(s.path("BUNDLE/vae_decoder/next.onnx"), s.path("BUNDLE/vae_decoder/first.onnx"))
                    .expect("copied");
                let bytes = std::fs::metadata(s.path("BUNDLE/vae_decoder/next.onnx")).expect("there").len();
                s.json(MANIFEST, |m| {
                    let files = m["files"].as_array_mut().expect("a list");
                    let first = files.iter_mut().find(|f| f["path"] == "vae_decoder/first.onnx").expect("there");
                    first["bytes"] = bytes.into();
                });
            },
            "`BUNDLE/vae_decoder/first.onnx`: inputs: expected `latents` f32[batch, 4, frames, height, width] as in \
             `cogvx.json`, found `latents` f32[batch, 4, 2, height, width]",
        ),
        run(
            "a graph without one of the manifest's outputs",
            |s| {
                bundle(s);
                s.json(MANIFEST, |m| {
                    let outputs =
                        m["components"]["text_encoder"]["graphs"][0]["outputs"].as_array_mut().expect("a list");
                    outputs.push(outputs[0].clone());
                });
            },
            "`BUNDLE/text_encoder/model.onnx`: outputs: expected `last_hidden_state` f32[batch, tokens, 20] as in \
             `cogvx.json`, found no more",
        ),
        run(
            "a graph that the manifest does not list",
            |s| {
                bundle(s);
                s.json(MANIFEST, |m| m["components"]["text_encoder"]["graphs"] = serde_json::json!([]));
            },
            "`BUNDLE/text_encoder/model.onnx`: expected among the graphs of `text_encoder` in `cogvx.json`, found none",
        ),
        run(
            "an empty graph",
            |s| graph(s, Vec::clear),
            "`BUNDLE/text_encoder/model.onnx`: the file: expected an ONNX model, found an empty file",
        ),
        run(
            "a graph cut short",
            |s| graph(s, |b| b.truncate(b.len() - 3)),
            "`BUNDLE/text_encoder/model.onnx`: the file: expected an ONNX model as cogvx writes it, found a ModelProto \
             that ends inside a field",
        ),
        run(
            "a graph of a newer IR version",
            |s| graph(s, |b| b[1] = 11),
            "`BUNDLE/text_encoder/model.onnx`: IR version: expected 10, found 11",
        ),
        run(
            "a graph of another opset",
            |s| graph(s, |b| replace(b, b"\x0a\0\x10\x17", b"\x0a\0\x10\x7f")),
            "`BUNDLE/text_encoder/model.onnx`: opset of ONNX: expected version 21 to 23, found 127",
        ),
        run(
            "external data above the bundle",
            |s| graph(s, |b| replace(b, b"model.safetensors", b"../../secret.file")),
            "`BUNDLE/text_encoder/model.onnx`: initializer `shared.weight`: expected \
             external data in a plain relative path, found `../../secret.file`",
        ),
        run(
            "external data with an absolute path",
            |s| graph(s, |b| replace(b, b"model.safetensors", b"/etc/ssl/cert.pem")),
            "`BUNDLE/text_encoder/model.onnx`: initializer `shared.weight`: expected \
             external data in a plain relative path, found `/etc/ssl/cert.pem`",
        ),
        run(
            "external data through a link out of the bundle",
            |s| {
                graph(s, |b| replace(b, b"model.safetensors", b"leads_out.secrets"));
                s.write("secret", [0; 99]);
                std::os::unix::fs::symlink("../../secret", s.path("BUNDLE/text_encoder/leads_out.secrets"))
                    .expect("a link");
            },
            "`BUNDLE/text_encoder/leads_out.secrets`: expected a link to a file inside `BUNDLE`, found `TMP/secret`",
        ),
        run(
            "external data in a FIFO",
            |s| {
                graph(s, |b| replace(b, b"model.safetensors", b"waits.for.a_write"));
                s.fifo("BUNDLE/text_encoder/waits.for.a_write");
            },
            "`BUNDLE/text_encoder/waits.for.a_write`: expected a regular file, found a fifo",
        ),
        run(
            "external data at a negative offset",
            |s| graph(s, |b| replace(b, b"31880", b"-1880")),
            "`BUNDLE/text_encoder/model.onnx`: initializer `shared.weight`: expected a `offset` from 0 to 2^63 - 1, found \
             `-1880`",
        ),
        run(
            "external data of another length",
            |s| graph(s, |b| replace(b, b"28160", b"99999")),
            "`BUNDLE/text_encoder/model.onnx`: initializer `shared.weight`: expected 28160 bytes for [352, 20], found 99999",
        ),
        run(
            "external data past the end",
            |s| graph(s, |b| replace(b, b"31880", b"31881")),
            "`BUNDLE/text_encoder/model.onnx`: initializer `shared.weight`: expected data within the 60040 bytes of \
             `model.safetensors`, found 28160 bytes from 31881 on",
        ),
        run(
            "a bundle without a transformer",
            |s| assert_eq!(s.run("cogvx-export CKPT -o BUNDLE --components text-encoder,vae").code, Some(0)),
            "`BUNDLE`: expected the component `transformer`, found none: export it too",
        ),
        run(
            "no text encoder in the bundle",
            |s| assert_eq!(s.run("cogvx-export CKPT -o BUNDLE --components transformer,vae").code, Some(0)),
            "`BUNDLE`: expected the component `text_encoder`, found none: export it too",
        ),
    ];
    check("2b-fp32", &cases);
}

#[test]
fn videos_no_model_makes_are_refused() {
    let cases = [
        refused(
            "an unknown extension",
            "cogvx run BUNDLE -p fox -o OUT.avi",
            bundle,
            "`OUT.avi`: expected `.mp4`, `.gif`, `.png` (contact sheet), `.npy`, or a folder for PNG frames, \
             found `.avi`",
        ),
        refused(
            "no folder for the video",
            "cogvx run BUNDLE -p fox --steps 2 -o OUT/x/y.gif",
            bundle,
            "cannot write `OUT/x/y.gif`: No such file or directory (os error 2)",
        ),
        refused(
            "someone else's folder",
            "cogvx run BUNDLE -p fox --steps 2 -o CKPT",
            bundle,
            "`CKPT`: expected a folder with nothing but frames in it, found `text_encoder`",
        ),
        refused(
            "no frames",
            "cogvx run BUNDLE -p fox --frames 0 -o OUT.npy",
            bundle,
            "`--frames`: expected 1 to 65536, found 0",
        ),
        refused(
            "2^63 + 1 frames",
            "cogvx run BUNDLE -p fox --frames 9223372036854775809 -o OUT.npy",
            bundle,
            "`--frames`: expected 1 to 65536, found 9223372036854775809",
        ),
        refused(
            "more tokens than memory",
            "cogvx run BUNDLE -p fox --frames 65533 --height 65520 --width 65520 -o OUT.npy",
            bundle,
            "`--frames`: expected at most 1048576 patches with `--height` and `--width`, found 274743705600",
        ),
        refused(
            "rows that are not whole patches",
            "cogvx run BUNDLE -p fox --height 40 -o OUT.npy",
            bundle,
            "`--height`: expected a multiple of 16, at most 65536, found 40",
        ),
        refused(
            "no columns",
            "cogvx run BUNDLE -p fox --width 0 -o OUT.npy",
            bundle,
            "`--width`: expected a multiple of 16, at most 65536, found 0",
        ),
        refused(
            "no steps",
            "cogvx run BUNDLE -p fox --steps 0 -o OUT.npy",
            bundle,
            "steps: expected 1 to 1000 (the model's training timesteps), found 0",
        ),
        refused(
            "more steps than were trained",
            "cogvx run BUNDLE -p fox --steps 1001 -o OUT.npy",
            bundle,
            "steps: expected 1 to 1000 (the model's training timesteps), found 1001",
        ),
        refused(
            "guidance that is no number",
            "cogvx run BUNDLE -p fox --guidance NaN -o OUT.npy",
            bundle,
            "`--guidance`: expected a number that is not negative, found NaN",
        ),
        refused(
            "infinite guidance",
            "cogvx run BUNDLE -p fox --guidance inf -o OUT.npy",
            bundle,
            "`--guidance`: expected a number that is not negative, found inf",
        ),
        refused(
            "no frame rate",
            "cogvx run BUNDLE -p fox --fps 0 -o OUT.mp4",
            bundle,
            "frame rate: expected more than 0 and at most 1000, found 0",
        ),
        refused(
            "a negative seed",
            "cogvx run BUNDLE -p fox --seed=-1 -o OUT.npy",
            bundle,
            "invalid value '-1' for '--seed <SEED>': invalid digit found in string",
        ),
        refused(
            "a million threads",
            "cogvx run BUNDLE -p fox --threads 1000000 -o OUT.npy",
            bundle,
            "invalid value '1000000' for '--threads <THREADS>': 1000000 is not in 0..=1024",
        ),
        refused(
            "another size than the bundle's",
            "cogvx run BUNDLE -p fox --frames 13 -o OUT.npy",
            |s| assert_eq!(s.run("cogvx-export CKPT -o BUNDLE --shapes 9x32x32").code, Some(0)),
            "`--frames`: expected 9, which the bundle was exported for, found 13",
        ),
        refused(
            "tiles of a size that does not divide",
            "cogvx run BUNDLE -p fox --vae-tiling -o OUT.npy",
            bundle,
            "`--vae-tiling`: expected a VAE with a `sample_height` whose tiles together have the 32 rows of the whole, \
             found 50",
        ),
        refused(
            "tiles of a bundle of one size",
            "cogvx run BUNDLE -p fox --vae-tiling --frames 9 --height 32 --width 32 -o OUT.npy",
            |s| assert_eq!(s.run("cogvx-export CKPT -o BUNDLE --shapes 9x32x32").code, Some(0)),
            "`--vae-tiling`: expected a bundle of open sizes, exported without `--shapes`, found one of a fixed size",
        ),
        refused(
            "a broken checkpoint",
            "cogvx run CKPT -p fox -o OUT.npy",
            |s| s.set("CKPT/vae/config.json", "norm_eps", -1),
            "`norm_eps`: expected a number from 1e-12 to 1e-1, found `-1` (`CKPT/vae/config.json`)",
        ),
    ];
    check("2b-fp32", &cases);
}

/// Replace the last four bytes of a tensor by a number that is none.
fn poison(scene: &Scene, file: &str, tensor: &str, value: f32) {
    scene.tensors(file, |t| {
        let bytes = &mut t.get_mut(tensor).expect("there").2;
        let end = bytes.len() - 4;
        bytes[end..].copy_from_slice(&value.to_le_bytes());
    });
}

#[test]
fn weights_that_are_no_numbers_end_the_run_at_their_stage() {
    const LINE: &str = "cogvx run CKPT -p fox --steps 2 -o OUT.npy";
    let cases = [
        refused(
            "NaN in the text encoder",
            LINE,
            |s| poison(s, "CKPT/text_encoder/model.safetensors", "encoder.final_layer_norm.weight", f32::NAN),
            "`text_encoder` gave NaN or infinity: its weights hold such numbers, or the bundle's precision is \
             too low for the model",
        ),
        refused(
            "infinity in the transformer",
            LINE,
            |s| poison(s, "CKPT/transformer/diffusion_pytorch_model.safetensors", "proj_out.bias", f32::INFINITY),
            "`transformer` gave NaN or infinity: its weights hold such numbers, or the bundle's precision is \
             too low for the model",
        ),
        refused(
            "NaN in the VAE",
            LINE,
            |s| poison(s, "CKPT/vae/diffusion_pytorch_model.safetensors", "decoder.conv_out.conv.bias", f32::NAN),
            "`vae_decoder` gave NaN or infinity: its weights hold such numbers, or the bundle's precision is \
             too low for the model",
        ),
    ];
    check("2b-fp32", &cases);
}
