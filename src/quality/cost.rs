//! What a bundle takes: bytes, seconds, memory.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;

use crate::pipeline::{Runs, Stage};
use crate::stats::{Memory, Stats};

/// What a bundle takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// Bytes of each component: its graphs and the weights that they read.
    pub components: BTreeMap<String, u64>,
    /// Bytes of all components.
    pub bytes: u64,
    /// Median seconds of a denoising step, the first one of a video aside, which waits for the transformer to load; absent where
    /// there was only one.
    pub step_seconds: Option<f64>,
    /// How often the transformer ran for a video, with and without the prompt; the mean of all.
    pub transformer_runs: f64,
    /// Each stage.
    pub stages: Vec<StageCost>,
}

/// What a stage took, of all runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageCost {
    /// The stage.
    pub stage: Stage,
    /// Median seconds, loading included.
    pub seconds: f64,
    /// The most memory this process held in it, in any run; absent where the system does not tell.
    pub memory: Option<Memory>,
}

/// Takes what the runs of one bundle cost.
#[derive(Default)]
pub(super) struct CostMeter {
    stats: Option<Stats>,
    mark: Option<Instant>,
    steps: Vec<f64>,
    runs: Vec<Runs>,
    stages: Vec<(Stage, Vec<f64>, Option<Memory>)>,
}

impl CostMeter {
    pub fn begin(&mut self) {
        self.stats = Some(Stats::start());
        self.mark = None;
    }

    pub fn stage(&mut self, stage: Stage) {
        if let Some(stats) = &mut self.stats {
            stats.stage(stage);
        }
    }

    /// A step is done.
    pub fn step(&mut self) {
        if let Some(mark) = self.mark.take() {
            self.steps.push(mark.elapsed().as_secs_f64());
        }
        if let Some(stats) = &mut self.stats {
            stats.count(1);
        }
    }

    /// All steps of a video are done.
    pub fn ran(&mut self, runs: Runs) {
        self.runs.push(runs);
    }

    /// The next step begins.
    pub fn resume(&mut self) {
        self.mark = Some(Instant::now());
    }

    pub fn frames(&mut self, frames: usize) {
        if let Some(stats) = &mut self.stats {
            stats.count(frames);
        }
    }

    pub fn end(&mut self) {
        for run in self.stats.take().map(Stats::finish).unwrap_or_default() {
            let known = self.stages.iter().position(|(stage, ..)| *stage == run.stage);
            let known = known.unwrap_or_else(|| {
                self.stages.push((run.stage, vec![], None));
                self.stages.len() - 1
            });
            let (_, seconds, memory) = &mut self.stages[known];
            seconds.push(run.seconds);
            *memory = match (memory.take(), run.memory) {
                (Some(a), Some(b)) => Some(Memory {
                    anonymous: a.anonymous.max(b.anonymous),
                    mapped: a.mapped.max(b.mapped),
                    total: a.total.max(b.total),
                }),
                (a, b) => a.or(b),
            };
        }
    }

    pub fn finish(self, components: BTreeMap<String, u64>) -> Cost {
        let stage =
            |(stage, seconds, memory)| StageCost { stage, seconds: median(seconds).unwrap_or_default(), memory };
        #[expect(clippy::cast_precision_loss, reason = "numbers of steps")]
        let mean = |sum: usize, n: usize| sum as f64 / n.max(1) as f64;
        let all = self.runs.iter().map(|runs| runs.prompted + runs.unprompted).sum();
        Cost {
            transformer_runs: mean(all, self.runs.len()),
            bytes: components.values().sum(),
            components,
            step_seconds: median(self.steps),
            stages: self.stages.into_iter().map(stage).collect(),
        }
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    Some(if values.len() % 2 == 1 { upper } else { f64::midpoint(values[values.len() / 2 - 1], upper) })
}
