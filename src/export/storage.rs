//! Where the weights of a component's graphs are: in the graph, in the checkpoint's own file, or converted in a new one.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use cogvx_graphs::graph::{Graph, Source, Weight};
use cogvx_graphs::onnx::Placement;
use cogvx_graphs::weights::Tensor;
use cogvx_graphs::{DType, Weights};

use super::ExportError;
use super::convert::convert;
use crate::bundle::{BundleWriter, WeightsMode};

/// Weights of up to this many bytes stand in the graph file: each file mapping costs a page, and there are hundreds.
const INLINE: u64 = 1024;
/// Elements converted at a time.
const BLOCK: usize = 1 << 20;
/// The file of converted weights.
const CONVERTED: &str = "converted.safetensors";

/// The plan for one component.
pub(super) struct Storage<'a> {
    weights: &'a Weights,
    /// By name: type, offset and length in the file of converted weights.
    converted: BTreeMap<String, (DType, u64, u64)>,
    header: Vec<u8>,
    /// Files of the checkpoint that a graph reads, as indices into its list of files.
    used: BTreeSet<usize>,
}

impl<'a> Storage<'a> {
    /// Plan for these graphs, which share `weights`.
    pub(super) fn plan<'g>(weights: &'a Weights, graphs: impl Iterator<Item = &'g Graph>) -> Self {
        let wanted: BTreeMap<_, _> = graphs.flat_map(weights_of).map(|w| (w.name, w.stored)).collect();
        let changed = wanted.into_iter().filter_map(|(name, dtype)| {
            let tensor = weights.get(&name).filter(|t| t.dtype != dtype)?;
            let length = tensor.len / tensor.dtype.size() as u64 * dtype.size() as u64;
            (length > INLINE).then_some((tensor, dtype, length))
        });
        let mut header = serde_json::Map::new();
        let mut converted = BTreeMap::new();
        let mut end = 0;
        for (tensor, dtype, length) in changed {
            let entry = serde_json::json!({
                "dtype": dtype.safetensors(), "shape": tensor.shape, "data_offsets": [end, end + length],
            });
            header.insert(tensor.name.clone(), entry);
            converted.insert(tensor.name.clone(), (dtype, end, length));
            end += length;
        }
        // Data begins at a multiple of eight bytes, as the format asks.
        let mut text = serde_json::Value::Object(header).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        let header = [(text.len() as u64).to_le_bytes().to_vec(), text].concat();
        let data = header.len() as u64;
        for (_, offset, _) in converted.values_mut() {
            *offset += data;
        }
        Self { weights, converted, header, used: BTreeSet::new() }
    }

    /// How many of the graph's weights are external, inline and converted.
    pub(super) fn counts(&self, graph: &Graph) -> [usize; 3] {
        let mut counts = [0; 3];
        for weight in weights_of(graph) {
            let tensor = self.weights.get(&weight.name);
            let converted = tensor.is_some_and(|t| t.dtype != weight.stored);
            let inline = tensor.is_some_and(|t| stored_length(t, weight.stored) <= INLINE);
            counts[usize::from(inline)] += 1;
            counts[2] += usize::from(converted);
        }
        counts
    }

    /// Where the graph finds `weight`.
    pub(super) fn place(&mut self, weight: &Weight) -> Result<Placement, ExportError> {
        if let Some(&(_, offset, length)) = self.converted.get(&weight.name) {
            return Ok(Placement::External { location: CONVERTED.into(), offset, length });
        }
        let tensor = self.weights.get(&weight.name).expect("the graph was built from these weights");
        if stored_length(tensor, weight.stored) <= INLINE {
            return Ok(Placement::Inline(convert(&self.weights.read(tensor)?, tensor.dtype, weight.stored)));
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
        if !self.converted.is_empty() {
            let path = format!("{component}/{CONVERTED}");
            self.write_converted(writer, &path)?;
            paths.push(path);
        }
        Ok(paths)
    }

    fn write_converted(&self, writer: &BundleWriter, path: &str) -> Result<(), ExportError> {
        let mut file = writer.create_file(path)?;
        let io = |source| ExportError::Io { path: path.into(), source };
        file.write_all(&self.header).map_err(io)?;
        let blocks = self.converted.iter().flat_map(|(name, &(dtype, ..))| {
            let tensor = self.weights.get(name).expect("planned from these weights");
            (0..tensor.len).step_by(BLOCK * tensor.dtype.size()).map(move |at| (tensor, dtype, at))
        });
        // One block is written while the next is converted.
        let mut ready = vec![];
        for block in blocks.map(Some).chain([None]) {
            let next = || block.map_or(Ok(vec![]), |(tensor, dtype, at)| self.convert_block(tensor, dtype, at));
            let (written, converted) = rayon::join(|| file.write_all(&ready), next);
            written.map_err(io)?;
            ready = converted?;
        }
        Ok(file.finish()?)
    }

    /// The block of `tensor` from its byte `at` on, as `dtype`.
    fn convert_block(&self, tensor: &Tensor, dtype: DType, at: u64) -> Result<Vec<u8>, ExportError> {
        let size = ((BLOCK * tensor.dtype.size()) as u64).min(tensor.len - at);
        let mut block = vec![0; usize::try_from(size).unwrap_or(0)];
        self.weights.read_into(tensor, at, &mut block)?;
        Ok(convert(&block, tensor.dtype, dtype))
    }
}

fn stored_length(tensor: &Tensor, stored: DType) -> u64 {
    tensor.len / tensor.dtype.size() as u64 * stored.size() as u64
}

/// The weights a graph needs, each once.
fn weights_of(graph: &Graph) -> Vec<Weight> {
    let live = graph.live();
    let values = graph.values();
    let sources = values.iter().zip(live).filter(|(_, live)| *live).map(|(v, _)| &v.source);
    sources.filter_map(|s| if let Source::Weight(w) = s { Some(w.clone()) } else { None }).collect()
}
