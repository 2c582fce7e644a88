//! Connections of the proxy: TLS with the right certificate or a wrong one, and an end by FIN or RST.
use std::{
    io,
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use anyhow::{Context as _, Result};
use rustls::server::ClientHello;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::Fault;
use crate::tls::Authority;

/// What the proxy can show.
pub(super) struct Certificates {
    right: Arc<rustls::ServerConfig>,
    wrong_name: Arc<rustls::ServerConfig>,
    stranger: Arc<rustls::ServerConfig>,
}

impl Certificates {
    pub(super) fn make(host: &str, dir: &Path, authority: &Authority) -> Result<Self> {
        let dir = dir.join("stranger");
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        Ok(Self {
            right: authority.leaf(host)?.server()?,
            wrong_name: authority.leaf("elsewhere.shoal.test")?.server()?,
            stranger: Authority::create(&dir)?.leaf(host)?.server()?,
        })
    }

    pub(super) fn of(&self, fault: Option<Fault>) -> Arc<rustls::ServerConfig> {
        match fault {
            Some(Fault::WrongName) => self.wrong_name.clone(),
            Some(Fault::Stranger) => self.stranger.clone(),
            _ => self.right.clone(),
        }
    }
}

/// Whether a client greets as rustls with its usual suites does. containerd is made with Go, which likes another suite best.
pub(super) fn is_rustls(hello: &ClientHello<'_>) -> bool {
    let usual = rustls::crypto::ring::default_provider().cipher_suites;
    let first = usual.first().map(|suite| suite.suite());
    first.is_some() && hello.cipher_suites().first().copied() == first
}

/// A TCP connection that ends by FIN, or by RST when that was ordered.
pub(super) struct Line {
    tcp: TcpStream,
    reset: Reset,
}

/// The order to end a connection by RST.
#[derive(Debug, Clone, Default)]
pub(super) struct Reset(Arc<AtomicBool>);

impl Reset {
    pub(super) fn order(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Line {
    pub(super) fn new(tcp: TcpStream, reset: Reset) -> Self {
        Self { tcp, reset }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.reset.0.load(Ordering::Relaxed)
            && let Err(error) = self.tcp.set_zero_linger()
        {
            tracing::warn!(%error, "fault proxy: order a reset");
        }
    }
}

impl AsyncRead for Line {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
