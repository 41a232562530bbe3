//! What of a component is quantized, and the file of its quantized weights.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use cogvx_calibration::compensate::Compensation;
use cogvx_calibration::convs::{self, Convolution};
use cogvx_calibration::plan::{Layer, Plan, Scheme};
use cogvx_calibration::round::{Rounded, round, turned};
use cogvx_calibration::smooth::smooth;
use cogvx_calibration::table::Table;
use cogvx_graphs::graph::{Graph, Weight, WeightPart};
use cogvx_graphs::onnx::Placement;
use cogvx_graphs::pass::Target;
use cogvx_graphs::quantized::LinearForm;
use cogvx_graphs::weights::Tensor;
use cogvx_graphs::{DType, Weights};
use rayon::iter::{IndexedParallelIterator as _, IntoParallelIterator as _, ParallelIterator as _};
use rayon::slice::ParallelSlice as _;

use super::convert::{decode, encode};
use super::lora::Merges;
use super::{Component, ExportError, ExportOptions};
use crate::bundle::BundleWriter;

/// The file's name.
const FILE: &str = "quantized.safetensors";
/// Elements a thread quantizes at a time: what becomes of them stays in a core's cache.
const BLOCK: usize = 1 << 18;
/// Rows that are transposed together; blocks have a multiple of them.
const SQUARE: usize = 8;
/// Columns of a weight that a thread transposes at a time, and rows of which it does so: a line of a core's cache.
const STRIP: usize = 64;
/// Parts of weights that wait to be written, besides the one that is.
const WAITING: usize = 1;

/// How the layers of a component are quantized.
pub(super) fn plan(
    scheme: Scheme,
    options: &ExportOptions,
    table: Option<&Table>,
    (component, weights, merges): (Component, &Weights, &Merges),
    graph: &Graph,
) -> Result<Plan, ExportError> {
    let mut plan = Plan::new(graph, scheme, options.target);
    let chosen = |layer: &str| options.layers.has(&format!("{}/{layer}", component.name()));
    plan.layers.retain(|layer, _| chosen(layer));
    if options.quantize_vae && component == Component::VaeDecoder {
        plan.convs = convs::find(graph);
        plan.convs.retain(|layer, _| chosen(layer));
    }
    if let Some(table) = table {
        let read = |name: &str| -> Result<Vec<f32>, ExportError> {
            let tensor = weights.get(name).expect("the graph was built from these weights");
            let mut numbers = vec![];
            decode(&weights.read(tensor)?, tensor.dtype, &mut numbers);
            if let Some(delta) = merges.of(tensor)? {
                delta.add(0, &mut numbers);
            }
            Ok(numbers)
        };
        let path = options.calibration.as_deref().unwrap_or(Path::new(""));
        plan.place(table, path, component.name())?;
        for conv in plan.convs.values_mut() {
            conv.settle(table, path, component.name())?;
        }
        smooth(&mut plan, graph, (table, options.observer), &read)?;
    }
    Ok(plan)
}

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
        // One thread writes and hashes weights while the others make the next.
        let (full, to_write) = mpsc::sync_channel::<Vec<Vec<u8>>>(WAITING);
        let file = thread::scope(|scope| {
            let writing = scope.spawn(move || -> Result<_, ExportError> {
                to_write.into_iter().flatten().try_for_each(|bytes| file.write_all(&bytes).map_err(io))?;
                Ok(file)
            });
            let made = self.make_parts(&full);
            drop(full);
            let file = writing.join().unwrap_or_else(|panic| resume_unwind(panic))?;
            made.map(|()| file)
        })?;
        file.finish()?;
        Ok(Some(path))
    }

    /// Hand on all parts in their order, each in pieces, until nobody takes them.
    fn make_parts(&self, full: &mpsc::SyncSender<Vec<Vec<u8>>>) -> Result<(), ExportError> {
        let mut made: Option<(&str, Made)> = None;
        // The parts of a weight follow each other.
        for ((name, part), (weight, ..)) in &self.parts {
            if made.as_ref().is_none_or(|(of, _)| of != name) {
                made = Some((name, self.quantize(name)?));
            }
            let Some((_, made)) = &mut made else { continue };
            let pieces = match part {
                WeightPart::Scales => {
                    let mut bytes = vec![];
                    encode(&made.scales, weight.stored, &mut bytes);
                    vec![bytes]
                }
                WeightPart::ZeroPoints => vec![std::mem::take(&mut made.zero_points)],
                WeightPart::Bias => vec![made.bias.iter().flat_map(|steps| steps.to_le_bytes()).collect()],
                WeightPart::Whole | WeightPart::Values => std::mem::take(&mut made.values),
            };
            if full.send(pieces).is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The weight `name` as the plan wants it.
    fn quantize(&self, name: &str) -> Result<Made, ExportError> {
        let tensor = self.weights.get(name).expect("planned from these weights");
        if let Some(conv) = self.plan.convs.get(name) {
            return self.quantize_convolution(tensor, conv);
        }
        let layer = &self.plan.layers[name];
        let [out, input] = layer.features;
        let rows = (BLOCK / input / SQUARE * SQUARE).clamp(SQUARE, out.next_multiple_of(SQUARE));
        let compensation = self.compensation(layer);
        let blocks: Vec<Rounded> = (0..out.div_ceil(rows))
            .into_par_iter()
            .map_init(Scratch::default, |scratch, block| {
                let first = block * rows;
                self.quantize_rows((tensor, layer, compensation.as_ref()), [first, rows.min(out - first)], scratch)
            })
            .collect::<Result<_, _>>()?;
        let transposed = self.plan.target == Target::Cpu && !matches!(layer.form, LinearForm::Blocks { .. });
        if !transposed {
            return Ok(Made::of(blocks));
        }
        let strips = (0..input.div_ceil(STRIP)).into_par_iter().map(|strip| {
            let left = strip * STRIP;
            let mut to = vec![0; STRIP.min(input - left) * out];
            for (i, block) in blocks.iter().enumerate() {
                transpose(&block.values, [input, left], &mut to, [out, i * rows]);
            }
            to
        });
        let values = strips.collect();
        Ok(Made { values, ..Made::of(blocks) })
    }

    /// The weight and the bias of a convolution.
    fn quantize_convolution(&self, tensor: &Tensor, conv: &Convolution) -> Result<Made, ExportError> {
        let bias = self.weights.get(&conv.bias).expect("planned from these weights");
        let mut biases = vec![];
        decode(&self.weights.read(bias)?, bias.dtype, &mut biases);
        let rows = (BLOCK / conv.width()).clamp(1, biases.len());
        let size = conv.width() * tensor.dtype.size();
        let blocks: Vec<Rounded> = biases
            .par_chunks(rows)
            .enumerate()
            .map(|(i, biases)| {
                let mut bytes = vec![0; biases.len() * size];
                self.weights.read_into(tensor, (i * rows * size) as u64, &mut bytes)?;
                let mut numbers = vec![];
                decode(&bytes, tensor.dtype, &mut numbers);
                Ok(conv.round(&numbers, biases))
            })
            .collect::<Result<_, ExportError>>()?;
        Ok(Made::of(blocks))
    }

    /// By what the layer is known to read.
    fn compensation(&self, layer: &Layer) -> Option<Compensation> {
        let place = self.table?.places.get(layer.place.as_ref()?)?;
        let rows = layer.balance.of(&place.rows, place.width);
        Compensation::new(&turned(layer.form, &rows, place.width), place.width)
    }

    /// `count` rows from row `first` on.
    fn quantize_rows(
        &self,
        (tensor, layer, compensation): (&Tensor, &Layer, Option<&Compensation>),
        [first, count]: [usize; 2],
        Scratch { bytes, numbers }: &mut Scratch,
    ) -> Result<Rounded, ExportError> {
        let [_, input] = layer.features;
        let size = input * tensor.dtype.size();
        bytes.resize(count * size, 0);
        self.weights.read_into(tensor, (first * size) as u64, bytes)?;
        decode(bytes, tensor.dtype, numbers);
        if let Some(delta) = self.merges.of(tensor)? {
            delta.add(first * input, numbers);
        }
        for (i, row) in numbers.chunks_exact_mut(input).enumerate() {
            layer.scale_row(first + i, row);
        }
        let (scales, ..) = &self.parts[&(tensor.name.clone(), WeightPart::Scales)];
        Ok(round((layer.form, self.plan.target, scales.stored), numbers, input, compensation))
    }
}

/// What a thread needs on its way to rounded rows, to be used again: fresh memory costs time.
#[derive(Default)]
struct Scratch {
    /// As in the checkpoint.
    bytes: Vec<u8>,
    numbers: Vec<f32>,
}

/// A quantized weight, its values in pieces.
#[derive(Default)]
struct Made {
    values: Vec<Vec<u8>>,
    scales: Vec<f32>,
    zero_points: Vec<u8>,
    bias: Vec<i32>,
}

impl Made {
    /// Of these rows, one block after the other.
    fn of(blocks: Vec<Rounded>) -> Self {
        let mut made = Self::default();
        for mut block in blocks {
            made.values.push(block.values);
            made.scales.append(&mut block.scales);
            made.zero_points.append(&mut block.zero_points);
            made.bias.append(&mut block.bias);
        }
        made
    }
}

/// Columns from `left` on of `rows` `[_, width]` as rows of `out` `[_, height]`, from its column `top` on: as many as `out` has
/// rows, which are at most [`STRIP`].
fn transpose(rows: &[u8], [width, left]: [usize; 2], out: &mut [u8], [height, top]: [usize; 2]) {
    let columns = out.len() / height;
    let whole = columns / SQUARE * SQUARE;
    for (i, rows) in rows.chunks(STRIP * width).enumerate() {
        let count = rows.len() / width;
        // In the nearest cache: columns are far apart in `out`.
        let mut turned = [[0; STRIP]; STRIP];
        for (eight, rows) in rows.chunks(SQUARE * width).enumerate() {
            let first = eight * SQUARE;
            let squares = if rows.len() == SQUARE * width { whole } else { 0 };
            for column in (0..squares).step_by(SQUARE) {
                let square: [[u8; SQUARE]; SQUARE] = std::array::from_fn(|row| {
                    let at = row * width + left + column;
                    rows[at..at + SQUARE].try_into().unwrap_or_default()
                });
                for (to, square) in turned[column..].iter_mut().zip(transpose_square(square)) {
                    to[first..first + SQUARE].copy_from_slice(&square);
                }
            }
            for (column, to) in turned[..columns].iter_mut().enumerate().skip(squares) {
                for (row, to) in rows.chunks_exact(width).zip(&mut to[first..]) {
                    *to = row[left + column];
                }
            }
        }
        let top = top + i * STRIP;
        for (to, turned) in out.chunks_exact_mut(height).zip(&turned) {
            to[top..top + count].copy_from_slice(&turned[..count]);
        }
    }
}

/// Rows become columns: halves of the square change places, then halves of each quarter, then single bytes.
fn transpose_square(rows: [[u8; SQUARE]; SQUARE]) -> [[u8; SQUARE]; SQUARE] {
    let mut rows = rows.map(u64::from_le_bytes);
    for (apart, low) in [(4, 0x0000_0000_ffff_ffff_u64), (2, 0x0000_ffff_0000_ffff), (1, 0x00ff_00ff_00ff_00ff)] {
        for upper in (0..8).filter(|row| row & apart == 0) {
            let (a, b) = (rows[upper], rows[upper + apart]);
            let bits = 8 * apart;
            let change = (a >> bits ^ b) & low;
            rows[upper] = a ^ change << bits;
            rows[upper + apart] = b ^ change;
        }
    }
    rows.map(u64::to_le_bytes)
}

fn sizes(shape: &[usize]) -> Vec<u64> {
    shape.iter().map(|&n| n as u64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_columns_whatever_their_sizes() {
        for [width, height] in [[64, 64], [200, 24], [131, 77], [8, 8], [5, 3], [70, 9]] {
            let rows: Vec<_> = (0..height * width).map(|i: usize| (i * 7 + i / 251).to_le_bytes()[0]).collect();
            let mut out = vec![0; height * width];
            // In strips of columns and blocks of rows, as weights are.
            for (strip, to) in out.chunks_mut(STRIP * height).enumerate() {
                for (block, rows) in rows.chunks(20 * width).enumerate() {
                    transpose(rows, [width, strip * STRIP], to, [height, 20 * block]);
                }
            }
            for (i, value) in out.iter().enumerate() {
                assert_eq!(*value, rows[i % height * width + i / height], "{width}x{height} {i}");
            }
        }
    }
}
