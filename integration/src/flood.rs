//! Connections that nobody wants: random bytes in great number, and requests that never end.
//!
//! Traffic goes to one listener of the lab's own, from inside a namespace of the lab's; how much is bounded by the caller.
use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::net::Netns;

/// The most bytes that one connection sends.
const MOST_BYTES: usize = 2000;
/// A listener that has not ended a connection by then, after we ended our half, is said to hang.
const PATIENCE: Duration = Duration::from_secs(15);
/// Connections open at once.
const AT_ONCE: usize = 64;

/// What became of the connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Poured {
    /// The listener said something before it closed.
    pub answered: usize,
    /// The listener closed without a word, or reset the connection.
    pub closed: usize,
    /// The listener neither answered nor closed.
    pub hung: usize,
}

/// Opens `count` connections, sends random bytes on each, ends our half, and waits for the listener to end the other. A third
/// of them begin like something that the listener knows (`like`), so that the bytes get past its first look.
///
/// # Errors
/// When a connection can't be made at all.
pub async fn random_bytes(from: &Netns, to: SocketAddr, count: usize, seed: u64, like: &[u8]) -> Result<Poured> {
    let like = like.to_vec();
    let pour = move || {
        let mut random = Random(seed | 1);
        let mut poured = Poured::default();
        let mut left = count;
        while left > 0 {
            let batch = left.min(AT_ONCE);
            let mut open = Vec::with_capacity(batch);
            for _ in 0..batch {
                let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
                let mut bytes = if random.next().is_multiple_of(3) { like.clone() } else { Vec::new() };
                let len = bytes.len() + random.next() as usize % MOST_BYTES;
                bytes.resize_with(len, || random.next() as u8);
                // The listener may have closed already.
                let _ = stream.write_all(&bytes);
                let _ = stream.shutdown(Shutdown::Write);
                open.push(stream);
            }
            for stream in open {
                match end_of(stream) {
                    End::Said => poured.answered += 1,
                    End::Closed => poured.closed += 1,
                    End::Hangs => poured.hung += 1,
                }
            }
            left -= batch;
        }
        Ok(poured)
    };
    let from = from.clone();
    tokio::task::spawn_blocking(move || from.within(pour)).await?.with_context(|| format!("pour bytes on {to}"))
}

/// Connections that are held open in the middle of a request. They close when it is dropped.
pub struct HalfOpen(Vec<TcpStream>);

impl HalfOpen {
    /// Opens `count` connections that send `start` and then nothing.
    ///
    /// # Errors
    /// When a connection can't be made.
    pub async fn open(from: &Netns, to: SocketAddr, count: usize, start: &[u8]) -> Result<Self> {
        let (from, start) = (from.clone(), start.to_vec());
        let open = move || {
            let one = |_| {
                let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
                let _ = stream.write_all(&start);
                Ok(stream)
            };
            (0..count).map(one).collect::<std::io::Result<Vec<_>>>()
        };
        let open = tokio::task::spawn_blocking(move || from.within(open)).await?;
        Ok(Self(open.with_context(|| format!("open half connections to {to}"))?))
    }

    /// How many the listener has not ended by itself within a time from now.
    ///
    /// # Errors
    /// When the wait can't be made.
    pub async fn left_after(self, time: Duration) -> Result<usize> {
        let until = Instant::now() + time;
        let wait = move || {
            let mut left = 0;
            for stream in self.0 {
                let patience = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
                left += usize::from(matches!(end_within(stream, patience), End::Hangs));
            }
            left
        };
        Ok(tokio::task::spawn_blocking(wait).await?)
    }
}

enum End {
    Said,
    Closed,
    Hangs,
}

fn end_of(stream: TcpStream) -> End {
    end_within(stream, PATIENCE)
}

fn end_within(mut stream: TcpStream, patience: Duration) -> End {
    let until = Instant::now() + patience;
    let mut said = false;
    let mut buffer = [0; 4096];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || stream.set_read_timeout(Some(left)).is_err() {
            return End::Hangs;
        }
        match stream.read(&mut buffer) {
            Ok(0) if said => return End::Said,
            Ok(0) => return End::Closed,
            Ok(_) => said = true,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                return End::Hangs;
            }
            Err(_) if said => return End::Said,
            Err(_) => return End::Closed,
        }
    }
}

/// Marsaglia's xorshift: the same bytes for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 8
    }
}
