//! Peers that speak garbage, too long, too slowly or too much, to a real node: as `docs/peer-protocol.md` says, and nothing is left.
use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::{BufMut, BytesMut};
use futures::{SinkExt, StreamExt};
use lab::{
    aftermath,
    faults::stage::expect_label,
    image::{Image, Plan},
    memory::own_now,
    net::Netns,
    wait::eventually,
    world::{World, WorldPlan},
};
use shoal_proto::{
    ClusterId, Digest,
    frame::{Frame, FrameCodec, Hello, Refusal, Run},
};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};
use tokio_util::codec::Framed;

use super::{MIB, descriptors};
use crate::alone;

/// For an answer.
const BOUND: Duration = Duration::from_secs(5);

type Wire = Framed<TcpStream, FrameCodec>;

/// How a connection of ours ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Refused(Refusal),
    /// Closed without a word.
    Closed,
}

/// Who speaks to whom.
struct Scene {
    from: Netns,
    to: SocketAddr,
    cluster: ClusterId,
    digest: Digest,
    blocks: u32,
}

impl Scene {
    async fn dial(&self) -> Result<Wire> {
        Ok(Framed::new(self.from.connect(self.to).await?, FrameCodec::default()))
    }

    fn hello(&self) -> Frame {
        let node = "stranger".parse().expect("an id");
        Frame::Hello(Hello { cluster: self.cluster.clone(), node, epoch: 1 })
    }

    async fn greeted(&self) -> Result<Wire> {
        let mut wire = self.dial().await?;
        wire.send(self.hello()).await?;
        let hello = next(&mut wire).await?;
        ensure!(matches!(hello, Some(Frame::Hello(_))), "no hello but {hello:?}");
        Ok(wire)
    }

    async fn opened(&self) -> Result<Wire> {
        let mut wire = self.greeted().await?;
        wire.send(self.open()).await?;
        let blob = next(&mut wire).await?;
        ensure!(matches!(blob, Some(Frame::Blob { whole: true, .. })), "no blob but {blob:?}");
        ensure!(matches!(next(&mut wire).await?, Some(Frame::Have(_))), "it shows nothing");
        Ok(wire)
    }

    fn open(&self) -> Frame {
        Frame::Open { digest: self.digest, traceparent: String::new(), holders: 1 }
    }
}

async fn next(wire: &mut Wire) -> Result<Option<Frame>> {
    timeout(BOUND, wire.next()).await.context("no frame in time")?.transpose().context("read a frame")
}

/// The end of a connection, blocks before it passed over.
async fn end(wire: &mut Wire, bound: Duration) -> Result<End> {
    let waiting = async {
        loop {
            match wire.next().await {
                Some(Ok(Frame::Refused(refusal))) => return Ok(End::Refused(refusal)),
                Some(Ok(Frame::Block { .. } | Frame::Wait | Frame::Have(_))) => {}
                Some(Ok(other)) => bail!("an answer: {other:?}"),
                None | Some(Err(_)) => return Ok(End::Closed),
            }
        }
    };
    timeout(bound, waiting).await.context("the connection was not ended")?
}

fn frame(kind: u8, reserved: u8, len: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, reserved, 0, 0];
    bytes.put_u32(len);
    bytes.extend_from_slice(payload);
    bytes
}

fn encoded(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    frames.iter().for_each(|frame| frame.encode(&mut bytes));
    bytes.to_vec()
}

/// What is sent after nothing, after the hello, or after a blob was opened, and how the connection ends.
async fn cases(scene: &Scene) -> Result<Vec<(&'static str, Wire, Vec<u8>, End)>> {
    let all = Run { first: 0, count: scene.blocks };
    let past = Run { first: scene.blocks - 1, count: 2 };
    let other = Frame::Hello(Hello { cluster: "another".parse()?, node: "stranger".parse()?, epoch: 1 });
    let mut version = encoded(&[scene.hello()]);
    version[12..14].copy_from_slice(&9_u16.to_be_bytes());
    let mut magic = encoded(&[scene.hello()]);
    magic[8] = b'X';
    let wants = |count| vec![Frame::Want(all); count];
    let protocol = || End::Refused(Refusal::Protocol);
    Ok(vec![
        ("another magic", scene.dial().await?, magic, End::Closed),
        ("another version", scene.dial().await?, version, End::Refused(Refusal::Version)),
        ("another cluster", scene.dial().await?, encoded(&[other]), End::Refused(Refusal::Cluster)),
        ("no hello but an open", scene.dial().await?, encoded(&[scene.open()]), protocol()),
        ("a hello of 2 GiB", scene.dial().await?, frame(1, 0, u32::MAX / 2, b"SHOL"), End::Closed),
        ("an unknown kind", scene.greeted().await?, frame(99, 0, 0, b""), End::Closed),
        ("reserved bytes", scene.greeted().await?, frame(12, 7, 0, b""), End::Closed),
        ("an open of 2,000 bytes", scene.greeted().await?, frame(3, 0, 2000, &[0; 2000]), End::Closed),
        ("a block of a child", scene.greeted().await?, frame(9, 0, 1 << 20, &[0; 64]), End::Closed),
        ("an empty want", scene.opened().await?, frame(8, 0, 8, &[0; 8]), End::Closed),
        ("a short want", scene.opened().await?, frame(8, 0, 4, &[0; 4]), End::Closed),
        ("garbage", scene.greeted().await?, (0..4000_u32).map(|at| ((at * 7919) >> 3) as u8).collect(), End::Closed),
        ("hello twice", scene.greeted().await?, encoded(&[scene.hello()]), protocol()),
        ("a want before the open", scene.greeted().await?, encoded(&wants(1)), protocol()),
        ("a list before the open", scene.greeted().await?, encoded(&[Frame::WantList]), protocol()),
        ("a close before the open", scene.greeted().await?, encoded(&[Frame::Close]), protocol()),
        ("two opens", scene.opened().await?, encoded(&[scene.open()]), protocol()),
        ("a want past the end", scene.opened().await?, encoded(&[Frame::Want(past)]), protocol()),
        ("65 wants", scene.opened().await?, encoded(&wants(65)), protocol()),
        ("what only parents say", scene.opened().await?, encoded(&[Frame::Gone]), protocol()),
    ])
}

/// Counters of the refusals that the cases make.
async fn refused(world: &mut World) -> Result<Vec<(&'static str, u64)>> {
    let metrics = world.node("a1")?.shoal()?.admin().get_text("/metrics").await?;
    let count = |reason| {
        let counted = expect_label(&metrics, "shoal_peer_refused_connections_total", "reason", reason);
        (reason, counted.unwrap_or(0))
    };
    Ok(["Protocol", "Version", "Cluster", "Silent", "Full"].map(count).to_vec())
}

#[test]
fn peers_that_misbehave_are_refused_as_the_protocol_says_and_leave_nothing() {
    alone(async {
        let mut world =
            World::start(WorldPlan { origin_rate: None, ..WorldPlan::one_cluster(2).without_tls() }).await?;
        let image = Image::obtain(&Plan::small())?;
        world.registry.push(&image, "lab/before", "1").await?;
        world.start_nodes().await?;
        world.node("a1")?.pull("lab/before", "1", &image).await?;
        let nodes = world.control()?.nodes().await?;
        let cluster = nodes.first().and_then(|node| node.cluster_id.clone()).context("a1 has no cluster")?;
        let blob = image.layers.first().context("an image has layers")?;
        let scene = Scene {
            from: world.net.namespace("a2")?,
            to: SocketAddr::from((Ipv4Addr::new(10, 77, 1, 1), 5081)),
            cluster: cluster.parse()?,
            digest: blob.digest.parse()?,
            blocks: shoal_proto::Layout::of(blob.size)?.blocks(),
        };
        // The first connection makes buffers that stay.
        drop(scene.opened().await?);
        let pid = world.node("a1")?.shoal()?.pid();
        let (files, memory, before) = (descriptors(pid)?, own_now(pid)?, refused(&mut world).await?);

        let mut wrong = Vec::new();
        for (what, mut wire, bytes, wanted) in cases(&scene).await? {
            // It may have closed before it read all of it.
            let _ = wire.get_mut().write_all(&bytes).await;
            match end(&mut wire, BOUND).await {
                Ok(ended) if ended == wanted => {}
                ended => wrong.push(format!("{what}: {ended:?}, not {wanted:?}")),
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        slow_ones(&scene).await?;
        too_many(&scene).await?;

        let after = refused(&mut world).await?;
        for ((reason, before), (_, after)) in before.iter().zip(&after) {
            println!("refused as {reason}: {}", after - before);
            ensure!(after > before, "nobody counts a refusal as {reason}: {before} before, {after} after");
        }
        let left = eventually(Duration::from_secs(20), "descriptors to come back", || async {
            let now = descriptors(pid)?;
            ensure!(now <= files + 4, "{files} descriptors before, {now} after");
            Ok(now)
        });
        let (left, own) = (left.await?, own_now(pid)?);
        println!("descriptors {files} > {left}, memory of its own {} > {} KiB", memory >> 10, own >> 10);
        ensure!(own < memory + 24 * MIB, "{memory} bytes before, {own} after");
        world.node("a2")?.pull("lab/before", "1", &image).await?;
        aftermath::check(&mut world).await
    });
}

/// A byte a second is too slow for a hello, and a child that takes no byte is let go.
async fn slow_ones(scene: &Scene) -> Result<()> {
    let dripping = async {
        let mut wire = scene.dial().await?;
        let since = Instant::now();
        let mut every = tokio::time::interval(Duration::from_secs(1));
        for byte in encoded(&[scene.hello()]) {
            every.tick().await;
            if wire.get_mut().write_all(&[byte]).await.is_err() || since.elapsed() > BOUND {
                break;
            }
        }
        ensure!(end(&mut wire, BOUND).await? == End::Closed, "a hello of a byte a second was answered");
        Ok(())
    };
    let deaf = async {
        let mut wire = scene.opened().await?;
        let all = Run { first: 0, count: scene.blocks };
        // More than sockets on both sides hold.
        let wants: Vec<Frame> = vec![Frame::Want(all); 4];
        wire.get_mut().write_all(&encoded(&wants)).await?;
        // Not read: the kernel says when the other side has given up.
        let gone = eventually(Duration::from_secs(25), "a child that takes nothing to be let go", || async {
            let sent = wire.get_ref().try_write(&encoded(&[Frame::WantList]));
            match sent {
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => Ok(()),
                _ => bail!("the connection is still there"),
            }
        });
        // A want is written every 20 ms; each is one too many soon, and none is read by a parent that writes.
        gone.await
    };
    let (dripping, deaf): (Result<()>, Result<()>) = tokio::join!(dripping, deaf);
    dripping.context("a byte a second")?;
    deaf.context("a child that reads nothing")
}

/// More connections than a parent takes: those above are closed, and those below still answer.
async fn too_many(scene: &Scene) -> Result<()> {
    let mut open = Vec::new();
    let mut closed = 0;
    for _ in 0..1100 {
        let mut wire = scene.dial().await?;
        let sent = wire.send(scene.hello()).await;
        match (sent, timeout(BOUND, wire.next()).await.context("neither an answer nor the end")?) {
            (Ok(()), Some(Ok(Frame::Hello(_)))) => open.push(wire),
            _ => closed += 1,
        }
    }
    ensure!(open.len() <= 1024 && closed >= 76, "{} are open, {closed} were closed", open.len());
    let first = open.first_mut().context("one is open")?;
    first.send(scene.open()).await?;
    ensure!(matches!(next(first).await?, Some(Frame::Blob { .. })), "the first of many is not served");
    println!("of 1,100 connections {} were taken", open.len());
    Ok(())
}
