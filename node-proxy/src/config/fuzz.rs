//! The fuzz target of `integration/fuzz` for this binary's configuration.

use super::{Config, Raw};

/// A configuration file.
///
/// # Panics
/// When what `shoal_base::config::fuzz` says of any file does not hold.
pub fn config(data: &[u8]) {
    shoal_base::config::fuzz::file(data, |raw: Raw| Config::try_from(raw).map(drop));
}
