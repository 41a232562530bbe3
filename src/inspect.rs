//! What a model is made of: for each of its stages shapes, parameters, operations and bytes, worked out without running it.

mod sizing;
mod stages;

use std::collections::BTreeMap;

use cogvx_graphs::cost::{Cost, NodeCost, elements};
use cogvx_graphs::model::vae::{FRAME_CHUNK, LATENT_CHUNK, Part, first_chunk};
use serde::Serialize;

use crate::bench::kind_of;
use crate::blueprint::{Blueprint, BlueprintError, Run, Video};
use crate::export::Component;
use crate::runtime::{CpuOptions, Kernels};

pub use sizing::{Sizing, gpu, sizings};
use stages::{Ends, Stage};

/// What a model is made of.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The model.
    pub model: String,
    /// The video that it would make.
    pub video: Video,
    /// Its components in the order they run, the encoder of the VAE last.
    pub components: Vec<Anatomy>,
    /// The kinds of layers, the one with the most operations first.
    pub kinds: Vec<Kind>,
}

/// A component and its stages.
#[derive(Clone, Debug, Serialize)]
pub struct Anatomy {
    /// Its name in bundles.
    pub component: &'static str,
    /// Times it runs in a whole run with guidance: the transformer twice in each step.
    pub runs: usize,
    /// Numbers it has learned, as torch counts them.
    pub parameters: u64,
    /// Operations of one run: matrix products, convolutions and attention, a multiplication and an addition being two.
    pub flops: u64,
    /// Bytes its nodes make in one run, all together.
    pub bytes: u64,
    /// The most bytes that are held at once in one run, weights not counted.
    pub peak: u64,
    /// Its parts in their order.
    pub stages: Vec<Row>,
}

/// A part of a component.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What it is.
    pub stage: String,
    /// How deep it stands below the component: what it is a part of comes before it.
    pub depth: usize,
    /// Shapes of what it reads and makes, the small ones left out.
    pub input: Vec<Vec<usize>>,
    /// Shapes of what it makes.
    pub output: Vec<Vec<usize>>,
    /// Numbers it has learned.
    pub parameters: u64,
    /// Operations.
    pub flops: u64,
    /// Bytes its nodes make.
    pub bytes: u64,
    /// Share of the component's operations.
    pub share: f64,
}

/// All layers of a kind, such as those that widen the feed-forwards.
#[derive(Clone, Debug, Serialize)]
pub struct Kind {
    /// What they are.
    pub name: String,
    /// Numbers they have learned.
    pub parameters: u64,
    /// Operations in a whole run.
    pub flops: u64,
    /// Bytes their nodes make in one run of each component.
    pub bytes: u64,
}

impl Inspection {
    /// Look into a model that would make a video of `size`, in so many steps with guidance.
    ///
    /// # Errors
    /// A model or a size that cannot be.
    pub fn new(blueprint: &Blueprint, size: [Option<usize>; 3], steps: usize) -> Result<Self, BlueprintError> {
        let video = blueprint.video(size)?;
        let [frames, rows, columns] = video.latents;
        let nexts = (frames - first_chunk(frames, LATENT_CHUNK)).div_ceil(LATENT_CHUNK);
        let encoded = if blueprint.takes_image() { 1 } else { video.pixels[0] };
        let encoder = |part| Run::Encoder(part, [encoded, video.pixels[1], video.pixels[2]]);
        let encoder_nexts = (encoded - first_chunk(encoded, FRAME_CHUNK)).div_ceil(FRAME_CHUNK);
        let plan = [
            (1, vec![(1, Run::Text(1))]),
            (2 * steps, vec![(1, Run::Transformer(1))]),
            (
                1,
                vec![
                    (1, Run::Decoder(Part::First, [rows, columns])),
                    (nexts, Run::Decoder(Part::Next, [rows, columns])),
                ],
            ),
            (
                usize::from(blueprint.takes_image()),
                vec![(1, encoder(Part::First)), (encoder_nexts, encoder(Part::Next))],
            ),
        ];
        let mut components = vec![];
        let mut kinds: BTreeMap<&'static str, Kind> = BTreeMap::new();
        for (runs, graphs) in plan {
            let graphs: Vec<_> = graphs.into_iter().filter(|(times, _)| *times > 0).collect();
            let costs = graphs.iter().map(|&(times, run)| {
                Ok((
                    times as u64,
                    blueprint.cost(
                        run,
                        &video,
                        1,
                        CpuOptions { kernels: Kernels::Plain, ..CpuOptions::default() },
                        None,
                    )?,
                ))
            });
            let costs = costs.collect::<Result<Vec<_>, BlueprintError>>()?;
            let component = graphs[0].1.component();
            add_kinds(&mut kinds, blueprint, component, &costs, runs as u64);
            components.push(anatomy(blueprint, &video, graphs[0].1, &costs, runs)?);
        }
        let mut kinds: Vec<_> = kinds.into_values().collect();
        kinds.sort_by_key(|kind| std::cmp::Reverse(kind.flops));
        Ok(Self { model: blueprint.name.clone(), video, components, kinds })
    }

    /// Operations of a whole run.
    #[must_use]
    pub fn flops(&self) -> u64 {
        self.components.iter().map(|part| part.runs as u64 * part.flops).sum()
    }

    /// Parameters of all components.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.components.iter().map(|part| part.parameters).sum()
    }
}

fn anatomy(
    blueprint: &Blueprint,
    video: &Video,
    run: Run,
    costs: &[(u64, Cost)],
    runs: usize,
) -> Result<Anatomy, BlueprintError> {
    let component = run.component();
    let (part, sizes) = blueprint.sizes(run, video);
    let graph = blueprint.graph(component, part)?;
    let sum = |of: &dyn Fn(&NodeCost) -> u64, has: &dyn Fn(&str) -> bool| -> u64 {
        let nodes = |cost: &Cost| cost.nodes.iter().filter(|node| has(&node.path)).map(of).sum::<u64>();
        costs.iter().map(|(times, cost)| times * nodes(cost)).sum()
    };
    let all = |_: &str| true;
    let flops = sum(&|node| node.flops, &all);
    let mut stages = vec![];
    for Stage { name, depth, has } in stages::of(blueprint, component) {
        let Ends { input, output } = Ends::of(&graph, &sizes, &*has)?;
        let own = sum(&|node| node.flops, &*has);
        #[allow(clippy::cast_precision_loss)] // A share.
        let share = own as f64 / flops.max(1) as f64;
        stages.push(Row {
            stage: name,
            depth,
            input,
            output,
            parameters: parameters(blueprint, component, &*has),
            flops: own,
            bytes: sum(&|node| node.bytes, &*has),
            share,
        });
    }
    Ok(Anatomy {
        component: component.name(),
        runs,
        parameters: blueprint.parameters(component),
        flops,
        bytes: sum(&|node| node.bytes, &all),
        peak: costs.iter().map(|(_, cost)| cost.peak.bytes).max().unwrap_or(0),
        stages,
    })
}

/// Numbers learned by the modules whose paths `has` tells.
fn parameters(blueprint: &Blueprint, component: Component, has: &dyn Fn(&str) -> bool) -> u64 {
    blueprint.learned(component).filter(|tensor| has(module(&tensor.name))).map(|t| elements(&t.shape)).sum()
}

/// The path of the module that a tensor belongs to.
fn module(tensor: &str) -> &str {
    tensor.rsplit_once('.').map_or("", |(path, _)| path)
}

fn add_kinds(
    kinds: &mut BTreeMap<&'static str, Kind>,
    blueprint: &Blueprint,
    component: Component,
    costs: &[(u64, Cost)],
    runs: u64,
) {
    let mut of = |path: &str, add: &dyn Fn(&mut Kind)| {
        let name = kind_of(path);
        let empty = || Kind { name: name.into(), parameters: 0, flops: 0, bytes: 0 };
        add(kinds.entry(name).or_insert_with(empty));
    };
    for tensor in blueprint.learned(component) {
        of(module(&tensor.name), &|kind| kind.parameters += elements(&tensor.shape));
    }
    for (times, cost) in costs.iter().filter(|_| runs > 0) {
        for node in &cost.nodes {
            of(&node.path, &|kind| {
                kind.flops += runs * times * node.flops;
                kind.bytes += times * node.bytes;
            });
        }
    }
}
