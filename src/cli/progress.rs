//! Progress: a bar on a terminal, plain lines otherwise, always on standard error.

use std::io::{IsTerminal, Write as _};

use indicatif::{ProgressBar, ProgressStyle};

/// How far a command is.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Messages, one replacing the other on a terminal.
    pub fn lines() -> Self {
        Self { bar: terminal().then(ProgressBar::new_spinner) }
    }

    /// `total` steps of something called `name`.
    pub fn steps(name: &'static str, total: usize) -> Self {
        let bar = terminal().then(|| {
            let style = "{prefix} {wide_bar} {pos}/{len} · {eta} left";
            let style = ProgressStyle::with_template(style).expect("a correct template");
            ProgressBar::new(total as u64).with_style(style).with_prefix(name)
        });
        if let Some(bar) = &bar {
            bar.tick();
        }
        Self { bar }
    }

    /// Something is begun.
    pub fn message(&self, text: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_message(text.to_string());
                bar.tick();
            }
            None => say(text),
        }
    }

    /// `done` steps are done; `line` says so where there is no bar.
    pub fn step(&self, done: usize, line: impl FnOnce() -> String) {
        match &self.bar {
            Some(bar) => bar.set_position(done as u64),
            None => say(&line()),
        }
    }

    /// `done` steps are done, which is told where there is a bar.
    pub fn reach(&self, done: usize) {
        if let Some(bar) = &self.bar {
            bar.set_position(done as u64);
        }
    }

    /// Nothing more to come.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A line on standard error; that nobody reads it is no reason to end.
pub(super) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn terminal() -> bool {
    std::io::stderr().is_terminal()
}
