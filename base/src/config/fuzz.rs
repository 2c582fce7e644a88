//! What holds for any configuration file, whatever it configures: the fuzz targets of `integration/fuzz`, and the test
//! that plays their corpora.

use std::io::Write as _;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Faults, load};

/// A file is refused with faults that name their keys, or accepted; what is accepted, written as a file again, is
/// accepted again and means the same. `check` is what the binary judges beyond the keys; its faults name keys too.
///
/// # Panics
/// When that does not hold.
pub fn file<T>(text: &[u8], check: impl FnOnce(T) -> Result<(), Faults>)
where
    T: Default + Serialize + DeserializeOwned + JsonSchema,
{
    let accepted = match load_text::<T>(text) {
        Ok(accepted) => accepted,
        Err(faults) => return assert_named(&faults),
    };
    let meaning = serde_json::to_value(&accepted).expect("settings are data");
    let written = toml::to_string(&accepted).expect("settings are data");
    let again = load_text::<T>(written.as_bytes())
        .unwrap_or_else(|faults| panic!("what was accepted is refused when it is written again:\n{faults}\n{written}"));
    assert_eq!(serde_json::to_value(&again).expect("settings are data"), meaning, "{written}");
    if let Err(faults) = check(accepted) {
        assert_named(&faults);
    }
}

fn assert_named(faults: &Faults) {
    assert!(!faults.is_empty(), "refused without a reason");
    for fault in faults {
        assert!(!fault.key.is_empty() && !fault.problem.is_empty(), "{fault:?}");
    }
}

fn load_text<T>(text: &[u8]) -> Result<T, Faults>
where
    T: Default + Serialize + DeserializeOwned + JsonSchema,
{
    use std::os::fd::AsRawFd as _;
    // In memory: nothing is left of it, and it is quick.
    let fd =
        nix::sys::memfd::memfd_create(c"config", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).expect("a file in memory");
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    std::fs::File::from(fd.try_clone().expect("a second handle")).write_all(text).expect("room for it");
    load(Some(path.as_ref()), "SHOAL_FUZZ", std::iter::empty(), &[])
}
