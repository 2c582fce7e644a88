//! A node of the lab's own that lies: it speaks `shoal.control.v1` to the real control and the peer protocol to real nodes, from
//! a namespace of its own in their cluster.
//!
//! What it says of a blob is a [`Claim`]; how it serves it is the claim's [`Lie`]. It notes who asked it for what, so that a
//! scenario can tell whether it was shunned. With [`Lie::None`] it is an honest node, and with no claim an onlooker: it hears
//! what control says of a blob.
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use shoal_proto::statement::{Says, Statement};
use shoal_proto::{
    ClusterId, Digest, Hash, Layout, NodeId, PieceList,
    control::v1::{self as wire, control_client::ControlClient},
    frame::Hello,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Streaming, transport::Channel};
use wire::{find_request::Message as Tell, find_response::Message as Said};

use crate::{
    net::Netns,
    papers::{self, Papers},
    registry,
};

mod serve;

/// Where it serves children.
const PEER_PORT: u16 = 5081;
/// How long control may take to answer.
const BOUND: Duration = Duration::from_secs(5);
/// Hashes in one message.
const RUN: usize = 1024;

/// How a blob is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// As the list says.
    None,
    /// Blocks of the right length with other bytes.
    OtherBytes,
    /// Blocks with a byte too many.
    LongBlocks,
    /// Blocks with a byte too few.
    ShortBlocks,
    /// Blocks that were not asked for, before those that were.
    UnaskedBlocks,
    /// Right blocks, and a list that is not the one of the root.
    OtherList,
    /// Right blocks, and `Wait` for ever instead of the list.
    NoList,
    /// Some right blocks; then the end of the connection, each time.
    Ends,
    /// Some right blocks; then nothing more, on an open connection.
    FallsSilent,
    /// It shows every block, and then says `Wait` for ever.
    Waits,
    /// It shows every block, and sends the first a byte a second.
    Drips,
    /// It says another size than control knows.
    OtherSize,
}

/// What it says that it has.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Under which name.
    pub digest: Digest,
    /// What list and root are made of. Of a lying parent the true bytes, of a lying author others.
    pub bytes: Bytes,
    /// Content-Type.
    pub media_type: String,
    /// How it serves it.
    pub lie: Lie,
}

impl Claim {
    /// The list of its bytes.
    ///
    /// # Errors
    /// When a blob of that size can't be cut.
    pub fn list(&self) -> Result<PieceList> {
        let layout = self.layout()?;
        let mut list = PieceList::new(layout);
        for block in 0..layout.blocks() {
            list.set(block, PieceList::hash(&self.block(layout, block)))?;
        }
        Ok(list)
    }

    fn layout(&self) -> Result<Layout> {
        Ok(Layout::of(self.bytes.len() as u64)?)
    }

    fn block(&self, layout: Layout, block: u32) -> Bytes {
        let range = layout.block_range(block);
        self.bytes.slice(range.start as usize..range.end as usize)
    }

    fn held(&self, liar: &Liar) -> Result<wire::Held> {
        let root: Hash = self.list()?.root().context("the list is complete")?;
        let signature = liar.sign(self, Says::Whole { root: &root, media_type: &self.media_type })?;
        Ok(wire::Held {
            digest: self.digest.as_bytes().to_vec(),
            size: self.bytes.len() as u64,
            root: root.to_vec(),
            media_type: self.media_type.clone(),
            signature,
        })
    }
}

/// What a child asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// `Open`.
    Blob,
    /// `WantList`.
    List,
    /// `Want`.
    Blocks,
}

/// What is shared with the connections of children.
struct Table {
    hello: Hello,
    claims: Mutex<HashMap<Digest, Arc<Claim>>>,
    asked: Mutex<Vec<(Instant, Digest, Asked)>>,
}

impl Table {
    fn claim(&self, digest: &Digest) -> Option<Arc<Claim>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }

    fn note(&self, digest: Digest, asked: Asked) {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), digest, asked));
    }
}

/// The node. Dropped, it is gone without a word; [`Liar::leave`] closes its session.
pub struct Liar {
    node: NodeId,
    papers: Option<Papers>,
    session: Vec<u8>,
    grpc: ControlClient<Channel>,
    up: mpsc::Sender<wire::SessionRequest>,
    table: Arc<Table>,
    beating: AbortOnDropHandle<()>,
    hearing: AbortOnDropHandle<()>,
    serving: AbortOnDropHandle<()>,
}

impl Liar {
    /// Registers a node at control and listens for children. `id` is also its name; one that begins with `0-` is named before
    /// real nodes where control has no other reason. `token`: what it joins by, where there are certificates.
    ///
    /// # Errors
    /// When control refuses it, or its port is taken.
    pub async fn join(ns: &Netns, control: SocketAddr, id: &str, token: Option<&str>) -> Result<Self> {
        let node: NodeId = id.parse().context("name the liar")?;
        let papers = match token {
            Some(token) => Some(Papers::join(ns, control, token, &node).await?),
            None => None,
        };
        let secured = papers.as_ref().map(|papers| (&papers.keeper, None));
        let channel = papers::channel(ns, control, secured).await?;
        let mut grpc = ControlClient::new(channel);
        let (up, stream) = mpsc::channel(16);
        let register = wire::Register {
            node_id: node.to_string(),
            instance: rand::random(),
            name: id.to_owned(),
            version: "0".into(),
            facts: Some(wire::Facts { ip: ns.address.to_string(), ..wire::Facts::default() }),
            peer_port: u32::from(PEER_PORT),
            pinned_cluster: String::new(),
            role: wire::Role::Node.into(),
            takes_blob_orders: false,
        };
        up.send(session(wire::session_request::Message::Register(register))).await?;
        let mut down = tokio::time::timeout(BOUND, grpc.session(ReceiverStream::new(stream))).await??.into_inner();
        let to = loop {
            let next = tokio::time::timeout(BOUND, down.message()).await??.and_then(|message| message.message);
            match next {
                Some(wire::session_response::Message::Assigned(to)) => break to,
                Some(wire::session_response::Message::Voided(_)) => {}
                other => bail!("control does not assign the liar: {other:?}"),
            }
        };
        if let Some(papers) = &papers {
            papers.certify(&mut grpc, &to.session).await?;
            // What it will sign is checked by this.
            let certificate = wire::Certificate { certificate: papers.certificate() };
            up.send(session(wire::session_request::Message::Certificate(certificate))).await?;
        }
        let cluster: ClusterId = to.cluster_id.parse().with_context(|| format!("the liar has no cluster: {to:?}"))?;
        let hello = Hello { cluster, node: node.clone(), epoch: to.epoch };
        let table = Arc::new(Table { hello, claims: Mutex::default(), asked: Mutex::default() });
        let serving = tokio::spawn(serve::children(ns.bind(PEER_PORT)?, papers.clone(), table.clone()));
        let beat = up.clone();
        let beating = tokio::spawn(async move {
            let mut every = tokio::time::interval(Duration::from_secs(1));
            loop {
                every.tick().await;
                let idle = wire::Heartbeat { upload_slots: 64, ..wire::Heartbeat::default() };
                if beat.send(session(wire::session_request::Message::Heartbeat(idle))).await.is_err() {
                    return;
                }
            }
        });
        let hearing = tokio::spawn(async move { while let Ok(Some(_)) = down.message().await {} });
        Ok(Self {
            node,
            papers,
            session: to.session,
            grpc,
            up,
            table,
            beating: AbortOnDropHandle::new(beating),
            hearing: AbortOnDropHandle::new(hearing),
            serving: AbortOnDropHandle::new(serving),
        })
    }

    /// Who it is.
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// What it shows, where there are certificates.
    pub const fn papers(&self) -> Option<&Papers> {
        self.papers.as_ref()
    }

    /// What it says of itself to peers.
    pub fn hello(&self) -> Hello {
        self.table.hello.clone()
    }

    /// Serves a claim from now on, without telling control.
    pub fn claim(&self, claim: Claim) -> Arc<Claim> {
        let claim = Arc::new(claim);
        let mut claims = self.table.claims.lock().unwrap_or_else(PoisonError::into_inner);
        claims.insert(claim.digest, claim.clone());
        claim
    }

    /// Serves claims and tells control, in one message, that it holds the blobs.
    ///
    /// # Errors
    /// When the session is over.
    pub async fn announce(&self, claims: Vec<Claim>) -> Result<()> {
        let held = claims.into_iter().map(|claim| self.claim(claim).held(self)).collect::<Result<_>>()?;
        let announce = wire::Announce { held, ..wire::Announce::default() };
        self.up.send(session(wire::session_request::Message::Announce(announce))).await.context("the session is over")
    }

    /// Serves a claim as a node that reads the origin: asks for the permit, says the headers and the hashes of its bytes. The
    /// permit lasts as long as the answer is kept.
    ///
    /// # Errors
    /// When control gives no permit.
    pub async fn read_as_author(&self, claim: Claim, repository: &str) -> Result<Finding> {
        let claim = self.claim(claim);
        let list = claim.list()?;
        let mut finding = self.find(claim.digest, repository, true).await?;
        let permit_id = finding.permit().await?;
        let (size, media_type) = (claim.bytes.len() as u64, claim.media_type.clone());
        let signature = self.sign(&claim, Says::Head { media_type: &media_type })?;
        let headers = wire::OriginHeaders { permit_id, size, media_type, signature };
        finding.tell(Tell::Headers(headers)).await?;
        for (first_block, hashes) in list.runs(RUN) {
            let signature = self.sign(&claim, Says::Part { first: first_block, hashes: &hashes })?;
            let part = wire::ListPart { first_block, hashes, signature, ..Default::default() };
            finding.tell(Tell::List(part)).await?;
        }
        finding
            .tell(Tell::Progress(wire::Progress { blocks: list.known(), origin_bytes: size, fed: Vec::new() }))
            .await?;
        Ok(finding)
    }

    /// What it says of a claim's list in its own name: it lies as a member of the cluster does. Empty without certificates.
    fn sign(&self, claim: &Claim, says: Says<'_>) -> Result<Vec<u8>> {
        let Some(papers) = &self.papers else { return Ok(Vec::new()) };
        let (cluster, layout) = (&self.table.hello.cluster, claim.layout()?);
        let statement = Statement { cluster, author: &self.node, digest: claim.digest, layout, says };
        papers.keeper.sign(&statement.bytes()).context("the liar has a key")
    }

    /// Asks control for a blob.
    ///
    /// # Errors
    /// When control does not answer.
    pub async fn find(&self, digest: Digest, repository: &str, may_read_origin: bool) -> Result<Finding> {
        let (tell, stream) = mpsc::channel(64);
        let start = wire::FindStart {
            digest: digest.as_bytes().to_vec(),
            session: self.session.clone(),
            registry: registry::HOST.to_owned(),
            repository: repository.to_owned(),
            kind: wire::Kind::Blob.into(),
            may_read_origin,
            certificate: self.papers.as_ref().map(Papers::certificate).unwrap_or_default(),
            ..wire::FindStart::default()
        };
        tell.send(wire::FindRequest { message: Some(Tell::Start(start)) }).await?;
        let mut grpc = self.grpc.clone();
        let said = tokio::time::timeout(BOUND, grpc.find(ReceiverStream::new(stream))).await??.into_inner();
        Ok(Finding { tell, said })
    }

    /// How often children asked for something of a blob.
    pub fn asked(&self, digest: &Digest, what: Asked) -> usize {
        let asked = self.table.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.iter().filter(|(_, of, how)| of == digest && *how == what).count()
    }

    /// Closes its session, so that control forgets it at once.
    ///
    /// # Errors
    /// When control does not end its half.
    pub async fn leave(self) -> Result<()> {
        let Self { up, beating, hearing, serving, .. } = self;
        // Both hold the sending half; its end is what control reads.
        beating.abort();
        drop((beating, up));
        serving.abort();
        // Until then its port is taken.
        let _ = serving.await;
        tokio::time::timeout(BOUND, hearing).await.context("control did not end the liar's session")??;
        Ok(())
    }
}

/// Control's live answer to the liar.
pub struct Finding {
    tell: mpsc::Sender<wire::FindRequest>,
    said: Streaming<wire::FindResponse>,
}

impl Finding {
    /// Tells control something.
    ///
    /// # Errors
    /// When control has ended the stream.
    pub async fn tell(&self, message: Tell) -> Result<()> {
        self.tell.send(wire::FindRequest { message: Some(message) }).await.context("control ended the find")
    }

    /// Says that the blob is whole, its SHA-256 checked.
    ///
    /// # Errors
    /// When control has ended the stream.
    pub async fn done(&self, liar: &Liar, claim: &Claim) -> Result<()> {
        self.tell(Tell::Done(claim.held(liar)?)).await
    }

    /// Waits for the permit.
    ///
    /// # Errors
    /// When it does not come.
    pub async fn permit(&mut self) -> Result<u64> {
        let waiting = async {
            loop {
                match self.said.message().await?.and_then(|message| message.message) {
                    Some(Said::Permit(permit)) => return Ok(permit.permit_id),
                    Some(Said::Stop(stop)) => bail!("control stops: {stop:?}"),
                    Some(_) => {}
                    None => bail!("control ended the find"),
                }
            }
        };
        tokio::time::timeout(BOUND, waiting).await.context("no permit in time")?
    }

    /// Everything that control says until it has said nothing for a while.
    ///
    /// # Errors
    /// When the stream breaks.
    pub async fn all(&mut self, quiet: Duration) -> Result<Vec<Said>> {
        let mut all = Vec::new();
        while let Ok(message) = tokio::time::timeout(quiet, self.said.message()).await {
            match message?.and_then(|message| message.message) {
                Some(said) => all.push(said),
                None => break,
            }
        }
        Ok(all)
    }
}

/// Whether control names a node in what it said: as a parent now, or as an author.
pub fn names(said: &[Said], node: &NodeId) -> bool {
    let parents = said.iter().rev().find_map(|said| match said {
        Said::Parents(set) => Some(&set.parents),
        _ => None,
    });
    let parent = parents.is_some_and(|set| set.iter().any(|parent| parent.node_id == node.as_str()));
    let author = said.iter().any(|said| match said {
        Said::Head(head) => head.author == node.as_str(),
        Said::Sealed(sealed) => sealed.author == node.as_str(),
        _ => false,
    });
    parent || author
}

fn session(message: wire::session_request::Message) -> wire::SessionRequest {
    wire::SessionRequest { message: Some(message) }
}

/// Bytes of the same length that differ in every one.
pub fn other_bytes(bytes: &[u8]) -> Bytes {
    bytes.iter().map(|byte| byte ^ 0x5a).collect::<Vec<u8>>().into()
}
