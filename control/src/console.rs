//! The web pages for operators.
//!
//! Will own pages, style and script, all embedded in the binary, and nothing else: every figure on a page comes from the
//! same [`crate::api::rest`] routes that `shoalctl` reads, so that a page never knows more than the API. Served on the
//! port of REST, beside `/api/v1`. Until then there is nothing here.
