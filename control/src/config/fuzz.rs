//! The fuzz target of `integration/fuzz` for this binary's configuration.

use shoal_base::config::fuzz::Files;

use super::{Config, Raw};

thread_local! {
    static FILES: Files<Raw> = Files::new();
}

/// A configuration file.
///
/// # Panics
/// When what [`Files::holds`] says of any file does not hold.
pub fn config(data: &[u8]) {
    FILES.with(|files| files.holds(data, |raw| Config::try_from(raw).map(drop)));
}
