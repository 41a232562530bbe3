//! What a sampler does between two runs of the transformer, as a graph: guidance, and the step's linear combination. With it
//! latents stay on the device for a whole walk.

use crate::{DType, Dim, Graph, Value, dims};

/// The numbers of a step, in the order of the input `factors`.
pub const FACTORS: [&str; 8] = [
    "guidance",
    "clean_sample",
    "clean_output",
    "mixed_clean",
    "mixed_previous",
    "next_sample",
    "next_mixed",
    "next_noise",
];

/// What a step is like; all sizes are fixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// `[1, frames, channels, height, width]`.
    pub latents: [usize; 5],
    /// Channels of the image that the transformer reads after those of the latents.
    pub image_channels: usize,
    /// The transformer predicts twice: without the prompt, then with it.
    pub guided: bool,
    /// The clean estimate of the step before counts, and noise is added: DPM.
    pub stochastic: bool,
}

/// The graph of a step, all `f32`.
///
/// | input | shape |
/// |---|---|
/// | `sample`, the transformer's predictions | `[1 or 2, frames, channels, height, width]` |
/// | `latents` | `[1, frames, channels, height, width]` |
/// | `factors`, see [`FACTORS`] | `[8]` |
/// | `image`, where there is one | `[1, frames, image_channels, height, width]` |
/// | `previous` and `noise`, if stochastic | as `latents` |
///
/// It gives `next_latents`; `hidden_states` `[1 or 2, frames, channels and image_channels, height, width]`, what the transformer
/// reads next; and, if stochastic, `clean`, which is the next step's `previous`.
///
/// Factors and the order of operations are those of cogvx's `Sampler::step`, so that both give the same bits where a device
/// multiplies and adds in two steps.
#[must_use]
pub fn build(step: &Step) -> Graph {
    let graph = Graph::new();
    let shape: Vec<Dim> = step.latents.iter().map(|&n| Dim::Fixed(n)).collect();
    let channels = |n: usize| {
        let mut shape = shape.clone();
        shape[2] = Dim::Fixed(n);
        shape
    };
    {
        let g = &graph;
        let mut predictions = shape.clone();
        predictions[0] = Dim::Fixed(if step.guided { 2 } else { 1 });
        let sample = g.input("sample", DType::F32, predictions);
        let latents = g.input("latents", DType::F32, shape.clone());
        let [guidance, clean_sample, clean_output, mixed_clean, mixed_previous, next_sample, next_mixed, next_noise] =
            g.input("factors", DType::F32, dims![FACTORS.len()]).split(0);
        let prediction = if step.guided {
            let [plain, prompted] = sample.split(0);
            plain + guidance * (prompted - plain)
        } else {
            sample
        };
        let clean = clean_sample * latents + clean_output * prediction;
        let mut mixed = mixed_clean * clean;
        if step.stochastic {
            mixed = mixed + mixed_previous * g.input("previous", DType::F32, shape.clone());
        }
        let mut next = next_sample * latents + next_mixed * mixed;
        if step.stochastic {
            next = next + next_noise * g.input("noise", DType::F32, shape.clone());
            g.output("clean", clean);
        }
        let image = (step.image_channels > 0).then(|| g.input("image", DType::F32, channels(step.image_channels)));
        g.output("next_latents", next);
        g.output("hidden_states", read_next(next, image, step.guided));
    }
    graph
}

/// What the transformer reads of `latents`.
fn read_next<'g>(latents: Value<'g>, image: Option<Value<'g>>, guided: bool) -> Value<'g> {
    let one = image.map_or(latents, |image| latents.graph.concat(2, &[latents, image]));
    if guided { latents.graph.concat(0, &[one, one]) } else { one }
}
