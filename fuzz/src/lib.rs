//! What each fuzz target does with its bytes: nothing here may panic, hang, or take more memory than its bytes allow. Each says
//! whether it accepted them.
//!
//! `tests/fuzz_corpus.rs` runs the same functions on the corpus, so that they hold in every test run.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use cogvx::bundle::Manifest;
use cogvx::export::lora_scaling;
use cogvx::pipeline::RunState;
use cogvx::scheduler::{Kind, Sampler, SchedulerConfig};
use cogvx::tokenizer::Tokenizer;
use cogvx_calibration::balance::Balance;
use cogvx_calibration::histogram::Clip;
use cogvx_calibration::scales::settled;
use cogvx_calibration::table::Table;
use cogvx_graphs::Weights;
use cogvx_graphs::config::{DitConfig, PipelineIndex, T5Config, VaeConfig};
use cogvx_graphs::onnx::{self, Placement};
use cogvx_graphs::pass::Target;
use cogvx_graphs::quantized::LinearForm;

/// A name for messages.
const FILE: &str = "input";
/// Between the parts of an input.
const SEPARATOR: &[u8] = b"\n--\n";
/// Names of shards, in order.
const SHARDS: [&str; 4] = ["a.safetensors", "b.safetensors", "c.safetensors", "d.safetensors"];
/// Most zeros that stand for a file's data.
const MOST_DATA: usize = 1 << 16;

/// The parts of `data` between separators.
fn parts(data: &[u8]) -> Vec<&[u8]> {
    let mut parts = vec![];
    let mut rest = data;
    while let Some(at) = rest.windows(SEPARATOR.len()).position(|window| window == SEPARATOR) {
        parts.push(&rest[..at]);
        rest = &rest[at + SEPARATOR.len()..];
    }
    parts.push(rest);
    parts
}

/// Bytes of data of the file that [`file_of`] makes.
fn data_bytes(part: &[u8]) -> usize {
    let count = part.split(|&b| b == b'\n').next().unwrap_or_default();
    let count = std::str::from_utf8(count).ok().and_then(|text| text.parse::<usize>().ok()).unwrap_or(0);
    count.min(MOST_DATA)
}

/// A safetensors file from `<bytes of data>\n<header>`.
fn file_of(part: &[u8]) -> Vec<u8> {
    let end = part.iter().position(|&b| b == b'\n').unwrap_or(0);
    let header = part.get(end + 1..).unwrap_or_default();
    [&(header.len() as u64).to_le_bytes()[..], header, &vec![0; data_bytes(part)]].concat()
}

/// Safetensors headers and the index that binds shards: `f` and a whole file, `h` and `<bytes>\n<header>`, or `i` and an index
/// with the shards of [`SHARDS`] in that form.
pub fn safetensors(data: &[u8]) -> bool {
    let Some((&mode, rest)) = data.split_first() else { return false };
    let single = |bytes| Weights::from_memory(None, [("model.safetensors".to_string(), bytes)].into());
    let weights = match mode {
        b'f' => single(rest.to_vec()),
        b'h' => single(file_of(rest)),
        _ => {
            let parts = parts(rest);
            let shards = SHARDS.iter().zip(&parts[1..]).map(|(name, part)| ((*name).to_string(), file_of(part)));
            Weights::from_memory(Some(parts[0]), shards.collect())
        }
    };
    let Ok(weights) = weights else { return false };
    let mut last: Option<&str> = None;
    for tensor in weights.iter() {
        assert!(last.is_none_or(|last| last < tensor.name.as_str()), "names in order, each once");
        last = Some(&tensor.name);
        assert_eq!(weights.get(&tensor.name), Some(tensor));
        let file = &weights.files()[tensor.file];
        assert!(tensor.offset >= file.header_bytes && tensor.offset + tensor.len <= file.bytes, "inside its file");
        let elements = tensor.shape.iter().product::<usize>();
        assert_eq!((elements * tensor.dtype.size()) as u64, tensor.len);
        assert_eq!(weights.read(tensor).expect("it is there").len() as u64, tensor.len);
    }
    for file in 0..weights.files().len() {
        let _ = weights.metadata(file);
    }
    true
}

/// Configurations in JSON after a letter: `d`iffusion transformer, `v`AE, `t`5, `p`ipeline, `s`cheduler, `l`oRA adapter.
pub fn config(data: &[u8]) -> bool {
    let Some((&kind, json)) = data.split_first() else { return false };
    let file = Path::new(FILE);
    match kind {
        b'd' => {
            let Ok(config) = DitConfig::from_slice(file, json) else { return false };
            assert!(config.width() > 0 && config.sample_grid().iter().all(|&n| n > 0));
            let value = serde_json::to_value(&config).expect("plain fields");
            assert_eq!(DitConfig::from_value(file, value).expect("its own fields"), config);
        }
        b'v' => {
            let Ok(config) = VaeConfig::from_slice(file, json) else { return false };
            assert!(config.spatial_compression_ratio() > 0);
            let value = serde_json::to_value(&config).expect("plain fields");
            assert_eq!(VaeConfig::from_value(file, value).expect("its own fields"), config);
        }
        b't' => {
            let Ok(config) = T5Config::from_slice(file, json) else { return false };
            assert!(config.inner() > 0);
            let value = serde_json::to_value(&config).expect("plain fields");
            assert_eq!(T5Config::from_value(file, value).expect("its own fields"), config);
        }
        b'p' => return PipelineIndex::from_slice(file, json).is_ok(),
        b's' => {
            let Some(config) = std::str::from_utf8(json).ok().and_then(|text| SchedulerConfig::from_json(text).ok())
            else {
                return false;
            };
            let train = config.num_train_timesteps;
            for steps in [1, 7, 50] {
                let Ok(timesteps) = config.timesteps(steps) else { continue };
                assert_eq!(timesteps.len(), steps);
                assert!(timesteps.iter().all(|&t| usize::try_from(t).is_ok_and(|t| t < train)), "inside the schedule");
            }
            // The arithmetic of all its timesteps, where they are few.
            if train <= 1000 {
                let _ = Sampler::new(&config, config.kind().unwrap_or(Kind::Dpm), train.min(7));
            }
        }
        b'l' => {
            let text = String::from_utf8_lossy(json);
            return lora_scaling(&text, file, "transformer_blocks.0.attn1.to_q", 4).is_ok();
        }
        _ => return false,
    }
    true
}

/// A tokenizer: `s` and a `spiece.model` or `j` and a `tokenizer.json`, then `tokenizer_config.json`,
/// `special_tokens_map.json` and `added_tokens.json` where there are so many parts.
pub fn spiece(data: &[u8]) -> bool {
    let Some((&kind, rest)) = data.split_first() else { return false };
    let vocabulary = if kind == b'j' { "tokenizer.json" } else { "spiece.model" };
    let names = [vocabulary, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"];
    let files: BTreeMap<_, _> =
        names.into_iter().zip(parts(rest)).map(|(name, part)| (name.to_string(), part.to_vec())).collect();
    let Ok(tokenizer) = Tokenizer::from_memory(&files) else { return false };
    for text in ["", "a red circle moving left", "<extra_id_0></s> \u{e9}\u{2581}\u{3000}\0\u{1f3c0}", "  aaaa\t\n--"] {
        let Ok(ids) = tokenizer.encode(text, 16) else { continue };
        let known = |id: i64| usize::try_from(id).is_ok_and(|id| id < tokenizer.vocabulary_size());
        assert!(ids.len() == 16 && ids.into_iter().all(known), "ids of the vocabulary");
        assert!(tokenizer.count(text).is_ok_and(|count| count > 0));
    }
    true
}

/// An ONNX file.
pub fn onnx(data: &[u8]) -> bool {
    let Ok(model) = onnx::read(Path::new(FILE), data) else { return false };
    for tensor in &model.initializers {
        let bytes = tensor.shape.iter().product::<usize>() * tensor.dtype.size();
        let found = match &tensor.placement {
            Placement::Inline(raw) => raw.len() as u64,
            Placement::External { location, offset, length } => {
                assert!(!location.starts_with('/') && location.split('/').all(|part| part != ".."), "inside");
                assert!(offset.checked_add(*length).is_some());
                *length
            }
        };
        assert_eq!(bytes as u64, found);
    }
    let mut known: HashSet<&str> = model.inputs.iter().map(|port| port.name.as_str()).collect();
    known.extend(model.initializers.iter().map(|tensor| tensor.name.as_str()));
    for node in &model.nodes {
        assert!(node.inputs.iter().all(|name| name.is_empty() || known.contains(name.as_str())), "in order");
        known.extend(node.outputs.iter().map(String::as_str));
    }
    assert!(model.outputs.iter().all(|port| known.contains(port.name.as_str())));
    true
}

/// A calibration table: `<bytes>\n<header>` and, where there is a second part, what fills its data again and again.
pub fn table(data: &[u8]) -> bool {
    let parts = parts(data);
    let mut bytes = file_of(parts[0]);
    let start = bytes.len() - data_bytes(parts[0]);
    if let Some(filling) = parts.get(1) {
        bytes[start..].iter_mut().zip(filling.iter().cycle()).for_each(|(to, &from)| *to = from);
    }
    let file = Path::new(FILE);
    let Ok(mut table) = Table::from_memory(file, bytes) else { return false };
    for place in table.places.values() {
        assert!(place.least.len() == table.ranges && place.greatest.len() == table.ranges && place.width > 0);
        assert!(place.magnitudes(&[]).iter().any(|&x| x > 0.0) && place.rows.len().is_multiple_of(place.width));
        for clip in [Clip::MinMax, Clip::Percentile(0.9999), Clip::Mse] {
            let form = LinearForm::PerTensor { scale: 0.0, zero_point: 0 };
            let LinearForm::PerTensor { scale, .. } = settled(form, Target::Cpu, place, &Balance::default(), clip)
            else {
                unreachable!("the same form")
            };
            assert!(scale.is_normal() && scale > 0.0, "{scale}");
        }
    }
    // As another run of the same checkpoint.
    let other = Table { runs: vec![], ..table.clone() };
    table.merge(&other, 8).expect("of the same checkpoint");
    table.runs.clear();
    let mut written = vec![];
    table.write(&mut written).expect("memory");
    assert_eq!(Table::from_memory(file, written).expect("what was written"), table);
    true
}

/// The state of a run.
pub fn state(data: &[u8]) -> bool {
    let file = Path::new(FILE);
    let Ok(state) = RunState::from_memory(file, data.to_vec()) else { return false };
    let mut written = vec![];
    state.write(&mut written).expect("memory");
    assert_eq!(RunState::from_memory(file, written).expect("what was written"), state);
    true
}

/// A `cogvx.json`.
pub fn manifest(data: &[u8]) -> bool {
    let file = Path::new(FILE);
    let Ok(manifest) = Manifest::from_json(file, data) else { return false };
    for entry in &manifest.files {
        assert!(!entry.path.starts_with('/') && entry.path.split('/').all(|part| part != ".."), "inside");
    }
    let text = serde_json::to_vec(&manifest).expect("plain fields");
    assert!(Manifest::from_json(file, &text).is_ok_and(|again| again == manifest));
    for (name, value) in manifest.config {
        match name.as_str() {
            "transformer" => drop(DitConfig::from_value(file, value)),
            "vae" => drop(VaeConfig::from_value(file, value)),
            "text_encoder" => drop(T5Config::from_value(file, value)),
            _ => {}
        }
    }
    true
}
