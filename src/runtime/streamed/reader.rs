//! Weights of one block after the other, read ahead.

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread;

use cogvx_graphs::DType;
use cogvx_graphs::onnx::{Feed, Initializer, Piece, Placement};
use cogvx_graphs::source::{open_regular, resolve_inside, root_of};
use cogvx_graphs::weights::read_exact_at;
use half::{bf16, f16};
use ort::memory::Allocator;
use ort::value::{DynTensor, TensorElementType};

use super::raised::raise;
use crate::runtime::error::line;

/// Reads the weights of one block after the other, and then again those of the first.
pub(super) struct Reader {
    /// Blocks and their weights, in the order of the piece's inputs.
    filled: Receiver<(usize, Result<Vec<DynTensor>, String>)>,
    used: Sender<Vec<DynTensor>>,
}

impl Reader {
    /// Read the weights of those `pieces` that are streamed, and raise those of these names; files are in `folder`.
    pub fn start<'a>(
        folder: &Path,
        pieces: impl IntoIterator<Item = &'a Piece>,
        raised: &HashSet<String>,
    ) -> Result<Self, String> {
        let mut files = Files { folder: folder.into(), names: vec![], open: vec![] };
        let blocks = pieces.into_iter().filter_map(|piece| Some((piece.streamed?, piece))).map(|(block, piece)| {
            let weights = piece.inputs.iter().filter_map(|(_, feed)| match feed {
                Feed::Weight(weight) => Some(files.source(weight, raised.contains(&weight.name))),
                Feed::Value(_) => None,
            });
            Ok((block, weights.collect::<Result<Vec<_>, String>>()?))
        });
        let blocks = blocks.collect::<Result<Vec<_>, String>>()?;
        // Nothing waits in between: the next block is read while one is in use.
        let (fill, filled) = sync_channel(0);
        let (used, returned) = channel::<Vec<DynTensor>>();
        let read = move || {
            let mut free: Vec<DynTensor> = vec![];
            for (block, sources) in blocks.iter().cycle() {
                free.extend(returned.try_iter().flatten());
                let weights = sources.iter().map(|source| source.read(&files, &mut free)).collect();
                // Nobody waits for it any more.
                if fill.send((*block, weights)).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("weights".into()).spawn(read).map_err(|e| e.to_string())?;
        Ok(Self { filled, used })
    }

    /// The weights of a block. After a run that failed they may not be the next ones: what comes before them is passed over.
    pub fn take(&self, block: usize) -> Result<Vec<DynTensor>, String> {
        loop {
            let (found, weights) = self.filled.recv().map_err(|e| e.to_string())?;
            if found == block {
                return weights;
            }
            if let Ok(passed) = weights {
                self.give_back(passed);
            }
        }
    }

    /// Tensors to read other weights into.
    pub fn give_back(&self, weights: Vec<DynTensor>) {
        // If the thread has ended, that is told when the next weights are wanted.
        let _ = self.used.send(weights);
    }
}

/// Where the numbers of a weight are.
struct Source {
    dtype: DType,
    element: TensorElementType,
    shape: Vec<usize>,
    at: At,
    is_raised: bool,
}

enum At {
    /// A place in one of the files.
    File(usize, u64),
    Memory(Vec<u8>),
}

/// The files that weights are in.
struct Files {
    folder: PathBuf,
    names: Vec<String>,
    open: Vec<File>,
}

impl Files {
    fn source(&mut self, weight: &Initializer, is_raised: bool) -> Result<Source, String> {
        let Initializer { name, dtype, shape, placement } = weight;
        let wrong = || format!("`{name}`: expected a weight of a type that can be streamed, found {dtype}");
        let element = element(*dtype).ok_or_else(wrong)?;
        let at = match placement {
            Placement::Inline(bytes) => At::Memory(bytes.clone()),
            Placement::External { location, offset, .. } => At::File(self.number(location)?, *offset),
        };
        Ok(Source { dtype: *dtype, element, shape: shape.clone(), at, is_raised })
    }

    fn number(&mut self, name: &str) -> Result<usize, String> {
        if let Some(number) = self.names.iter().position(|other| other == name) {
            return Ok(number);
        }
        let opened = root_of(&self.folder).and_then(|root| resolve_inside(&self.folder.join(name), &root));
        let opened = opened.and_then(|path| open_regular(&path)).map_err(|e| e.to_string())?;
        self.names.push(name.into());
        self.open.push(opened.file);
        Ok(self.open.len() - 1)
    }
}

impl Source {
    /// Its numbers, in a tensor of `free` if there is one like it.
    fn read(&self, files: &Files, free: &mut Vec<DynTensor>) -> Result<DynTensor, String> {
        let shape = self.shape.iter().map(|&n| i64::try_from(n).unwrap_or(i64::MAX));
        let like = |tensor: &DynTensor| {
            *tensor.data_type() == self.element && tensor.shape().iter().copied().eq(shape.clone())
        };
        let mut tensor = match free.iter().position(like) {
            Some(place) => free.swap_remove(place),
            // Not in memory that the device reads itself: ONNX Runtime would copy nothing, and kernels would wait for each number.
            None => DynTensor::new(&Allocator::default(), self.element, self.shape.clone()).map_err(|e| line(&e))?,
        };
        let bytes = bytes(&mut tensor, self.dtype).map_err(|e| line(&e))?;
        match &self.at {
            At::Memory(numbers) if numbers.len() == bytes.len() => bytes.copy_from_slice(numbers),
            At::Memory(numbers) => return Err(format!("expected {} bytes, found {}", bytes.len(), numbers.len())),
            At::File(file, offset) => read_exact_at(&files.open[*file], bytes, *offset)
                .map_err(|e| format!("`{}`: {} bytes from {offset} on: {e}", files.names[*file], bytes.len()))?,
        }
        if self.is_raised {
            raise(bytes);
        }
        Ok(tensor)
    }
}

/// ONNX Runtime's name of a type, if weights of it can be streamed.
fn element(dtype: DType) -> Option<TensorElementType> {
    Some(match dtype {
        DType::F32 => TensorElementType::Float32,
        DType::F16 => TensorElementType::Float16,
        DType::BF16 => TensorElementType::Bfloat16,
        DType::I32 => TensorElementType::Int32,
        DType::U8 => TensorElementType::Uint8,
        DType::I8 => TensorElementType::Int8,
        DType::I64 | DType::Bool | DType::I4 | DType::F8E4M3 => return None,
    })
}

/// The memory of a tensor of this type.
fn bytes(tensor: &mut DynTensor, dtype: DType) -> ort::Result<&mut [u8]> {
    use bytemuck::cast_slice_mut;
    Ok(match dtype {
        DType::F16 => cast_slice_mut(tensor.try_extract_tensor_mut::<f16>()?.1),
        DType::BF16 => cast_slice_mut(tensor.try_extract_tensor_mut::<bf16>()?.1),
        DType::I32 => cast_slice_mut(tensor.try_extract_tensor_mut::<i32>()?.1),
        DType::I8 => cast_slice_mut(tensor.try_extract_tensor_mut::<i8>()?.1),
        DType::U8 => tensor.try_extract_tensor_mut::<u8>()?.1,
        _ => cast_slice_mut(tensor.try_extract_tensor_mut::<f32>()?.1),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The piece of a block, with weights in a file and in the model.
    fn piece(block: u8) -> Piece {
        let weight = |shape: &[usize], dtype, placement| {
            let (name, shape) = ("w".to_string(), shape.to_vec());
            (name.clone(), Feed::Weight(Initializer { name, dtype, shape, placement }))
        };
        let (location, offset) = ("weights".to_string(), 4 * u64::from(block));
        let inputs = vec![
            ("x".into(), Feed::Value("x".into())),
            weight(&[2], DType::F16, Placement::External { location, offset, length: 4 }),
            weight(&[3], DType::U8, Placement::Inline(vec![block; 3])),
        ];
        Piece { bytes: vec![], inputs, outputs: vec![], streamed: Some(block.into()) }
    }

    #[test]
    fn blocks_come_in_their_order_again_and_again_and_from_any_on() {
        crate::runtime::load_library(crate::runtime::Device::Cpu).expect("ONNX Runtime");
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().join("component");
        std::fs::create_dir(&place).expect("a folder");
        let numbers: Vec<u8> = (0..16_u8).flat_map(|n| f16::from(n).to_le_bytes()).collect();
        std::fs::write(place.join("weights"), numbers).expect("a file");
        let pieces = [2, 3, 5].map(piece);
        let reader = Reader::start(&place, &pieces, &HashSet::new()).expect("sound pieces");
        for block in [2_u8, 3, 5, 2, 3, 2, 5, 3] {
            let weights = reader.take(block.into()).expect("its weights");
            let [float, bytes] = &weights[..] else { panic!("two weights") };
            let found = float.try_extract_tensor::<f16>().expect("halves").1.iter().map(|n| n.to_f32());
            assert_eq!(found.collect::<Vec<_>>(), [f32::from(2 * block), f32::from(2 * block + 1)]);
            assert_eq!(bytes.try_extract_tensor::<u8>().expect("bytes").1, [block; 3]);
            reader.give_back(weights);
        }
        // A file that has become shorter.
        std::fs::write(place.join("weights"), [0; 8]).expect("a file");
        let said = (0..3).find_map(|_| reader.take(5).err()).expect("an error");
        assert!(said.starts_with("`weights`: 4 bytes from 20 on: "), "{said}");
        let outside = Piece { inputs: vec![], ..piece(2) };
        let mut wrong = [piece(2), outside];
        if let Feed::Weight(weight) = &mut wrong[0].inputs[1].1 {
            weight.dtype = DType::I64;
        }
        let said = Reader::start(&place, &wrong, &HashSet::new()).err().expect("an error");
        assert_eq!(said, "`w`: expected a weight of a type that can be streamed, found i64");
    }
}
