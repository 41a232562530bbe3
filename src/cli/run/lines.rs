//! The file of a batch: a JSON object a line, and where each video goes.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail};
use clap::ValueEnum;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;

use super::wish::Wish;
use crate::cli::prompts;

/// Most characters of a prompt in a file's name.
const SLUG: usize = 40;
/// Most characters of what was found in a message.
const SHOWN: usize = 60;

/// A video of a batch.
pub(super) struct Line {
    pub wish: Wish,
    /// In the batch's folder.
    pub output: PathBuf,
}

/// What a video is written as where its line does not say.
#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Form {
    Mp4,
    Gif,
    /// A contact sheet
    Png,
    /// uint8 [frames, height, width, 3]
    Npy,
    /// A folder of PNG images
    Frames,
}

/// The videos of the file at `path`; what a line does not say is as in `defaults`. They go to `folder`.
///
/// # Errors
/// The first thing that is wrong, by file, line and field.
pub(super) fn read(path: &Path, defaults: &Wish, folder: &Path, form: Form) -> anyhow::Result<Vec<Line>> {
    let text = prompts::text(path)?;
    let filled: Vec<_> = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).collect();
    if filled.is_empty() {
        bail!("`{}`: expected a JSON object a line, found none", path.display());
    }
    let digits = filled.len().to_string().len().max(3);
    let mut taken: HashMap<String, usize> = HashMap::new();
    let mut lines = vec![];
    for (i, (at, text)) in filled.into_iter().enumerate() {
        let at = at + 1;
        let wrong = |field: &str, expected: &str, found: &str| {
            anyhow!("`{}`, line {at}, `{field}`: expected {expected}, found {found}", path.display())
        };
        let (wish, output) = parse(text, defaults).map_err(|problem| match problem {
            Problem::Json(found) => {
                anyhow!("`{}`, line {at}: expected a JSON object, found {found}", path.display())
            }
            Problem::Field { field, expected, found } => wrong(&field, &expected, &found),
        })?;
        let name = match &output {
            Some(name) => {
                check_name(name).map_err(|expected| wrong("output", expected, &shown(name)))?;
                name.clone()
            }
            None => derived(i + 1, digits, &wish.prompt, form),
        };
        // Some systems do not tell capitals from others.
        if let Some(first) = taken.insert(name.to_lowercase(), at) {
            return Err(wrong("output", "a name of its own", &format!("{}, which line {first} has", shown(&name))));
        }
        lines.push(Line { wish, output: folder.join(name) });
    }
    Ok(lines)
}

enum Problem {
    Json(String),
    Field { field: String, expected: String, found: String },
}

fn parse(text: &str, defaults: &Wish) -> Result<(Wish, Option<String>), Problem> {
    let Fields(fields) = serde_json::from_str(text).map_err(|e| {
        let what = e.to_string();
        let what = what.split(" at line 1").next().unwrap_or_default();
        Problem::Json(format!("{what} at column {}", e.column()))
    })?;
    let (mut wish, mut output, mut prompt) = (defaults.clone(), None, false);
    let wrong = |field: &str, expected: &str, found: &str| Problem::Field {
        field: shown(field).trim_matches('`').into(),
        expected: expected.into(),
        found: found.into(),
    };
    for (i, (field, value)) in fields.iter().enumerate() {
        if fields[..i].iter().any(|(before, _)| before == field) {
            return Err(wrong(field, "it once", "it twice"));
        }
        let found = shown(&value.to_string());
        match field.as_str() {
            "output" => output = Some(value.as_str().ok_or_else(|| wrong(field, "a text", &found))?.to_string()),
            field if Wish::FIELDS.contains(&field) => {
                wish.set(field, value).map_err(|expected| wrong(field, &expected, &found))?;
            }
            _ => return Err(wrong(field, &format!("one of {}, output", Wish::FIELDS.join(", ")), "another field")),
        }
        prompt |= field == "prompt";
    }
    let has = |name: &str| fields.iter().any(|(field, _)| field == name);
    if !prompt {
        return Err(wrong("prompt", "a text", "none"));
    }
    if has("image") && has("video") {
        return Err(wrong("video", "it or `image`", "both"));
    }
    Ok((wish, output))
}

/// The fields of an object in their order, those that come twice too.
struct Fields(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = vec![];
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                    if fields.len() > 2 * Wish::FIELDS.len() {
                        return Err(A::Error::custom("too many fields"));
                    }
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

/// Whether `name` is a file's name and nothing else, on any system.
fn check_name(name: &str) -> Result<(), &'static str> {
    let odd = |c: char| c.is_control() || matches!(c, '/' | '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|');
    let plain = !name.contains(odd) && name.len() <= 200 && !name.starts_with('.') && !name.ends_with(['.', ' ']);
    if plain && !name.is_empty() { Ok(()) } else { Err("the name of a file in the folder of `--output`") }
}

/// `007-a-red-circle.mp4` of the seventh prompt.
fn derived(number: usize, digits: usize, prompt: &str, form: Form) -> String {
    let words = prompt.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let mut name = format!("{number:0digits$}");
    let most = name.len() + SLUG;
    for word in words {
        if name.len() + 1 + word.len() > most {
            break;
        }
        name = name + "-" + &word.to_ascii_lowercase();
    }
    let extension = match form {
        Form::Mp4 => ".mp4",
        Form::Gif => ".gif",
        Form::Png => ".png",
        Form::Npy => ".npy",
        Form::Frames => "",
    };
    name + extension
}

/// The start of a text, on one line.
fn shown(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars().take(SHOWN) {
        if matches!(c, '"' | '\'') { shown.push(c) } else { shown.extend(c.escape_debug()) }
    }
    format!("`{shown}{}`", if text.chars().nth(SHOWN).is_some() { "..." } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_number_and_prompt() {
        for (number, prompt, name) in [
            (1, "A red circle, moving left!", "001-a-red-circle-moving-left.mp4"),
            (12, "\u{4e00}\u{53ea}\u{732b}", "012.mp4"),
            (7, "../../etc/passwd", "007-etc-passwd.mp4"),
            (3, &"very ".repeat(40), "003-very-very-very-very-very-very-very-very.mp4"),
        ] {
            assert_eq!(derived(number, 3, prompt, Form::Mp4), name);
        }
    }

    #[test]
    fn only_plain_names_are_names() {
        for name in ["a.mp4", "frames", "\u{fc}ber uns.gif"] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        for name in
            ["", ".", "..", "../a.mp4", "/a.mp4", "a/b.mp4", "a\\b.mp4", "C:a.mp4", ".hidden", "a\0.mp4", "a.mp4 "]
        {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }
}
