//! Pages in a real browser: Chromium without a window. `COGVX_CHROMIUM` names it where it is not on PATH, and `COGVX_SCREENSHOTS` a
//! folder that gets what was drawn.
#![allow(dead_code)] // Each test program uses a part.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use image::RgbImage;
use serde_json::Value;

use crate::common::{self, fresh_folder, said};

/// Names that Chromium goes by.
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
/// A desktop's window and a telephone's: columns, and whether the page is to be light or dark.
const WINDOWS: [(u32, &str); 3] = [(1200, "light"), (390, "light"), (390, "dark")];
/// Rows that are drawn; a page must not be longer.
const ROWS: u32 = 12_000;
/// No window is narrower than this, so that a telephone's page is in a frame of a wider one.
const LEAST: u32 = 500;
/// What Chromium is told: to show one page, and to leave the network and the desktop alone.
const FLAGS: [&str; 10] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--dump-dom",
];

/// Measures the page in the frame and writes what it finds beside it.
const SCRIPT: &str = include_str!("measure.js");

/// Assert that `page` looks right on a desktop and a telephone: nothing is wider than the window, no text lies on other text,
/// all pictures are there and are drawn, and no section is empty. Where there is no Chromium, say so.
pub fn look_at(page: &Path) {
    let Some(chromium) = chromium() else {
        return eprintln!(
            "skipped: expected Chromium on PATH, or where COGVX_CHROMIUM says, to look at {}",
            page.display()
        );
    };
    for (width, scheme) in WINDOWS {
        let problems = Shown::new(&chromium, page, width, scheme).problems(width, scheme);
        assert!(problems.is_empty(), "{}, {width} wide, {scheme}:\n{}", page.display(), problems.join("\n"));
    }
}

/// What is wrong of `page` on a telephone; none where there is no Chromium.
pub fn problems(page: &Path) -> Option<Vec<String>> {
    chromium().map(|chromium| Shown::new(&chromium, page, 390, "light").problems(390, "light"))
}

fn chromium() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("COGVX_CHROMIUM") {
        return Some(path.into());
    }
    let folders = std::env::var_os("PATH")?;
    let files = std::env::split_paths(&folders).flat_map(|folder| NAMES.map(|name| folder.join(name)));
    // Ubuntu has a script of this name that only tells what to install.
    let runs =
        |file: &PathBuf| Command::new(file).arg("--version").output().is_ok_and(|output| output.status.success());
    files.into_iter().filter(|file| file.is_file()).find(runs)
}

/// A page as it is shown.
struct Shown {
    /// What the script found.
    found: Value,
    picture: RgbImage,
}

impl Shown {
    fn new(chromium: &Path, page: &Path, width: u32, scheme: &str) -> Self {
        let folder = fresh_folder();
        let html = fs::read_to_string(page).unwrap_or_else(|e| panic!("{}: {e}", page.display()));
        let [wrapper, screenshot] = ["wrapper.html", "screenshot.png"].map(|name| folder.path().join(name));
        // A page may look into frames of its own text, but not into other files.
        let text = html.replace('&', "&amp;").replace('"', "&quot;");
        let outer = format!(
            "<!DOCTYPE html><meta charset=\"utf-8\"><body style=\"margin:0\">\
             <iframe style=\"display:block;border:0;width:{width}px;height:{ROWS}px;color-scheme:{scheme}\" srcdoc=\"{text}\"></iframe>\
             <pre id=\"found\"></pre><script>{SCRIPT}</script></body>"
        );
        fs::write(&wrapper, outer).expect("a writable folder");
        let option = |name: &str, path: &Path| format!("--{name}={}", path.display());
        let mut command = Command::new(chromium);
        command.args(FLAGS).arg(option("user-data-dir", &folder.path().join("profile")));
        command.arg(option("screenshot", &screenshot)).arg(format!("--window-size={},{ROWS}", width.max(LEAST)));
        let output = command.arg(&wrapper).output().unwrap_or_else(|e| panic!("{}: {e}", chromium.display()));
        let (name, said) = (format!("{width} wide, {scheme}"), said(&output));
        assert!(output.status.success(), "{name}: {said}");
        let complaints: Vec<_> = said.lines().filter(|line| line.contains(":CONSOLE")).collect();
        assert!(complaints.is_empty(), "{name}: {complaints:?}");
        let found = said.rsplit_once("<pre id=\"found\">").and_then(|(_, rest)| rest.split("</pre>").next());
        let found = serde_json::from_str(&found.unwrap_or_default().replace("&lt;", "<").replace("&gt;", ">"));
        let found = found.unwrap_or_else(|e| panic!("{name}: {e}: {said}"));
        let picture = image::open(&screenshot).unwrap_or_else(|e| panic!("{name}: {e}: {said}")).into_rgb8();
        if let Some(kept) = std::env::var_os("COGVX_SCREENSHOTS") {
            let file = Path::new(&kept).join(format!("{}-{width}-{scheme}.png", common::stem(page)));
            fs::copy(&screenshot, file).expect("a writable folder");
        }
        Self { found, picture }
    }

    /// What is wrong of it.
    fn problems(&self, width: u32, scheme: &str) -> Vec<String> {
        let Self { found, picture } = self;
        let list = |name: &str| found[name].as_array().cloned().unwrap_or_default();
        let height = found["height"].as_f64().unwrap_or_default();
        let mut problems = vec![];
        let mut expect = |is_so: bool, problem: &dyn Fn() -> String| {
            if !is_so {
                problems.push(problem());
            }
        };
        expect(picture.dimensions() == (width.max(LEAST), ROWS), &|| format!("drawn as {:?}", picture.dimensions()));
        expect(height > 200.0 && height < f64::from(ROWS), &|| format!("{height} rows"));
        expect(found["width"] == width && found["scroll"] == width, &|| format!("as wide as {}", found["scroll"]));
        expect(list("wide").is_empty(), &|| format!("wider than the page: {:?}", list("wide")));
        expect(list("overlaps").is_empty(), &|| format!("text on text: {:?}", list("overlaps")));
        let back = picture.get_pixel(1, 1).0;
        expect(back.iter().all(|&x| (x > 128) == (scheme == "light")), &|| format!("a background of {back:?}"));
        expect(list("sections").len() > 1, &|| "no sections".into());
        for section in list("sections") {
            let [top, bottom] = ["top", "bottom"].map(|side| section[side].as_f64().unwrap_or_default());
            let [colours, share] = self.seen([0.0, top, f64::from(width), bottom]);
            // Letters have many, for their edges are smooth.
            expect(colours > 8.0 && share > 0.005, &|| {
                format!("{}: {colours} colours, {share} of it drawn on", section["title"])
            });
        }
        expect(!list("pictures").is_empty(), &|| "no pictures".into());
        for one in list("pictures") {
            expect(one["loaded"] == true, &|| format!("{}: not loaded", one["name"].as_str().unwrap_or_default()));
            let place: Vec<_> = one["place"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
            if let Ok(place) = <[f64; 4]>::try_from(place) {
                let [colours, share] = self.seen(place);
                expect(colours > 1.0 && share > 0.5, &|| {
                    format!("{}: {colours} colours, {share} of it drawn", one["name"])
                });
            }
        }
        problems
    }

    /// How many colours a part of the page has, and how much of it is not the background.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Places on the page.
    fn seen(&self, place: [f64; 4]) -> [f64; 2] {
        let [left, top, right, bottom] = place.map(|x| x.max(0.0) as u32);
        let (right, bottom) = (right.min(self.picture.width()), bottom.min(self.picture.height()));
        let back = self.picture.get_pixel(1, 1);
        let pixels = (top..bottom).flat_map(|y| (left..right).map(move |x| self.picture.get_pixel(x, y)));
        let (mut colours, mut all, mut drawn) = (BTreeSet::new(), 0_u32, 0_u32);
        for pixel in pixels {
            colours.insert(pixel.0);
            (all, drawn) = (all + 1, drawn + u32::from(pixel != back));
        }
        [f64::from(u32::try_from(colours.len()).unwrap_or(u32::MAX)), f64::from(drawn) / f64::from(all.max(1))]
    }
}
