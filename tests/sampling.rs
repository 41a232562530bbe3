//! Noise, schedulers and position tables against torch and diffusers: goldens of `tests/fixtures/sampling.py` and
//! `tests/fixtures/goldens.py`.

use std::collections::BTreeMap;

use cogvx::picture::resize;
use cogvx::positions::{RotaryGrid, rotary_3d, sincos_3d};
use cogvx::rng::TorchGenerator;
use cogvx::scheduler::{BetaSchedule, Kind, Sampler, Schedule, SchedulerConfig, guidance_scale};
use safetensors::SafeTensors;

/// Largest relative error of a walk, against the largest value of diffusers' sample. The published schedules are
/// computed in `float64`; in the `float32` ones the last bits of a logarithm show.
fn limit(config: &SchedulerConfig) -> f64 {
    if config.beta_schedule == BetaSchedule::ScaledLinear { 1e-7 } else { 4e-6 }
}

struct Goldens(Vec<u8>);

impl Goldens {
    fn open() -> Self {
        Self::named("sampling").expect("the goldens are committed")
    }

    fn named(name: &str) -> std::io::Result<Self> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/goldens");
        std::fs::read(format!("{folder}/{name}.safetensors")).map(Self)
    }

    fn names(&self) -> Vec<String> {
        let tensors = SafeTensors::deserialize(&self.0).expect("goldens parse");
        tensors.names().into_iter().map(str::to_owned).collect()
    }

    fn values(&self, name: &str) -> Vec<f64> {
        let tensors = SafeTensors::deserialize(&self.0).expect("goldens parse");
        let tensor = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let bytes = tensor.data();
        match tensor.dtype() {
            safetensors::Dtype::F32 => {
                bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect()
            }
            safetensors::Dtype::F64 => {
                bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
            }
            safetensors::Dtype::I16 => {
                bytes.chunks_exact(2).map(|b| f64::from(i16::from_le_bytes(b.try_into().unwrap()))).collect()
            }
            #[expect(clippy::cast_precision_loss, reason = "timesteps are small")]
            safetensors::Dtype::I64 => {
                bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64).collect()
            }
            other => panic!("{name}: unexpected type {other:?}"),
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "stored as float32")]
    fn singles(&self, name: &str) -> Vec<f32> {
        self.values(name).into_iter().map(|value| value as f32).collect()
    }

    /// A JSON object of the file's metadata.
    fn metadata(&self, name: &str) -> BTreeMap<String, serde_json::Value> {
        let (_, header) = SafeTensors::read_metadata(&self.0).expect("goldens parse");
        let text = &header.metadata().as_ref().expect("goldens have metadata")[name];
        serde_json::from_str(text).expect("metadata is JSON")
    }

    fn configs(&self) -> Vec<(String, SchedulerConfig)> {
        let read = |json: &serde_json::Value| SchedulerConfig::from_json(&json.to_string()).expect("valid settings");
        self.metadata("configs").iter().map(|(name, json)| (name.clone(), read(json))).collect()
    }
}

fn error(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0_f64, |m, e| m.max(e.abs()));
    found.iter().zip(expected).fold(0.0_f64, |m, (&f, e)| m.max((f64::from(f) - e).abs())) / largest.max(1.0)
}

#[test]
fn noise_equals_torch_in_every_path_and_order_of_calls() {
    let goldens = match Goldens::named("randn") {
        Ok(goldens) => goldens,
        Err(e) => return println!("skipped: no randn.safetensors, {e}"),
    };
    // `seed42/n1000` is one call, `seed42/seq3,16,4/1` the second of three that follow each other.
    for name in goldens.names() {
        let parts: Vec<&str> = name.split('/').collect();
        let seed = parts[0].trim_start_matches("seed").parse().expect("a seed");
        let calls = parts[1].trim_start_matches("seq").trim_start_matches('n');
        let calls: Vec<usize> = calls.split(',').map(|n| n.parse().expect("a count")).collect();
        let index: usize = parts.get(2).map_or(0, |index| index.parse().expect("an index"));
        let mut rng = TorchGenerator::new(seed);
        let drawn: Vec<Vec<f32>> = calls.iter().map(|&n| rng.randn(n)).collect();
        let worst = error(&drawn[index], &goldens.values(&name));
        assert!(worst <= 5e-7, "{name}: off by {worst:e}");
        if calls[index] < 16 {
            assert!(worst == 0.0, "{name}: expected the very bits, off by {worst:e}");
        }
    }
}

#[test]
fn schedules_equal_diffusers_in_either_precision() {
    let goldens = Goldens::open();
    for (name, config) in goldens.configs() {
        let expected = goldens.values(&format!("{name}.alphas_cumprod"));
        let schedule = Schedule::new(&config).expect("valid settings");
        let worst = schedule.alphas_cumprod().iter().zip(&expected).fold(0.0_f64, |m, (f, e)| m.max((f - e).abs()));
        println!("{name}: schedule off by {worst:e}");
        let limit = if config.beta_schedule == BetaSchedule::ScaledLinear { 1e-15 } else { 1.2e-7 };
        assert!(worst <= limit, "{name}: off by {worst:e}");
    }
}

#[test]
fn every_sample_of_a_walk_equals_diffusers() {
    let goldens = Goldens::open();
    let start = goldens.singles("start");
    let outputs = goldens.singles("outputs");
    let mut failures = Vec::new();
    for (name, config) in goldens.configs() {
        for (kind, label) in [(Kind::Ddim, "ddim"), (Kind::Dpm, "dpm")] {
            for steps in [1, 5, 25, 50] {
                let case = format!("{name}.{label}.{steps}");
                let expected = goldens.values(&case);
                let mut sampler = match Sampler::new(&config, kind, steps) {
                    Ok(sampler) => sampler,
                    Err(refusal) => {
                        println!("{case}: refused, {refusal}");
                        assert!(expected.iter().any(|e| !e.is_finite()), "{case}: {refusal}");
                        continue;
                    }
                };
                let mut rng = TorchGenerator::new(42);
                let mut sample = start.clone();
                let mut worst = 0.0_f64;
                for i in 0..steps {
                    let output = &outputs[i * start.len()..][..start.len()];
                    sampler.step(i, output, &mut sample, &mut rng).expect("a step in order");
                    worst = worst.max(error(&sample, &expected[i * start.len()..][..start.len()]));
                }
                println!("{case}: off by {worst:e}");
                if worst.is_nan() || worst > limit(&config) {
                    failures.push(format!("{case}: off by {worst:e}"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn timesteps_of_every_spacing_equal_diffusers() {
    let goldens = Goldens::open();
    for (name, config) in goldens.configs() {
        for steps in [1, 5, 25, 50] {
            let found: Vec<f64> = to_floats(&config.timesteps(steps).expect("valid steps"));
            assert_eq!(found, goldens.values(&format!("{name}.timesteps.{steps}")), "{name}, {steps} steps");
        }
    }
    for spacing in ["trailing", "leading", "linspace"] {
        let json = format!(r#"{{"timestep_spacing": "{spacing}"}}"#);
        let config = SchedulerConfig::from_json(&json).expect("valid settings");
        let found: Vec<f64> =
            (7..1000).step_by(50).flat_map(|steps| to_floats(&config.timesteps(steps).expect("valid steps"))).collect();
        assert_eq!(found, goldens.values(&format!("timesteps.{spacing}")), "{spacing}");
    }
}

#[test]
fn dynamic_guidance_equals_the_pipeline() {
    for (timestep, expected) in (0..1000).step_by(111).zip(Goldens::open().values("guidance")) {
        let found = guidance_scale(timestep, 6.0, true, 50);
        assert!((found - expected).abs() <= 1e-9 * expected.abs(), "{timestep}: expected {expected}, found {found}");
    }
}

#[test]
fn position_tables_equal_diffusers() {
    type Table = (usize, (usize, usize), usize, f64, f64);
    let goldens = Goldens::open();
    for (name, json) in goldens.metadata("tables") {
        let (embed_dim, (width, height), frames, spatial, temporal): Table =
            serde_json::from_value(json).expect("a table's arguments");
        let found = sincos_3d(embed_dim, [frames, height, width], spatial, temporal).expect("valid arguments");
        let expected = goldens.values(&format!("positions.{name}"));
        let worst = error(&found, &expected);
        println!("{name}: table off by {worst:e}");
        assert!(worst <= 1e-6, "{name}: off by {worst:e}");
    }
}

/// The numbers in a golden's name: `dim64/grid3x4x2/base30x45/cos`.
fn numbers(text: &str) -> Vec<usize> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
}

#[test]
fn rotary_tables_equal_diffusers() {
    let goldens = Goldens::named("rotary").expect("the goldens are committed");
    let names: Vec<_> = goldens.names().into_iter().filter_map(|n| Some(n.strip_suffix("/cos")?.to_owned())).collect();
    assert!(names.len() >= 8, "{names:?}");
    for name in names {
        let (dim, grid, numbering) = match numbers(&name)[..] {
            [dim, h, w, t, base_h, base_w] => (dim, [t, h, w], RotaryGrid::Fitted { base: [base_h, base_w] }),
            [dim, h, w, t] => (dim, [t, h, w], RotaryGrid::Counted { base: [h, w] }),
            ref other => panic!("{name}: {other:?}"),
        };
        let found = rotary_3d(dim, grid, numbering).expect("valid arguments");
        for (table, part) in found.iter().zip(["cos", "sin"]) {
            // diffusers repeats the value of a pair.
            let expected: Vec<_> = goldens.values(&format!("{name}/{part}")).into_iter().step_by(2).collect();
            let worst = error(table, &expected);
            println!("{name}/{part}: off by {worst:e}");
            assert!(worst <= 5e-6, "{name}/{part}: off by {worst:e}");
        }
    }
}

#[test]
fn images_are_resized_as_pillow_does_it_to_the_bit() {
    let goldens = Goldens::named("resize").expect("the goldens are committed");
    let bytes =
        |name: &str| SafeTensors::deserialize(&goldens.0).expect("parses").tensor(name).expect("there").data().to_vec();
    let mut cases = 0;
    for name in goldens.names().iter().filter(|n| !n.ends_with("/from")) {
        let (source, target) = name.rsplit_once("/to").expect("a size");
        let size = |text: &str| -> [usize; 2] { numbers(text)[..].try_into().expect("two sides") };
        let found = resize(&bytes(&format!("{source}/from")), size(source), size(target));
        assert_eq!(found, bytes(name), "{name}");
        cases += 1;
    }
    assert!(cases >= 9, "{cases} cases");
}

#[expect(clippy::cast_precision_loss, reason = "timesteps are small")]
fn to_floats(timesteps: &[i64]) -> Vec<f64> {
    timesteps.iter().map(|&t| t as f64).collect()
}
