//! A clock of a daemon's own, which can be stepped while it runs: libfaketime, preloaded into that daemon alone.
//!
//! As a rule only the wall clock steps, as when an operator or NTP sets it; the monotonic clock goes on, as the kernel's does. Where
//! time itself is to pass, both step ([`Clock::of_all`]). The machine's own clock is never touched.
use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// The clock of a daemon.
#[derive(Debug, Clone)]
pub struct Clock {
    library: PathBuf,
    file: PathBuf,
    /// Whether the monotonic clock steps too.
    all: bool,
}

impl Clock {
    /// A clock that is right, told by `file`.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn new(library: &Path, file: &Path) -> Result<Self> {
        let clock = Self { library: library.to_owned(), file: file.to_owned(), all: false };
        clock.set(0)?;
        Ok(clock)
    }

    /// The same for all of the daemon's clocks: put forward, whatever it measures has taken so much longer. Not to be put back.
    #[must_use]
    pub fn of_all(self) -> Self {
        Self { all: true, ..self }
    }

    /// Sets how many seconds the clock is ahead of the machine's.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn set(&self, ahead: i64) -> Result<()> {
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{ahead:+}\n")).with_context(|| format!("write {}", new.display()))?;
        // Whoever reads it meanwhile sees the old or the new one.
        fs::rename(&new, &self.file).with_context(|| format!("replace {}", self.file.display()))
    }

    /// What a daemon needs in its environment to live by it.
    pub fn environment(&self) -> [(&'static str, String); 5] {
        [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", if self.all { "0" } else { "1" }.to_owned()),
            // What the file system stamped stays as it is when a clock is set.
            ("NO_FAKE_STAT", "1".to_owned()),
        ]
    }
}
