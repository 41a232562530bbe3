//! `cogvx verify`: references.

use std::collections::BTreeMap;

use crate::scene::{Scene, Tensors, fixtures, read_tensors, tensors_file};
use crate::{Case, check};

/// Export the bundle, and write a reference of some of PyTorch's tensors after `edit`.
fn reference(scene: &Scene, prefix: &str, metadata: &[(&str, &str)], edit: impl FnOnce(&mut Tensors)) {
    let said = scene.run("cogvx-export CKPT -o BUNDLE --weights copy");
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let mut tensors = read_tensors(&fixtures().join("references/2b-fp32-plain.safetensors"));
    tensors.retain(|name, _| name.starts_with(prefix));
    assert!(!tensors.is_empty(), "no `{prefix}`");
    edit(&mut tensors);
    let metadata: BTreeMap<_, _> = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    scene.write("REFERENCE", tensors_file(&tensors, &metadata));
}

/// The first `n` of the outermost dimension.
fn cut(tensors: &mut Tensors, name: &str, n: usize) {
    let (_, shape, bytes) = tensors.get_mut(name).expect("there");
    bytes.truncate(bytes.len() / shape[0] * n);
    shape[0] = n;
}

/// The same elements in another shape.
fn reshape(tensors: &mut Tensors, name: &str, to: impl FnOnce(&mut Vec<usize>)) {
    let (_, shape, _) = tensors.get_mut(name).expect("there");
    let size: usize = shape.iter().product();
    to(shape);
    assert_eq!(size, shape.iter().product::<usize>());
}

const fn verify(name: &'static str, breaks: fn(&Scene), message: &'static str) -> Case {
    Case { name, breaks, line: "cogvx verify BUNDLE --reference REFERENCE --plain-kernels", message }
}

#[test]
fn references_that_cannot_be_compared_are_refused() {
    let cases = [
        verify("no reference", |_| {}, "`REFERENCE`: expected a file, found nothing"),
        verify(
            "a reference that is a directory",
            |s| s.folder("REFERENCE"),
            "`REFERENCE`: expected a regular file, found a directory",
        ),
        verify(
            "a reference that is a FIFO",
            |s| s.fifo("REFERENCE"),
            "`REFERENCE`: expected a regular file, found a fifo",
        ),
        verify(
            "a reference that is no safetensors file",
            |s| s.write("REFERENCE", b"garbage garbage"),
            "`REFERENCE`: expected a safetensors file: header too large",
        ),
        verify(
            "an empty reference",
            |s| s.write("REFERENCE", b""),
            "`REFERENCE`: expected a safetensors file: header too small",
        ),
        verify(
            "a reference cut short",
            |s| {
                reference(s, "vae_decoder/", &[], |_| {});
                s.bytes("REFERENCE", |b| b.truncate(b.len() - 1));
            },
            "`REFERENCE`: expected a safetensors file: incomplete metadata, file not fully covered",
        ),
        verify(
            "no known tensor",
            |s| {
                reference(s, "vae_decoder/", &[], |t| {
                    let tensor = t.remove("vae_decoder/sample").expect("there");
                    t.clear();
                    t.insert("sample".into(), tensor);
                });
            },
            "`REFERENCE`: expected `text_encoder/`, `transformer/`, `vae_decoder/` or `pipeline/` tensors, \
             found none",
        ),
        verify(
            "a sample without latents",
            |s| reference(s, "vae_decoder/sample", &[], |_| {}),
            "`REFERENCE`: expected the tensor `vae_decoder/latents`, found none",
        ),
        verify(
            "a transformer's input alone",
            |s| reference(s, "transformer/timestep", &[], |_| {}),
            "`REFERENCE`: expected the tensor `transformer/hidden_states`, found none",
        ),
        verify(
            "latents of too few dimensions",
            |s| reference(s, "vae_decoder/", &[], |t| reshape(t, "vae_decoder/latents", |shape| _ = shape.remove(0))),
            "`latents`: expected [batch, channels, frames, height, width], found [4, 3, 4, 4]",
        ),
        verify(
            "latents of no sample",
            |s| reference(s, "vae_decoder/", &[], |t| cut(t, "vae_decoder/latents", 0)),
            "`latents`: expected [batch, channels, frames, height, width], found [0, 4, 3, 4, 4]",
        ),
        verify(
            "latents of other channels",
            |s| {
                reference(s, "vae_decoder/", &[], |t| {
                    reshape(t, "vae_decoder/latents", |shape| {
                        shape[1] /= 2;
                        shape[3] *= 2;
                    });
                });
            },
            "cannot run `BUNDLE/vae_decoder/first.onnx`: Got invalid dimensions for input: latents for the \
             following indices index: 1 Got: 2 Expected: 4 Please fix either the inputs/outputs or the model.",
        ),
        verify(
            "a sample of another shape",
            |s| reference(s, "vae_decoder/", &[], |t| reshape(t, "vae_decoder/sample", |shape| shape.push(1))),
            "`vae_decoder/sample`: expected [1, 3, 9, 32, 32, 1] as in the reference, found [1, 3, 9, 32, 32]",
        ),
        verify(
            "fewer texts than latents",
            |s| reference(s, "transformer/", &[], |t| cut(t, "transformer/encoder_hidden_states", 1)),
            "`REFERENCE`: `transformer/encoder_hidden_states`: expected as many samples as `hidden_states`, \
             found [1, 12, 20]",
        ),
        verify(
            "no timestep",
            |s| reference(s, "transformer/", &[], |t| cut(t, "transformer/timestep", 0)),
            "`REFERENCE`: `transformer/timestep`: expected one timestep, or one for each sample, found [0]",
        ),
        verify(
            "latents that are not whole patches",
            |s| {
                reference(s, "transformer/", &[], |t| {
                    reshape(t, "transformer/hidden_states", |shape| {
                        shape[3] *= shape[4];
                        shape[4] = 1;
                    });
                });
            },
            "`hidden_states`: expected [batch, frames, 4, height, width] in patches of 1x2x2, found [1, 3, \
             4, 16, 1]",
        ),
        verify(
            "floats for token ids",
            |s| {
                reference(s, "text_encoder/", &[], |t| {
                    t.get_mut("text_encoder/input_ids").expect("there").0 = "F64".into();
                });
            },
            "`REFERENCE`: `text_encoder/input_ids`: expected an I64 tensor, found F64 [2, 12]",
        ),
        verify(
            "a token id beyond the vocabulary",
            |s| {
                reference(s, "text_encoder/", &[], |t| {
                    t.get_mut("text_encoder/input_ids").expect("there").2[..8].copy_from_slice(&i64::MAX.to_le_bytes());
                });
            },
            "cannot run `BUNDLE/text_encoder/model.onnx`: Non-zero status code returned while running Gather \
             node. Name:'shared/Gather' Status Message: indices element out of data bounds, \
             idx=9223372036854775807 must be within the inclusive range [-352,351]",
        ),
        verify(
            "token ids without dimensions",
            |s| {
                reference(s, "text_encoder/", &[], |t| {
                    t.insert("text_encoder/input_ids".into(), ("I64".into(), vec![], vec![0; 8]));
                });
            },
            "`REFERENCE`: `text_encoder/input_ids`: expected an I64 tensor, found I64 []",
        ),
        verify(
            "a seed that is no number",
            |s| reference(s, "pipeline/", &[("prompt", "fox"), ("seed", "lucky")], |_| {}),
            "`REFERENCE`: `__metadata__` `seed`: expected a whole number, found `lucky`",
        ),
        verify(
            "an unknown scheduler",
            |s| reference(s, "pipeline/", &[("prompt", "fox"), ("scheduler", "euler")], |_| {}),
            "`REFERENCE`: `__metadata__` `scheduler`: expected `ddim` or `dpm`, found `euler`",
        ),
        verify(
            "steps that were not trained",
            |s| reference(s, "pipeline/", &[("prompt", "fox"), ("steps", "5000")], |_| {}),
            "steps: expected 1 to 1000 (the model's training timesteps), found 5000",
        ),
        verify(
            "noise of another shape",
            |s| {
                let settings = [("prompt", "fox"), ("steps", "2"), ("frames", "5"), ("height", "48"), ("width", "48")];
                reference(s, "pipeline/noise", &settings, |_| {});
            },
            "`pipeline/noise`: expected [1, 3, 4, 4, 4] as in the reference, found [1, 2, 4, 6, 6]",
        ),
    ];
    check("2b-fp32", &cases);
}
