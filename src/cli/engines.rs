//! Engines for a TensorRT bundle: told of while they are got.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use super::progress::say;
use super::{Opened, cache, interrupt};
use crate::engines::{Builder, EnginesError, Event, Form, Ready, Runs, Sizes, Store, runs};
use crate::gpu;
use crate::pipeline::Pipeline;
use crate::runtime::Device;

/// An engine and whether it was built just now.
pub(super) struct Got {
    pub runs: Runs,
    pub ready: Ready,
    pub built: bool,
}

/// Which of the engines that do are wanted.
#[derive(Clone, Copy)]
pub(super) enum Wanted {
    /// Any; where there is none, one for this size and GPU alone is built. Of a VAE that works in tiles none: those have sizes of
    /// their own.
    Any { tiled: bool },
    /// One for just these sizes, built this way.
    This(Form),
}

/// The engines of `pipeline`'s bundle for videos of these sizes. Nothing is built silently.
pub(super) fn get(
    pipeline: &Pipeline,
    videos: &[Sizes],
    folder: Option<&Path>,
    wanted: Wanted,
) -> anyhow::Result<Vec<Got>> {
    let setup = pipeline.runtime().setup();
    let (Device::TensorRt, Some(cuda)) = (setup.device(), setup.cuda()) else { return Ok(vec![]) };
    let store = cache::store(folder)?;
    get_with(pipeline, videos, &store, cuda.device, wanted)
}

fn get_with(
    pipeline: &Pipeline,
    videos: &[Sizes],
    store: &Store,
    device: u32,
    wanted: Wanted,
) -> anyhow::Result<Vec<Got>> {
    let gpu = gpu::gpu(device)?;
    let stop = interrupt::asked();
    let builder = Builder {
        bundle: pipeline.bundle(),
        runtime: pipeline.runtime(),
        store,
        setup: pipeline.runtime().setup().clone(),
        gpu: gpu.into(),
        stop: &stop,
    };
    let components = &pipeline.bundle().manifest().components;
    let mut all = vec![];
    for &video in videos {
        let is_tiled =
            |runs: &Runs| matches!(wanted, Wanted::Any { tiled: true }) && runs.component.starts_with("vae_");
        let wanted_runs = runs(pipeline, video).into_iter().filter(|runs| !is_tiled(runs));
        for runs in wanted_runs.filter(|runs| components.contains_key(runs.component)) {
            let what = format!("`{}` at {video}", runs.file());
            let mut built = None;
            let tell = |event| match event {
                Event::Waiting => say(&format!("{what}: another process builds the engine, waiting for it")),
                Event::Damaged(why) => {
                    say(&format!("{what}: the engine in the cache is damaged and built anew: {why}"));
                }
                Event::Building => {
                    say(&format!("{what}: building the engine, which takes minutes"));
                    built = Some(Instant::now());
                }
            };
            let ready = match wanted {
                Wanted::Any { .. } => match builder.find(&runs) {
                    Ok(Some(ready)) => Ok(ready),
                    Ok(None) => builder.get(&runs, Form::default(), tell),
                    Err(error) => Err(error),
                },
                Wanted::This(form) => builder.get(&runs, form, tell),
            };
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

/// What was opened, with the engines for videos of this size where its bundle is for TensorRT; whether any of them is decoded in
/// tiles.
pub(super) fn prepared(opened: Opened, video: [usize; 3], tiled: bool) -> anyhow::Result<Opened> {
    let got = get(&opened.pipeline, &[video.into()], None, Wanted::Any { tiled })?;
    let engines: BTreeMap<_, _> = got.into_iter().map(|got| (got.runs.file(), got.ready.engine)).collect();
    Ok(Opened { pipeline: opened.pipeline.with_engines(engines), ..opened })
}
