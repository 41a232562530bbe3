//! Embed the pipeline: videos of many prompts, each graph loaded once, by threads that share one pipeline:
//! `cargo run --example many -- BUNDLE FOLDER "a blue square moving up" "a red circle moving left" ...`.

use std::error::Error;
use std::path::{Path, PathBuf};

use cogvx::bundle::Bundle;
use cogvx::pipeline::{Observer, Pipeline, PipelineError, Request};
use cogvx::runtime::{Device, Runtime};
use cogvx::video::{FrameSink, open_sink, to_rgb8};
use ndarray::ArrayD;

/// Threads that make videos. Each loads the graphs for itself: more threads, more memory.
const THREADS: usize = 2;

/// Writes the frames of one video after the other.
struct Writer {
    outputs: Vec<PathBuf>,
    size: [usize; 2],
    video: usize,
    sink: Option<Box<dyn FrameSink>>,
}

impl Observer for Writer {
    fn video(&mut self, video: usize) {
        self.video = video;
    }

    fn frames(&mut self, frames: ArrayD<f32>, total: usize) -> Result<(), Box<dyn Error + Send + Sync>> {
        let [height, width] = self.size;
        let sink = match &mut self.sink {
            Some(sink) => sink,
            none => none.insert(open_sink(&self.outputs[self.video], width, height, 8.0, total)?),
        };
        let bytes = to_rgb8(frames.as_slice().unwrap_or_default());
        bytes.chunks_exact(height * width * 3).try_for_each(|frame| Ok(sink.write(frame)?))
    }

    fn finished(&mut self, _: usize) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(self.sink.take().map_or(Ok(()), FrameSink::finish)?)
    }

    fn failed(&mut self, video: usize, why: &PipelineError) {
        self.sink = None;
        eprintln!("{}: {why}", self.outputs[video].display());
    }
}

/// Make the videos of some prompts; the number of a prompt is its seed.
fn make(pipeline: &Pipeline, prompts: &[(usize, &String)], folder: &Path) -> Result<usize, PipelineError> {
    let request = |&(seed, prompt): &(usize, &String)| {
        let request = pipeline.request(prompt)?;
        Ok(Request { seed: seed as u64, steps: 25, guidance: 3.0, ..request })
    };
    let outputs = prompts.iter().map(|(number, _)| folder.join(format!("{number}.mp4"))).collect();
    let own = pipeline.request("")?;
    let mut writer = Writer { outputs, size: [own.height, own.width], video: 0, sink: None };
    let results = pipeline.generate_all::<Request>(prompts.iter().map(request), &mut writer)?;
    Ok(results.iter().filter(|result| result.is_ok()).count())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().collect();
    let [_, bundle, folder, prompts @ ..] = &arguments[..] else {
        return Err("usage: many BUNDLE FOLDER PROMPT...".into());
    };
    std::fs::create_dir_all(folder)?;
    let pipeline = Pipeline::open(Bundle::open(Path::new(bundle))?, Runtime::start(Device::Cpu, 1)?)?;
    let numbered: Vec<_> = prompts.iter().enumerate().collect();
    let made: usize = std::thread::scope(|scope| {
        let shares = numbered.chunks(prompts.len().div_ceil(THREADS).max(1));
        let threads: Vec<_> = shares.map(|share| scope.spawn(|| make(&pipeline, share, Path::new(folder)))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).sum::<Result<_, _>>()
    })?;
    println!("{made} of {} videos in {folder}", prompts.len());
    Ok(())
}
