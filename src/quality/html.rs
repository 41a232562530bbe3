//! The figures as one page, which needs nothing else: charts are inline SVG, pictures are in the page.

mod strip;

use std::fs::File;
use std::io::{self, BufWriter, Seek as _, Write};

use super::tables::{Table, decibels};
use super::{FramePair, Quality, Spread, VideoQuality};
use crate::page::{Chart, Line, begin, end, escaped};
use strip::Strips;

/// Most videos drawn as lines of their own.
const MOST_LINES: usize = 64;

/// What the page is about.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// The judged bundle.
    pub judged: &'a str,
    /// The reference.
    pub reference: &'a str,
    /// How the videos were made: steps, guidance, size.
    pub settings: &'a str,
    /// Why the answer is no, if it is.
    pub problems: &'a [String],
}

/// The page in the making; pictures of the videos wait in a temporary file.
pub struct Page {
    videos: BufWriter<File>,
    strips: Strips,
}

impl Page {
    /// An empty page.
    ///
    /// # Errors
    /// No room among the system's temporary files.
    pub fn new() -> io::Result<Self> {
        Ok(Self { videos: BufWriter::new(tempfile::tempfile()?), strips: Strips::default() })
    }

    /// Take a frame of the current video.
    pub fn frame(&mut self, pair: FramePair<'_>) {
        self.strips.frame(pair);
    }

    /// The current video is complete.
    ///
    /// # Errors
    /// No room among the system's temporary files.
    pub fn video(&mut self, video: &VideoQuality) -> io::Result<()> {
        let out = &mut self.videos;
        let psnr = video.psnr.map_or("no PSNR".into(), decibels);
        let (prompt, seed) = (escaped(&video.prompt), video.seed);
        writeln!(out, "<article>\n<h3>{prompt} <small>seed {seed}, {psnr}</small></h3>")?;
        for fault in &video.faults {
            writeln!(out, "<p class=\"bad\">{}</p>", escaped(&fault.to_string()))?;
        }
        std::mem::take(&mut self.strips).write(out)?;
        writeln!(out, "</article>")
    }

    /// Write the whole page.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(self, out: &mut impl Write, quality: &Quality, about: About<'_>) -> io::Result<()> {
        let (judged, reference) = (escaped(about.judged), escaped(about.reference));
        begin(out, &format!("Quality of {}", about.judged))?;
        writeln!(
            out,
            "<h1>Quality of <code>{judged}</code></h1>\n<p>against <code>{reference}</code>: {}</p>",
            escaped(about.settings)
        )?;
        if about.problems.is_empty() {
            writeln!(out, "<p class=\"verdict good\">Nothing is broken, no limit is missed.</p>")?;
        }
        for problem in about.problems {
            writeln!(out, "<p class=\"verdict bad\">{}</p>", escaped(problem))?;
        }
        writeln!(out, "<section class=\"tables\">")?;
        let tables = [Some(quality.summary_table()), quality.accuracy_table(), Some(quality.cost_table())];
        tables.iter().flatten().try_for_each(|t| table(out, t))?;
        writeln!(out, "</section>\n<section class=\"charts\">\n{}{}</section>", errors(quality), psnrs(quality))?;
        writeln!(out, "<h2>Videos</h2>")?;
        table(out, &quality.video_table())?;
        writeln!(
            out,
            "<h2>Frames</h2>\n<p>Above the reference, below it the judged video and how far they differ, {} times as bright as \
             it is.</p>",
            strip::GAIN
        )?;
        let mut videos = self.videos.into_inner().map_err(io::IntoInnerError::into_error)?;
        videos.rewind()?;
        io::copy(&mut videos, out)?;
        end(out)
    }
}

/// The chart of latent errors.
fn errors(quality: &Quality) -> String {
    let steps = &quality.summary.latent_error_by_step;
    let line = |name, class, of: fn(&Spread) -> f64| Line { name, class, values: steps.iter().map(of).collect() };
    Chart {
        title: "Latent error by step",
        across: "step",
        first: 1,
        is_logarithmic: true,
        faint: quality.videos.iter().take(MOST_LINES).map(|video| video.latent_error.as_slice()).collect(),
        lines: vec![line("mean", "mean", |s| s.mean), line("worst", "worst", |s| s.worst)],
    }
    .svg()
}

/// The chart of PSNR.
fn psnrs(quality: &Quality) -> String {
    let frames = quality.videos.iter().map(|video| video.frame_psnr.len()).max().unwrap_or(0);
    let of = |frame: usize| quality.videos.iter().filter_map(move |video| video.frame_psnr.get(frame).copied());
    let mean = |frame: usize| {
        let finite: Vec<_> = of(frame).filter(|psnr| psnr.is_finite()).collect();
        super::summary::mean(finite.into_iter())
    };
    Chart {
        title: "PSNR by frame, dB",
        across: "frame",
        first: 0,
        is_logarithmic: false,
        faint: quality.videos.iter().take(MOST_LINES).map(|video| video.frame_psnr.as_slice()).collect(),
        lines: vec![
            Line { name: "mean", class: "mean", values: (0..frames).map(mean).collect() },
            Line {
                name: "worst",
                class: "worst",
                values: (0..frames).map(|frame| of(frame).fold(f64::INFINITY, f64::min)).collect(),
            },
        ],
    }
    .svg()
}

fn table(out: &mut impl Write, table: &Table) -> io::Result<()> {
    let row = |tag: &str, cells: &[String]| {
        let cells = cells.iter().enumerate().map(|(i, cell)| {
            let tag = if i == 0 { "th" } else { tag };
            format!("<{tag}>{}</{tag}>", escaped(cell))
        });
        format!("<tr>{}</tr>", cells.collect::<String>())
    };
    writeln!(
        out,
        "<div class=\"scroll\" tabindex=\"0\"><table>\n<thead>{}</thead>\n<tbody>",
        row("th", &table.header)
    )?;
    for cells in &table.rows {
        writeln!(out, "{}", row("td", cells))?;
    }
    writeln!(out, "</tbody></table></div>")
}
