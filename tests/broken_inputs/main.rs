//! Broken inputs, each of its own kind: exit code 2, one message that says what is wrong where, and no file
//! left behind.
#![cfg(unix)]
#![allow(clippy::too_many_lines)] // Tables.

mod batches;
mod checkpoints;
mod commands;
mod configs;
mod full;
mod pictures;
mod references;
mod runs;
#[path = "../scene/mod.rs"]
mod scene;
mod states;
mod tables;
mod vae;
mod weights;

use scene::Scene;

/// One broken input. `line` is the command, `message` what it says after `error: `.
struct Case {
    name: &'static str,
    breaks: fn(&Scene),
    line: &'static str,
    message: &'static str,
}

/// A checkpoint whose export is refused.
const fn export(name: &'static str, breaks: fn(&Scene), message: &'static str) -> Case {
    Case { name, breaks, line: "cogvx-export CKPT -o OUT", message }
}

/// A command line that is refused.
const fn refused(name: &'static str, line: &'static str, breaks: fn(&Scene), message: &'static str) -> Case {
    Case { name, breaks, line, message }
}

/// Nothing is broken but the command line.
fn intact(_: &Scene) {}

/// Run every case on a fresh copy of `fixture`, then show all that went otherwise than expected.
fn check(fixture: &str, cases: &[Case]) {
    let mut failures = vec![];
    for case in cases {
        let scene = Scene::new(fixture);
        (case.breaks)(&scene);
        let before = scene.listing();
        let said = scene.run(case.line);
        let after = scene.listing();
        let (progress, message) = said.stderr.split_once("error: ").unwrap_or((&said.stderr, "no message"));
        let mut wrong = vec![];
        if said.code != Some(2) {
            wrong.push(format!("exit code: expected 2, found {:?} (none: killed or hung)", said.code));
        }
        if !progress.lines().all(is_progress) {
            wrong.push(format!("more than one message: {progress:?}"));
        }
        // After an empty line clap says how the command is used.
        let message = folded(message.split("\n\n").next().unwrap_or_default().trim_end());
        if message != case.message {
            wrong.push(format!("expected: {}\n   found: {message}", case.message));
        }
        if !said.stdout.is_empty() {
            wrong.push(format!("on standard output: {:?}", said.stdout));
        }
        let changed = before.keys().chain(after.keys()).filter(|path| before.get(*path) != after.get(*path));
        wrong.extend(changed.map(|path| format!("made, changed or removed: {}", path.display())));
        if !wrong.is_empty() {
            failures.push(format!("{}\n  {}", case.name, wrong.join("\n  ")));
        }
    }
    assert!(failures.is_empty(), "{} of {}:\n\n{}", failures.len(), cases.len(), failures.join("\n"));
}

/// A long list as its start and its end.
fn folded(message: &str) -> String {
    match message.lines().collect::<Vec<_>>().as_slice() {
        [first, second, third, .., last] if message.lines().count() > 12 => {
            format!("{first}\n{second}\n{third}\n  (and so on)\n{last}")
        }
        _ => message.into(),
    }
}

/// Whether a line on standard error says how far the command is.
fn is_progress(line: &str) -> bool {
    let graph = line.split('/').count() == 2 && line.contains(".onnx");
    graph || ["step ", "frame ", "comparing "].iter().any(|start| line.starts_with(start))
}
