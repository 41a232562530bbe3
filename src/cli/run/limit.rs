//! `--max-memory`: the ways that fit.

use indicatif::HumanBytes;

use super::Args;
use crate::blueprint::Blueprint;
use crate::cli::plan::threads;
use crate::cli::progress::say;
use crate::pipeline::{Pipeline, Request, Start};
use crate::plan::{How, Plan, Wish};

/// The request, made in the ways that take at most what `--max-memory` allows; `of` names the video among others.
///
/// # Errors
/// No way takes so little.
pub(super) fn within(args: &Args, pipeline: &Pipeline, request: Request, of: &str) -> anyhow::Result<Request> {
    let Some(limit) = args.max_memory else { return Ok(request) };
    let blueprint = Blueprint::of_bundle(pipeline.bundle())?;
    let wish = Wish {
        size: [request.frames, request.height, request.width].map(Some),
        guided: request.is_guided(),
        sequential_guidance: request.sequential_guidance,
        vae_tiling: request.vae_tiling,
        from_video: matches!(request.start, Start::Video { .. }),
        threads: threads(args.threads),
        cpu: args.cpu.within(args.max_memory),
    };
    let plan = Plan::new(blueprint, &wish, Some(limit))?;
    let mut chosen = vec![];
    if plan.does(How::Sequential) && !request.sequential_guidance {
        chosen.push("guidance one after the other");
    }
    if plan.does(How::Tiled) && !request.vae_tiling {
        chosen.push("the VAE in tiles");
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
