//! What a video of the shapes model shows: colour, shape and direction, seen by plain image analysis.
//!
//! The same answers as `examples/shapes-model/training/evaluate.py`, which the model's published scores are of.

mod statistics;

use serde::Serialize;

use statistics::{mean, median, quantile};

/// Colours, with red, green and blue.
const COLOURS: [(&str, [f64; 3]); 5] = [
    ("red", [230.0, 36.0, 36.0]),
    ("green", [36.0, 199.0, 61.0]),
    ("blue", [46.0, 87.0, 245.0]),
    ("yellow", [245.0, 219.0, 31.0]),
    ("white", [245.0, 245.0, 245.0]),
];
const SHAPES: [&str; 3] = ["circle", "square", "triangle"];
const DIRECTIONS: [&str; 4] = ["left", "right", "up", "down"];

/// Levels by which an object must differ from the border to stand out.
const STANDS_OUT: f32 = 40.0;
/// Fewest pixels of an object.
const FEWEST: usize = 20;
/// Furthest a colour may be from its name's, as a sum over the channels.
const FURTHEST: f64 = 200.0;
/// Least way, as a share of the width, that is a movement.
const LEAST_WAY: f64 = 0.06;

/// What a prompt asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its colour.
    pub colour: &'static str,
    /// Its shape.
    pub shape: &'static str,
    /// Where it moves.
    pub direction: &'static str,
}

impl Wanted {
    /// What `prompt` asks for, if it names a colour, a shape and a direction of the shapes model.
    #[must_use]
    pub fn of(prompt: &str) -> Option<Self> {
        let prompt = prompt.to_lowercase();
        let words: Vec<_> = prompt.split(|c: char| !c.is_ascii_lowercase()).collect();
        let first = |names: &[&'static str]| {
            words.iter().find_map(|word| {
                let word = word.strip_suffix("wards").unwrap_or(word);
                names.iter().copied().find(|name| *name == word)
            })
        };
        Some(Self {
            colour: first(&COLOURS.map(|(name, _)| name))?,
            shape: first(&SHAPES)?,
            direction: first(&DIRECTIONS)?,
        })
    }
}

/// What a video shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Seen {
    /// The nearest colour, if one is near.
    pub colour: Option<&'static str>,
    /// The shape that fits best, if an object stands out.
    pub shape: Option<&'static str>,
    /// Where the object moves, if it does.
    pub direction: Option<&'static str>,
    /// Intersection over union of the object with that shape, mean over the frames.
    pub iou: f64,
    /// How far it moves along the longer axis, as a share of the width.
    pub travel: f64,
}

impl Seen {
    /// Whether the video shows what was wanted.
    #[must_use]
    pub fn is(&self, wanted: &Wanted) -> bool {
        [self.colour, self.shape, self.direction] == [wanted.colour, wanted.shape, wanted.direction].map(Some)
    }
}

/// Looks at the frames of one video, one by one.
#[derive(Clone, Debug)]
pub struct Scorer {
    height: usize,
    width: usize,
    frames: usize,
    objects: Vec<Object>,
}

/// The object of one frame.
#[derive(Clone, Copy, Debug)]
struct Object {
    /// Column and row.
    centre: [f64; 2],
    colour: [f32; 3],
    /// Intersection over union with each of [`SHAPES`].
    fits: [f64; 3],
}

impl Scorer {
    /// For frames of this size.
    #[must_use]
    pub fn new(height: usize, width: usize) -> Self {
        Self { height, width, frames: 0, objects: vec![] }
    }

    /// Look at a frame `[height, width, 3]`.
    ///
    /// # Panics
    /// If it is of another size.
    pub fn frame(&mut self, rgb: &[u8]) {
        assert_eq!(rgb.len(), self.height * self.width * 3, "a frame of the video's size");
        self.frames += 1;
        let (pixels, _) = rgb.as_chunks::<3>();
        self.objects.extend(object(pixels, self.height, self.width));
    }

    /// What the frames show.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a width in pixels")]
    pub fn finish(self) -> Seen {
        let objects = &self.objects;
        if objects.len() < (self.frames / 2).max(2) {
            return Seen::default();
        }
        // The object's way is that from the first third of the frames to the last.
        let third = (objects.len() / 3).max(1);
        let way = |axis: usize| {
            let centre = |part: &[Object]| mean(part.iter().map(|object| object.centre[axis]));
            (centre(&objects[objects.len() - third..]) - centre(&objects[..third])) / self.width as f64
        };
        let (dx, dy) = (way(0), way(1));
        let (longer, shorter) = (dx.abs().max(dy.abs()), dx.abs().min(dy.abs()));
        let moves = longer > LEAST_WAY && longer > 2.0 * shorter;
        let direction = match (dx.abs() > dy.abs(), dx > 0.0, dy > 0.0) {
            (true, true, _) => "right",
            (true, false, _) => "left",
            (false, _, true) => "down",
            (false, _, false) => "up",
        };
        let colour = [0, 1, 2].map(|c| f64::from(median(objects.iter().map(|object| object.colour[c]).collect())));
        let distance = |of: [f64; 3]| (0..3).map(|c| (colour[c] - of[c]).abs()).sum::<f64>();
        let near = COLOURS.map(|(name, of)| (name, distance(of)));
        let nearest = near.into_iter().reduce(|best, next| if next.1 < best.1 { next } else { best });
        let fits = [0, 1, 2].map(|s| mean(objects.iter().map(|object| object.fits[s])));
        let best = (0..SHAPES.len()).reduce(|best, next| if fits[next] > fits[best] { next } else { best });
        Seen {
            colour: nearest.filter(|(_, distance)| *distance < FURTHEST).map(|(name, _)| name),
            shape: best.map(|shape| SHAPES[shape]),
            direction: moves.then_some(direction),
            iou: best.map_or(0.0, |shape| fits[shape]),
            travel: longer,
        }
    }
}

/// The object of a frame, if one stands out and does not fill more than half of it.
#[expect(clippy::cast_precision_loss, reason = "coordinates and counts of pixels")]
fn object(pixels: &[[u8; 3]], height: usize, width: usize) -> Option<Object> {
    let mask = mask(pixels, height, width)?;
    let on: Vec<_> = (0..mask.len()).filter(|&i| mask[i] > 0.5).collect();
    if on.len() < FEWEST || on.len() as f64 / mask.len() as f64 > 0.5 {
        return None;
    }
    let (columns, rows): (Vec<_>, Vec<_>) = on.iter().map(|&i| ((i % width) as f64, (i / width) as f64)).unzip();
    let centre = [mean(columns.iter().copied()), mean(rows.iter().copied())];
    let bright: Vec<_> = pixels.iter().zip(&mask).filter(|(_, m)| **m > 0.75).map(|(pixel, _)| pixel).collect();
    let colour = [0, 1, 2].map(|c| median(bright.iter().map(|pixel| f32::from(pixel[c])).collect()));
    Some(Object { centre, colour, fits: fits(&mask, width, columns, rows) })
}

/// How much each pixel belongs to the object, from 0 to 1: its distance from the border's median colour, over the object's.
fn mask(pixels: &[[u8; 3]], height: usize, width: usize) -> Option<Vec<f32>> {
    let row = |y: usize| &pixels[y * width..(y + 1) * width];
    let column = |x: usize| pixels.iter().skip(x).step_by(width);
    let border: Vec<_> =
        row(0).iter().chain(row(height - 1)).chain(column(0)).chain(column(width - 1)).copied().collect();
    let ground = [0, 1, 2].map(|c| median(border.iter().map(|pixel| f32::from(pixel[c])).collect()));
    let distance =
        |pixel: &[u8; 3]| (0..3).map(|c| (f32::from(pixel[c]) - ground[c]).abs()).fold(0.0, |m: f32, d| m.max(d));
    let distances: Vec<f32> = pixels.iter().map(distance).collect();
    let top = quantile(distances.clone(), 0.98);
    (top >= STANDS_OUT).then(|| distances.into_iter().map(|d| (d / top).min(1.0)).collect())
}

/// Intersection over union of the mask with each of [`SHAPES`], drawn in its own bounding box: between quantiles of the
/// coordinates, so that a stray pixel does not move it.
#[expect(clippy::cast_precision_loss, reason = "coordinates and counts of pixels")]
fn fits(mask: &[f32], width: usize, columns: Vec<f64>, rows: Vec<f64>) -> [f64; 3] {
    let bounds = |values: Vec<f64>| [quantile(values.clone(), 0.01), quantile(values, 0.99) + 1.0];
    let (across, down) = (bounds(columns), bounds(rows));
    let within = |at: usize, [low, high]: [f64; 2]| (at as f64 + 0.5 - low) / (high - low);
    let (mut both, mut either) = ([0_usize; 3], [0_usize; 3]);
    for (i, &m) in mask.iter().enumerate() {
        let (u, v) = (within(i % width, across), within(i / width, down));
        let square = (0.0..=1.0).contains(&u) && (0.0..=1.0).contains(&v);
        let circle = (u - 0.5).powi(2) + (v - 0.5).powi(2) <= 0.25;
        let triangle = square && (u - 0.5).abs() <= v / 2.0;
        for (shape, drawn) in [circle, square, triangle].into_iter().enumerate() {
            both[shape] += usize::from(drawn && m > 0.5);
            either[shape] += usize::from(drawn || m > 0.5);
        }
    }
    [0, 1, 2].map(|shape| both[shape] as f64 / either[shape].max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_read_as_the_models_scorer_reads_them() {
        let wanted = |prompt: &str| Wanted::of(prompt).map(|w| [w.colour, w.shape, w.direction]);
        assert_eq!(wanted("a red circle moving left"), Some(["red", "circle", "left"]));
        assert_eq!(wanted("A WHITE triangle moves upwards, not to the right"), Some(["white", "triangle", "up"]));
        assert_eq!(wanted("a-blue-square-moving-down-17"), Some(["blue", "square", "down"]));
        assert_eq!(wanted("a red circle"), None);
        assert_eq!(wanted("a reddish circle moving left"), None);
        assert_eq!(wanted("a circle square moving green down"), Some(["green", "circle", "down"]));
    }

    #[test]
    fn a_frame_of_nothing_shows_nothing() {
        let mut scorer = Scorer::new(9, 7);
        for _ in 0..5 {
            scorer.frame(&[30; 9 * 7 * 3]);
        }
        assert_eq!(scorer.finish(), Seen::default());
        assert_eq!(Scorer::new(9, 7).finish(), Seen::default());
    }
}
