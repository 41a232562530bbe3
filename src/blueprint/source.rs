//! Where a blueprint is from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cogvx_calibration::plan::Scheme;
use cogvx_graphs::config::{DitConfig, PipelineClass, T5Config, VaeConfig};
use cogvx_graphs::graph::WeightPart;
use cogvx_graphs::pass::Target;
use cogvx_graphs::{DType, Weights};
use serde_json::Value;

use super::{Blueprint, BlueprintError, Form};
use crate::bundle::{Bundle, MANIFEST};
use crate::export::{Component, VideoShape, read_configs};
use crate::synth::needs::{self, Need};
use crate::synth::{Model, Part, Published, Recipe};

impl Blueprint {
    /// Of a checkpoint, a bundle, the `config.json` of a component of a model like 2B, or a model that `cogvx synth` knows by
    /// name. Of tensors only names, shapes and types are read.
    ///
    /// # Errors
    /// None of these, or one that is damaged.
    pub fn open(what: &str) -> Result<Self, BlueprintError> {
        let path = Path::new(what);
        if path.join(MANIFEST).exists() {
            return Self::of_bundle(&Bundle::open(path)?);
        }
        if path.join("model_index.json").exists() {
            return Self::of_checkpoint(path);
        }
        if path.is_file() {
            return Self::of_config(path);
        }
        if let Some(model) = Published::ALL.into_iter().find(|model| model.name() == what) {
            return Self::of_recipe(model.name(), &Recipe::new(&Model::Published(model), None)?);
        }
        let names: Vec<_> = Published::ALL.iter().map(|model| format!("`{}`", model.name())).collect();
        Err(BlueprintError::Unknown { path: what.into(), names: names.join(", ") })
    }

    /// Of a checkpoint; a component without any weights is taken to have those of its configuration.
    fn of_checkpoint(path: &Path) -> Result<Self, BlueprintError> {
        let recipe = Recipe::new(&Model::Like(path.into()), None)?;
        let has_weights = |part: Part| {
            let entries = std::fs::read_dir(path.join(part.folder())).into_iter().flatten().flatten();
            entries.into_iter().any(|entry| entry.path().extension().is_some_and(|e| e == "safetensors"))
        };
        if !Part::ALL.into_iter().any(has_weights) {
            return Self::of_recipe(&named(path), &recipe);
        }
        let weights = |component: Component, part: Part| -> Result<Weights, BlueprintError> {
            if has_weights(part) {
                return Ok(Weights::open(&path.join(part.folder()), component.stem())?);
            }
            Ok(synthetic(all(recipe.needs(part)?), |_| recipe.dtype(part)))
        };
        let configs = read_configs(path)?;
        Ok(Self {
            name: named(path),
            class: configs.index.class,
            text: configs.text,
            dit: configs.dit,
            vae: configs.vae,
            weights: [
                weights(Component::TextEncoder, Part::TextEncoder)?,
                weights(Component::Transformer, Part::Transformer)?,
                weights(Component::VaeDecoder, Part::Vae)?,
            ],
            form: Form::default(),
            quantized: None,
        })
    }

    /// Of 2B with the component that `path` configures.
    fn of_config(path: &Path) -> Result<Self, BlueprintError> {
        let mut recipe = Recipe::new(&Model::Published(Published::B2), None)?;
        recipe.replace(path)?;
        Self::of_recipe(&path.display().to_string(), &recipe)
    }

    fn of_recipe(name: &str, recipe: &Recipe) -> Result<Self, BlueprintError> {
        let config = |part: Part| (Path::new(part.folder()).join("config.json"), recipe.config(part).clone());
        let weights = |part: Part| -> Result<Weights, BlueprintError> {
            Ok(synthetic(all(recipe.needs(part)?), |_| recipe.dtype(part)))
        };
        let [(text_file, text), (dit_file, dit), (vae_file, vae)] = Part::ALL.map(config);
        let (dit, vae) = (DitConfig::from_value(&dit_file, dit)?, VaeConfig::from_value(&vae_file, vae)?);
        let is_image = dit.in_channels == 2 * vae.latent_channels;
        Ok(Self {
            name: name.into(),
            class: if is_image { PipelineClass::Image } else { PipelineClass::Text },
            text: T5Config::from_value(&text_file, text)?,
            dit,
            vae,
            weights: [weights(Part::TextEncoder)?, weights(Part::Transformer)?, weights(Part::Vae)?],
            form: Form::default(),
            quantized: None,
        })
    }

    /// Of a bundle, whose graphs tell in what types tensors are stored and which are quantized.
    ///
    /// # Errors
    /// A graph that is not as the manifest says.
    pub fn of_bundle(bundle: &Bundle) -> Result<Self, BlueprintError> {
        let manifest = bundle.manifest();
        let file = bundle.dir().join(MANIFEST);
        let config = |name: &str| manifest.config.get(name).cloned().unwrap_or_default();
        let text = T5Config::from_value(&file, config("text_encoder"))?;
        let dit = DitConfig::from_value(&file, config("transformer"))?;
        let vae = VaeConfig::from_value(&file, config("vae"))?;
        let class = serde_json::from_value(Value::String(manifest.source.class_name.clone()));

        // By component and name.
        let mut stored: BTreeMap<(&str, String), (DType, Vec<usize>)> = BTreeMap::new();
        let mut quantized = BTreeSet::new();
        for component in Component::ALL {
            let name = component.name();
            for graph in manifest.components.get(name).into_iter().flat_map(|c| &c.graphs) {
                for tensor in bundle.graph(name, &graph.file)?.initializers {
                    if let Some(layer) = tensor.name.strip_suffix(WeightPart::Values.suffix()) {
                        quantized.insert(format!("{name}/{layer}"));
                    }
                    // The table of tokens has two names.
                    let is_table = tensor.name == "encoder.embed_tokens.weight";
                    let own = if is_table { "shared.weight".into() } else { tensor.name };
                    stored.insert((component.checkpoint_folder(), own), (tensor.dtype, tensor.shape));
                }
            }
        }
        let dtype = |folder: &'static str| {
            let stored = &stored;
            // What was not exported is as most of what was: graphs compute in what most weights are stored in.
            let of_type = |&dtype: &DType| stored.iter().filter(|(key, of)| key.0 == folder && of.0 == dtype).count();
            let usual = [DType::F16, DType::BF16, DType::F32].into_iter().max_by_key(of_type).unwrap_or(DType::F32);
            move |name: &str| {
                let found = stored.get(&(folder, name.to_string())).map(|(dtype, _)| *dtype);
                found.filter(|dtype| dtype.is_float()).unwrap_or(usual)
            }
        };
        // No configuration tells how wide feed-forwards are; their biases are in every bundle as they are.
        let known = (0..dit.num_layers).filter_map(|i| {
            let prefix = format!("transformer_blocks.{i}.ff.net");
            let bias = format!("{prefix}.0.proj.bias");
            let inner = *stored.get(&("transformer", bias.clone()))?.1.first()?;
            let width = dit.width();
            let weight =
                |name: &str, shape: [usize; 2]| (format!("{prefix}.{name}.weight"), DType::F32, shape.to_vec());
            Some([weight("0.proj", [inner, width]), weight("2", [width, inner]), (bias, DType::F32, vec![inner])])
        });
        let known: Vec<_> = known.flatten().collect();
        let transformer = needs::transformer(&dit, &Weights::synthetic(known.clone()))?;
        let known = known.into_iter().map(|(name, _, shape)| (name, shape));
        let weights = [
            synthetic(all(needs::text_encoder(&text)?), dtype("text_encoder")),
            synthetic(known.chain(all(transformer)), dtype("transformer")),
            synthetic(all(needs::vae(&vae)?), dtype("vae")),
        ];
        let shapes = [manifest.shapes.frames, manifest.shapes.height, manifest.shapes.width];
        let shapes = match shapes.map(|size| size.map(|n| n as usize)) {
            [Some(frames), Some(height), Some(width)] => Some(VideoShape { frames, height, width }),
            _ => None,
        };
        let scheme = manifest.quantization.as_ref();
        let form = Form {
            target: match manifest.target.as_str() {
                "cuda" => Target::Cuda,
                "tensorrt" => Target::TensorRt,
                _ => Target::Cpu,
            },
            precision: None,
            quantize: scheme.and_then(|name| Scheme::ALL.into_iter().find(|scheme| scheme.name() == name)),
            quantize_vae: manifest.vae_quantization.is_some(),
            shapes,
        };
        let class = class.unwrap_or(PipelineClass::Text);
        Ok(Self { name: named(bundle.dir()), class, text, dit, vae, weights, form, quantized: Some(quantized) })
    }

    /// Whether it is a bundle, whose form is settled.
    #[must_use]
    pub fn is_bundle(&self) -> bool {
        self.quantized.is_some()
    }
}

/// The names and shapes of tensors.
fn all(needs: Vec<Need>) -> impl Iterator<Item = (String, Vec<usize>)> {
    needs.into_iter().map(|need| (need.name, need.shape))
}

/// Tensors of these names and shapes and of the type that `dtype` tells.
fn synthetic(tensors: impl Iterator<Item = (String, Vec<usize>)>, dtype: impl Fn(&str) -> DType) -> Weights {
    Weights::synthetic(tensors.map(|(name, shape)| {
        let dtype = dtype(&name);
        (name, dtype, shape)
    }))
}

/// The name of a folder.
fn named(path: &Path) -> String {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    real.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}
