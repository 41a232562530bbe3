//! `cogvx bench`.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::bail;
use clap::builder::RangedU64ValueParser;
use clap::{Args as ClapArgs, ValueEnum};
use indicatif::HumanBytes;
use serde_json::json;

use super::progress::Progress;
use super::size::Size;
use super::{Answer, Opened, load_library, open};
use crate::bench::{
    GroupTime, LoopTiming, Part, Settings, Timing, Verdict, by_kind, by_operator, time, time_loop, verdict,
};
use crate::bundle::Bundle;
use crate::pipeline::is_bundle;

/// Measure what a bundle's components take, and where quantizing pays
///
/// Each is loaded and run on random numbers: once uncounted, then `--repeat` times, of which the least is shown. On a busy
/// machine processor time tells more than seconds. With `--against` a float bundle of the same checkpoint is measured after
/// it, and a table tells for each kind of layer what it takes in both, which kernels ran, and which is faster.
#[derive(ClapArgs)]
#[allow(clippy::struct_excessive_bools)] // Each is an option of the command line.
pub(super) struct Args {
    /// The bundle, or a checkpoint to be exported for the occasion
    bundle: PathBuf,
    /// A float bundle, or the checkpoint, to compare with
    #[arg(long, value_name = "BUNDLE")]
    against: Option<PathBuf>,
    /// What to run [default: the transformer; with --against, whatever both bundles have]
    #[arg(long)]
    component: Option<Component>,
    #[command(flatten)]
    size: Size,
    /// Runs that count
    #[arg(long, default_value_t = 3, value_parser = RangedU64ValueParser::<usize>::new().range(1..=10_000))]
    repeat: usize,
    /// Threads of ONNX Runtime [default: one a core]
    #[arg(long, default_value_t = 0, hide_default_value = true, value_parser = super::threads())]
    threads: usize,
    #[command(flatten)]
    cpu: super::cpu::Cpu,
    #[command(flatten)]
    gpu: super::gpu::Gpu,
    /// Tell what each operator and each kind of layer takes
    #[arg(long)]
    profile: bool,
    /// Time the sampling loop, too: so many steps with guidance, in ONNX Runtime and outside it
    #[arg(long)]
    steps: Option<usize>,
    /// Keep latents on the device in that loop, as runs on GPUs do, on the processor too
    #[arg(long, requires = "steps")]
    resident: bool,
    /// Keep the verdict in the bundle's manifest
    #[arg(long, requires = "against")]
    store: bool,
    /// Report as JSON on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Component {
    Transformer,
    TextEncoder,
    VaeDecoder,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    if args.store && !is_bundle(&args.bundle) {
        bail!("`--store`: expected a bundle, found `{}`", args.bundle.display());
    }
    let gpu = args.gpu.or_on(args.cpu.options());
    if let Some(against) = &args.against {
        load_library(&[&args.bundle, against])?;
    }
    let mut opened = open(&args.bundle, args.threads, &gpu)?;
    if args.resident {
        opened.pipeline = opened.pipeline.with_resident_latents(true);
    }
    let float = args.against.as_ref().map(|path| open(path, args.threads, &gpu.of_another())).transpose()?;
    let parts = parts(args, &opened, float.as_ref());
    let settings = Settings { size: args.size.asked(), repeat: args.repeat, profile: args.profile || float.is_some() };
    let (mut timings, mut floats, mut verdicts) = (vec![], vec![], vec![]);
    for &part in &parts {
        let timing = measure(&opened, part, settings)?;
        if let Some(float) = &float {
            let float = measure(float, part, settings)?;
            verdicts.extend(verdict(&float, &timing));
            floats.push(float);
        }
        timings.push(timing);
    }
    let loops =
        args.steps.map(|steps| time_loop(&opened.pipeline, args.size.asked(), steps, args.repeat)).transpose()?;
    let machine = machine(args.threads, args.repeat);
    let mut report = json!({"machine": machine, "timings": timings});
    if let Some(path) = &args.against {
        report["against"] = json!({"bundle": path, "timings": floats});
        report["verdict"] = json!(verdicts);
    }
    if args.profile {
        let tables =
            |timing: &Timing| json!({"operators": by_operator(&timing.nodes), "layers": by_kind(&timing.nodes)});
        report["profile"] = timings.iter().map(tables).collect();
    }
    if let Some(loops) = &loops {
        let outside = |timing: &LoopTiming| {
            let mut value = json!(timing);
            value["outside_seconds"] = timing.outside_seconds().into();
            value
        };
        report["loops"] = loops.iter().map(outside).collect();
    }
    if args.store {
        let mut bundle = Bundle::open(&args.bundle)?;
        bundle.store_verdict(json!({"machine": machine, "layers": verdicts}))?;
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
        return Ok(Answer::Done);
    }
    let rows = timings.iter().map(|t| (&args.bundle, t));
    let against = floats.iter().filter_map(|t| Some((args.against.as_ref()?, t)));
    writeln!(out, "{}", timing_table(rows.chain(against)))?;
    if args.profile {
        for timing in &timings {
            writeln!(out, "\n{}", group_table("operator", &by_operator(&timing.nodes)))?;
            writeln!(out, "\n{}", group_table("layers", &by_kind(&timing.nodes)))?;
        }
    }
    if let Some(loops) = &loops {
        writeln!(out, "\n{}", loop_table(loops))?;
    }
    if !verdicts.is_empty() {
        writeln!(out, "\n{}", verdict_table(&verdicts))?;
    }
    Ok(Answer::Done)
}

fn parts(args: &Args, opened: &Opened, float: Option<&Opened>) -> Vec<Part> {
    match args.component {
        Some(Component::Transformer) => vec![Part::Transformer],
        Some(Component::TextEncoder) => vec![Part::TextEncoder],
        Some(Component::VaeDecoder) => vec![Part::VaeDecoder],
        None if float.is_none() => vec![Part::Transformer],
        None => {
            let has =
                |opened: &Opened, part: Part| opened.pipeline.bundle().manifest().components.contains_key(part.name());
            // The VAE takes long, and only if its decoder is quantized there is something to compare.
            let quantized =
                |part: Part| part != Part::VaeDecoder || opened.pipeline.bundle().manifest().vae_quantization.is_some();
            let both =
                |part: &Part| quantized(*part) && has(opened, *part) && float.is_some_and(|float| has(float, *part));
            Part::ALL.into_iter().filter(both).collect()
        }
    }
}

/// Time a part and show how far it is.
fn measure(opened: &Opened, part: Part, settings: Settings) -> anyhow::Result<Timing> {
    let progress = Progress::steps(part.name(), settings.repeat + 1);
    let timing = time(&opened.pipeline, part, settings, |run| {
        progress.step(run + 1, || format!("{}: run {run} of {}", part.name(), settings.repeat));
    });
    progress.clear();
    Ok(timing?)
}

/// What a verdict was measured on.
pub(super) fn machine(threads: usize, repeat: usize) -> serde_json::Value {
    json!({"processor": processor(), "threads": threads, "runs": repeat})
}

/// What the processor calls itself, where the system tells.
fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

fn table<const N: usize>(header: [&str; N]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header);
    table
}

fn timing_table<'a>(timings: impl Iterator<Item = (&'a PathBuf, &'a Timing)>) -> comfy_table::Table {
    let mut table = table(["bundle", "component", "input", "load", "run", "processor", "anonymous", "peak memory"]);
    for (bundle, timing) in timings {
        let cpu = timing.cpu_seconds().map_or("not measured".into(), |s| format!("{s:.3} s"));
        let [anonymous, total] = timing.memory.map_or_else(
            || ["not measured"; 2].map(String::from),
            |m| [m.anonymous, m.total].map(|bytes| HumanBytes(bytes).to_string()),
        );
        table.add_row([
            bundle.display().to_string(),
            timing.component.name().into(),
            format!("{:?}", timing.shape),
            format!("{:.2} s", timing.load_seconds),
            format!("{:.3} s", timing.seconds()),
            cpu,
            anonymous,
            total,
        ]);
    }
    table
}

fn loop_table(loops: &[LoopTiming]) -> comfy_table::Table {
    let mut table = table(["sampler", "latents", "steps", "a step", "in the engine", "outside it"]);
    for timing in loops {
        table.add_row([
            format!("{:?}", timing.sampler).to_lowercase(),
            format!("{:?}", timing.latents),
            timing.steps.to_string(),
            milliseconds(timing.seconds),
            milliseconds(timing.engine_seconds),
            format!("{:.3} ms", 1e3 * timing.outside_seconds()),
        ]);
    }
    table
}

fn group_table(what: &str, groups: &[GroupTime]) -> comfy_table::Table {
    let whole: f64 = groups.iter().map(|group| group.seconds).sum();
    let mut table = table([what, "time", "share", "nodes", "kernels"]);
    for group in groups {
        let share = 100.0 * group.seconds / whole;
        table.add_row([
            group.name.clone(),
            milliseconds(group.seconds),
            format!("{share:.1} %"),
            group.nodes.to_string(),
            kernels(&group.operators),
        ]);
    }
    table
}

/// For each kind of layer what it takes.
pub(super) fn verdict_table(verdicts: &[Verdict]) -> comfy_table::Table {
    let mut table = table(["component", "layers", "", "float", "kernels", "quantized", "kernels", "faster", "verdict"]);
    for v in verdicts {
        table.add_row([
            v.component.to_string(),
            v.group.clone(),
            v.layers.to_string(),
            milliseconds(v.float_seconds),
            kernels(&v.float_operators),
            milliseconds(v.seconds),
            kernels(&v.operators),
            format!("{:.2}x", v.speedup),
            v.verdict.into(),
        ]);
    }
    table
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.2} ms", 1e3 * seconds)
}

/// The first few, which take the time.
fn kernels(operators: &[String]) -> String {
    let shown = operators.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", ");
    if operators.len() > 3 { shown + ", ..." } else { shown }
}
