//! Steps that leave out guidance, the prediction without the prompt, or the whole prediction: what they cost, and what they save.

mod common;

use std::error::Error;
use std::path::Path;

use cogvx::export::ExportOptions;
use cogvx::pipeline::{Observer, Pipeline, PipelineError, Request, RunId, Runs, Shortcuts, Start, Walk};
use cogvx::scheduler::Kind;
use cogvx_calibration::metrics::difference;
use ndarray::{ArrayD, IxDyn};
use tempfile::TempDir;

use common::{bundle_of, fixture, fresh_folder, pipeline, root};

const STEPS: usize = 10;

/// The last latents, and how often the transformer ran.
#[derive(Default)]
struct Seen {
    latents: Vec<f32>,
    runs: Runs,
    /// Where states are kept of each step, if they are.
    saving: Option<(TempDir, RunId)>,
}

impl Observer for Seen {
    fn walked(&mut self, walk: &Walk) {
        self.latents = walk.latents().iter().copied().collect();
        self.runs = walk.runs();
        if let Some((folder, id)) = &self.saving {
            walk.save(&state(folder, walk.done()), id).expect("a writable folder");
        }
    }

    fn frames(&mut self, _: ArrayD<f32>, _: usize) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(())
    }
}

fn state(folder: &TempDir, step: usize) -> std::path::PathBuf {
    folder.path().join(step.to_string())
}

fn opened(checkpoint: &Path) -> (TempDir, Pipeline) {
    let folder = fresh_folder();
    let (bundle, _) = bundle_of(checkpoint, folder.path(), &ExportOptions::default());
    let pipeline = pipeline(&bundle);
    (folder, pipeline)
}

fn request(pipeline: &Pipeline, scheduler: Kind, shortcuts: Shortcuts) -> Request {
    let mut request = pipeline.request("a red circle moving left").expect("a model of the family");
    (request.steps, request.guidance, request.scheduler, request.shortcuts) = (STEPS, 3.0, scheduler, shortcuts);
    if pipeline.takes_image() {
        request.start = Start::Image(ArrayD::zeros(IxDyn(&[3, request.height, request.width])));
    }
    request
}

fn run(pipeline: &Pipeline, request: &Request) -> Seen {
    let mut seen = Seen::default();
    pipeline.latents(request, &mut seen).expect("a run");
    seen
}

fn usual() -> Shortcuts {
    Shortcuts::default()
}

#[test]
fn guidance_outside_its_interval_is_none() {
    let (_folder, pipeline) = opened(&fixture("2b-fp32"));
    let with = |interval| {
        run(&pipeline, &request(&pipeline, Kind::Ddim, Shortcuts { guidance_interval: interval, ..usual() }))
    };
    let full = with([0.0, 1.0]);
    assert_eq!(full.runs, Runs { prompted: STEPS, unprompted: STEPS });
    let none = with([0.0, 0.0]);
    assert_eq!(none.runs, Runs { prompted: STEPS, unprompted: 0 });
    let unguided = Request { guidance: 1.0, ..request(&pipeline, Kind::Ddim, usual()) };
    assert!(none.latents == run(&pipeline, &unguided).latents);
    // As diffusers counts: from the first step on that is not below the start, to the last below the stop.
    let some = with([0.25, 0.8]);
    assert_eq!(some.runs, Runs { prompted: STEPS, unprompted: 6 });
    assert!(some.latents != full.latents && some.latents != none.latents);
}

#[test]
fn shortcuts_save_runs_and_cost_little() {
    let (_folder, pipeline) = opened(&root().join("examples/shapes-model"));
    for kind in [Kind::Ddim, Kind::Dpm] {
        let with = |shortcuts| run(&pipeline, &Request { steps: 25, ..request(&pipeline, kind, shortcuts) });
        let full = with(usual());
        for (shortcuts, least_saved, most_error) in [
            (Shortcuts { guidance_every: 2, ..usual() }, 12, 0.1),
            (Shortcuts { guidance_every: 3, ..usual() }, 16, 0.15),
            (Shortcuts { step_cache: 0.1, ..usual() }, 6, 0.1),
            (Shortcuts { guidance_every: 2, step_cache: 0.1, ..usual() }, 12, 0.15),
        ] {
            let short = with(shortcuts);
            let saved = full.runs.prompted + full.runs.unprompted - short.runs.prompted - short.runs.unprompted;
            let error = difference(&short.latents, &full.latents).relative_l2;
            eprintln!("{kind:?} {shortcuts:?}: {saved} runs of 50 saved, latent error {error:.3}");
            assert!(saved >= least_saved, "{kind:?} {shortcuts:?}: {saved} runs saved");
            assert!(error > 0.0 && error < most_error, "{kind:?} {shortcuts:?}: {error}");
        }
        // A threshold that nothing keeps, and a run without the prompt in each step: the usual run, to the bit.
        assert!(with(Shortcuts { step_cache: 1e-12, guidance_every: 1, ..usual() }).latents == full.latents);
    }
}

#[test]
fn a_run_with_shortcuts_goes_on_from_any_step_to_the_same_video() {
    for (name, kind) in [("2b-fp32", Kind::Dpm), ("5b-i2v", Kind::Ddim)] {
        let (_folder, pipeline) = opened(&fixture(name));
        let shortcuts = Shortcuts { guidance_interval: [0.1, 0.7], guidance_every: 3, step_cache: 10.0 };
        let request = request(&pipeline, kind, shortcuts);
        let id = pipeline.run_id(&request).expect("a readable bundle");
        let mut whole = Seen { saving: Some((fresh_folder(), id)), ..Seen::default() };
        pipeline.latents(&request, &mut whole).expect("a run");
        let (states, _) = whole.saving.take().expect("states");
        assert!(whole.runs.prompted < STEPS - 2 && whole.runs.unprompted < whole.runs.prompted, "{:?}", whole.runs);
        for step in 1..STEPS {
            let walk = pipeline.open_state(&state(&states, step), &request).expect("a state");
            let mut rest = Seen::default();
            // One by itself and one in a batch, where walks wait in a file.
            pipeline.resume(&request, walk.clone(), &mut rest).expect("a run");
            assert!(rest.latents == whole.latents, "{name}: from step {step}");
            let mut rest = Seen::default();
            let job = cogvx::pipeline::Job { request: request.clone(), walk: Some(walk) };
            let results = pipeline.generate_all([Ok(job)], &mut rest).expect("a batch");
            assert!(results[0].is_ok() && rest.latents == whole.latents, "{name}: from step {step} in a batch");
        }
        // It is the state of this run alone.
        let other = Request { shortcuts: Shortcuts { guidance_every: 2, ..shortcuts }, ..request };
        let refused = pipeline.open_state(&state(&states, 1), &other).expect_err("of another run");
        assert!(refused.to_string().ends_with("whose guidance-every is `2`, found `3`"), "{refused}");
    }
}

#[test]
fn shortcuts_that_make_no_sense_are_refused() {
    let (_folder, pipeline) = opened(&fixture("2b-fp32"));
    let interval = |guidance_interval| Shortcuts { guidance_interval, ..usual() };
    for (shortcuts, expected) in [
        (
            interval([0.5, 0.4]),
            "`--guidance-interval`: expected two numbers from 0 to 1, the smaller one first, found 0.5:0.4",
        ),
        (
            interval([0.0, 1.1]),
            "`--guidance-interval`: expected two numbers from 0 to 1, the smaller one first, found 0:1.1",
        ),
        (
            interval([f64::NAN, 1.0]),
            "`--guidance-interval`: expected two numbers from 0 to 1, the smaller one first, found NaN:1",
        ),
        (Shortcuts { guidance_every: 0, ..usual() }, "`--guidance-every`: expected at least 1, found 0"),
        (
            Shortcuts { step_cache: -0.1, ..usual() },
            "`--step-cache`: expected a number that is not negative, found -0.1",
        ),
        (
            Shortcuts { step_cache: f64::INFINITY, ..usual() },
            "`--step-cache`: expected a number that is not negative, found inf",
        ),
    ] {
        let refused = pipeline.check(&request(&pipeline, Kind::Ddim, shortcuts));
        let refused = refused.err().map(|e: PipelineError| e.to_string());
        assert_eq!(refused.as_deref(), Some(expected));
    }
}
