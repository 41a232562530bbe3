//! A page about one run of a model: what it made, how tensors flow, how large values become, and where the text is looked at.

mod attention;
mod heat;
mod page;
mod weights;

use std::collections::BTreeMap;

use cogvx_calibration::attend::Attend;
use cogvx_calibration::observe::Seen;
use ndarray::ArrayD;

use crate::bench::GroupTime;
use crate::inspect::Inspection;
use crate::page::{is_shown, small};
use crate::pipeline::Observer;
use crate::runtime::Outputs;
use crate::sensitivity::Ranking;
use crate::video::to_rgb8;

pub use attention::{AttentionMap, Grid};
pub use page::write;
pub use weights::{Spread, weight_spreads};

/// Most numbers of a place that are kept for its distribution.
const SAMPLE: usize = 1 << 16;

/// All that a page is made of. What is absent is left out, and the page says so.
pub struct Report<'a> {
    /// The model.
    pub model: &'a str,
    /// What was to be seen.
    pub prompt: &'a str,
    /// How it was made: seed, steps, guidance.
    pub settings: &'a str,
    /// What the model is made of.
    pub inspection: &'a Inspection,
    /// How often its transformer ran, each of two samples counted.
    pub predictions: usize,
    /// What a run showed.
    pub watched: &'a Watched,
    /// What each kind of layer takes of a prediction.
    pub times: Option<&'a [GroupTime]>,
    /// How weights are distributed, by kind of layer.
    pub weights: &'a BTreeMap<String, Spread>,
    /// What quantizing costs.
    pub sensitivity: Option<&'a Ranking>,
}

/// What a run showed.
#[derive(Default)]
pub struct Watched {
    /// Some frames, made small: bytes `[height, width, 3]`.
    pub frames: Vec<Vec<u8>>,
    /// Their rows and columns.
    pub size: [usize; 2],
    /// By value of the transformer that [`Seen`] tells of: the least and the greatest number in each step.
    pub ranges: BTreeMap<String, Vec<[f32; 2]>>,
    /// By place where layers of the transformer read: some of the numbers of the last step.
    pub activations: BTreeMap<String, Vec<f32>>,
    /// Where video tokens look at the text, halfway through the steps.
    pub attention: Vec<AttentionMap>,
}

/// Watches a run for a page.
pub struct Watch<'a> {
    /// What it has seen.
    pub watched: Watched,
    /// Blocks whose attention is looked at, and what its tokens are.
    attention: Option<(&'a [usize], Grid)>,
    told: &'a mut dyn FnMut(usize, usize),
    decoded: usize,
}

impl<'a> Watch<'a> {
    /// Look at the attention of these blocks; `told` hears of each step.
    pub fn new(attention: Option<(&'a [usize], Grid)>, told: &'a mut dyn FnMut(usize, usize)) -> Self {
        Self { watched: Watched::default(), attention, told, decoded: 0 }
    }
}

impl Observer for Watch<'_> {
    fn ran(&mut self, component: &'static str, step: usize, steps: usize, outputs: &Outputs) {
        if component != "transformer" {
            return;
        }
        let number = |name: String| outputs.view(&name).ok().and_then(|numbers| numbers.first().copied());
        for name in outputs.names() {
            match Seen::of_output(name) {
                Some((value, Seen::Minimum)) => {
                    let range = [Seen::Minimum, Seen::Maximum].map(|seen| number(seen.output_of(value)).unwrap_or(0.0));
                    self.watched.ranges.entry(value.into()).or_default().push(range);
                }
                Some((place, Seen::Rows)) if step + 1 == steps => {
                    let rows = outputs.array(name).map(|rows| rows.into_raw_vec_and_offset().0).unwrap_or_default();
                    let by = rows.len().div_ceil(SAMPLE).max(1);
                    self.watched.activations.insert(place.into(), rows.into_iter().step_by(by).collect());
                }
                _ => {}
            }
        }
        if let Some((blocks, grid)) = self.attention.filter(|_| step == steps / 2) {
            let seen = blocks.iter().filter_map(|&block| {
                let [queries, keys] = Attend::outputs(block).map(|name| outputs.array(&name).ok());
                AttentionMap::new(block, &queries?, &keys?, grid)
            });
            self.watched.attention = seen.collect();
        }
    }

    fn step(&mut self, step: usize, steps: usize, _: &ArrayD<f32>) {
        (self.told)(step, steps);
    }

    fn frames(&mut self, frames: ArrayD<f32>, total: usize) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let &[_, height, width, _] = frames.shape() else { return Ok(()) };
        for frame in frames.outer_iter() {
            if is_shown(self.decoded, total) {
                let pixels: Vec<_> = frame.iter().copied().collect();
                let (size, pixels) = small(&pixels, [height, width]);
                self.watched.size = size;
                self.watched.frames.push(to_rgb8(&pixels));
            }
            self.decoded += 1;
        }
        Ok(())
    }
}
