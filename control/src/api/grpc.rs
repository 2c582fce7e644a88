//! `shoal.control.v1` for nodes.
