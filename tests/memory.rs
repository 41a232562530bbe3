//! 16-bit weights run on the CPU without a second copy of the model.
#![allow(clippy::cast_precision_loss, reason = "figures for people")]

use std::error::Error;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use cogvx::bundle::Bundle;
use cogvx::export::{ExportOptions, export};
use cogvx::pipeline::Pipeline;
use cogvx::runtime::{Device, Runtime};
use cogvx_graphs::config::DitConfig;
use cogvx_graphs::model::dit;
use cogvx_graphs::{Dim, Problem, VideoDims, Weights};
use ndarray::{ArrayD, IxDyn};

type Outcome = Result<(), Box<dyn Error>>;

/// The shapes model with a transformer of 2B's width and four layers, all zeros, in a sparse file; returns its weight bytes.
fn wide_checkpoint(folder: &Path) -> Result<u64, Box<dyn Error>> {
    let shapes = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/shapes-model");
    for part in ["", "text_encoder", "tokenizer", "scheduler", "vae"] {
        fs::create_dir_all(folder.join(part))?;
        for entry in fs::read_dir(shapes.join(part))? {
            let from = entry?.path();
            if from.is_file() {
                fs::copy(&from, folder.join(part).join(from.file_name().unwrap_or_default()))?;
            }
        }
    }
    let transformer = folder.join("transformer");
    fs::create_dir(&transformer)?;
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(shapes.join("transformer/config.json"))?)?;
    config["num_attention_heads"] = 30.into();
    config["num_layers"] = 4.into();
    config["time_embed_dim"] = 512.into();
    fs::write(transformer.join("config.json"), config.to_string())?;

    // What the model misses in a checkpoint without tensors is what it needs.
    let config = DitConfig::from_json(&transformer.join("config.json"))?;
    let nothing = Weights::synthetic::<String>([]);
    let Err(needs) = dit::build(&config, &nothing, &VideoDims::dynamic(), &Dim::named("tokens")) else {
        unreachable!()
    };
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for problem in needs.problems {
        let Problem::Missing { name, expected } = problem else { unreachable!("{problem}") };
        let start = end;
        end += 2 * expected.iter().product::<usize>() as u64;
        let entry = serde_json::json!({"dtype": "F16", "shape": expected, "data_offsets": [start, end]});
        header.insert(name, entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = File::create(transformer.join("diffusion_pytorch_model.safetensors"))?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    file.set_len(8 + header.len() as u64 + end)?;
    Ok(end)
}

/// Bytes of memory of this process that no file backs.
fn anonymous_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
}

#[test]
fn half_precision_weights_are_used_where_they_lie() -> Outcome {
    if anonymous_memory().is_none() {
        println!("skipped: no `RssAnon` in /proc/self/status on this system");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let checkpoint = folder.path().join("checkpoint");
    let weights = wide_checkpoint(&checkpoint)?;
    let output = folder.path().join("bundle");
    let report = export(&checkpoint, &output, &ExportOptions::default(), |_| {})?;
    assert!(report.linked > weights, "the weights are linked: {report:?}");
    let pipeline = Pipeline::open(Bundle::open(&output)?, Runtime::start(Device::Cpu, 1)?)?;

    let before = anonymous_memory().unwrap_or_default();
    let mut transformer = pipeline.transformer()?;
    let loaded = anonymous_memory().unwrap_or_default() - before;
    let latents = ArrayD::zeros(IxDyn(&[1, 1, 16, 4, 4]));
    let text = ArrayD::zeros(IxDyn(&[1, 16, 128]));
    transformer.predict(&latents, &text, 999)?;
    let used = anonymous_memory().unwrap_or_default().saturating_sub(before);

    let share = |bytes: u64| bytes as f64 / weights as f64 * 100.0;
    println!(
        "{weights} bytes of weights; anonymous memory: {:.2} % loaded, {:.2} % after a run",
        share(loaded),
        share(used)
    );
    assert!(loaded < weights / 20, "{loaded} bytes of anonymous memory after loading {weights} bytes of weights");
    // A run converts one weight at a time; the allocator may keep the last one's room.
    assert!(used < weights / 10, "{used} bytes of anonymous memory after a run with {weights} bytes of weights");
    Ok(())
}
