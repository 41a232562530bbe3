//! The VAE works in the memory of one chunk of frames. Alone in its program: other tests' memory would count.

use std::error::Error;
use std::path::Path;
use std::process::Command;

use cogvx::bundle::Bundle;
use cogvx::export::{ExportOptions, export};
use cogvx::pipeline::Pipeline;
use cogvx::runtime::{Device, Runtime};
use cogvx::stats::Meter;
use ndarray::{ArrayD, IxDyn};

/// glibc keeps freed blocks of up to 32 MB, which is all there are here, unless this is in the environment.
const MALLOC: (&str, &str) = ("MALLOC_MMAP_THRESHOLD_", "65536");

#[test]
fn the_decoder_needs_no_more_memory_for_more_frames() -> Result<(), Box<dyn Error>> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--exact", "inside", "--ignored", "--nocapture"]).env(MALLOC.0, MALLOC.1);
    let output = command.output()?;
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    Ok(())
}

#[test]
#[ignore = "run by `the_decoder_needs_no_more_memory_for_more_frames`"]
fn inside() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let output = folder.path().join("bundle");
    let shapes = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/shapes-model");
    export(&shapes, &output, &ExportOptions::default(), |_| {})?;
    let pipeline = Pipeline::open(Bundle::open(&output)?, Runtime::start(Device::Cpu, 1)?)?;
    let Some(mut meter) = Meter::start() else {
        println!("skipped: this system does not tell a process its memory");
        return Ok(());
    };
    let latents = ArrayD::zeros(IxDyn(&[1, pipeline.vae.latent_channels, 25, 24, 24]));
    let mut peaks = vec![];
    pipeline.decoder()?.run(&latents, |_| {
        peaks.push(meter.lap().anonymous);
        Ok(())
    })?;
    println!("peaks chunk by chunk: {peaks:?}");
    // The first chunk has more frames and no caches yet; the second is the first run of its graph.
    let (early, late) = (peaks[1], peaks[2..].iter().max().copied().unwrap_or(0));
    assert_eq!(peaks.len(), 12);
    // With one block for all values, from the second run of a graph on, it was a fifth more.
    assert!(late < early + early / 10, "{peaks:?}");
    Ok(())
}
