//! Weights of many blocks, converted and merged: every number, in little memory.

mod common;

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize_to_file};

use common::{cogvx, entries, fresh_folder};

type Outcome = Result<(), Box<dyn Error>>;

/// What an export may take; the weights are three times as much.
const MEMORY: u64 = 50 << 20;
/// The weight a LoRA is merged into. Its rows do not end where blocks do.
const MERGED: &str = "transformer_blocks.0.attn1.to_q.weight";
const WIDTH: usize = 1920;
const RANK: usize = 3;

/// The largest resident memory of the process, where the system tells.
fn peak(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
}

/// Export to bf16; returns the largest memory seen, 0 where the system does not tell.
fn export(checkpoint: &Path, output: &Path, lora: &Path) -> Result<u64, Box<dyn Error>> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cogvx-export"));
    command.arg(checkpoint).arg("--output").arg(output).arg("--lora").arg(lora);
    command.args(["--components", "transformer", "--precision", "bf16"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let mut largest = 0;
    let status = loop {
        // Never falls while it runs, so the last look but one is enough.
        largest = peak(child.id()).unwrap_or(0).max(largest);
        match child.try_wait()? {
            Some(status) => break status,
            None => thread::sleep(Duration::from_millis(2)),
        }
    };
    assert!(status.success(), "{status}");
    Ok(largest)
}

/// Numbers from -0.5 to 0.5, odd multiples of a power of two.
fn numbers(count: usize, step: usize) -> Vec<f32> {
    let places = (0..count).map(|i| u16::try_from((i * step + 7) % 251).unwrap_or(0));
    places.map(|place| (f32::from(place) - 125.0) / 256.0).collect()
}

fn write_lora(path: &Path, a: &[f32], b: &[f32]) -> Outcome {
    let module = MERGED.trim_end_matches(".weight");
    let bytes = |numbers: &[f32]| numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
    let (a, b) = (bytes(a), bytes(b));
    let tensors = [
        (format!("transformer.{module}.lora_A.weight"), TensorView::new(Dtype::F32, vec![RANK, WIDTH], &a)?),
        (format!("transformer.{module}.lora_B.weight"), TensorView::new(Dtype::F32, vec![WIDTH, RANK], &b)?),
    ];
    Ok(serialize_to_file(tensors, None, path)?)
}

#[test]
fn every_block_is_converted_and_merged_in_little_memory() -> Outcome {
    let folder = fresh_folder();
    let [checkpoint, output, lora] = ["checkpoint", "bundle", "lora.safetensors"].map(|name| folder.path().join(name));
    let synth = ["synth", "--config", "2b", "--layers", "1", "--components", "transformer", "--output"];
    assert!(cogvx().args(synth).arg(&checkpoint).output()?.status.success());
    let (a, b) = (numbers(RANK * WIDTH, 13), numbers(WIDTH * RANK, 29));
    write_lora(&lora, &a, &b)?;

    let peak = export(&checkpoint, &output, &lora)?;
    let files = entries(&output.join("transformer"));
    let files: Vec<_> = files.iter().filter_map(|path| path.file_name()?.to_str()).collect();
    assert_eq!(files, ["kernels.onnx", "model.onnx", "rewritten.safetensors"]);
    let original = fs::read(checkpoint.join("transformer/diffusion_pytorch_model.safetensors"))?;
    let written = fs::read(output.join("transformer/rewritten.safetensors"))?;
    println!("{} bytes written, peak memory {peak} bytes", written.len());
    assert!(written.len() as u64 > 2 * MEMORY, "{} bytes prove nothing", written.len());
    assert!(peak < MEMORY, "{peak} bytes of memory");

    let (original, written) = (SafeTensors::deserialize(&original)?, SafeTensors::deserialize(&written)?);
    for (name, tensor) in written.tensors() {
        let halves = original.tensor(&name)?;
        assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::BF16, halves.shape()), "{name}");
        let pairs = halves.data().as_chunks().0.iter().zip(tensor.data().as_chunks().0);
        let numbers = pairs.map(|(half, brain)| (f16::from_le_bytes(*half).to_f32(), bf16::from_le_bytes(*brain)));
        if name == MERGED {
            for (i, (before, after)) in numbers.enumerate() {
                let (row, column) = (i / WIDTH, i % WIDTH);
                let added: f32 = (0..RANK).map(|k| b[row * RANK + k] * a[k * WIDTH + column]).sum();
                let (expected, found) = (before + added, after.to_f32());
                assert!((expected - found).abs() <= expected.abs() / 256.0 + 1e-6, "{i}: {expected}, {found}");
            }
        } else {
            let wrong = numbers.enumerate().find(|(_, (before, after))| bf16::from_f32(*before) != *after);
            assert!(wrong.is_none(), "{name}: {wrong:?}");
        }
    }
    assert!(written.names().contains(&MERGED));
    Ok(())
}
