//! Files of somebody else's that a blob's name leads to: by what they are known again.
//!
//! Whoever owns such a file may put another in its place, and the length tells nothing: so what was looked at when its bytes
//! were read is written beside the name, and compared whenever the file is opened or found.

use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::str::FromStr;

/// What a file is known again by: another at its path, or a change of it, makes another of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
    size: u64,
    /// Time of change (not of modification, which anybody may set), in nanoseconds since 1970.
    changed: i128,
}

impl FileIdentity {
    /// Of the file that was asked about.
    pub fn of(metadata: &Metadata) -> Self {
        let changed = i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec());
        Self { device: metadata.dev(), inode: metadata.ino(), size: metadata.len(), changed }
    }

    /// The one that a small file keeps; `None` when that is not there or says something else.
    pub(super) fn read(path: &Path) -> Option<Self> {
        std::fs::read_to_string(path).ok()?.strip_suffix('\n')?.parse().ok()
    }
}

/// Four numbers: device, inode, size, time of change.
impl fmt::Display for FileIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.device, self.inode, self.size, self.changed)
    }
}

impl FromStr for FileIdentity {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let numbers: Vec<&str> = text.split(' ').collect();
        let &[device, inode, size, changed] = numbers.as_slice() else { return Err(()) };
        let number = |text: &str| text.parse().map_err(drop);
        Ok(Self {
            device: number(device)?,
            inode: number(inode)?,
            size: number(size)?,
            changed: changed.parse().map_err(drop)?,
        })
    }
}
