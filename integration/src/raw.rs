//! Bytes as nobody's client sends them, on a connection from inside a namespace, and what came back.
use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use crate::net::Netns;

/// The most of an answer that is kept.
const MOST: usize = 4 << 20;

/// What a server said, and whether it then ended the connection.
#[derive(Debug)]
pub struct Said {
    /// Everything it said.
    pub bytes: Vec<u8>,
    /// It closed the connection, or reset it.
    pub closed: bool,
}

impl Said {
    /// The statuses of the HTTP answers in it, in order.
    pub fn statuses(&self) -> Vec<u16> {
        let text = String::from_utf8_lossy(&self.bytes);
        let heads = text.match_indices("HTTP/1.").filter_map(|(at, _)| text.get(at + 9..at + 12)?.parse().ok());
        heads.collect()
    }
}

/// Sends bytes, and reads until the server closes or has said nothing for `quiet`.
///
/// # Errors
/// When no connection can be made.
pub async fn exchange(from: &Netns, to: SocketAddr, bytes: &[u8], quiet: Duration) -> Result<Said> {
    let (mut reader, mut writer) = from.connect(to).await?.into_split();
    let all = bytes.to_owned();
    // Beside reading: a server that answers early may read no more.
    let writing = tokio::spawn(async move {
        let _ = writer.write_all(&all).await;
        writer
    });
    let mut said = Said { bytes: Vec::new(), closed: false };
    let mut buffer = vec![0; 64 << 10];
    while said.bytes.len() < MOST {
        match timeout(quiet, reader.read(&mut buffer)).await {
            Ok(Ok(0) | Err(_)) => {
                said.closed = true;
                break;
            }
            Ok(Ok(len)) => said.bytes.extend_from_slice(&buffer[..len]),
            Err(_) => break,
        }
    }
    writing.abort();
    let _ = writing.await;
    Ok(said)
}

/// A listener inside a namespace, at an address that may be loopback, to which nobody should ever connect.
#[derive(Debug)]
pub struct Trap(tokio::net::TcpListener);

impl Trap {
    /// Listens.
    ///
    /// # Errors
    /// When the address is taken.
    pub fn set(ns: &Netns, at: SocketAddr) -> Result<Self> {
        ns.bind_at(at).map(Self).with_context(|| format!("set a trap at {at}"))
    }

    /// How many have connected since the last look.
    pub async fn caught(&self) -> usize {
        let mut caught = 0;
        while let Ok(Ok(_)) = timeout(Duration::from_millis(50), self.0.accept()).await {
            caught += 1;
        }
        caught
    }
}
