//! `cogvx verify`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args as ClapArgs;
use serde_json::json;

use super::progress::Progress;
use super::{Answer, open};
use crate::verify::{Limits, Reference, Row, verify};

/// Compare a bundle with what PyTorch computed
///
/// The reference is a safetensors file with any of the tensors `text_encoder/*`, `transformer/*`, `vae_decoder/*` and
/// `pipeline/*`; with the latter the whole run is made again from the seed. Exit code 0: equal; 1: not; 2: error.
#[derive(ClapArgs)]
pub(super) struct Args {
    /// The bundle, or a checkpoint to be exported for the occasion
    bundle: PathBuf,
    /// What PyTorch computed
    #[arg(long, value_name = "FILE.safetensors")]
    reference: PathBuf,
    /// Threads of ONNX Runtime [default: one a core]
    #[arg(long, default_value_t = 0, hide_default_value = true, value_parser = super::threads())]
    threads: usize,
    #[command(flatten)]
    cpu: super::cpu::Cpu,
    #[command(flatten)]
    gpu: super::gpu::Gpu,
    /// Report as JSON on standard output
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    let reference = Reference::open(&args.reference)?;
    let opened = open(&args.bundle, args.threads, &args.gpu.or_on(args.cpu.options()))?;
    let progress = Progress::lines();
    let rows = verify(&opened.pipeline, &reference, |what| progress.message(&format!("comparing {what}")))?;
    progress.clear();
    let equal = rows.iter().all(|row| row.equal);
    let mut out = std::io::stdout().lock();
    if args.json {
        let limits = Limits::of(opened.pipeline.bundle().manifest());
        writeln!(
            out,
            "{}",
            serde_json::to_string_pretty(&json!({"equal": equal, "limits": limits, "tensors": rows}))?
        )?;
    } else {
        writeln!(out, "{}", table(&rows))?;
        let failed: Vec<_> = rows.iter().filter(|r| !r.equal).map(|r| r.tensor.as_str()).collect();
        let verdict = if equal { "equal".into() } else { format!("not equal: {}", failed.join(", ")) };
        writeln!(out, "{verdict}")?;
    }
    Ok(if equal { Answer::Done } else { Answer::No })
}

fn table(rows: &[Row]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["tensor", "shape", "max abs", "relative L2", "cosine", "PSNR", "SSIM", "limit", ""]);
    for row in rows {
        let shape: Vec<_> = row.shape.iter().map(usize::to_string).collect();
        table.add_row([
            row.tensor.clone(),
            shape.join("x"),
            format!("{:.2e}", row.max_abs),
            format!("{:.2e}", row.relative_l2),
            format!("{:.8}", row.cosine),
            row.psnr.map(|p| format!("{p:.1} dB")).unwrap_or_default(),
            row.ssim.map(|s| format!("{s:.6}")).unwrap_or_default(),
            row.limit.clone(),
            if row.equal { "equal" } else { "NOT EQUAL" }.into(),
        ]);
    }
    table
}
