//! Graphs whose weights are streamed give the numbers of those that are loaded whole, to the bit: here the device is the processor.

mod common;

use std::path::{Path, PathBuf};

use cogvx::bundle::Bundle;
use cogvx::export::{ExportOptions, LayerChoice};
use cogvx::pipeline::{Pipeline, Streaming};
use cogvx::rng::TorchGenerator;
use cogvx::runtime::{CpuOptions, Kernels, Runtime, Setup};
use cogvx::synth::{Model, Options, synthesize};
use cogvx_calibration::plan::Scheme;
use cogvx_graphs::DType;
use cogvx_graphs::onnx::{CutError, Feed, Piece, cut, open};
use cogvx_graphs::pass::Target;
use cogvx_graphs::proto::ModelProto;
use ndarray::{ArrayD, IxDyn};
use prost::Message as _;

use common::{bundle_of, fixture, fresh_folder, root};

/// How many blocks the models of these tests have.
const BLOCKS: usize = 5;

/// A checkpoint of random weights like a fixture, with more blocks; of the shapes model, the trained one.
fn deep(name: &str, folder: &Path) -> PathBuf {
    if name == "shapes" {
        return root().join("examples/shapes-model");
    }
    let output = folder.join(name);
    let options = Options { layers: Some(BLOCKS), ..Options::default() };
    synthesize(&Model::Like(fixture(name)), &output, &options, |_| {}).unwrap_or_else(|e| panic!("{name}: {e}"));
    output
}

/// A bundle ready to run with ONNX Runtime's kernels alone: weights that are streamed go to those.
fn pipeline(bundle: &Path) -> Pipeline {
    let setup = Setup::Cpu(CpuOptions { kernels: Kernels::Plain, ..CpuOptions::default() });
    let runtime = Runtime::start(setup, 1).expect("ONNX Runtime starts");
    Pipeline::open(Bundle::open(bundle).expect("a sound bundle"), runtime).expect("a sound bundle")
}

/// What text encoder and transformer make of random numbers.
fn made(pipeline: &Pipeline) -> [ArrayD<f32>; 2] {
    let text = pipeline.encode(&pipeline.tokenize(&["a boat", "a fox"]).expect("two texts")).expect("a run");
    let dit = &pipeline.dit;
    let own = pipeline.request("").expect("a model of the family");
    let space = pipeline.vae.spatial_compression_ratio();
    let frames = (own.frames - 1) / pipeline.vae.temporal_compression_ratio + 1;
    let frames = frames.next_multiple_of(dit.patch_size_t.unwrap_or(1));
    let shape = [2, frames, dit.in_channels, own.height / space, own.width / space];
    let latents = TorchGenerator::new(7).randn(shape.iter().product());
    let latents = ArrayD::from_shape_vec(IxDyn(&shape), latents).expect("as many numbers");
    let mut transformer = pipeline.transformer().unwrap_or_else(|e| panic!("{e}"));
    // Twice: the second run takes the weights of the first block again.
    transformer.predict(&latents, &text, 900).expect("a run");
    [text.clone(), transformer.predict(&latents, &text, 500).expect("a run")]
}

/// Which layers are quantized.
#[derive(Clone, Copy, Debug)]
enum Products {
    /// All.
    All,
    /// Those whose features become bytes, too.
    OfBytes,
}

#[test]
fn the_numbers_are_those_of_the_whole_graph() {
    let folder = fresh_folder();
    let cases = [
        ("shapes", Target::Cpu, None),
        ("shapes", Target::Cuda, None),
        ("shapes", Target::Cpu, Some((Scheme::Int8, Products::OfBytes))),
        ("shapes", Target::Cpu, Some((Scheme::Int8, Products::All))),
        ("2b-fp16-sharded", Target::Cpu, None),
        ("2b-bf16", Target::Cpu, Some((Scheme::Int8Weight, Products::All))),
        ("5b", Target::Cpu, None),
        ("5b-i2v", Target::Cpu, Some((Scheme::Int4Weight, Products::All))),
        ("1.5-i2v", Target::Cpu, None),
        ("student", Target::Cpu, None),
    ];
    for (number, (name, target, scheme)) in cases.into_iter().enumerate() {
        let case = format!("{name}, {target:?}, {scheme:?}");
        let folder = folder.path().join(number.to_string());
        std::fs::create_dir(&folder).expect("a folder");
        // Between nodes of 16 bits that the processor has no kernels for ONNX Runtime keeps 32, but not from piece to piece.
        let precision = (target == Target::Cuda).then_some(DType::F32);
        let layers = match scheme {
            // AdaLN's weights are in blocks.
            Some((Scheme::Int8, Products::OfBytes)) => {
                LayerChoice::AllBut(["norm1.linear", "norm2.linear"].map(String::from).to_vec())
            }
            _ => LayerChoice::All,
        };
        let quantize = scheme.map(|(scheme, _)| scheme);
        let options = ExportOptions { target, precision, quantize, layers, ..ExportOptions::default() };
        let (bundle, _) = bundle_of(&deep(name, &folder), &folder, &options);
        let expected = made(&pipeline(&bundle));
        for kept in [0, 2, 4] {
            let streaming = Streaming { text_encoder: Some(kept), transformer: Some(kept) };
            let found = made(&pipeline(&bundle).with_streaming(streaming));
            for (part, (found, expected)) in ["text encoder", "transformer"].iter().zip(found.iter().zip(&expected)) {
                let norm = |numbers: ArrayD<f32>| numbers.iter().map(|&n| f64::from(n).powi(2)).sum::<f64>().sqrt();
                let (apart, size) = (norm(found - expected), norm(expected.clone()));
                // Where weights in blocks are constants, kernels on the processor round what they are multiplied by to eight bits, too.
                let limit = match scheme {
                    None | Some((_, Products::OfBytes)) => 0.0,
                    Some((Scheme::Int8, _)) if *part == "text encoder" => 0.0,
                    Some((Scheme::Int8, _)) => 0.01,
                    Some(_) => 0.02,
                };
                assert!(apart <= limit * size, "{case}: {kept} kept: {part}: {apart} of {size}");
            }
        }
    }
}

#[test]
fn blocks_become_pieces_that_are_alike() {
    let folder = fresh_folder();
    for (name, kept, streamed) in [("shapes", 0, 4), ("shapes", 3, 2), ("shapes", 9, 0), ("5b", 1, 3)] {
        let place = folder.path().join(format!("{name}-{kept}"));
        std::fs::create_dir(&place).expect("a folder");
        let options = ExportOptions { target: Target::Cuda, ..ExportOptions::default() };
        let (bundle, _) = bundle_of(&deep(name, &place), &place, &options);
        let model = open(&bundle.join("transformer/model.onnx")).unwrap_or_else(|e| panic!("{e}"));
        let pieces = cut(&model, kept).unwrap_or_else(|e| panic!("{e}"));
        let middle: Vec<&Piece> = pieces.iter().filter(|piece| piece.streamed.is_some()).collect();
        assert_eq!(middle.len(), streamed, "{name}, {kept} kept");
        assert!(middle.windows(2).all(|pair| pair[0].bytes == pair[1].bytes), "{name}, {kept} kept");
        // Each node and each weight is in one piece.
        let nodes = pieces
            .iter()
            .map(|piece| ModelProto::decode(&piece.bytes[..]).expect("a model").graph.expect("a graph").node.len());
        assert_eq!(nodes.sum::<usize>(), model.nodes.len());
        let fed = |piece: &&Piece| piece.inputs.iter().filter(|(_, feed)| matches!(feed, Feed::Weight(_))).count();
        let weights: Vec<usize> = middle.iter().map(fed).collect();
        assert!(weights.iter().all(|&n| n > 10 && n == weights[0]), "{weights:?}");
    }
    let (bundle, _) = bundle_of(&fixture("2b-fp32"), folder.path(), &ExportOptions::default());
    let mut model = open(&bundle.join("transformer/model.onnx")).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(cut(&model, 0), Err(CutError::Blocks { most: model.nodes.len(), found: 2 }));
    let own = std::mem::replace(&mut model.nodes[0].name, format!("transformer_blocks.{}/Add", usize::MAX));
    assert_eq!(cut(&model, 0), Err(CutError::Blocks { most: model.nodes.len(), found: usize::MAX }));
    model.nodes[0].name = own;
    // The first block reads what the last one makes.
    for node in &mut model.nodes {
        node.name = node.name.replace("transformer_blocks.0", "transformer_blocks.2");
    }
    assert!(matches!(cut(&model, 0), Err(CutError::Order { .. })));
}
