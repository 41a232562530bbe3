//! The file of quantized weights of a component.

use std::collections::BTreeMap;
use std::io::Write as _;

use cogvx_calibration::compensate::Compensation;
use cogvx_calibration::plan::{Layer, Plan};
use cogvx_calibration::round::{Rounded, round};
use cogvx_calibration::table::Table;
use cogvx_graphs::graph::{Weight, WeightPart};
use cogvx_graphs::onnx::Placement;
use cogvx_graphs::pass::Target;
use cogvx_graphs::quantized::LinearForm;
use cogvx_graphs::weights::Tensor;
use cogvx_graphs::{DType, Weights};
use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};

use super::ExportError;
use super::convert::{decode, encode};
use super::lora::Merges;
use crate::bundle::BundleWriter;

/// The file's name.
const FILE: &str = "quantized.safetensors";
/// Elements a thread quantizes at a time.
const BLOCK: usize = 1 << 20;

/// Where each part of each quantized weight is in the file.
pub(super) struct Quantized<'a> {
    weights: &'a Weights,
    merges: &'a Merges,
    plan: &'a Plan,
    table: Option<&'a Table>,
    /// By name and part: the tensor, its first byte in the file and its bytes.
    parts: BTreeMap<(String, WeightPart), (Weight, u64, u64)>,
    header: Vec<u8>,
}

impl<'a> Quantized<'a> {
    /// Plan for the quantized weights among `wanted`.
    pub(super) fn plan(
        weights: &'a Weights,
        merges: &'a Merges,
        (plan, table): (&'a Plan, Option<&'a Table>),
        wanted: Vec<Weight>,
    ) -> Self {
        let wanted = wanted.into_iter().filter(|w| w.part != WeightPart::Whole);
        let wanted: BTreeMap<_, _> = wanted.map(|w| ((w.name.clone(), w.part), w)).collect();
        let mut header = serde_json::Map::new();
        let mut parts = BTreeMap::new();
        let mut end = 0;
        for (key, weight) in wanted {
            let elements: usize = weight.shape.iter().product();
            let length = weight.stored.bytes(elements as u64);
            // safetensors has no four-bit type: those are bytes.
            let shape = if weight.stored == DType::I4 { vec![length] } else { sizes(&weight.shape) };
            let entry = serde_json::json!({
                "dtype": weight.stored.safetensors(), "shape": shape, "data_offsets": [end, end + length],
            });
            header.insert(weight.initializer(), entry);
            parts.insert(key, (weight, end, length));
            end += length;
        }
        let header = super::storage::header(header);
        for (_, offset, _) in parts.values_mut() {
            *offset += header.len() as u64;
        }
        Self { weights, merges, plan, table, parts, header }
    }

    /// Where the graph finds `weight`.
    pub(super) fn place(&self, weight: &Weight) -> Option<Placement> {
        let (_, offset, length) = self.parts.get(&(weight.name.clone(), weight.part))?;
        Some(Placement::External { location: FILE.into(), offset: *offset, length: *length })
    }

    /// Write the file into the folder `component` of the bundle; returns its path there, if there is anything to write.
    pub(super) fn write(&self, writer: &BundleWriter, component: &str) -> Result<Option<String>, ExportError> {
        if self.parts.is_empty() {
            return Ok(None);
        }
        let path = format!("{component}/{FILE}");
        let mut file = writer.create_file(&path)?;
        let io = |source| ExportError::Io { path: path.clone().into(), source };
        file.write_all(&self.header).map_err(io)?;
        let mut made: Option<(&str, Rounded)> = None;
        // The parts of a weight follow each other.
        for ((name, part), (weight, ..)) in &self.parts {
            if made.as_ref().is_none_or(|(of, _)| of != name) {
                made = Some((name, self.quantize(name)?));
            }
            let Some((_, rounded)) = &made else { continue };
            let mut scales = vec![];
            let bytes = match part {
                WeightPart::Scales => {
                    encode(&rounded.scales, weight.stored, &mut scales);
                    &scales
                }
                WeightPart::ZeroPoints => &rounded.zero_points,
                WeightPart::Whole | WeightPart::Values => &rounded.values,
            };
            file.write_all(bytes).map_err(io)?;
        }
        file.finish()?;
        Ok(Some(path))
    }

    /// The weight `name` as the plan wants it.
    fn quantize(&self, name: &str) -> Result<Rounded, ExportError> {
        let tensor = self.weights.get(name).expect("planned from these weights");
        let layer = &self.plan.layers[name];
        let [out, input] = layer.features;
        let rows = (BLOCK / input).clamp(1, out);
        let compensation = self.compensation(layer);
        let blocks: Vec<_> = (0..out)
            .step_by(rows)
            .collect::<Vec<_>>()
            .into_par_iter()
            .map(|first| self.quantize_rows(tensor, layer, compensation.as_ref(), [first, rows.min(out - first)]))
            .collect::<Result<_, _>>()?;
        let transposed = self.plan.target == Target::Cpu && !matches!(layer.form, LinearForm::Blocks { .. });
        let mut whole = Rounded::default();
        if transposed {
            whole.values = vec![0; out * input];
        }
        for (i, block) in blocks.into_iter().enumerate() {
            if transposed {
                transpose_into(&block.values, input, &mut whole.values, out, i * rows);
            } else {
                whole.values.extend(block.values);
            }
            whole.scales.extend(block.scales);
            whole.zero_points.extend(block.zero_points);
        }
        Ok(whole)
    }

    /// By what the layer is known to read.
    fn compensation(&self, layer: &Layer) -> Option<Compensation> {
        let place = self.table?.places.get(layer.place.as_ref()?)?;
        let mut sample = place.rows.clone();
        for row in sample.chunks_exact_mut(place.width) {
            row.iter_mut().zip(&layer.columns).for_each(|(x, s)| *x /= s);
        }
        Compensation::new(&sample, place.width)
    }

    /// `count` rows from row `first` on.
    fn quantize_rows(
        &self,
        tensor: &Tensor,
        layer: &Layer,
        compensation: Option<&Compensation>,
        [first, count]: [usize; 2],
    ) -> Result<Rounded, ExportError> {
        let [_, input] = layer.features;
        let size = input * tensor.dtype.size();
        let mut bytes = vec![0; count * size];
        self.weights.read_into(tensor, (first * size) as u64, &mut bytes)?;
        let mut numbers = vec![];
        decode(&bytes, tensor.dtype, &mut numbers);
        if let Some(delta) = self.merges.of(tensor)? {
            delta.add(first * input, &mut numbers);
        }
        for (i, row) in numbers.chunks_exact_mut(input).enumerate() {
            layer.scale_row(first + i, row);
        }
        let (scales, ..) = &self.parts[&(tensor.name.clone(), WeightPart::Scales)];
        Ok(round((layer.form, self.plan.target, scales.stored), &numbers, input, compensation))
    }
}

/// Rows `[_, width]` as columns `first..` of `out` `[width, height]`.
fn transpose_into(rows: &[u8], width: usize, out: &mut [u8], height: usize, first: usize) {
    /// Fits the nearest cache both ways.
    const TILE: usize = 64;
    for (strip, rows) in rows.chunks(TILE * width).enumerate() {
        let count = rows.len() / width;
        for left in (0..width).step_by(TILE) {
            for column in left..(left + TILE).min(width) {
                let at = column * height + first + strip * TILE;
                let to = &mut out[at..at + count];
                to.iter_mut().zip(rows[column..].iter().step_by(width)).for_each(|(to, from)| *to = *from);
            }
        }
    }
}

fn sizes(shape: &[usize]) -> Vec<u64> {
    shape.iter().map(|&n| n as u64).collect()
}
