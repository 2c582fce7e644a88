//! The `install` room.
