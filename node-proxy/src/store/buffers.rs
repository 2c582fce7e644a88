//! Buffers that are used again: to get and zero a new one for each read costs as much as the read.
//!
//! What always holds: at most [`KEPT`] of them lie idle, and nobody sees what another read left in one, since every byte that
//! is given out was read into it before.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

/// Bytes of a buffer: what readers and the hash of the whole ask for at once.
const SIZE: usize = 1 << 20;
/// Below this a buffer of its own is cheaper: the allocator keeps those at hand.
const SMALL: usize = 64 << 10;
/// Idle buffers, for a few readers at once. The memory of a node at rest.
const KEPT: usize = 4;

/// Where idle buffers are. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Buffers(Arc<Mutex<Vec<Box<[u8]>>>>);

/// A buffer on loan, with how much of it was asked for.
struct Loan {
    buffer: Box<[u8]>,
    len: usize,
    home: Buffers,
}

impl Buffers {
    /// `len` bytes, filled by `fill`, which must write all of them.
    ///
    /// # Errors
    /// What `fill` says.
    pub(super) fn filled<E>(&self, len: usize, fill: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<Bytes, E> {
        if !(SMALL..=SIZE).contains(&len) {
            let mut bytes = vec![0; len];
            fill(&mut bytes)?;
            return Ok(bytes.into());
        }
        let buffer = self.0.lock().pop().unwrap_or_else(|| vec![0; SIZE].into());
        let mut loan = Loan { buffer, len, home: self.clone() };
        fill(&mut loan.buffer[..len])?;
        Ok(Bytes::from_owner(loan))
    }
}

impl AsRef<[u8]> for Loan {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let mut idle = self.home.0.lock();
        if idle.len() < KEPT {
            idle.push(std::mem::take(&mut self.buffer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill_with(byte: u8) -> impl FnOnce(&mut [u8]) -> Result<(), ()> {
        move |buffer| {
            buffer.fill(byte);
            Ok(())
        }
    }

    #[test]
    fn a_buffer_comes_back_when_the_last_clone_of_its_bytes_is_gone() {
        let buffers = Buffers::default();
        let one = buffers.filled(SIZE, fill_with(1)).unwrap();
        let part = one.slice(5..10);
        drop(one);
        assert_eq!(buffers.0.lock().len(), 0);
        assert_eq!(&part[..], &[1; 5]);
        drop(part);
        assert_eq!(buffers.0.lock().len(), 1);
        let two = buffers.filled(SMALL, fill_with(2)).unwrap();
        assert_eq!((two.len(), two[0], buffers.0.lock().len()), (SMALL, 2, 0));
    }

    #[test]
    fn no_more_lie_idle_than_are_kept_and_odd_sizes_are_not_kept() {
        let buffers = Buffers::default();
        let many: Vec<Bytes> = (0..20).map(|byte| buffers.filled(SIZE, fill_with(byte)).unwrap()).collect();
        assert!(many.iter().zip(0..).all(|(bytes, byte)| bytes.iter().all(|is| *is == byte)));
        drop(many);
        assert_eq!(buffers.0.lock().len(), KEPT);
        assert_eq!(buffers.filled(3 * SIZE, fill_with(7)).unwrap().len(), 3 * SIZE);
        assert_eq!(buffers.filled(10, |_| Err(())), Err(()));
        assert_eq!(buffers.0.lock().len(), KEPT);
    }
}
