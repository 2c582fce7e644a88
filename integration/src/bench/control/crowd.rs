//! Simulated nodes: a session with heartbeats on one connection each, and flights that only ask.
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use shoal_proto::control::v1::{self as wire, control_client::ControlClient};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Streaming,
    transport::{Channel, Endpoint},
};
use wire::{find_request, find_response, session_request, session_response};

const BOUND: Duration = Duration::from_secs(20);
const MEBIBYTE: u64 = 1 << 20;

/// Holdings in one message, as a node says them.
const BATCH: usize = 8;

/// A node was told of another cluster.
pub(super) struct Moved {
    pub(super) at: Instant,
}

/// One simulated node.
pub(super) struct Peer {
    grpc: ControlClient<Channel>,
    session: Vec<u8>,
    up: mpsc::Sender<wire::SessionRequest>,
}

fn says(message: session_request::Message) -> wire::SessionRequest {
    wire::SessionRequest { message: Some(message) }
}

/// The first nodes, so many: a power of two, at most 256.
pub(super) fn network(nodes: usize) -> String {
    format!("10.0.0.0/{}", 32 - nodes.trailing_zeros())
}

fn address(number: usize) -> String {
    format!("10.0.{}.{}", number / 256, number % 256)
}

fn digest(number: usize) -> Vec<u8> {
    let mut bytes = vec![0; 32];
    // As the bytes of a hash: far from each other.
    let mixed = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bytes[..8].copy_from_slice(&mixed.to_be_bytes());
    bytes[8..16].copy_from_slice(&(number as u64).to_be_bytes());
    bytes
}

impl Peer {
    /// Connects and registers; heartbeats go on as long as this lives.
    pub(super) async fn join(control: SocketAddr, number: usize, moved: mpsc::UnboundedSender<Moved>) -> Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{control}"))?.tcp_nodelay(true);
        let channel = tokio::time::timeout(BOUND, endpoint.connect()).await.context("connect to control")??;
        let mut grpc = ControlClient::new(channel);
        let (up, stream) = mpsc::channel(4);
        let register = wire::Register {
            node_id: format!("node-{number:05}"),
            instance: 1,
            name: format!("host-{number}"),
            version: "bench".to_owned(),
            facts: Some(wire::Facts { ip: address(number), ..wire::Facts::default() }),
            peer_port: 5081,
            role: wire::Role::Node.into(),
            ..wire::Register::default()
        };
        up.send(says(session_request::Message::Register(register))).await?;
        let down = tokio::time::timeout(BOUND, grpc.session(ReceiverStream::new(stream))).await;
        let mut down = down.context("open a session")??.into_inner();
        let assigned = loop {
            let word = tokio::time::timeout(BOUND, down.message()).await.context("wait for the assignment")??;
            match word.and_then(|word| word.message) {
                Some(session_response::Message::Assigned(assigned)) => break assigned,
                Some(_) => {}
                None => bail!("control closed a session"),
            }
        };
        let every = Duration::from_millis(u64::from(assigned.heartbeat_ms));
        tokio::spawn(live(down, up.clone(), every, number, moved));
        Ok(Self { grpc, session: assigned.session, up })
    }

    /// Says what it holds.
    pub(super) async fn announce(&self, digests: &[usize]) -> Result<()> {
        let held = |number: &usize| wire::Held {
            digest: digest(*number),
            size: MEBIBYTE,
            root: digest(*number),
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
            signature: Vec::new(),
        };
        let count = digests.chunks(BATCH).count();
        for (at, part) in digests.chunks(BATCH).enumerate() {
            let held = part.iter().map(held).collect();
            let announce = wire::Announce { reset: at == 0, held, dropped: Vec::new(), complete: at + 1 == count };
            self.up.send(says(session_request::Message::Announce(announce))).await?;
        }
        Ok(())
    }

    /// Asks who holds a blob, and goes. How many it was told of.
    pub(super) async fn find(&self, number: usize) -> Result<usize> {
        let (out, stream) = mpsc::channel(1);
        let start = wire::FindStart {
            digest: digest(number),
            session: self.session.clone(),
            registry: "registry.example".to_owned(),
            repository: "library/image".to_owned(),
            kind: wire::Kind::Blob.into(),
            may_read_origin: true,
            takes_runs: true,
            ..wire::FindStart::default()
        };
        out.send(wire::FindRequest { message: Some(find_request::Message::Start(start)) }).await?;
        let mut grpc = self.grpc.clone();
        let answer = tokio::time::timeout(BOUND, grpc.find(ReceiverStream::new(stream))).await;
        let mut answer = answer.context("no answer to Find")??.into_inner();
        loop {
            let word = tokio::time::timeout(BOUND, answer.message()).await.context("no word to Find")??;
            match word.and_then(|word| word.message) {
                Some(find_response::Message::Parents(parents)) => {
                    // Closed on purpose, and what is left of the answer is not waited for.
                    drop(out);
                    tokio::spawn(async move { while let Ok(Some(_)) = answer.message().await {} });
                    return Ok(parents.parents.len());
                }
                Some(find_response::Message::Stop(stop)) => bail!("control ends a Find: {stop:?}"),
                Some(_) => {}
                None => bail!("control closed a Find"),
            }
        }
    }
}

/// Heartbeats, and what control says of where the node belongs.
async fn live(
    mut down: Streaming<wire::SessionResponse>,
    up: mpsc::Sender<wire::SessionRequest>,
    every: Duration,
    number: usize,
    moved: mpsc::UnboundedSender<Moved>,
) {
    // Spread over the second, as nodes that started at different times are.
    let first = tokio::time::Instant::now() + every.mul_f64((number % 1000) as f64 / 1000.0);
    let mut tick = tokio::time::interval_at(first, every);
    let mut beats = 0_u64;
    loop {
        tokio::select! {
            _ = tick.tick() => {
                beats += 1;
                let heartbeat = wire::Heartbeat { upload_slots: 64, bytes_to_peers: beats * MEBIBYTE, ..wire::Heartbeat::default() };
                if up.send(says(session_request::Message::Heartbeat(heartbeat))).await.is_err() {
                    return;
                }
            }
            word = down.message() => match word {
                Ok(Some(word)) => {
                    if let Some(session_response::Message::Assigned(_)) = word.message {
                        let _ = moved.send(Moved { at: Instant::now() });
                    }
                }
                Ok(None) | Err(_) => return,
            },
        }
    }
}
