//! Which layers of a checkpoint an export quantizes.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum as _};
use cogvx_calibration::plan::Scheme;
use cogvx_graphs::pass::Target;

use super::export::Quantize;
use super::prefer::Prefer;
use super::sensitivity;
use crate::bench::kept_float;
use crate::bundle::Manifest;
use crate::calibrate::fingerprint;
use crate::export::ExportOptions;
use crate::sensitivity::Ranking;

/// Largest ranking of layers, in bytes.
const MOST: u64 = 64 << 20;
/// What follows the name of a scheme where layers are chosen by what they lose.
const AUTO: &str = ":auto";

/// A scheme as it was asked for.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub scheme: Quantize,
    /// Whether layers are ranked first.
    pub auto: bool,
}

impl Asked {
    /// Knows each scheme, alone and with [`AUTO`].
    pub(super) fn parser() -> impl TypedValueParser<Value = Self> {
        let named = |scheme: &Quantize| scheme.to_possible_value().into_iter();
        let plain = Quantize::value_variants().iter().flat_map(named);
        let auto = plain.clone().map(|value| PossibleValue::new(format!("{}{AUTO}", value.get_name())).hide(true));
        PossibleValuesParser::new(plain.chain(auto)).try_map(|text| {
            let (name, auto) = text.strip_suffix(AUTO).map_or((text.as_str(), false), |name| (name, true));
            Quantize::from_str(name, false).map(|scheme| Self { scheme, auto })
        })
    }
}

/// Layers that are quantized besides, and layers that stay in float.
#[derive(Args)]
pub(super) struct Layers {
    /// Quantize the convolutions of the VAE's decoder to int8, too (cpu)
    ///
    /// Decodes more than twice as fast and costs quality; needs a table that `cogvx calibrate --vae` made.
    #[arg(long, requires = "quantize")]
    pub quantize_vae: bool,
    /// Leave layers in float whose names have one of these parts, such as `attn1.to_q` or `transformer_blocks.0.`
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "quantize")]
    keep_float: Vec<String>,
    /// Leave the layers in float that `cogvx sensitivity` ranked worst, until the rest loses at most `--max-loss`
    #[arg(long, value_name = "FILE", requires_all = ["quantize", "max_loss"])]
    sensitivity: Option<PathBuf>,
    /// Relative error of the latents that quantization may cost, with `--sensitivity` or `--quantize SCHEME:auto`
    #[arg(long, value_name = "X", requires = "quantize")]
    max_loss: Option<f64>,
    /// What comes first where quantized layers are slower than in float
    ///
    /// `speed` runs two blocks of the checkpoint, in float and quantized, for some seconds to minutes; the bundle keeps the verdict.
    /// It is the default for `int8` and `int8-static` on the target `cpu`, where ONNX Runtime is found, and `size` for all else.
    #[arg(long, requires = "quantize")]
    pub prefer: Option<Prefer>,
    /// Leave the layers in float that are slower quantized, by the verdict in this bundle
    ///
    /// The bundle is of the same scheme and target, with a verdict that `--prefer speed` or `cogvx bench BUNDLE --against FLOAT
    /// --store` put there, maybe on another machine.
    #[arg(long, value_name = "BUNDLE", requires = "quantize", conflicts_with = "prefer")]
    verdict: Option<PathBuf>,
    /// Start from this image where `--quantize SCHEME:auto` runs an image-to-video model; of several, runs take one after the other
    #[arg(long, requires = "quantize")]
    image: Vec<PathBuf>,
}

impl Layers {
    /// What comes first, where layers are quantized in `scheme` for `target`: a verdict that is given needs no other.
    pub fn prefers(&self, scheme: Scheme, target: Target) -> Prefer {
        let by_default = || if self.verdict.is_some() { Prefer::Size } else { Prefer::by_default(scheme, target) };
        self.prefer.unwrap_or_else(by_default)
    }

    /// Parts of the names of the layers of `checkpoint` that stay float, where it is quantized as `asked`; `options` are those of the
    /// export of all of them.
    pub(super) fn kept(&self, asked: Asked, checkpoint: &Path, options: &ExportOptions) -> anyhow::Result<Vec<String>> {
        let scheme = asked.scheme.scheme();
        if let Some(image) = self.image.first().filter(|_| !asked.auto) {
            let (scheme, image) = (scheme.name(), image.display());
            bail!("`--image`: expected `--quantize {scheme}{AUTO}`, which runs the model, found `{image}` without it");
        }
        let mut kept = self.keep_float.clone();
        match (&self.sensitivity, self.max_loss, asked.auto) {
            (Some(file), _, true) => bail!(
                "`--quantize {}{AUTO}`: expected no `--sensitivity`, found `{}`: `auto` ranks the layers itself",
                scheme.name(),
                file.display()
            ),
            (Some(file), Some(most), false) => {
                let of = [scheme.name(), &fingerprint(checkpoint, &options.loras)?];
                kept.extend(read_ranking(file, of)?.kept(most));
            }
            (None, Some(most), true) => {
                kept.extend(sensitivity::by_default(checkpoint, options, &self.image)?.kept(most));
            }
            (None, None, true) => {
                bail!("`--quantize {}{AUTO}`: expected `--max-loss X`, found none", scheme.name())
            }
            (None, Some(_), false) => bail!(
                "`--max-loss`: expected `--sensitivity FILE` or `--quantize {}{AUTO}`, found neither",
                scheme.name()
            ),
            (_, None, false) => {}
        }
        if let Some(bundle) = &self.verdict {
            kept.extend(read_verdict(bundle, scheme, options)?);
        }
        Ok(kept)
    }
}

/// The ranking in `file`, found to be for a scheme of a checkpoint.
fn read_ranking(file: &Path, [scheme, checkpoint]: [&str; 2]) -> anyhow::Result<Ranking> {
    let of = || format!("`{}`", file.display());
    let opened = cogvx_graphs::source::open_regular(file)?;
    let mut text = String::new();
    opened.file.take(MOST).read_to_string(&mut text).with_context(of)?;
    let ranking = Ranking::from_json(&text).map_err(|e| anyhow!("{}: {e}", of()))?;
    if ranking.scheme != scheme || ranking.checkpoint != checkpoint {
        let (found, of_checkpoint) = (&ranking.scheme, &ranking.checkpoint);
        bail!(
            "{}: expected a ranking for `{scheme}` of the checkpoint {checkpoint}, found one for `{found}` of {of_checkpoint}",
            of()
        );
    }
    Ok(ranking)
}

/// Parts of the names of the layers that the verdict in `bundle` leaves in float.
fn read_verdict(bundle: &Path, scheme: Scheme, options: &ExportOptions) -> anyhow::Result<Vec<String>> {
    let manifest = Manifest::read(bundle)?;
    let of = bundle.display();
    // Where all linear layers stayed float, the verdict has the scheme's name, or is about the VAE alone.
    let measured = manifest.verdict.as_ref().and_then(|verdict| verdict["scheme"].as_str());
    let of_vae = manifest.vae_quantization.is_some().then_some(scheme.name());
    let (expected, found) = (Some(scheme.name()), manifest.quantization.as_deref().or(measured).or(of_vae));
    if expected != found {
        bail!("`{of}`: expected a bundle in `{}`, found `{}`", scheme.name(), found.unwrap_or("float"));
    }
    let target = options.target_name();
    if manifest.target != target {
        bail!("`{of}`: expected a bundle for the target `{target}`, found `{}`", manifest.target);
    }
    let Some(verdict) = manifest.verdict else {
        bail!("`{of}`: expected a verdict, found none: `cogvx bench {of} --against FLOAT --store` makes one");
    };
    kept_float(&verdict).map_err(|e| anyhow!("`{of}`: `verdict`: {e}"))
}
