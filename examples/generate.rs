//! Make a video through the library: `cargo run --example generate -- BUNDLE "a blue square moving up" frames.npy`.

use std::error::Error;
use std::path::Path;

use cogvx::bundle::Bundle;
use cogvx::pipeline::{Observer, Pipeline, Reads};
use cogvx::runtime::{Device, Runtime};
use cogvx::video::{FrameSink, open_sink, to_rgb8};
use ndarray::ArrayD;

/// Writes frames as they are decoded.
struct Writer(Box<dyn FrameSink>);

impl Observer for Writer {
    fn reads(&self) -> Reads {
        Reads::Nothing
    }

    fn step(&mut self, step: usize, steps: usize, _latents: &ArrayD<f32>) {
        println!("step {step} of {steps}");
    }

    fn frames(&mut self, frames: ArrayD<f32>, _total: usize) -> Result<(), Box<dyn Error + Send + Sync>> {
        let size: usize = frames.shape()[1..].iter().product();
        let bytes = to_rgb8(frames.as_slice().unwrap_or_default());
        bytes.chunks_exact(size).try_for_each(|frame| Ok(self.0.write(frame)?))
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().collect();
    let [_, bundle, prompt, output] = &arguments[..] else { return Err("usage: generate BUNDLE PROMPT OUTPUT".into()) };
    let pipeline = Pipeline::open(Bundle::open(Path::new(bundle))?, Runtime::start(Device::Cpu, 0)?)?;
    let mut request = pipeline.request(prompt)?;
    (request.steps, request.guidance) = (25, 3.0);
    let mut writer = Writer(open_sink(Path::new(output), request.width, request.height, 8.0, request.frames)?);
    pipeline.generate(&request, &mut writer)?;
    Ok(writer.0.finish()?)
}
