//! Engines for a TensorRT bundle: told of while they are got.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use super::progress::say;
use super::{Opened, cache, interrupt};
use crate::engines::{Builder, EnginesError, Event, Ready, Runs, Store, runs};
use crate::gpu;
use crate::pipeline::Pipeline;
use crate::runtime::{Setup, TensorRtOptions};

/// An engine and whether it was built just now.
pub(super) struct Got {
    pub runs: Runs,
    pub ready: Ready,
    pub built: bool,
}

/// The engines of `pipeline`'s bundle for videos of these sizes. Nothing is built silently.
pub(super) fn get(pipeline: &Pipeline, videos: &[[usize; 3]], folder: Option<&Path>) -> anyhow::Result<Vec<Got>> {
    let Setup::TensorRt(options) = pipeline.runtime().setup() else { return Ok(vec![]) };
    let store = cache::store(folder)?;
    get_with(pipeline, videos, &store, options)
}

fn get_with(
    pipeline: &Pipeline,
    videos: &[[usize; 3]],
    store: &Store,
    options: &TensorRtOptions,
) -> anyhow::Result<Vec<Got>> {
    let gpu = gpu::gpu(options.cuda.device)?;
    let stop = interrupt::asked();
    let builder = Builder {
        bundle: pipeline.bundle(),
        runtime: pipeline.runtime(),
        store,
        options: options.clone(),
        gpu: gpu.into(),
        stop: &stop,
    };
    let components = &pipeline.bundle().manifest().components;
    let mut all = vec![];
    for &video in videos {
        for runs in runs(pipeline, video).into_iter().filter(|runs| components.contains_key(runs.component)) {
            let what = format!("`{}` at {}", runs.file(), video.map(|n| n.to_string()).join("x"));
            let mut built = None;
            let ready = builder.get(&runs, |event| match event {
                Event::Waiting => say(&format!("{what}: another process builds the engine, waiting for it")),
                Event::Damaged(why) => {
                    say(&format!("{what}: the engine in the cache is damaged and built anew: {why}"));
                }
                Event::Building => {
                    say(&format!("{what}: building the engine, which takes minutes"));
                    built = Some(Instant::now());
                }
            });
            let ready = ready.map_err(|error| match error {
                EnginesError::Build(why) => anyhow::anyhow!("{what}: no engine was built: {why}"),
                error => error.into(),
            })?;
            if let Some(since) = built {
                say(&format!("{what}: built in {:.1} s", since.elapsed().as_secs_f64()));
            }
            all.push(Got { runs, ready, built: built.is_some() });
        }
    }
    Ok(all)
}

/// What was opened, with the engines for videos of this size where its bundle is for TensorRT.
pub(super) fn prepared(opened: Opened, video: [usize; 3]) -> anyhow::Result<Opened> {
    let got = get(&opened.pipeline, &[video], None)?;
    let models: BTreeMap<_, _> = got.into_iter().map(|got| (got.runs.file(), got.ready.model)).collect();
    Ok(Opened { pipeline: opened.pipeline.with_engines(models), ..opened })
}
