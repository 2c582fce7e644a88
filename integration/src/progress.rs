//! What a person sees while the lab works: a spinner on a terminal, plain lines elsewhere.
use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// Shows steps.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    shown: bool,
    terminal: bool,
}

/// A step under way; it ends when dropped.
#[derive(Debug)]
pub struct Step {
    what: String,
    start: Instant,
    shown: bool,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Shows steps on standard error.
    pub fn on_stderr() -> Self {
        Self { shown: true, terminal: std::io::stderr().is_terminal() }
    }

    /// Shows nothing.
    pub fn silent() -> Self {
        Self { shown: false, terminal: false }
    }

    /// Begins a step.
    pub fn step(&self, what: &str) -> Step {
        let bar = (self.shown && self.terminal).then(|| {
            let bar = ProgressBar::new_spinner().with_message(what.to_owned());
            let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if self.shown && !self.terminal {
            eprintln!("... {what}");
        }
        Step { what: what.to_owned(), start: Instant::now(), shown: self.shown, bar }
    }
}

impl Step {
    /// Ends the step with a word on how it went, instead of the time it took.
    pub fn done_with(mut self, result: &str) {
        self.end(result);
    }

    fn end(&mut self, result: &str) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        if std::mem::take(&mut self.shown) {
            eprintln!("    {}: {result}", self.what);
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        let took = format!("{:.1} s", self.start.elapsed().as_secs_f64());
        self.end(if std::thread::panicking() { "broken off" } else { &took });
    }
}
