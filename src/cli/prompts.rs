//! The prompts of commands that run many.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail};
use clap::Args;
use serde::Deserialize;

use crate::calibrate::PROMPTS;
use crate::pipeline::Prompt;

/// Largest file of prompts.
const MOST: u64 = 16 << 20;

/// What videos are of, and what they start from.
#[derive(Args, Default)]
pub(super) struct Prompts {
    /// Prompts, one a line [default: prompts.txt in the folder of the checkpoint, or a set that comes with cogvx]
    ///
    /// A line may also be a JSON object of `prompt` and `image`, as `cogvx run --prompts` reads them; then all lines are.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Start from this image (PNG, JPEG, GIF), for image-to-video models; of several, videos take one after the other in turn
    #[arg(long)]
    image: Vec<PathBuf>,
}

/// A line of a file of JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    prompt: String,
    image: Option<PathBuf>,
}

impl Prompts {
    /// The usual prompts, from these images.
    pub fn of_images(image: &[PathBuf]) -> Self {
        Self { prompts: None, image: image.to_vec() }
    }

    /// The first `count` prompts, if there are so many: of the file given, or of the first of `folders` that has a `prompts.txt`, or
    /// those that come with cogvx.
    pub fn first(&self, count: usize, folders: &[&Path]) -> anyhow::Result<Vec<Prompt>> {
        Ok(self.with_images(self.read(folders)?.into_iter().take(count.max(1))))
    }

    /// The same, but `count` of them: beyond the last one it begins anew.
    pub fn cycled(&self, count: usize, folders: &[&Path]) -> anyhow::Result<Vec<Prompt>> {
        Ok(self.with_images(self.read(folders)?.into_iter().cycle().take(count)))
    }

    /// An image for each prompt whose line does not say one.
    fn with_images(&self, prompts: impl Iterator<Item = Prompt>) -> Vec<Prompt> {
        let in_turn = |(i, prompt): (usize, Prompt)| {
            let image = || self.image.get(i % self.image.len().max(1)).cloned();
            Prompt { image: prompt.image.or_else(image), ..prompt }
        };
        prompts.enumerate().map(in_turn).collect()
    }

    fn read(&self, folders: &[&Path]) -> anyhow::Result<Vec<Prompt>> {
        let own = folders.iter().map(|folder| folder.join("prompts.txt")).find(|own| own.is_file());
        let file = self.prompts.as_deref().or(own.as_deref());
        let text = file.map_or_else(|| Ok(PROMPTS.to_string()), text)?;
        let of = file.map_or("the prompts".to_string(), |file| format!("`{}`", file.display()));
        let mut lines = text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty()).peekable();
        let is_json = lines.peek().is_some_and(|(_, line)| line.starts_with('{'));
        let prompt = |(at, line): (usize, &str)| {
            if !is_json {
                return Ok(Prompt { text: line.into(), image: None });
            }
            let Line { prompt, image } = serde_json::from_str(line).map_err(|e| {
                let what = e.to_string();
                let what = what.split(" at line 1").next().unwrap_or_default();
                let (line, column) = (at + 1, e.column());
                anyhow!(
                    "{of}, line {line}: expected a JSON object of `prompt` and `image`, found {what} at column {column}"
                )
            })?;
            Ok(Prompt { text: prompt, image })
        };
        let prompts = lines.map(prompt).collect::<anyhow::Result<Vec<_>>>()?;
        if prompts.is_empty() {
            bail!("{of}: expected a prompt a line, found none");
        }
        Ok(prompts)
    }
}

pub(super) fn text(path: &Path) -> anyhow::Result<String> {
    let mut opened = cogvx_graphs::source::open_regular(path)?;
    if opened.bytes > MOST {
        bail!("`{}`: expected at most {MOST} bytes of prompts, found {}", path.display(), opened.bytes);
    }
    let mut text = String::new();
    opened.file.read_to_string(&mut text).map_err(|e| anyhow!("`{}`: {e}", path.display()))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("a file");
        file
    }

    #[test]
    fn images_are_taken_in_turn_where_lines_say_none() {
        let file =
            file("{\"prompt\": \"a fox\"}\n\n{\"prompt\": \"a boat\", \"image\": \"own.png\"}\n{\"prompt\": \"\"}\n");
        let image = ["a.png", "b.png"].map(PathBuf::from).to_vec();
        let prompts = Prompts { prompts: Some(file.path().into()), image };
        let taken = |prompts: Vec<Prompt>| -> Vec<_> {
            prompts
                .into_iter()
                .map(|prompt| (prompt.text, prompt.image.map(|path| path.display().to_string())))
                .collect()
        };
        let expected = [("a fox", "a.png"), ("a boat", "own.png"), ("", "a.png"), ("a fox", "b.png")];
        let expected = expected.map(|(text, image)| (text.to_string(), Some(image.to_string())));
        assert_eq!(taken(prompts.first(8, &[]).expect("prompts")), expected[..3]);
        assert_eq!(taken(prompts.cycled(4, &[]).expect("prompts")), expected);
        let none = Prompts { image: vec![], ..prompts };
        let images = none.cycled(3, &[]).expect("prompts").into_iter().map(|prompt| prompt.image);
        assert_eq!(images.collect::<Vec<_>>(), [None, Some("own.png".into()), None]);
    }

    #[test]
    fn what_is_no_prompt_is_told_by_its_line() {
        for (text, expected) in [
            ("", "expected a prompt a line, found none"),
            (
                "{\"prompt\": \"a\"}\na fox",
                ", line 2: expected a JSON object of `prompt` and `image`, found expected value at column 1",
            ),
            (
                "\n{\"image\": \"a\"}",
                ", line 2: expected a JSON object of `prompt` and `image`, found missing field `prompt` at column 14",
            ),
            (
                "{\"prompt\": \"a\", \"seed\": 1}",
                "found unknown field `seed`, expected `prompt` or `image` at column 22",
            ),
        ] {
            let file = file(text);
            let prompts = Prompts { prompts: Some(file.path().into()), image: vec![] };
            let problem = prompts.first(1, &[]).expect_err(text).to_string();
            assert!(problem.contains(expected), "{problem}");
        }
        // One that is no object begins with something else.
        let file = file("a {fox}\n");
        let prompts = Prompts { prompts: Some(file.path().into()), image: vec![] };
        assert_eq!(prompts.first(1, &[]).expect("a prompt")[0].text, "a {fox}");
    }
}
