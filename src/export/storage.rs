//! Where the weights of a component's graphs are: in the graph, in the checkpoint's own file, or in a new one when converted or merged.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::panic::resume_unwind;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;

use cogvx_calibration::plan::Plan;
use cogvx_calibration::table::Table;
use cogvx_graphs::graph::{Graph, Source, Weight, WeightPart};
use cogvx_graphs::onnx::Placement;
use cogvx_graphs::weights::Tensor;
use cogvx_graphs::{DType, Weights};

use super::ExportError;
use super::convert::{convert, decode, encode};
use super::lora::{Delta, Merges};
use super::quantized::Quantized;
use super::range::overflowed;
use crate::bundle::{BundleWriter, WeightsMode};

/// Weights of up to this many bytes stand in the graph file: each file mapping costs a page, and there are hundreds.
const INLINE: u64 = 1024;
/// Elements rewritten at a time: a block stays in a core's cache until it is written.
const BLOCK: usize = 1 << 18;
/// Blocks there are.
const BLOCKS: usize = 3;
/// The file of weights that are not as in the checkpoint, or of which the checkpoint's file has little else to give.
const REWRITTEN: &str = "rewritten.safetensors";

/// The plan for one component.
pub(super) struct Storage<'a> {
    weights: &'a Weights,
    merges: &'a Merges,
    quantized: Option<Quantized<'a>>,
    /// By name: type, offset and length in the file of rewritten weights.
    rewritten: BTreeMap<String, (DType, u64, u64)>,
    header: Vec<u8>,
    /// Files of the checkpoint that a graph reads, as indices into its list of files.
    used: BTreeSet<usize>,
}

impl<'a> Storage<'a> {
    /// Plan for these graphs, which share `weights` with `merges` in them.
    pub(super) fn plan<'g>(
        weights: &'a Weights,
        merges: &'a Merges,
        quantization: Option<(&'a Plan, Option<&'a Table>)>,
        graphs: impl Iterator<Item = &'g Graph>,
    ) -> Self {
        let (whole, parts): (Vec<_>, Vec<_>) = graphs.flat_map(weights_of).partition(|w| w.part == WeightPart::Whole);
        let quantized = quantization.map(|plan| Quantized::plan(weights, merges, plan, parts));
        let wanted: BTreeMap<_, _> = whole.into_iter().map(|w| (w.name, w.stored)).collect();
        let left = if quantized.is_some() { mostly_unused(weights, wanted.keys()) } else { BTreeSet::new() };
        let changed = wanted.into_iter().filter_map(|(name, dtype)| {
            let moved = |t: &Tensor| t.dtype != dtype || merges.touches(&name) || left.contains(&t.file);
            let tensor = weights.get(&name).filter(|t| moved(t))?;
            let length = stored_length(tensor, dtype);
            (length > INLINE).then_some((tensor, dtype, length))
        });
        let mut header = serde_json::Map::new();
        let mut rewritten = BTreeMap::new();
        let mut end = 0;
        for (tensor, dtype, length) in changed {
            let entry = serde_json::json!({
                "dtype": dtype.safetensors(), "shape": tensor.shape, "data_offsets": [end, end + length],
            });
            header.insert(tensor.name.clone(), entry);
            rewritten.insert(tensor.name.clone(), (dtype, end, length));
            end += length;
        }
        let header = self::header(header);
        let data = header.len() as u64;
        for (_, offset, _) in rewritten.values_mut() {
            *offset += data;
        }
        Self { weights, merges, quantized, rewritten, header, used: BTreeSet::new() }
    }

    /// How many of the graph's weights are external, inline, converted, merged and quantized.
    pub(super) fn counts(&self, graph: &Graph) -> [usize; 5] {
        let mut counts = [0; 5];
        for weight in weights_of(graph) {
            if weight.part != WeightPart::Whole {
                counts[4] += usize::from(weight.part == WeightPart::Values);
                continue;
            }
            let tensor = self.weights.get(&weight.name);
            let converted = tensor.is_some_and(|t| t.dtype != weight.stored);
            let inline = tensor.is_some_and(|t| stored_length(t, weight.stored) <= INLINE);
            counts[usize::from(inline)] += 1;
            counts[2] += usize::from(converted);
            counts[3] += usize::from(self.merges.touches(&weight.name));
        }
        counts
    }

    /// Where the graph finds `weight`.
    pub(super) fn place(&mut self, weight: &Weight) -> Result<Placement, ExportError> {
        if let Some(placement) = self.quantized.as_ref().and_then(|quantized| quantized.place(weight)) {
            return Ok(placement);
        }
        if let Some(&(_, offset, length)) = self.rewritten.get(&weight.name) {
            return Ok(Placement::External { location: REWRITTEN.into(), offset, length });
        }
        let tensor = self.weights.get(&weight.name).expect("the graph was built from these weights");
        if stored_length(tensor, weight.stored) <= INLINE {
            let mut scratch = Scratch { bytes: self.weights.read(tensor)?, ..Scratch::default() };
            let mut bytes = vec![];
            scratch.rewrite(0, tensor.dtype, weight.stored, self.merges.of(tensor)?.as_ref(), &mut bytes);
            self.check_range(tensor, weight.stored, &bytes)?;
            return Ok(Placement::Inline(bytes));
        }
        self.used.insert(tensor.file);
        let location = self.weights.files()[tensor.file].name.clone();
        Ok(Placement::External { location, offset: tensor.offset, length: tensor.len })
    }

    /// Bring the weight files into the folder `component` of the bundle; returns their paths there.
    pub(super) fn write(
        &self,
        writer: &BundleWriter,
        component: &str,
        mode: WeightsMode,
    ) -> Result<Vec<String>, ExportError> {
        let mut paths = vec![];
        for &file in &self.used {
            let file = &self.weights.files()[file];
            let path = format!("{component}/{}", file.name);
            writer.add_weights(&path, &file.real, mode)?;
            paths.push(path);
        }
        if !self.rewritten.is_empty() {
            let path = format!("{component}/{REWRITTEN}");
            self.write_rewritten(writer, &path)?;
            paths.push(path);
        }
        if let Some(quantized) = &self.quantized {
            paths.extend(quantized.write(writer, component)?);
        }
        Ok(paths)
    }

    fn write_rewritten(&self, writer: &BundleWriter, path: &str) -> Result<(), ExportError> {
        let mut file = writer.create_file(path)?;
        let io = |source| ExportError::Io { path: path.into(), source };
        file.write_all(&self.header).map_err(io)?;
        // One thread makes blocks, another writes them and gives them back to be filled again: fresh memory costs more
        // than converting what goes into it.
        let (full, to_write) = mpsc::sync_channel::<Vec<u8>>(BLOCKS);
        let (empty, to_fill) = mpsc::channel();
        (0..BLOCKS).for_each(|_| empty.send(vec![]).unwrap_or(()));
        thread::scope(|scope| {
            let writing = scope.spawn(move || -> Result<_, ExportError> {
                for block in to_write {
                    file.write_all(&block).map_err(io)?;
                    // Nobody takes it when all are made.
                    empty.send(block).unwrap_or(());
                }
                Ok(file)
            });
            let made = self.make_blocks(&to_fill, &full);
            drop(full);
            let file = writing.join().unwrap_or_else(|panic| resume_unwind(panic))?;
            made?;
            Ok(file.finish()?)
        })
    }

    /// Find that what `tensor` was rewritten to is not beyond the range of `dtype`.
    fn check_range(&self, tensor: &Tensor, dtype: DType, bytes: &[u8]) -> Result<(), ExportError> {
        if dtype != DType::F16 || !overflowed(bytes) {
            return Ok(());
        }
        let file = self.weights.files()[tensor.file].real.clone();
        Err(ExportError::WeightRange { file, tensor: tensor.name.clone() })
    }

    /// Fill blocks with the rewritten weights, one after the other, until nobody takes them.
    fn make_blocks(&self, empty: &Receiver<Vec<u8>>, full: &SyncSender<Vec<u8>>) -> Result<(), ExportError> {
        let mut scratch = Scratch::default();
        for (name, &(dtype, ..)) in &self.rewritten {
            let tensor = self.weights.get(name).expect("planned from these weights");
            let delta = self.merges.of(tensor)?;
            for at in (0..tensor.len).step_by(BLOCK * tensor.dtype.size()) {
                let Ok(mut block) = empty.recv() else { return Ok(()) };
                let size = ((BLOCK * tensor.dtype.size()) as u64).min(tensor.len - at);
                scratch.bytes.resize(usize::try_from(size).unwrap_or(0), 0);
                self.weights.read_into(tensor, at, &mut scratch.bytes)?;
                let first = usize::try_from(at).unwrap_or(usize::MAX) / tensor.dtype.size();
                scratch.rewrite(first, tensor.dtype, dtype, delta.as_ref(), &mut block);
                self.check_range(tensor, dtype, &block)?;
                if full.send(block).is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// What is needed on the way to a block.
#[derive(Default)]
struct Scratch {
    /// As in the checkpoint.
    bytes: Vec<u8>,
    numbers: Vec<f32>,
}

impl Scratch {
    /// Puts `bytes`, the first of which is of element `at` of its tensor, into `out`, with `delta` added and rounded once
    /// to `to`.
    fn rewrite(&mut self, at: usize, from: DType, to: DType, delta: Option<&Delta>, out: &mut Vec<u8>) {
        let Some(delta) = delta else { return convert(&self.bytes, from, to, out) };
        decode(&self.bytes, from, &mut self.numbers);
        delta.add(at, &mut self.numbers);
        encode(&self.numbers, to, out);
    }
}

/// The header of a safetensors file with these tensors; data begins at a multiple of eight bytes, as the format asks.
pub(super) fn header(tensors: serde_json::Map<String, serde_json::Value>) -> Vec<u8> {
    let mut text = serde_json::Value::Object(tensors).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    [(text.len() as u64).to_le_bytes().to_vec(), text].concat()
}

fn stored_length(tensor: &Tensor, stored: DType) -> u64 {
    tensor.len / tensor.dtype.size() as u64 * stored.size() as u64
}

/// The files of which less than half is `wanted`: quantized bundles write that anew, not to carry the rest along.
fn mostly_unused<'a>(weights: &Weights, wanted: impl Iterator<Item = &'a String>) -> BTreeSet<usize> {
    let mut bytes: BTreeMap<usize, [u64; 2]> = BTreeMap::new();
    for tensor in weights.iter() {
        bytes.entry(tensor.file).or_default()[0] += tensor.len;
    }
    for tensor in wanted.filter_map(|name| weights.get(name)) {
        bytes.entry(tensor.file).or_default()[1] += tensor.len;
    }
    bytes.into_iter().filter(|(_, [all, wanted])| wanted < &(all / 2)).map(|(file, _)| file).collect()
}

/// The weights a graph needs, each once.
fn weights_of(graph: &Graph) -> Vec<Weight> {
    let live = graph.live();
    let values = graph.values();
    let sources = values.iter().zip(live).filter(|(_, live)| *live).map(|(v, _)| &v.source);
    sources.filter_map(|s| if let Source::Weight(w) = s { Some(w.clone()) } else { None }).collect()
}
