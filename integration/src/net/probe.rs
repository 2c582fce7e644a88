//! Measures what a link really passes: a TCP stream from one machine to another.
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Netns;

/// Bits per second that one TCP stream gets from `from` to `to` in about `span`, after as long a start.
///
/// # Errors
/// When the stream can't be opened or breaks.
pub async fn measure_rate(from: &Netns, to: &Netns, span: Duration) -> Result<u64> {
    let listener = to.bind(0)?;
    let port = listener.local_addr()?.port();
    let sender = async {
        let mut stream = from.connect(SocketAddr::new(to.address.into(), port)).await?;
        let chunk = vec![0x5a_u8; 256 << 10];
        let start = Instant::now();
        while start.elapsed() < span * 2 {
            stream.write_all(&chunk).await?;
        }
        stream.shutdown().await?;
        anyhow::Ok(())
    };
    let receiver = async {
        let (mut stream, _) = listener.accept().await?;
        let mut buffer = vec![0_u8; 1 << 20];
        let begin = Instant::now();
        let mut counted: u64 = 0;
        let mut since = None;
        loop {
            let n = stream.read(&mut buffer).await?;
            if n == 0 {
                break;
            }
            match since {
                // The first half fills queues and windows.
                None if begin.elapsed() >= span => since = Some(Instant::now()),
                None => {}
                Some(_) => counted += n as u64,
            }
        }
        let elapsed = since.context("the stream ended before it was measured")?.elapsed();
        anyhow::Ok((counted as f64 * 8.0 / elapsed.as_secs_f64()) as u64)
    };
    let ((), rate) = tokio::try_join!(sender, receiver)?;
    Ok(rate)
}
