//! `--max-memory`: the ways that fit.

use anyhow::bail;
use indicatif::HumanBytes;

use super::Args;
use crate::blueprint::Blueprint;
use crate::cli::plan::threads;
use crate::cli::progress::say;
use crate::pipeline::{Pipeline, Request, Start, Streaming};
use crate::plan::{How, Plan, Weights, Wish};

/// The request, made in the ways that take at most what `--max-memory` allows; `of` names the video among others.
///
/// # Errors
/// No way takes so little.
pub(super) fn within(args: &Args, pipeline: &Pipeline, request: Request, of: &str) -> anyhow::Result<Request> {
    let Some(limit) = args.max_memory else { return Ok(request) };
    let plan = plan(args, pipeline, &request, limit)?;
    let mut chosen = vec![];
    if plan.does(How::Sequential) && !request.sequential_guidance {
        chosen.push("guidance one after the other".to_string());
    }
    if plan.does(How::Tiled) && !request.vae_tiling {
        chosen.push("the VAE in tiles".into());
    }
    for stage in &plan.stages {
        if let Some(streams) = stage.way().streams {
            let (blocks, s) = (streams.blocks, if streams.blocks == 1 { "" } else { "s" });
            chosen.push(format!("weights of {blocks} block{s} of {} streamed", stage.stage.graph()));
        }
    }
    if !chosen.is_empty() {
        let (takes, chosen) = (HumanBytes(plan.memory()), chosen.join(", "));
        say(&format!("{of}{takes} with {chosen}, of {} allowed", HumanBytes(limit)));
    }
    Ok(Request {
        sequential_guidance: request.sequential_guidance || plan.does(How::Sequential),
        vae_tiling: request.vae_tiling || plan.does(How::Tiled),
        ..request
    })
}

/// The pipeline, with as many weights on the device as `--max-memory` leaves room for beside what `requests` take: all of them share
/// the graphs.
///
/// # Errors
/// The transformer's kernels are to be recorded, which works only where its weights stay.
pub(super) fn streaming(args: &Args, pipeline: Pipeline, requests: &[Request]) -> anyhow::Result<Pipeline> {
    let Some(limit) = args.max_memory else { return Ok(pipeline) };
    // Of one that does not fit is told when it is its turn.
    let plans = requests.iter().filter_map(|request| plan(args, &pipeline, request, limit).ok());
    let least = |a: Option<usize>, b: Option<usize>| [a, b].into_iter().flatten().min();
    let streaming = plans.map(|plan| plan.streaming()).reduce(|a, b| Streaming {
        text_encoder: least(a.text_encoder, b.text_encoder),
        transformer: least(a.transformer, b.transformer),
    });
    let Some(streaming) = streaming else { return Ok(pipeline) };
    if args.gpu.records() && streaming.transformer.is_some() {
        bail!("`--cuda-graph`: expected memory for all weights of the transformer, found {}", HumanBytes(limit));
    }
    Ok(pipeline.with_streaming(streaming))
}

fn plan(args: &Args, pipeline: &Pipeline, request: &Request, limit: u64) -> anyhow::Result<Plan> {
    let blueprint = Blueprint::of_bundle(pipeline.bundle())?;
    let wish = Wish {
        size: [request.frames, request.height, request.width].map(Some),
        guided: request.is_guided(),
        sequential_guidance: request.sequential_guidance,
        vae_tiling: request.vae_tiling,
        from_video: matches!(request.start, Start::Video { .. }),
        threads: threads(args.threads),
        cpu: args.cpu.within(args.max_memory),
        weights: if args.gpu.streams() { Weights::Streamed } else { Weights::Kept },
    };
    Ok(Plan::new(blueprint, &wish, Some(limit))?)
}
