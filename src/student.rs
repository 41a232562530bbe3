//! Students: smaller checkpoints made of a teacher's weights.
//!
//! A student has fewer of the teacher's blocks, of its heads and with them channels, of the channels of its feed-forwards and of
//! its time embedding. What goes is chosen by place and by the weights alone or, where the teacher is run on prompts, by what that
//! shows. Healing then refits the linear layers that are left to what the teacher computes.

mod cut;
mod error;
mod heal;
mod layers;
mod least_squares;
mod measure;
mod probed;
mod record;
mod select;
mod shape;
mod teacher;
mod time;
mod write;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

pub use error::StudentError;
pub use record::{Recording, Runs, dump};
pub use shape::{Costs, Shape};

use crate::bundle::{Place, WeightsMode};
use crate::runtime::Interrupt;
use select::Selection;
use shape::Given;
use teacher::Teacher;

/// Which blocks a student keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LayerChoice {
    /// All.
    #[default]
    All,
    /// So many: those whose loss changes the teacher's predictions least where it is run, else by their place.
    Count(usize),
    /// These blocks of the teacher.
    Map(Vec<usize>),
}

/// How to make a student; what is not given is the teacher's.
#[derive(Clone)]
pub struct Options {
    /// Blocks.
    pub layers: LayerChoice,
    /// Attention heads, and with them the model's width.
    pub heads: Option<usize>,
    /// Width of the feed-forwards. diffusers knows only four times the model's.
    pub ffn: Option<usize>,
    /// Whether [`Options::target`] may be met with feed-forwards of half the teacher's ratio, too.
    pub halves: bool,
    /// Width of the time embedding.
    pub time_embed: Option<usize>,
    /// Parameters to come near to, by layers and heads that are not given.
    pub target: Option<u64>,
    /// How what stays the teacher's is brought over.
    pub weights: WeightsMode,
    /// What the teacher is run on, to measure by and to heal.
    pub runs: Option<Runs>,
    /// Whether linear layers are refitted; needs `runs`.
    pub heal: bool,
    /// Threads of ONNX Runtime; 0 for one a core.
    pub threads: usize,
    /// Once set, work ends.
    pub stop: Arc<AtomicBool>,
    /// Told of each runtime that is started, so that it can be interrupted.
    pub started: fn(Interrupt),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            layers: LayerChoice::All,
            heads: None,
            ffn: None,
            halves: false,
            time_embed: None,
            target: None,
            weights: WeightsMode::Auto,
            runs: None,
            heal: false,
            threads: 0,
            stop: Arc::default(),
            started: |_| {},
        }
    }
}

impl Options {
    fn go_on(&self) -> Result<(), StudentError> {
        if self.stop.load(Ordering::SeqCst) { Err(StudentError::Stopped) } else { Ok(()) }
    }

    fn given(&self) -> Given {
        let layers = match &self.layers {
            LayerChoice::All => None,
            LayerChoice::Count(n) => Some(*n),
            LayerChoice::Map(map) => Some(map.len()),
        };
        Given { layers, heads: self.heads, ffn: self.ffn, halves: self.halves, time_embed: self.time_embed }
    }

    /// The student's shape, found to be one that it can have.
    fn shape(&self, teacher: &Teacher) -> Result<Shape, StudentError> {
        let own = teacher.shape;
        layers::check(&self.layers, own.layers)?;
        for (option, found, most) in [
            ("heads", self.heads, own.heads),
            ("ffn", self.ffn, own.ffn),
            ("time-embed", self.time_embed, own.time_embed),
        ] {
            if let Some(found) = found.filter(|found| !(1..=most).contains(found)) {
                return Err(StudentError::Size { option, expected: format!("1 to {most}, the teacher's"), found });
            }
        }
        if let Some(found) = self.time_embed.filter(|&n| teacher.config.ofs_embed_dim.is_some() && n != own.time_embed)
        {
            return Err(StudentError::Offset(own.time_embed, found));
        }
        let given = self.given();
        let heads = given.heads.unwrap_or(own.heads);
        let mut shape = Shape {
            layers: given.layers.unwrap_or(own.layers),
            heads,
            // diffusers' width follows the model's, unless the teacher has another.
            ffn: given.ffn.unwrap_or((own.ffn * heads).div_ceil(own.heads)),
            time_embed: given.time_embed.unwrap_or(own.time_embed),
        };
        if self.target.is_some() {
            shape = shape::chosen(&self.options_of(teacher)?).map_or(shape, |costs| costs.shape);
        }
        if shape == own {
            return Err(StudentError::Same(own));
        }
        // Positions may not have such a width.
        let config = serde_json::to_value(shape.apply(&teacher.config)).unwrap_or_default();
        cogvx_graphs::config::DitConfig::from_value(&teacher.folder.join("transformer/config.json"), config)?;
        Ok(shape)
    }

    fn options_of(&self, teacher: &Teacher) -> Result<Vec<Costs>, StudentError> {
        let most = teacher.parameters();
        let target = self.target.unwrap_or(most);
        if target == 0 || target > most {
            return Err(StudentError::Target { most, found: target });
        }
        shape::options(&teacher.config, teacher.shape, self.given(), target)
    }
}

/// A student being made.
struct Job<'a> {
    options: &'a Options,
    told: &'a mut dyn FnMut(&str),
    /// For what is needed on the way, where weights can be linked.
    aside: PathBuf,
}

/// What was made.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where the student is.
    pub output: PathBuf,
    /// The teacher and what it takes.
    pub teacher: Costs,
    /// The student.
    pub student: Costs,
    /// The blocks of the teacher that it has.
    pub layers: Vec<usize>,
    /// Where it was measured: by how much the teacher's predictions change without each block alone, relative L2.
    pub without: Vec<f64>,
    /// Relative error of what modulations read of the time embedding.
    pub time_error: f64,
    /// Where it was healed: relative L2 of the predictions from the teacher's on the runs it was fitted on, before and after.
    pub healed: Option<[f64; 2]>,
    /// Whether diffusers loads it: it knows no other feed-forwards than four times as wide as the model.
    pub loads_in_diffusers: bool,
}

/// The teacher, the options that come near to [`Options::target`], and the number of the one that [`make`] makes.
///
/// # Errors
/// A teacher or options that no student can be made of.
pub fn options(teacher: &Path, options: &Options) -> Result<(Costs, Vec<Costs>, usize), StudentError> {
    let teacher = Teacher::open(teacher)?;
    let found = options.options_of(&teacher)?;
    let chosen = shape::chosen(&found).and_then(|chosen| found.iter().position(|costs| costs == chosen));
    Ok((own_costs(&teacher)?, found, chosen.unwrap_or(0)))
}

fn own_costs(teacher: &Teacher) -> Result<Costs, StudentError> {
    let costs = shape::costs(&teacher.config, teacher.shape)?;
    // Feed-forwards may differ from block to block.
    Ok(Costs { parameters: teacher.parameters(), bytes: 2 * teacher.parameters(), ..costs })
}

/// Make a student of the checkpoint `teacher` at `output`, which must not exist. `told` hears what is being done.
///
/// The weights are cut block by block of rows, so memory does not grow with the model. Healing keeps the normal equations of
/// one layer: `12 n^2` bytes for `n` inputs.
///
/// # Errors
/// A teacher or options that no student can be made of, or a failure to write or to run; nothing is left at `output` then.
pub fn make(
    teacher: &Path,
    output: &Path,
    options: &Options,
    told: &mut dyn FnMut(&str),
) -> Result<Report, StudentError> {
    let teacher = Teacher::open(teacher)?;
    let mut shape = options.shape(&teacher)?;
    if output.symlink_metadata().is_ok() {
        return Err(StudentError::Exists { output: output.into() });
    }
    let place = Place::new(output)?;
    place.spares(&teacher.folder)?;
    let _made = place.make_parents()?;
    let partial = place.partial()?;
    let aside = place.partial()?;
    let mut job = Job { options, told, aside: aside.path().into() };
    let recording = match &options.runs {
        Some(runs) => Some(record::record(&teacher, runs, &aside.path().join("runs"), &mut job, &[])?),
        None => None,
    };
    let mut without = vec![];
    let layers = match (&options.layers, &recording) {
        (LayerChoice::Map(map), _) => map.clone(),
        (_, Some(recording)) if shape.layers < teacher.shape.layers => {
            let kept;
            (kept, without) = measure::layers(&teacher, shape.layers, recording, &mut job)?;
            kept
        }
        _ => layers::by_place(teacher.shape.layers, shape.layers),
    };
    shape.layers = layers.len();
    let energies = match &recording {
        Some(recording) => Some(measure::energies(&teacher, recording, &mut job)?),
        None => None,
    };
    let selection = Selection::new(&teacher, shape, layers, energies.as_ref())?;
    let student = shape.apply(&teacher.config);
    let time_layers = [teacher.linear("time_embedding.linear_1")?, teacher.linear("time_embedding.linear_2")?];
    let rounding = teacher::rounding(teacher.tensor("time_embedding.linear_1.weight").dtype);
    let time = time::refit([&teacher.config, &student], &time_layers, teacher.timesteps, rounding)?;
    let pieces = cut::pieces(&teacher, &student, &selection, &time);
    (job.told)("cutting the weights");
    write::checkpoint(&teacher, shape, &pieces, options.weights, partial.path(), &options.stop)?;
    let healed = match &recording {
        Some(recording) if options.heal => Some(heal::heal(&teacher, partial.path(), &selection, recording, &mut job)?),
        _ => None,
    };
    options.go_on()?;
    let parameters = pieces.iter().map(cut::Piece::elements).sum();
    let costs = Costs { parameters, bytes: 2 * parameters, ..shape::costs(&teacher.config, shape)? };
    let usual = selection.ffn.iter().all(|channels| channels.len() == 4 * student.width());
    Ok(Report {
        output: place.put(partial)?,
        teacher: own_costs(&teacher)?,
        student: costs,
        layers: selection.layers,
        without,
        time_error: time.error,
        healed,
        loads_in_diffusers: usual,
    })
}
