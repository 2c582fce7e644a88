//! Who stands where control should and shows a certificate that is not control's: it takes every connection and hears what it is told.
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Result;
use shoal_base::tls::{self, Keeper, Wire};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::task::AbortOnDropHandle;

use crate::{control::GRPC_PORT, net::Netns};

/// Whoever has something to say says it within this.
const PATIENCE: Duration = Duration::from_secs(2);

/// What it was told.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    /// Connections.
    pub connections: usize,
    /// Of those: handshakes that ended well.
    pub handshakes: usize,
    /// What was said inside.
    pub bytes: Vec<u8>,
}

/// The impostor. Dropped, it is gone.
pub struct Impostor {
    heard: Arc<Mutex<Heard>>,
    serving: AbortOnDropHandle<()>,
}

impl Impostor {
    /// Stands at control's port in the namespace, and shows what the keeper shows. A certificate it asks for, and does without.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn stand(ns: &Netns, keeper: &Arc<Keeper>) -> Result<Self> {
        let (listener, heard) = (ns.bind(GRPC_PORT)?, Arc::<Mutex<Heard>>::default());
        let serving = tokio::spawn(serve(listener, tls::server(keeper, false, &[b"h2"]), heard.clone()));
        Ok(Self { heard, serving: AbortOnDropHandle::new(serving) })
    }

    /// Leaves control's place, which is free when this is over.
    pub async fn leave(self) {
        self.serving.abort();
        // Aborted, not failed: there is nothing to learn from its end.
        let _ = self.serving.await;
    }

    /// What it was told so far.
    pub fn heard(&self) -> Heard {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn serve(listener: TcpListener, config: Arc<rustls::ServerConfig>, heard: Arc<Mutex<Heard>>) {
    let mut talks = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                talks.spawn(listen(stream, config.clone(), heard.clone()));
            }
            Some(_) = talks.join_next(), if !talks.is_empty() => {}
        }
    }
}

async fn listen(stream: TcpStream, config: Arc<rustls::ServerConfig>, heard: Arc<Mutex<Heard>>) {
    let note = |what: &dyn Fn(&mut Heard)| what(&mut heard.lock().unwrap_or_else(PoisonError::into_inner));
    note(&|heard| heard.connections += 1);
    let Ok(Ok(mut wire)) = tokio::time::timeout(PATIENCE, Wire::accept(stream, Some(config))).await else { return };
    note(&|heard| heard.handshakes += 1);
    let mut buffer = [0; 4096];
    while let Ok(Ok(len @ 1..)) = tokio::time::timeout(PATIENCE, wire.read(&mut buffer)).await {
        note(&|heard| heard.bytes.extend_from_slice(&buffer[..len]));
    }
}
