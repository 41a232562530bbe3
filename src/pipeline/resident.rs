//! The denoising with latents that stay on the device: only timesteps, factors and, with DPM, noise go up, and nothing comes
//! down but what an observer wants to see and the end.

use cogvx_graphs::model::step::{self, FACTORS};
use cogvx_graphs::onnx;
use cogvx_graphs::pass::{self, Lower, Target};
use ndarray::{ArrayD, arr1};

use super::transformer::SAMPLE;
use super::walk::{CHANNELS, transformer_input};
use super::{Observer, PipelineError, Reads, Request, Transformer, Walk, finite};
use crate::runtime::{Bound, Resident, Runtime, RuntimeError, Session};
use crate::scheduler::guidance_scale;

/// The graph between two predictions, and what it works on.
struct Stepper {
    session: Session,
    factors: Resident,
    noise: Option<Resident>,
    /// Each is read by one step and written by the next one.
    latents: [Resident; 2],
    previous: Option<[Resident; 2]>,
    bound: [Bound; 2],
    /// Which of each holds the numbers of now.
    now: usize,
}

/// What the transformer works on, in the same places in every step.
pub(super) struct Fed {
    /// Shapes of latents and text.
    shapes: [Vec<usize>; 2],
    hidden_states: Resident,
    timestep: Resident,
    /// Text and positions.
    others: Vec<(&'static str, Resident)>,
    sample: Resident,
    bound: Bound,
}

impl Fed {
    fn new(
        session: &Session,
        shapes: [Vec<usize>; 2],
        numbers: &[(&'static str, ArrayD<f32>)],
        channels: usize,
    ) -> Result<Self, PipelineError> {
        let mut bound = session.bound()?;
        let mut predicted = shapes[0].clone();
        predicted[2] = channels;
        let hidden_states = session.resident(&shapes[0])?;
        bound.input("hidden_states", &hidden_states)?;
        let timestep = session.resident(&[1])?;
        bound.input("timestep", &timestep)?;
        let mut others = vec![];
        for (name, numbers) in numbers {
            let room = session.resident(numbers.shape())?;
            bound.input(name, &room)?;
            others.push((*name, room));
        }
        let mut sample = session.resident(&predicted)?;
        bound.output(SAMPLE, &mut sample)?;
        Ok(Self { shapes, hidden_states, timestep, others, sample, bound })
    }

    fn put(&mut self, input: &ArrayD<f32>, numbers: &[(&'static str, ArrayD<f32>)]) -> Result<(), PipelineError> {
        self.hidden_states.put(&input.view())?;
        for ((_, there), (_, numbers)) in self.others.iter_mut().zip(numbers) {
            there.put(&numbers.view())?;
        }
        Ok(())
    }
}

impl Transformer<'_> {
    /// Take the steps that are left, as `denoise_here` does, and to the same bits on the processor.
    pub(super) fn denoise_resident(
        &mut self,
        request: &Request,
        text: &ArrayD<f32>,
        walk: &mut Walk,
        observer: &mut dyn Observer,
    ) -> Result<(), PipelineError> {
        let input = transformer_input(walk, request.is_guided());
        let numbers = self.numbers(&input, text)?;
        let shapes = [input.shape().to_vec(), text.shape().to_vec()];
        let channels = self.config().out_channels;
        // The places of the first walk are kept for all of its shapes: what a GPU recorded on them stays true.
        let Some((runtime, session, kept)) = self.resident() else { unreachable!("asked before") };
        let always = kept.as_ref().is_none_or(|fed| fed.shapes == shapes);
        let mut other = None;
        let place = if always { kept } else { &mut other };
        let fed = match place {
            Some(fed) => fed,
            none => none.insert(Box::new(Fed::new(session, shapes, &numbers, channels)?)),
        };
        fed.put(&input, &numbers)?;
        let mut stepper = Stepper::new(runtime, request, walk, &fed.sample, &mut fed.hidden_states)?;
        let steps = walk.steps();
        while !walk.is_done() {
            let step = walk.done();
            let number = walk.sampler.timesteps()[step];
            #[allow(clippy::cast_precision_loss)] // Timesteps are below 2^24.
            fed.timestep.put(&arr1(&[number as f32]).into_dyn().view())?;
            session.run_bound(&fed.bound, always)?;
            stepper.step(request, walk, step, number)?;
            let read = observer.reads() == Reads::Steps;
            if read || walk.is_done() {
                stepper.bring(walk)?;
                finite(&walk.latents, "transformer")?;
            }
            observer.step(step + 1, steps, &walk.latents);
            if read {
                observer.walked(walk);
            }
        }
        Ok(())
    }
}

impl Stepper {
    /// A step that reads the transformer's `sample` and writes its `hidden_states`.
    fn new(
        runtime: &Runtime,
        request: &Request,
        walk: &Walk,
        sample: &Resident,
        hidden_states: &mut Resident,
    ) -> Result<Self, PipelineError> {
        let latents: [usize; 5] = walk.latents.shape().try_into().expect("latents have five axes");
        let image_channels = walk.image_latents.as_ref().map_or(0, |image| image.len_of(CHANNELS));
        // A walk of one sampler draws noise in every step or in none.
        let stochastic = walk.sampler.steps().iter().any(|factors| factors.draws > 0);
        let described = step::Step { latents, image_channels, guided: request.is_guided(), stochastic };
        let session = runtime.load_made("the graph of a step", &model(&described)?)?;

        let zeros = ArrayD::zeros(walk.latents.raw_dim());
        let noise = stochastic.then(|| session.resident_of(&zeros.view())).transpose()?;
        let previous = if stochastic {
            let previous = walk.sampler.previous().to_vec();
            let previous = ArrayD::from_shape_vec(walk.latents.raw_dim(), previous).unwrap_or_else(|_| zeros.clone());
            Some([session.resident_of(&previous.view())?, session.resident(&latents)?])
        } else {
            None
        };
        let image = walk.image_latents.as_ref().map(|image| session.resident_of(&image.view())).transpose()?;
        let mut stepper = Self {
            factors: session.resident(&[FACTORS.len()])?,
            noise,
            latents: [session.resident_of(&walk.latents.view())?, session.resident(&latents)?],
            previous,
            bound: [session.bound()?, session.bound()?],
            now: 0,
            session,
        };
        for (now, bound) in stepper.bound.iter_mut().enumerate() {
            bound.input("sample", sample)?;
            bound.input("factors", &stepper.factors)?;
            bound.input("latents", &stepper.latents[now])?;
            bound.output("next_latents", &mut stepper.latents[1 - now])?;
            bound.output("hidden_states", hidden_states)?;
            if let (Some(previous), Some(noise)) = (&mut stepper.previous, &stepper.noise) {
                bound.input("previous", &previous[now])?;
                bound.input("noise", noise)?;
                bound.output("clean", &mut previous[1 - now])?;
            }
            if let Some(image) = &image {
                bound.input("image", image)?;
            }
        }
        Ok(stepper)
    }

    /// From the prediction of a step to the next latents.
    #[allow(clippy::cast_possible_truncation)] // torch applies the scale in the tensor's precision.
    fn step(&mut self, request: &Request, walk: &mut Walk, step: usize, timestep: i64) -> Result<(), PipelineError> {
        let f = walk.sampler.steps()[step];
        let guidance = guidance_scale(timestep, request.guidance, request.dynamic_cfg, walk.steps()) as f32;
        let factors = [
            guidance,
            f.clean_sample,
            f.clean_output,
            f.mixed_clean,
            f.mixed_previous,
            f.next_sample,
            f.next_mixed,
            f.next_noise,
        ];
        self.factors.put(&arr1(&factors).into_dyn().view())?;
        let drawn = walk.sampler.draw(step, walk.latents.len(), &mut walk.generator);
        if let Some(noise) = &mut self.noise {
            let drawn = ndarray::ArrayView::from_shape(walk.latents.raw_dim(), drawn).expect("as many as latents");
            noise.put(&drawn)?;
        }
        self.session.run_bound(&self.bound[self.now], false)?;
        self.now = 1 - self.now;
        walk.sampler.pass(step);
        Ok(())
    }

    /// Bring the walk's numbers down.
    fn bring(&self, walk: &mut Walk) -> Result<(), PipelineError> {
        self.latents[self.now].get(walk.latents.as_slice_mut().expect("made in standard order"))?;
        let done = walk.done();
        let mut previous = walk.sampler.take_previous();
        match &self.previous {
            Some(there) if walk.sampler.keeps_previous(done) => {
                previous.resize(walk.latents.len(), 0.0);
                there[self.now].get(&mut previous)?;
            }
            _ => previous.clear(),
        }
        Ok(walk.sampler.go_on(done, previous)?)
    }
}

/// The `.onnx` file of a step.
fn model(described: &step::Step) -> Result<Vec<u8>, PipelineError> {
    let failed = |message: String| RuntimeError::Load { path: "the graph of a step".into(), message };
    let graph = step::build(described);
    let lowered =
        pass::run(&mut Lower::new(Target::Cuda), &graph).map_err(|problems| failed(format!("{problems:?}")))?;
    let model = onnx::serialize(&lowered, "step", |_| Err("no weights")).map_err(|e| failed(e.into()))?;
    Ok(model.bytes)
}
