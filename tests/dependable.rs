//! Batches, runs that go on, threads, and what the sampling loop takes beside the engine.

mod common;

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use cogvx::bench::time_loop;
use cogvx::export::ExportOptions;
use cogvx::pipeline::{Job, Observer, Pipeline, PipelineError, Request, RunId, Stage, Start, StateError, Walk};
use cogvx::runtime::{Interrupt, Runtime};
use cogvx::scheduler::Kind;
use ndarray::{ArrayD, IxDyn};
use tempfile::TempDir;

use common::{bundle_of, fixture, fresh_folder, pipeline};

/// Frames by video, and the order of stages.
#[derive(Default)]
struct Recorder {
    video: usize,
    frames: BTreeMap<usize, Vec<f32>>,
    stages: Vec<Stage>,
    finished: Vec<usize>,
    failed: Vec<usize>,
}

impl Observer for Recorder {
    fn stage(&mut self, stage: Stage) {
        self.stages.push(stage);
    }

    fn video(&mut self, video: usize) {
        self.video = video;
    }

    fn finished(&mut self, video: usize) -> Result<(), Box<dyn Error + Send + Sync>> {
        self.finished.push(video);
        Ok(())
    }

    fn failed(&mut self, video: usize, _: &PipelineError) {
        self.failed.push(video);
    }

    fn frames(&mut self, frames: ArrayD<f32>, _: usize) -> Result<(), Box<dyn Error + Send + Sync>> {
        self.frames.entry(self.video).or_default().extend(frames);
        Ok(())
    }
}

/// A fixture exported and opened.
fn opened(name: &str) -> (TempDir, Pipeline) {
    let folder = fresh_folder();
    let (bundle, _) = bundle_of(&fixture(name), folder.path(), &ExportOptions::default());
    let pipeline = pipeline(&bundle);
    (folder, pipeline)
}

/// A short request, with an image where the model wants one.
fn request(pipeline: &Pipeline, prompt: &str, seed: u64, scheduler: Kind) -> Request {
    let mut request = pipeline.request(prompt).expect("a model of the family");
    (request.seed, request.steps, request.scheduler) = (seed, 4, scheduler);
    if pipeline.takes_image() {
        let sides = [request.height, request.width];
        request.start = Start::Image(ArrayD::from_shape_fn(IxDyn(&[3, sides[0], sides[1]]), |place| {
            #[allow(clippy::cast_precision_loss)]
            let value = (place[0] + place[1] * 7 + place[2] * 3) as f32;
            value.sin()
        }));
    }
    request
}

fn alone(pipeline: &Pipeline, request: &Request) -> Vec<f32> {
    let mut recorder = Recorder::default();
    pipeline.generate(request, &mut recorder).expect("a run");
    recorder.frames.remove(&0).expect("frames")
}

#[test]
fn guidance_one_after_the_other_gives_the_same_video() {
    for name in ["2b-fp32", "2b-bf16", "5b", "5b-i2v", "1.5-i2v"] {
        let (_folder, pipeline) = opened(name);
        for scheduler in [Kind::Ddim, Kind::Dpm] {
            let request = request(&pipeline, "a red boat", 3, scheduler);
            assert!(request.is_guided());
            let together = alone(&pipeline, &request);
            let apart = alone(&pipeline, &Request { sequential_guidance: true, ..request.clone() });
            assert_eq!(together, apart, "{name}, {scheduler:?}");
            let alone = alone(&pipeline, &Request { guidance: 1.0, sequential_guidance: true, ..request });
            assert_ne!(together, alone, "{name}: guidance does something");
        }
    }
}

#[test]
fn a_batch_gives_each_video_as_it_is_alone_in_any_order_and_loads_each_graph_once() {
    for name in ["2b-fp32", "5b-i2v"] {
        let (_folder, pipeline) = opened(name);
        let mut requests: Vec<_> = [("a fox", 3, Kind::Ddim), ("a boat", 4, Kind::Dpm), ("a fox", 5, Kind::Dpm)]
            .map(|(prompt, seed, kind)| request(&pipeline, prompt, seed, kind))
            .into();
        (requests[1].guidance, requests[2].dynamic_cfg) = (1.0, true);
        let expected: Vec<_> = requests.iter().map(|request| alone(&pipeline, request)).collect();
        for order in [[0, 1, 2], [2, 0, 1]] {
            let mut recorder = Recorder::default();
            let jobs = order.map(|i| Ok(requests[i].clone()));
            let results = pipeline.generate_all(jobs, &mut recorder).expect("a batch");
            assert!(results.iter().all(Result::is_ok), "{name}: {results:?}");
            for (video, i) in order.into_iter().enumerate() {
                assert!(recorder.frames[&video] == expected[i], "{name}: request {i} in {order:?}");
            }
            let encoding = if pipeline.takes_image() { &[Stage::Encode][..] } else { &[] };
            assert_eq!(recorder.stages, [encoding, &[Stage::Text, Stage::Denoise, Stage::Decode]].concat(), "{name}");
            assert_eq!(recorder.finished, [0, 1, 2], "{name}");
        }
    }
}

#[test]
fn a_failed_video_does_not_stop_the_others() {
    let (_folder, pipeline) = opened("2b-fp32");
    let good = request(&pipeline, "a fox", 1, Kind::Ddim);
    let odd = Request { height: good.height + 1, ..good.clone() };
    let jobs = [Ok(good.clone()), Ok(odd), Err(PipelineError::Sink("nowhere to put it".into())), Ok(good.clone())];
    let mut recorder = Recorder::default();
    let results = pipeline.generate_all(jobs, &mut recorder).expect("a batch");
    let said: Vec<_> = results.iter().map(|result| result.as_ref().err().map(ToString::to_string)).collect();
    assert_eq!(said[0].as_ref().or(said[3].as_ref()), None);
    assert!(said[1].as_ref().is_some_and(|why| why.starts_with("`--height`: expected a multiple of ")), "{said:?}");
    assert_eq!(said[2].as_deref(), Some("nowhere to put it"));
    assert_eq!((recorder.failed, recorder.finished), (vec![1, 2], vec![0, 3]));
    assert!(recorder.frames[&0] == alone(&pipeline, &good) && recorder.frames[&0] == recorder.frames[&3]);
}

/// Saves the state of each step to a file of its own.
struct Saving<'a> {
    folder: &'a Path,
    id: RunId,
}

impl Observer for Saving<'_> {
    fn walked(&mut self, walk: &Walk) {
        walk.save(&self.folder.join(walk.done().to_string()), &self.id).expect("a writable folder");
    }

    fn frames(&mut self, _: ArrayD<f32>, _: usize) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(())
    }
}

/// Run `request` and keep the state of each step in `folder`.
fn saved(pipeline: &Pipeline, request: &Request, folder: &Path) -> Vec<PathBuf> {
    let id = pipeline.run_id(request).expect("a readable bundle");
    pipeline.generate(request, &mut Saving { folder, id }).expect("a run");
    (1..=request.steps).map(|step| folder.join(step.to_string())).collect()
}

#[test]
fn a_run_goes_on_from_any_step_to_the_same_video() {
    for name in ["2b-fp32", "5b-i2v", "1.5-i2v"] {
        let (_folder, pipeline) = opened(name);
        for kind in [Kind::Ddim, Kind::Dpm] {
            let request = request(&pipeline, "a fox", 7, kind);
            let states = fresh_folder();
            let expected = alone(&pipeline, &request);
            for (i, state) in saved(&pipeline, &request, states.path()).iter().enumerate() {
                let walk = pipeline.open_state(state, &request).unwrap_or_else(|e| panic!("{name} {kind:?}: {e}"));
                assert_eq!((walk.done(), walk.steps()), (i + 1, 4));
                let mut recorder = Recorder::default();
                pipeline.resume(&request, walk.clone(), &mut recorder).expect("a run");
                assert!(recorder.frames[&0] == expected, "{name} {kind:?} from step {}", i + 1);
                // A walk that is done needs no transformer.
                let all = [Stage::Text, Stage::Denoise, Stage::Decode];
                assert_eq!(recorder.stages, if i == 3 { &all[2..] } else { &all[..] }, "{name}");
                let mut recorder = Recorder::default();
                let jobs = [Ok(Job { request: request.clone(), walk: Some(walk) })];
                pipeline.generate_all(jobs, &mut recorder).expect("a batch");
                assert!(recorder.frames[&0] == expected, "{name} {kind:?} in a batch from step {}", i + 1);
            }
        }
    }
}

#[test]
fn the_state_of_another_run_is_refused_by_what_differs() {
    let (_folder, pipeline) = opened("2b-fp32");
    let own = request(&pipeline, "a fox", 7, Kind::Ddim);
    let states = fresh_folder();
    let state = &saved(&pipeline, &own, states.path())[1];
    let changes: [(_, fn(&mut Request)); 9] = [
        ("prompt", |r| r.prompt.push('!')),
        ("negative-prompt", |r| r.negative_prompt.push('!')),
        ("seed", |r| r.seed = 8),
        ("steps", |r| r.steps = 5),
        ("guidance", |r| r.guidance = 6.5),
        ("dynamic-cfg", |r| r.dynamic_cfg = true),
        ("frames", |r| r.frames += 8),
        ("width", |r| r.width *= 2),
        ("scheduler", |r| r.scheduler = Kind::Dpm),
    ];
    for (field, change) in changes {
        let mut other = own.clone();
        change(&mut other);
        let Err(StateError::Other { key, .. }) = pipeline.open_state(state, &other) else { panic!("{field}") };
        assert_eq!(key, field);
    }
    let (_folder, others) = opened("2b-bf16");
    let Err(StateError::Other { key, .. }) = others.open_state(state, &own) else { panic!("another bundle") };
    assert_eq!(key, "bundle's fingerprint");
}

#[test]
fn threads_share_a_pipeline_and_a_seed_gives_the_same_video_in_each() {
    fn is_shared<T: Send + Sync>() {}
    is_shared::<Pipeline>();
    is_shared::<Runtime>();
    is_shared::<Interrupt>();
    let (_folder, pipeline) = opened("2b-fp32");
    let requests: Vec<_> = (0..4).map(|seed| request(&pipeline, "a fox", seed, Kind::Dpm)).collect();
    let expected: Vec<_> = requests.iter().map(|request| alone(&pipeline, request)).collect();
    let found: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = requests.iter().map(|request| scope.spawn(|| alone(&pipeline, request))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(found == expected && found[0] != found[1]);
}

#[test]
fn the_sampling_loop_is_timed_beside_the_engine_with_each_sampler() {
    let (_folder, pipeline) = opened("2b-fp32");
    let timings = time_loop(&pipeline, [None; 3], 5, 2).expect("a loop");
    let samplers: Vec<_> = timings.iter().map(|timing| format!("{:?}", timing.sampler)).collect();
    assert!(samplers.len() == 2 && samplers[0] != samplers[1], "{samplers:?}");
    for timing in timings {
        let outside = timing.outside_seconds();
        assert!(timing.engine_seconds > 0.0 && outside.is_finite() && outside >= 0.0, "{timing:?}");
    }
}
