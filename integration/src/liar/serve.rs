//! The liar's side of the peer protocol.
use std::{sync::Arc, time::Duration};

use anyhow::{Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use rustls::ServerConfig;
use shoal_base::tls;
use shoal_proto::{
    PieceList,
    frame::{Frame, FrameCodec, Run},
};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::codec::Framed;

use crate::papers::Papers;

use super::{Asked, Claim, Lie, Table, other_bytes};

/// As often as a parent says `Wait`.
const WAIT_EVERY: Duration = Duration::from_millis(500);
/// Right blocks before one that stops does.
const BEFORE_THE_STOP: u32 = 2;
/// Hashes in one `List` frame.
const HASHES_A_PART: usize = 2048;

type Wire = Framed<tls::Wire, FrameCodec>;

/// Serves children until it is dropped.
pub(super) async fn children(listener: TcpListener, papers: Option<Papers>, table: Arc<Table>) {
    let server = papers.map(|papers| tls::server(&papers.keeper, true, &[]));
    let mut children = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { return };
                let (table, server) = (table.clone(), server.clone());
                children.spawn(async move {
                    // A child that ends the connection is what a lie ends in.
                    let _ = child(stream, server, &table).await;
                });
            }
            Some(_) = children.join_next() => {}
        }
    }
}

async fn child(stream: TcpStream, server: Option<Arc<ServerConfig>>, table: &Table) -> Result<()> {
    stream.set_nodelay(true)?;
    let stream = tls::Wire::accept(stream, server).await?;
    let mut wire = Framed::new(stream, FrameCodec::default());
    let hello = wire.next().await.transpose()?;
    ensure!(matches!(hello, Some(Frame::Hello(_))), "no hello but {hello:?}");
    wire.send(Frame::Hello(table.hello.clone())).await?;
    let (mut open, mut given) = (None, 0);
    while let Some(frame) = wire.next().await {
        match (frame?, &open) {
            (Frame::Open { digest, .. }, _) => {
                table.note(digest, Asked::Blob);
                open = table.claim(&digest);
                match &open {
                    Some(claim) => show(&mut wire, claim).await?,
                    None => wire.send(Frame::Gone).await?,
                }
            }
            (Frame::WantList, Some(claim)) => {
                table.note(claim.digest, Asked::List);
                list(&mut wire, claim).await?;
            }
            (Frame::Want(run), Some(claim)) => {
                table.note(claim.digest, Asked::Blocks);
                blocks(&mut wire, claim, run, &mut given).await?;
            }
            (Frame::Close, _) => wire.send(Frame::Closed).await?,
            (frame, _) => ensure!(open.is_none(), "a child says {frame:?}"),
        }
    }
    Ok(())
}

async fn show(wire: &mut Wire, claim: &Claim) -> Result<()> {
    let layout = claim.layout()?;
    let size = layout.size() + u64::from(claim.lie == Lie::OtherSize);
    wire.send(Frame::Blob { size, media_type: claim.media_type.clone(), whole: true }).await?;
    wire.send(Frame::Have(vec![Run { first: 0, count: layout.blocks() }])).await?;
    Ok(())
}

async fn list(wire: &mut Wire, claim: &Claim) -> Result<()> {
    let list = match claim.lie {
        Lie::NoList => return wait_for_ever(wire).await,
        Lie::OtherList => other_list(claim)?,
        _ => claim.list()?,
    };
    for (first, hashes) in list.runs(HASHES_A_PART) {
        wire.send(Frame::List { first, hashes: hashes.into() }).await?;
    }
    wire.send(Frame::List { first: 0, hashes: Bytes::new() }).await?;
    Ok(())
}

fn other_list(claim: &Claim) -> Result<PieceList> {
    Claim { bytes: other_bytes(&claim.bytes), ..claim.clone() }.list()
}

async fn blocks(wire: &mut Wire, claim: &Claim, run: Run, given: &mut u32) -> Result<()> {
    let layout = claim.layout()?;
    for block in run.blocks() {
        let bytes = claim.block(layout, block);
        let bytes = match claim.lie {
            Lie::OtherBytes => other_bytes(&bytes),
            Lie::LongBlocks => [&bytes[..], b"!"].concat().into(),
            Lie::ShortBlocks => bytes.slice(..bytes.len() - 1),
            Lie::UnaskedBlocks => {
                let unasked = (block + 1) % layout.blocks();
                wire.send(Frame::Block { block: unasked, bytes: claim.block(layout, unasked) }).await?;
                bytes
            }
            Lie::Ends if *given == BEFORE_THE_STOP => bail!("it stops in the middle"),
            Lie::FallsSilent if *given == BEFORE_THE_STOP => return std::future::pending().await,
            Lie::Waits => return wait_for_ever(wire).await,
            Lie::Drips => return drip(wire, Frame::Block { block, bytes }).await,
            _ => bytes,
        };
        wire.send(Frame::Block { block, bytes }).await?;
        *given += 1;
    }
    Ok(())
}

async fn wait_for_ever(wire: &mut Wire) -> Result<()> {
    let mut every = tokio::time::interval(WAIT_EVERY);
    loop {
        every.tick().await;
        wire.send(Frame::Wait).await?;
    }
}

/// A byte a second.
async fn drip(wire: &mut Wire, frame: Frame) -> Result<()> {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes);
    let mut every = tokio::time::interval(Duration::from_secs(1));
    for byte in bytes {
        every.tick().await;
        wire.get_mut().write_all(&[byte]).await?;
        wire.get_mut().flush().await?;
    }
    Ok(())
}
