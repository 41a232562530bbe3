//! The VAE works in the memory of one chunk of frames. Alone in its program: other tests' memory would count.

use std::error::Error;
use std::path::Path;

use cogvx::bundle::Bundle;
use cogvx::export::{ExportOptions, export};
use cogvx::pipeline::Pipeline;
use cogvx::runtime::{Device, Runtime};
use cogvx::stats::Meter;
use ndarray::{ArrayD, IxDyn};

#[test]
fn the_decoder_needs_no_more_memory_for_more_frames() -> Result<(), Box<dyn Error>> {
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
    // A chunk of pixels is 3.5 MB, its caches several times that.
    assert!(late < early + early / 10 + (4 << 20), "{peaks:?}");
    Ok(())
}
