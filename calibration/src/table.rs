//! The calibration table: what the inputs of linear layers were while the float model ran, and how large all values became.
//!
//! A safetensors file. For each place `P` that layers read from (`<component>/<weight of its first layer>`):
//!
//! | tensor | type | shape |
//! |---|---|---|
//! | `P/least`, `P/greatest` | F32 | `[step ranges, features]`, of each feature |
//! | `P/histogram` | I64 | `[2048]`, of magnitudes |
//! | `P/rows` | F32 | `[rows, features]`, a sample of all tokens seen |
//!
//! `__metadata__` has `format` (`cogvx-calibration`), `version`, `checkpoint` (the fingerprint of the weights), `layers` (JSON: the
//! place of each layer), `histograms` (JSON: width of the bins of each place), `seen` (JSON: tokens seen at each place),
//! `values` (JSON: the least and greatest number of each value, by `<component>/<name>`, see [`crate::values`]), `runs`
//! (JSON: what was run: see [`Run`]; images by the hash of their file) and, if the VAE's decoder was seen, `vae` (the fingerprint of its weights).
//! What the decoder's convolutions read is in `values` as `<component>/<name>.input`.

mod read;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use cogvx_graphs::weights::WeightsError;
use cogvx_graphs::{DType, Weights};
use serde::{Deserialize, Serialize};

use crate::balance::Balance;
use crate::histogram::{BINS, Histogram};
use read::read_place;

/// Value of `format`.
const FORMAT: &str = "cogvx-calibration";
/// Value of `version`.
const VERSION: &str = "2";
/// Most bytes of tensors in a table: 5B's at 256 rows a place take 1.5 GB.
const MOST_BYTES: u64 = 2 << 30;
/// Most step ranges.
pub const MOST_RANGES: usize = 64;
/// Most rows of a place.
pub const MOST_ROWS: usize = 4096;
/// Counts larger than this are damage; so many can be added up.
const MOST_COUNTED: u64 = crate::histogram::MOST;

/// Why a table cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum TableError {
    #[error(transparent)]
    File(#[from] WeightsError),
    #[error("`{}`: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("`{}`: expected a calibration table as `cogvx calibrate` writes it: `__metadata__` `{key}` of {expected}, found {found}", path.display())]
    Metadata { path: PathBuf, key: &'static str, expected: String, found: String },
    #[error("`{}`: `{name}`: expected {expected}, found {found}", path.display())]
    Tensor { path: PathBuf, name: String, expected: String, found: String },
    #[error("`{}`: expected a calibration table of at most {MOST_BYTES} bytes, found {found}", path.display())]
    Size { path: PathBuf, found: u64 },
    #[error("`{}`: expected a table of the checkpoint with the fingerprint {expected}, found one of {found}: calibrate this checkpoint", path.display())]
    Checkpoint { path: PathBuf, expected: String, found: String },
    #[error("`{}`: expected a table that saw the VAE's decoder, found one that did not: make one with `cogvx calibrate --vae`", path.display())]
    NoVae { path: PathBuf },
    #[error("`{}`: expected a table of the VAE with the fingerprint {expected}, found one of {found}: calibrate this checkpoint", path.display())]
    Vae { path: PathBuf, expected: String, found: String },
    #[error("expected {expected}, found {found}")]
    Merge { expected: String, found: String },
}

/// One run that a table has seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// What was to be seen.
    pub prompt: String,
    /// Seed of the noise.
    pub seed: u64,
    /// Denoising steps.
    pub steps: usize,
    /// Guidance scale.
    pub guidance: f64,
    /// Frames, rows and columns of pixels.
    pub size: [usize; 3],
    /// Whether the VAE decoded what came of it.
    #[serde(default)]
    pub vae: bool,
    /// The hash (BLAKE3, in hexadecimal) of the image's file that it started from, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

impl Run {
    /// Whether there is nothing more to be seen in `other`.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        (self.vae || !other.vae) && Self { vae: other.vae, ..self.clone() } == *other
    }
}

/// What was seen at one place.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Place {
    /// Features.
    pub width: usize,
    /// For each range of steps, the least number of each feature; empty where nothing was seen.
    pub least: Vec<Vec<f32>>,
    /// For each range of steps, the greatest number of each feature.
    pub greatest: Vec<Vec<f32>>,
    /// Of magnitudes in the sampled rows.
    pub histogram: Histogram,
    /// A sample of rows of `width` numbers.
    pub rows: Vec<f32>,
    /// How many rows the sample was drawn from.
    pub seen: u64,
}

/// A calibration table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// Fingerprint of the checkpoint's weights.
    pub checkpoint: String,
    /// Fingerprint of the VAE's weights, if its decoder was seen.
    pub vae: Option<String>,
    /// Ranges that the steps of a run are divided into.
    pub ranges: usize,
    /// The place that a layer reads from, by `<component>/<weight>`.
    pub layers: BTreeMap<String, String>,
    /// By name.
    pub places: BTreeMap<String, Place>,
    /// The least and greatest number of each value, by `<component>/<name>`.
    pub values: BTreeMap<String, [f32; 2]>,
    /// What was run.
    pub runs: Vec<Run>,
}

impl Place {
    /// The largest magnitude of each feature over all steps, less its offset (none: 0).
    #[must_use]
    pub fn magnitudes(&self, offsets: &[f32]) -> Vec<f32> {
        let mut largest = vec![0.0_f32; self.width];
        let balance = Balance { offsets: offsets.to_vec(), factors: vec![] };
        for row in self.least.iter().chain(&self.greatest) {
            let row = balance.of(row, self.width);
            largest.iter_mut().zip(row).for_each(|(largest, x)| *largest = largest.max(x.abs()));
        }
        largest
    }

    /// Take in what one call of the graph told, in step range `range` of `ranges`.
    pub fn see(&mut self, range: usize, ranges: usize, least: &[f32], greatest: &[f32]) {
        self.width = least.len();
        for (rows, new, pick) in [
            (&mut self.least, least, f32::min as fn(f32, f32) -> f32),
            (&mut self.greatest, greatest, f32::max as fn(f32, f32) -> f32),
        ] {
            rows.resize(ranges, vec![]);
            if rows[range].is_empty() {
                rows[range] = new.to_vec();
            } else {
                rows[range].iter_mut().zip(new).for_each(|(old, &new)| *old = pick(*old, new));
            }
        }
    }

    /// Take in rows, keeping at most `most` of all rows ever seen, each with the same chance (Vitter's algorithm R).
    pub fn sample(&mut self, rows: &[f32], most: usize) {
        self.histogram.add(rows);
        for row in rows.chunks_exact(self.width.max(1)) {
            self.seen += 1;
            let kept = self.rows.len() / self.width.max(1);
            if kept < most {
                self.rows.extend(row);
            } else {
                let at = usize::try_from(mixed(self.seen) % self.seen).unwrap_or(usize::MAX);
                if at < most {
                    self.rows[at * self.width..][..self.width].copy_from_slice(row);
                }
            }
        }
    }
}

/// Bits that look random, the same for the same number (splitmix64).
fn mixed(n: u64) -> u64 {
    let n = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

impl Table {
    /// Take in the least and the greatest number of a value.
    pub fn see_value(&mut self, name: &str, [least, greatest]: [f32; 2]) {
        let seen = self.values.entry(name.into()).or_insert([f32::INFINITY, f32::NEG_INFINITY]);
        *seen = [seen[0].min(least), seen[1].max(greatest)];
    }

    /// Take in all that `other` has seen, keeping at most `most` rows a place.
    ///
    /// # Errors
    /// A table of another checkpoint, with other step ranges, or of a run that this one has seen.
    pub fn merge(&mut self, other: &Self, most: usize) -> Result<(), TableError> {
        let differ = |expected: String, found: String| Err(TableError::Merge { expected, found });
        if let (Some(ours), Some(theirs)) = (&self.vae, &other.vae)
            && ours != theirs
        {
            return differ(format!("a table of the VAE {ours}"), theirs.clone());
        }
        if self.checkpoint != other.checkpoint {
            return differ(format!("a table of the checkpoint {}", self.checkpoint), other.checkpoint.clone());
        }
        if self.ranges != other.ranges {
            return differ(format!("{} step ranges", self.ranges), other.ranges.to_string());
        }
        if let Some(run) = other.runs.iter().find(|run| self.runs.contains(run)) {
            return differ("other runs".into(), format!("`{}` with seed {} in both", run.prompt, run.seed));
        }
        for (name, theirs) in &other.places {
            let ours =
                self.places.entry(name.clone()).or_insert_with(|| Place { width: theirs.width, ..Place::default() });
            if ours.width != theirs.width {
                return differ(format!("`{name}` of {} features", ours.width), theirs.width.to_string());
            }
            for range in 0..self.ranges {
                let (Some(least), Some(greatest)) = (theirs.least.get(range), theirs.greatest.get(range)) else {
                    continue;
                };
                if !least.is_empty() {
                    ours.see(range, self.ranges, least, greatest);
                }
            }
            let (histogram, seen) = (ours.histogram.clone(), ours.seen);
            ours.sample(&theirs.rows, most);
            // The rows stand for all that theirs were drawn from.
            ours.histogram = histogram;
            ours.histogram.merge(&theirs.histogram);
            ours.seen = seen + theirs.seen;
        }
        for (name, &bounds) in &other.values {
            self.see_value(name, bounds);
        }
        self.vae = self.vae.take().or_else(|| other.vae.clone());
        self.layers.extend(other.layers.clone());
        self.runs.extend(other.runs.clone());
        Ok(())
    }

    /// Write the table to `file`.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&self, file: &mut impl std::io::Write) -> std::io::Result<()> {
        let tensors = self.tensors();
        let mut header = serde_json::Map::new();
        let json = |value: serde_json::Value| value.to_string();
        let seen: BTreeMap<_, _> = self.places.iter().map(|(name, place)| (name, place.seen)).collect();
        let widths: BTreeMap<_, _> = self.places.iter().map(|(name, place)| (name, place.histogram.width)).collect();
        header.insert(
            "__metadata__".into(),
            serde_json::json!({
                "format": FORMAT, "version": VERSION, "checkpoint": self.checkpoint,
                "layers": json(serde_json::json!(self.layers)), "histograms": json(serde_json::json!(widths)),
                "seen": json(serde_json::json!(seen)), "values": json(serde_json::json!(self.values)),
                "runs": json(serde_json::json!(self.runs)),
            }),
        );
        if let Some(vae) = &self.vae {
            header["__metadata__"]["vae"] = vae.as_str().into();
        }
        let mut end = 0;
        for (name, dtype, shape, bytes) in &tensors {
            let entry = serde_json::json!({
                "dtype": dtype.safetensors(), "shape": shape, "data_offsets": [end, end + bytes.len()],
            });
            header.insert(name.clone(), entry);
            end += bytes.len();
        }
        let mut text = serde_json::Value::Object(header).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut file = std::io::BufWriter::new(file);
        file.write_all(&(text.len() as u64).to_le_bytes())?;
        file.write_all(&text)?;
        for (.., bytes) in &tensors {
            file.write_all(bytes)?;
        }
        file.flush()
    }

    /// Find that the table can be read again, once written to `path`.
    ///
    /// # Errors
    /// It is too large.
    pub fn check_size(&self, path: &Path) -> Result<(), TableError> {
        let numbers = |place: &Place| 2 * BINS + place.rows.len() + 2 * place.least.len() * place.width;
        let found = 4 * self.places.values().map(|place| numbers(place) as u64).sum::<u64>();
        if found > MOST_BYTES { Err(TableError::Size { path: path.into(), found }) } else { Ok(()) }
    }

    fn tensors(&self) -> Vec<(String, DType, Vec<usize>, Vec<u8>)> {
        let mut tensors = vec![];
        for (name, place) in &self.places {
            let floats = |rows: &[Vec<f32>]| {
                // A range without steps is written as NaN.
                let nothing = vec![f32::NAN; place.width];
                let rows = rows.iter().map(|row| if row.is_empty() { &nothing } else { row });
                rows.flatten().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>()
            };
            let shape = vec![place.least.len(), place.width];
            tensors.push((format!("{name}/least"), DType::F32, shape.clone(), floats(&place.least)));
            tensors.push((format!("{name}/greatest"), DType::F32, shape, floats(&place.greatest)));
            let counts = place.histogram.counts.iter().flat_map(|count| count.to_le_bytes()).collect();
            tensors.push((format!("{name}/histogram"), DType::I64, vec![BINS], counts));
            let shape = vec![place.rows.len() / place.width.max(1), place.width];
            let rows = place.rows.iter().flat_map(|x| x.to_le_bytes()).collect();
            tensors.push((format!("{name}/rows"), DType::F32, shape, rows));
        }
        tensors
    }

    /// Read a table and check all of it.
    ///
    /// # Errors
    /// No such file, another kind of file, tensors of other types or shapes, NaN, or places where nothing but zero was seen.
    pub fn open(path: &Path) -> Result<Self, TableError> {
        Self::read(path, &Weights::open_file(path)?)
    }

    /// Read a table in memory; messages call it `path`.
    ///
    /// # Errors
    /// As for [`Table::open`].
    pub fn from_memory(path: &Path, bytes: Vec<u8>) -> Result<Self, TableError> {
        Self::read(path, &Weights::from_memory(None, [("model.safetensors".to_string(), bytes)].into())?)
    }

    fn read(path: &Path, file: &Weights) -> Result<Self, TableError> {
        let metadata = file.metadata(0)?;
        let text = |key: &'static str| -> Result<&str, TableError> {
            let missing = || wrong_metadata(path, key, "a text", "none");
            metadata.get(key).map(String::as_str).ok_or_else(missing)
        };
        for (key, expected) in [("format", FORMAT), ("version", VERSION)] {
            let found = metadata.get(key).map_or("none", String::as_str);
            if found != expected {
                return Err(wrong_metadata(path, key, &format!("`{expected}`"), &format!("`{found}`")));
            }
        }
        let size: u64 = file.iter().map(|t| t.len).sum();
        if size > MOST_BYTES {
            return Err(TableError::Size { path: path.into(), found: size });
        }
        let layers: BTreeMap<String, String> = json(path, "layers", text("layers")?)?;
        let widths: BTreeMap<String, f32> = json(path, "histograms", text("histograms")?)?;
        let seen: BTreeMap<String, u64> = json(path, "seen", text("seen")?)?;
        let mut table = Self {
            checkpoint: text("checkpoint")?.into(),
            vae: metadata.get("vae").cloned(),
            runs: json(path, "runs", text("runs")?)?,
            values: json(path, "values", text("values")?)?,
            layers,
            ..Self::default()
        };
        if let Some((name, [least, greatest])) =
            table.values.iter().find(|(_, [a, b])| !(a <= b && (b - a).is_finite()))
        {
            let found = format!("{least} and {greatest} of `{name}`");
            return Err(wrong_metadata(path, "values", "the least and the greatest number of each value", &found));
        }
        for name in table.layers.values() {
            if !table.places.contains_key(name) {
                let place = read_place(path, file, name, &widths, &seen)?;
                if table.ranges != 0 && place.least.len() != table.ranges {
                    let (expected, found) = (format!("{} step ranges", table.ranges), place.least.len().to_string());
                    return Err(TableError::Tensor {
                        path: path.into(),
                        name: format!("{name}/least"),
                        expected,
                        found,
                    });
                }
                table.ranges = place.least.len();
                table.places.insert(name.clone(), place);
            }
        }
        if table.places.is_empty() {
            return Err(wrong_metadata(path, "layers", "at least one layer", "none"));
        }
        Ok(table)
    }

    /// Find that the table tells of the layer `<component>/<weight>`, and of as many features as it reads; returns the place.
    ///
    /// # Errors
    /// It does not: it was damaged, or made by another version of cogvx.
    pub fn place_of(&self, path: &Path, layer: &str, features: usize) -> Result<&str, TableError> {
        let Some(name) = self.layers.get(layer) else {
            return Err(wrong_metadata(path, "layers", &format!("the place of `{layer}`"), "none"));
        };
        let found = self.places.get(name).map_or(0, |place| place.width);
        if found != features {
            return Err(TableError::Tensor {
                path: path.into(),
                name: format!("{name}/least"),
                expected: format!("the {features} features that `{layer}` reads"),
                found: found.to_string(),
            });
        }
        Ok(name)
    }

    /// What is wrong with a table, read from `path`, that does not tell of `value`.
    #[must_use]
    pub fn lacks_value(&self, path: &Path, value: &str) -> TableError {
        wrong_metadata(path, "values", &format!("the least and the greatest number of `{value}`"), "none")
    }

    /// The least and the greatest number of the value `name`, `<component>/<name>`.
    ///
    /// # Errors
    /// The table does not tell of it, or of nothing but zeros.
    pub fn value_of(&self, path: &Path, name: &str) -> Result<[f32; 2], TableError> {
        let expected = format!("the least and the greatest number of `{name}`, not both zero");
        match self.values.get(name) {
            Some(&[least, greatest]) if least < 0.0 || greatest > 0.0 => Ok([least, greatest]),
            Some(_) => Err(wrong_metadata(path, "values", &expected, "zeros alone")),
            None => Err(wrong_metadata(path, "values", &expected, "none")),
        }
    }

    /// Find that the table saw the VAE's decoder, with the weights of this fingerprint.
    ///
    /// # Errors
    /// It did not, or with others.
    pub fn check_vae(&self, path: &Path, fingerprint: &str) -> Result<(), TableError> {
        match &self.vae {
            None => Err(TableError::NoVae { path: path.into() }),
            Some(found) if found == fingerprint => Ok(()),
            Some(found) => {
                let (expected, found) = (fingerprint.into(), found.clone());
                Err(TableError::Vae { path: path.into(), expected, found })
            }
        }
    }

    /// Find that the table is of the checkpoint with this fingerprint.
    ///
    /// # Errors
    /// It is of another.
    pub fn check(&self, path: &Path, fingerprint: &str) -> Result<(), TableError> {
        if self.checkpoint == fingerprint {
            return Ok(());
        }
        let (expected, found) = (fingerprint.into(), self.checkpoint.clone());
        Err(TableError::Checkpoint { path: path.into(), expected, found })
    }
}

fn json<T: serde::de::DeserializeOwned>(path: &Path, key: &'static str, text: &str) -> Result<T, TableError> {
    serde_json::from_str(text).map_err(|e| wrong_metadata(path, key, "JSON", &e.to_string()))
}

fn wrong_metadata(path: &Path, key: &'static str, expected: &str, found: &str) -> TableError {
    TableError::Metadata { path: path.into(), key, expected: expected.into(), found: found.chars().take(200).collect() }
}
