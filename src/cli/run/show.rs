//! What `cogvx run` tells: stages as a table, warnings.

use indicatif::HumanBytes;

use crate::cli::progress::say;
use crate::pipeline::{Pipeline, Request, Stage};
use crate::stats::StageStats;

/// The stages with what they took.
#[allow(clippy::cast_precision_loss)] // For people.
pub(super) fn table(stages: &[StageStats]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["stage", "time", "each", "anonymous", "mapped files", "peak memory"]);
    for StageStats { stage, seconds, count, memory } in stages {
        let (name, unit) = match stage {
            Stage::Text => ("text encoder", "prompt"),
            Stage::Encode => ("VAE encoder", ""),
            Stage::Denoise => ("transformer", "step"),
            Stage::Decode => ("VAE decoder", "frame"),
        };
        let each = if *count == 0 { String::new() } else { format!("{:.2} s a {unit}", seconds / *count as f64) };
        let [anonymous, mapped, total] = memory.map_or_else(
            || ["not measured"; 3].map(String::from),
            |m| [m.anonymous, m.mapped, m.total].map(|bytes| HumanBytes(bytes).to_string()),
        );
        table.add_row([name.to_string(), format!("{seconds:.1} s"), each, anonymous, mapped, total]);
    }
    table
}

/// Say where the result will not be what was asked for, as diffusers' pipeline does it; `of` names the video among others.
pub(super) fn warn(pipeline: &Pipeline, request: &Request, of: &str) -> anyhow::Result<()> {
    for (name, text) in [("prompt", &request.prompt), ("negative prompt", &request.negative_prompt)] {
        let surplus = pipeline.surplus_tokens(text)?;
        if surplus > 0 {
            let most = pipeline.dit.max_text_seq_length;
            say(&format!(
                "warning: {of}the {name} has {} tokens, the model takes {most}: the rest is cut off",
                most + surplus
            ));
        }
    }
    let frames = pipeline.decoded_frames(request.frames);
    if frames != request.frames {
        say(&format!("warning: {of}asked for {} frames, the model decodes {frames}", request.frames));
    }
    Ok(())
}
