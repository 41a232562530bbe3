//! A student's files.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use cogvx_graphs::source::{open_regular, resolve_inside, root_of};
use serde_json::{Map, Value, json};

use super::StudentError;
use super::cut::Piece;
use super::shape::Shape;
use super::teacher::{STEM, Teacher};
use crate::bundle::{BundleError, WeightsMode};

/// What a student has of its teacher's as it is.
const COMPONENTS: [&str; 4] = ["scheduler", "text_encoder", "tokenizer", "vae"];
/// Files of those that are read, by their ends.
const ENDS: [&str; 4] = [".json", ".safetensors", ".model", ".txt"];

/// Write the whole checkpoint into `folder`, which is empty.
pub(super) fn checkpoint(
    teacher: &Teacher,
    shape: Shape,
    pieces: &[Piece],
    mode: WeightsMode,
    folder: &Path,
    stop: &AtomicBool,
) -> Result<(), StudentError> {
    bring(&teacher.folder, "model_index.json", folder, WeightsMode::Copy)?;
    for component in COMPONENTS {
        bring_folder(&teacher.folder, component, folder, mode)?;
    }
    let transformer = folder.join("transformer");
    fs::create_dir(&transformer).map_err(StudentError::io(&transformer))?;
    let mut config = teacher.json.clone();
    config["num_layers"] = shape.layers.into();
    config["num_attention_heads"] = shape.heads.into();
    config["time_embed_dim"] = shape.time_embed.into();
    let path = transformer.join("config.json");
    fs::write(&path, format!("{config:#}\n")).map_err(StudentError::io(&path))?;
    weights(teacher, pieces, &transformer.join(format!("{STEM}.safetensors")), stop)
}

/// Write the tensors, a block of each after the other.
fn weights(teacher: &Teacher, pieces: &[Piece], path: &Path, stop: &AtomicBool) -> Result<(), StudentError> {
    let io = StudentError::io(path);
    let mut file = File::create_new(path).map_err(&io)?;
    file.write_all(&header(pieces)).map_err(&io)?;
    for piece in pieces {
        piece.write(teacher, &mut |bytes| {
            if stop.load(Ordering::SeqCst) {
                return Err(StudentError::Stopped);
            }
            file.write_all(bytes).map_err(&io)
        })?;
    }
    Ok(())
}

/// Length and JSON of a safetensors file; data begins at a multiple of eight bytes.
fn header(pieces: &[Piece]) -> Vec<u8> {
    // diffusers asks for the format.
    let mut tensors = Map::from_iter([("__metadata__".to_string(), json!({ "format": "pt" }))]);
    let mut end = 0;
    for piece in pieces {
        let begin = end;
        end += piece.bytes();
        let entry = json!({ "dtype": piece.dtype.safetensors(), "shape": piece.shape, "data_offsets": [begin, end] });
        tensors.insert(piece.name.clone(), entry);
    }
    let mut text = Value::Object(tensors).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    [(text.len() as u64).to_le_bytes().to_vec(), text].concat()
}

/// Bring a component's files over. Its weights may be missing, as may be those of checkpoints for measuring.
fn bring_folder(teacher: &Path, component: &str, to: &Path, mode: WeightsMode) -> Result<(), StudentError> {
    let from = teacher.join(component);
    let made = to.join(component);
    fs::create_dir(&made).map_err(StudentError::io(&made))?;
    let mut names = vec![];
    for entry in fs::read_dir(&from).map_err(StudentError::io(&from))? {
        let name = entry.map_err(StudentError::io(&from))?.file_name();
        if let Some(name) = name.to_str().filter(|name| ENDS.iter().any(|end| name.ends_with(end))) {
            names.push(name.to_string());
        }
    }
    names.sort();
    names.into_iter().try_for_each(|name| {
        let mode = if name.ends_with(".safetensors") { mode } else { WeightsMode::Copy };
        bring(teacher, &format!("{component}/{name}"), to, mode)
    })
}

/// Link or copy the file `name`, which must be the checkpoint's own.
fn bring(teacher: &Path, name: &str, to: &Path, mode: WeightsMode) -> Result<(), StudentError> {
    let (from, to) = (teacher.join(name), to.join(name));
    let root = root_of(&teacher.join("transformer"))?;
    let real = resolve_inside(&from, &root)?;
    let mut opened = open_regular(&real)?;
    if mode != WeightsMode::Copy {
        match fs::hard_link(&real, &to) {
            Ok(()) => return Ok(()),
            Err(reason) if mode == WeightsMode::Link => {
                return Err(BundleError::CannotLink { from, path: name.into(), reason }.into());
            }
            Err(_) => {}
        }
    }
    let mut copy = File::create_new(&to).map_err(StudentError::io(&to))?;
    std::io::copy(&mut opened.file, &mut copy).map_err(StudentError::io(&to))?;
    Ok(())
}
