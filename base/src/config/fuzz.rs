//! What holds for any configuration file, whatever it configures: the fuzz targets of `integration/fuzz`, and the test
//! that plays their corpora.

use std::io::Write as _;
use std::marker::PhantomData;
use std::os::fd::AsRawFd as _;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::schema::Shape;
use super::{Faults, load_shaped};

/// Files of one type of configuration. Made once, since making its shape takes longer than all the rest.
pub struct Files<T> {
    shape: Shape,
    of: PhantomData<fn() -> T>,
}

impl<T> Files<T>
where
    T: Default + Serialize + DeserializeOwned + JsonSchema,
{
    /// Of this type.
    #[allow(clippy::new_without_default, reason = "it is not cheap")]
    pub fn new() -> Self {
        Self { shape: Shape::of::<T>(), of: PhantomData }
    }

    /// A file is refused with faults that name their keys, or accepted; what is accepted, written as a file again, is
    /// accepted again and means the same. `check` is what the binary judges beyond the keys; its faults name keys too.
    ///
    /// # Panics
    /// When that does not hold.
    pub fn holds(&self, text: &[u8], check: impl FnOnce(T) -> Result<(), Faults>) {
        let accepted = match self.load(text) {
            Ok(accepted) => accepted,
            Err(faults) => return assert_named(&faults),
        };
        let meaning = serde_json::to_value(&accepted).expect("settings are data");
        let written = toml::to_string(&accepted).expect("settings are data");
        let again = self.load(written.as_bytes()).unwrap_or_else(|faults| {
            panic!("what was accepted is refused when it is written again:\n{faults}\n{written}")
        });
        assert_eq!(serde_json::to_value(&again).expect("settings are data"), meaning, "{written}");
        if let Err(faults) = check(accepted) {
            assert_named(&faults);
        }
    }

    fn load(&self, text: &[u8]) -> Result<T, Faults> {
        // In memory: nothing is left of it, and it is quick.
        let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
        let fd = nix::sys::memfd::memfd_create(c"config", flags).expect("a file in memory");
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        std::fs::File::from(fd.try_clone().expect("a second handle")).write_all(text).expect("room for it");
        load_shaped(&self.shape, Some(path.as_ref()), "SHOAL_FUZZ", std::iter::empty(), &[])
    }
}

fn assert_named(faults: &Faults) {
    assert!(!faults.is_empty(), "refused without a reason");
    for fault in faults {
        assert!(!fault.key.is_empty() && !fault.problem.is_empty(), "{fault:?}");
    }
}
