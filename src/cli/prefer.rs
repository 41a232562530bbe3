//! `--prefer speed`: where quantizing pays is measured before an export.

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::ValueEnum;
use cogvx_calibration::plan::Scheme;
use cogvx_graphs::pass::Target;
use serde_json::{Value, json};

use super::bench::machine;
use super::progress::Progress;
use super::{Opened, open_with};
use crate::bench::{Part, Settings, Timing, Verdict, time, verdict};
use crate::bundle::WeightsMode;
use crate::export::{Component, ExportOptions, LayerChoice};
use crate::pipeline::Pipeline;
use crate::runtime::{Device, VERSION, has_library};

/// Blocks that are run: one of all its layers, and a last one, which has no text.
const BLOCKS: NonZeroUsize = NonZeroUsize::new(2).unwrap();
/// Float and quantized graphs take at most so many turns: what else the machine does slows one of them down in one turn, not in all.
const TURNS: usize = 6;
/// No turn begins after so long, if there were two.
const LONG: Duration = Duration::from_secs(20);
/// Runs of a turn that count, after one that does not.
const REPEAT: usize = 2;
/// The same where they take less than [`SHORT`], and more of that is noise.
const REPEAT_SHORT: usize = 20;
/// Seconds of a run.
const SHORT: f64 = 0.05;
/// Most latent frames, and rows and columns of patches, that a transformer is run on: what a linear layer takes grows with the tokens
/// in float as in eight bits, and attention would take most of the time of more.
const PATCHES: [usize; 3] = [5, 16, 16];
/// The same for a VAE's decoder, which runs whole.
const DECODED: [usize; 3] = [3, 4, 4];

/// What comes first where the two differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Prefer {
    /// All layers are quantized
    Size,
    /// Layers that are slower quantized stay in float, as measured on this machine first (cpu)
    Speed,
}

impl Prefer {
    /// What comes first where nobody says: speed for the schemes that are there for it, on the machine that is here.
    pub fn by_default(scheme: Scheme, target: Target) -> Self {
        let for_speed = matches!(scheme, Scheme::Int8 | Scheme::Int8Static) && target == Target::Cpu;
        if for_speed { Self::Speed } else { Self::Size }
    }
}

/// Where quantizing pays.
pub(super) struct Measured {
    /// Each kind of layer.
    pub verdicts: Vec<Verdict>,
    /// What a manifest keeps of it.
    pub stored: Value,
}

/// As [`measured`], where nobody asked for it: nothing is installed to measure with.
pub(super) fn measured_unasked(checkpoint: &Path, options: &ExportOptions) -> anyhow::Result<Measured> {
    if !has_library(Device::Cpu)? {
        bail!("ONNX Runtime {VERSION} was not found (`cogvx runtime` installs it)");
    }
    measured(checkpoint, options)
}

/// Measure what `options` would quantize of `checkpoint` and the same in float: the first blocks alone, on videos that are no longer
/// than tells something.
pub(super) fn measured(checkpoint: &Path, options: &ExportOptions) -> anyhow::Result<Measured> {
    if options.target != Target::Cpu {
        let target = options.target_name();
        bail!(
            "`--prefer speed`: expected the target `cpu`, which is measured here, found `{target}`: on a machine with a GPU `cogvx bench \
             BUNDLE --against FLOAT --store` measures, and `--verdict BUNDLE` takes what it finds"
        );
    }
    let is_quantized = |part: &Part| match part {
        Part::TextEncoder => options.components.contains(&Component::TextEncoder),
        Part::Transformer => options.components.contains(&Component::Transformer),
        Part::VaeDecoder => options.quantize_vae && options.components.contains(&Component::VaeDecoder),
    };
    let parts: Vec<_> = Part::ALL.into_iter().filter(is_quantized).collect();
    if parts.is_empty() {
        return Ok(judged(options.quantize, &[]));
    }
    let quantized = ExportOptions {
        first_blocks: Some(BLOCKS),
        components: options.components.iter().copied().filter(|c| *c != Component::VaeEncoder).collect(),
        weights: WeightsMode::Auto,
        shapes: None,
        ..options.clone()
    };
    let float = ExportOptions {
        quantize: None,
        quantize_vae: false,
        calibration: None,
        layers: LayerChoice::All,
        ..quantized.clone()
    };
    let [quantized, float] = [open_with(checkpoint, 0, quantized)?.0, open_with(checkpoint, 0, float)?.0];
    let progress = Progress::steps("measuring", parts.len() * TURNS);
    progress.step(0, || "measuring which layers are faster quantized (`--prefer size` quantizes all)".into());
    let each = parts.into_iter().enumerate().map(|(i, part)| {
        let size = size(&quantized.pipeline, options, part)?.map(Some);
        let mut settings = Settings { size, repeat: REPEAT, profile: true };
        let began = Instant::now();
        let turn = |number| {
            progress.reach(i * TURNS + number - 1);
            let run = |opened: &Opened| time(&opened.pipeline, part, settings, |_| ());
            let timed = [run(&float)?, run(&quantized)?];
            if timed[0].seconds() < SHORT {
                settings.repeat = REPEAT_SHORT;
            }
            Ok(timed)
        };
        settled(turn, || began.elapsed() > LONG)
    });
    let timings: anyhow::Result<Vec<_>> = each.collect();
    progress.clear();
    Ok(judged(options.quantize, &timings?))
}

/// The least times of one turn if they tell clearly which is faster, else of as many as it takes; of two where it is `late`.
fn settled(
    mut turn: impl FnMut(usize) -> anyhow::Result<[Timing; 2]>,
    late: impl Fn() -> bool,
) -> anyhow::Result<[Timing; 2]> {
    let mut best = turn(1)?;
    for number in 2..=TURNS {
        let [float, quantized] = &best;
        if verdict(float, quantized).iter().all(Verdict::is_clear) || number > 2 && late() {
            break;
        }
        best.iter_mut().zip(turn(number)?).for_each(|(best, again)| take_least(best, again));
    }
    Ok(best)
}

/// Make each node's time the least of both.
fn take_least(best: &mut Timing, again: Timing) {
    best.runs.extend(again.runs);
    for (node, again) in best.nodes.iter_mut().zip(&again.nodes) {
        debug_assert_eq!(node.name, again.name, "the same graph, whose nodes run in the same order");
        node.seconds = node.seconds.min(again.seconds);
    }
}

/// What follows from timings of parts in float and quantized.
fn judged(scheme: Option<Scheme>, timings: &[[Timing; 2]]) -> Measured {
    let verdicts: Vec<_> = timings.iter().flat_map(|[float, quantized]| verdict(float, quantized)).collect();
    let shapes: serde_json::Map<_, _> =
        timings.iter().map(|[_, timing]| (timing.component.name().to_string(), json!(timing.shape))).collect();
    let runs = timings.iter().map(|[_, timing]| timing.runs.len()).min().unwrap_or(0);
    let stored = json!({
        "scheme": scheme.map(Scheme::name),
        "machine": machine(0, runs),
        "blocks": BLOCKS,
        "shapes": shapes,
        "layers": verdicts,
    });
    Measured { verdicts, stored }
}

/// Frames, rows and columns that `part` is run on: what the export or the model is for, or less.
fn size(pipeline: &Pipeline, options: &ExportOptions, part: Part) -> anyhow::Result<[usize; 3]> {
    let own = pipeline.request("")?;
    let own = options.shapes.map_or([own.frames, own.height, own.width], |s| [s.frames, s.height, s.width]);
    let unit = pipeline.vae.spatial_compression_ratio() * pipeline.dit.patch_size;
    let most = if part == Part::VaeDecoder { DECODED } else { PATCHES };
    Ok(shortened(own, most, [pipeline.vae.temporal_compression_ratio, unit]))
}

/// A video of this size or, where it has more patches than `most` do, one that is in no direction larger than either. A latent frame
/// stands for `time` frames but for the first, and a patch for `unit` rows and columns of pixels.
fn shortened(own: [usize; 3], most: [usize; 3], [time, unit]: [usize; 2]) -> [usize; 3] {
    let patches = [own[0].saturating_sub(1) / time + 1, own[1] / unit, own[2] / unit];
    let product = |size: [usize; 3]| size.iter().fold(1_usize, |product, &n| product.saturating_mul(n));
    if product(patches) <= product(most) {
        return own;
    }
    let [frames, rows, columns] = most;
    [own[0].min((frames - 1) * time + 1), own[1].min(rows * unit), own[2].min(columns * unit)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{NodeTime, kept_float};
    use crate::bundle::Manifest;
    use crate::export::export;
    use cogvx_calibration::plan::Scheme;

    /// Seconds of a kind of layer in float and in eight bits.
    fn planted(layers: &[(&str, f64, f64)]) -> [Timing; 2] {
        let timing = |op: &str, seconds: fn(&(&str, f64, f64)) -> f64| Timing {
            component: Part::Transformer,
            shape: vec![1, 3, 4, 4, 4],
            load_seconds: 0.0,
            runs: vec![],
            memory: None,
            nodes: layers
                .iter()
                .map(|layer| NodeTime {
                    name: format!("transformer_blocks.0.{}/{op}", layer.0),
                    op: op.into(),
                    seconds: seconds(layer),
                })
                .collect(),
        };
        [timing("Gemm", |layer| layer.1), timing("MatMulIntegerToFloat", |layer| layer.2)]
    }

    #[test]
    fn layers_that_were_not_faster_stay_float_and_the_bundle_tells_why() {
        // Something else ran for a while.
        let [float, mut slowed] =
            planted(&[("attn1.to_q", 2.0, 3.0), ("ff.net.0.proj", 2.0, 2.5), ("ff.net.2", 1.0, 8.0)]);
        let [_, again] = planted(&[("attn1.to_q", 2.0, 1.0), ("ff.net.0.proj", 2.0, 4.0), ("ff.net.2", 1.0, 3.0)]);
        take_least(&mut slowed, again);
        let Measured { verdicts, stored } = judged(Some(Scheme::Int8), &[[float, slowed]]);
        let found: Vec<_> = verdicts.iter().map(|v| (v.group.as_str(), v.verdict)).collect();
        let expected =
            [("attention q, k, v", "quantize"), ("feed-forward up", "keep float"), ("feed-forward down", "keep float")];
        assert_eq!(found, expected);
        let folder = tempfile::tempdir().expect("a folder");
        let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/2b-fp32");
        let options = ExportOptions {
            quantize: Some(Scheme::Int8),
            components: vec![Component::Transformer],
            layers: LayerChoice::AllBut(kept_float(&stored).expect("a verdict")),
            verdict: Some(stored.clone()),
            ..ExportOptions::default()
        };
        let output = folder.path().join("bundle");
        let report = export(&checkpoint, &output, &options, |_| {}).expect("a sound checkpoint");
        let has = |part: &str| report.quantized.iter().any(|layer| layer.contains(part));
        assert!(has(".attn1.to_q.") && has(".attn1.to_out.0."), "{:?}", report.quantized);
        assert!(!has(".ff.net."), "{:?}", report.quantized);
        assert_eq!(Manifest::read(&output).expect("a bundle").verdict, Some(stored));
    }

    /// A bundle of a fixture's transformer in `int8` by a verdict that leaves these kinds of layers in float.
    fn exported(folder: &Path, layers: &[(&str, f64, f64)]) -> Manifest {
        let Measured { stored, .. } = judged(Some(Scheme::Int8), &[planted(layers)]);
        let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/2b-fp32");
        let options = ExportOptions {
            quantize: Some(Scheme::Int8),
            components: vec![Component::Transformer],
            layers: LayerChoice::AllBut(kept_float(&stored).expect("a verdict")),
            verdict: Some(stored),
            overwrite: true,
            ..ExportOptions::default()
        };
        export(&checkpoint, folder, &options, |_| {}).expect("a sound checkpoint");
        Manifest::read(folder).expect("a bundle")
    }

    #[test]
    fn a_bundle_of_which_all_stays_float_is_not_called_quantized() {
        let folder = tempfile::tempdir().expect("a folder");
        let bundle = folder.path().join("bundle");
        let slow = ["attn1.to_q", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2", "norm1.linear"];
        let none = exported(&bundle, &slow.map(|layer| (layer, 1.0, 2.0)));
        assert_eq!(none.quantization, None);
        assert!(none.verdict.is_some());
        let some = exported(&bundle, &slow.map(|layer| (layer, 1.0, if layer == "ff.net.2" { 0.5 } else { 2.0 })));
        assert_eq!(some.quantization.as_deref(), Some("int8"));
    }

    #[test]
    fn what_is_not_clear_is_measured_again_until_it_takes_long() {
        let turns = |quantized: f64, late: bool| {
            let mut turns = 0;
            let turn = |number| {
                turns = number;
                Ok(planted(&[("ff.net.0.proj", 2.0, 0.5), ("ff.net.2", 1.0, quantized)]))
            };
            let [_, timing] = settled(turn, || late).expect("planted");
            assert_eq!(timing.nodes.len(), 2);
            turns
        };
        assert_eq!([turns(0.4, false), turns(3.0, false), turns(0.9, false), turns(0.9, true)], [1, 1, TURNS, 2]);
    }

    #[test]
    fn schemes_for_speed_are_measured_on_the_processor_unless_told_otherwise() {
        for scheme in Scheme::ALL {
            for target in [Target::Cpu, Target::Cuda, Target::TensorRt] {
                let speed = ["int8", "int8-static"].contains(&scheme.name()) && target == Target::Cpu;
                let expected = if speed { Prefer::Speed } else { Prefer::Size };
                assert_eq!(Prefer::by_default(scheme, target), expected, "{} {target:?}", scheme.name());
            }
        }
    }

    #[test]
    fn long_videos_are_shortened_and_others_left() {
        let shortened = |own| super::shortened(own, PATCHES, [4, 16]);
        assert_eq!(shortened([49, 480, 720]), [17, 256, 256]);
        // No more than there is in any direction.
        assert_eq!(shortened([81, 64, 1360]), [17, 64, 256]);
        assert_eq!(shortened([1, 2048, 2048]), [1, 256, 256]);
        for small in [[9, 64, 64], [17, 256, 256], [1, 512, 640]] {
            assert_eq!(shortened(small), small);
        }
    }
}
