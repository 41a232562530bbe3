//! Latents that stay on the device give the video that they give when they come back after each prediction: here the device is
//! the processor, where both loops round alike.

mod common;

use std::error::Error;
use std::time::Instant;

use cogvx::bench::time_loop;
use cogvx::bundle::Bundle;
use cogvx::export::ExportOptions;
use cogvx::pipeline::{Job, Observer, Pipeline, PipelineError, Reads, Request, Start, Walk};
use cogvx::runtime::{Device, Interrupt, Runtime, RuntimeError};
use cogvx::scheduler::Kind;
use ndarray::{ArrayD, IxDyn};
use tempfile::TempDir;

use common::{bundle_of, fixture, fresh_folder, root};

/// Keeps what it is shown.
struct Recorder {
    reads: Reads,
    latents: Vec<ArrayD<f32>>,
    walks: Vec<Walk>,
    frames: Vec<Vec<f32>>,
    /// After so many steps.
    stops: Option<(usize, Interrupt)>,
}

impl Recorder {
    fn new(reads: Reads) -> Self {
        Self { reads, latents: vec![], walks: vec![], frames: vec![vec![]], stops: None }
    }
}

impl Observer for Recorder {
    fn reads(&self) -> Reads {
        self.reads
    }

    fn video(&mut self, video: usize) {
        self.frames.resize(self.frames.len().max(video + 1), vec![]);
    }

    fn step(&mut self, step: usize, _: usize, latents: &ArrayD<f32>) {
        self.latents.push(latents.clone());
        if let Some((_, interrupt)) = self.stops.as_ref().filter(|(last, _)| *last == step) {
            interrupt.stop();
        }
    }

    fn walked(&mut self, walk: &Walk) {
        self.walks.push(walk.clone());
    }

    fn finished(&mut self, _: usize) -> Result<(), Box<dyn Error + Send + Sync>> {
        self.frames.push(vec![]);
        Ok(())
    }

    fn frames(&mut self, frames: ArrayD<f32>, _: usize) -> Result<(), Box<dyn Error + Send + Sync>> {
        self.frames.last_mut().expect("a video").extend(frames);
        Ok(())
    }
}

fn exported(name: &str) -> TempDir {
    let folder = fresh_folder();
    let checkpoint = if name == "shapes" { root().join("examples/shapes-model") } else { fixture(name) };
    bundle_of(&checkpoint, folder.path(), &ExportOptions::default());
    folder
}

fn opened(folder: &TempDir, resident: bool) -> Pipeline {
    let bundle = Bundle::open(&folder.path().join("bundle")).expect("a sound bundle");
    let runtime = Runtime::start(Device::Cpu, 1).expect("ONNX Runtime starts");
    Pipeline::open(bundle, runtime).expect("a sound bundle").with_resident_latents(resident)
}

/// A short request, with an image where the model wants one.
fn request(pipeline: &Pipeline, seed: u64, scheduler: Kind, guidance: f64) -> Request {
    let mut request = pipeline.request("a fox").expect("a model of the family");
    (request.seed, request.steps, request.scheduler, request.guidance) = (seed, 5, scheduler, guidance);
    if pipeline.takes_image() {
        let sides = [3, request.height, request.width];
        let pixel = |place: IxDyn| (place[0] + place[1] * 7 + place[2] * 3) % 17;
        let image =
            ArrayD::from_shape_fn(IxDyn(&sides), |p| f32::from(u8::try_from(pixel(p)).unwrap_or(0)) / 8.5 - 1.0);
        request.start = Start::Image(image);
    }
    request
}

fn made(pipeline: &Pipeline, request: &Request, reads: Reads) -> Recorder {
    let mut recorder = Recorder::new(reads);
    pipeline.generate(request, &mut recorder).unwrap_or_else(|e| panic!("{e}"));
    recorder
}

/// Samplers, with and without guidance, which may change over the steps.
const KINDS: [(Kind, f64, bool); 5] = [
    (Kind::Ddim, 6.0, false),
    (Kind::Ddim, 1.0, false),
    (Kind::Dpm, 6.0, false),
    (Kind::Dpm, 1.0, false),
    (Kind::Dpm, 5.0, true),
];

#[test]
fn the_video_and_all_latents_on_the_way_are_the_same_to_the_bit() {
    // Text to video with either kind of positions, one with patches in time, and image to video.
    for name in ["2b-fp32", "1.5-5b", "5b-i2v"] {
        let folder = exported(name);
        let (here, there) = (opened(&folder, false), opened(&folder, true));
        for (kind, guidance, dynamic) in KINDS {
            let case = format!("{name}, {kind:?}, guidance {guidance}, dynamic {dynamic}");
            let request = Request { dynamic_cfg: dynamic, ..request(&here, 3, kind, guidance) };
            let expected = made(&here, &request, Reads::Outputs);
            let read = made(&there, &request, Reads::Steps);
            assert!(read.frames == expected.frames, "{case}");
            assert!(read.latents == expected.latents && read.latents.len() == 5, "{case}");
            let unread = made(&there, &request, Reads::Nothing);
            assert!(unread.frames == expected.frames, "{case}, unread");
            // Nothing came down but the end.
            assert!(unread.walks.is_empty() && unread.latents.len() == 5, "{case}, unread");
            assert!(unread.latents[..4].iter().all(|latents| *latents == unread.latents[0]), "{case}, unread");
            assert!(unread.latents[4] == expected.latents[4], "{case}, unread");
        }
    }
}

#[test]
fn a_run_goes_on_from_any_step_of_either_loop() {
    for name in ["2b-fp32", "5b-i2v"] {
        let folder = exported(name);
        let loops = [opened(&folder, false), opened(&folder, true)];
        for kind in [Kind::Ddim, Kind::Dpm] {
            let request = request(&loops[0], 4, kind, 6.0);
            let expected = made(&loops[0], &request, Reads::Steps);
            for (i, from) in loops.iter().enumerate() {
                let walks = made(from, &request, Reads::Steps).walks;
                assert_eq!(walks.len(), 5);
                for (step, walk) in walks.iter().enumerate().step_by(2) {
                    let path = folder.path().join("state");
                    let id = from.run_id(&request).expect("a sound bundle");
                    walk.save(&path, &id).expect("a writable folder");
                    for (j, to) in loops.iter().enumerate() {
                        let walk = to.open_state(&path, &request).unwrap_or_else(|e| panic!("{e}"));
                        let mut recorder = Recorder::new(Reads::Nothing);
                        to.resume(&request, walk, &mut recorder).unwrap_or_else(|e| panic!("{e}"));
                        let case = format!("{name}, {kind:?}, from loop {i} after step {} to loop {j}", step + 1);
                        assert!(recorder.frames == expected.frames, "{case}");
                    }
                }
            }
        }
    }
}

#[test]
fn an_interrupt_ends_it_within_a_step() {
    let folder = exported("2b-fp32");
    let pipeline = opened(&folder, true);
    let mut recorder = Recorder::new(Reads::Nothing);
    recorder.stops = Some((2, pipeline.runtime().interrupt()));
    let ended = pipeline.generate(&request(&pipeline, 1, Kind::Dpm, 6.0), &mut recorder);
    assert!(matches!(ended, Err(PipelineError::Runtime(RuntimeError::Interrupted))), "{ended:?}");
    assert_eq!(recorder.latents.len(), 2);
}

#[test]
fn walks_of_several_sizes_share_a_transformer() {
    let folder = exported("2b-fp32");
    let (here, there) = (opened(&folder, false), opened(&folder, true));
    let mut requests = [(1, 6.0), (2, 1.0), (3, 6.0), (4, 3.0)].map(|(seed, g)| request(&here, seed, Kind::Dpm, g));
    requests[3].frames = 5;
    let expected: Vec<_> = requests.iter().map(|r| made(&here, r, Reads::Outputs).frames[0].clone()).collect();
    let mut recorder = Recorder::new(Reads::Nothing);
    let jobs = requests.iter().map(|request| Ok(Job::from(request.clone())));
    let results = there.generate_all(jobs, &mut recorder).expect("a batch");
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    for (i, expected) in expected.iter().enumerate() {
        assert!(recorder.frames.iter().any(|frames| frames == expected), "request {i}");
    }
}

#[test]
fn numbers_that_are_none_are_found_at_the_end() {
    let folder = exported("2b-fp32");
    let pipeline = opened(&folder, true);
    // A guidance beyond what `float32` holds.
    let request = Request { guidance: 1e39, ..request(&pipeline, 1, Kind::Ddim, 6.0) };
    let ended = pipeline.generate(&request, &mut Recorder::new(Reads::Nothing));
    assert!(matches!(ended, Err(PipelineError::NotFinite { stage: "transformer" })), "{ended:?}");
}

/// Printed, not judged: on the processor nothing is saved, so the other loop is the default there.
#[test]
fn what_either_loop_takes_beside_the_transformer() {
    let folder = exported("shapes");
    for resident in [false, true] {
        let began = Instant::now();
        let timings = time_loop(&opened(&folder, resident), [None; 3], 10, 2).expect("a loop");
        for timing in &timings {
            assert!(timing.outside_seconds() > 0.0 && timing.seconds < began.elapsed().as_secs_f64());
            println!(
                "resident {resident}, {:?}: {:.3} ms a step outside",
                timing.sampler,
                1e3 * timing.outside_seconds()
            );
        }
        assert_eq!(timings.len(), 2);
    }
}
