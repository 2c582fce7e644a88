//! From the wire to the rooms. Whatever is wrong is named by field; nothing is taken half.

use std::fmt::Display;
use std::time::Duration;

use shoal_base::tls::LONGEST_SIGNATURE;
use shoal_proto::control::v1 as wire;
use shoal_proto::{Digest, Hash, Kind, NodeId};
use tonic::Status;

use crate::clusters::Facts;
use crate::nodes::{Load, Registration, Role};
use crate::preheat::{Blob, Said, State};
use crate::swarm::{Announced, Ask, Grant, MOST_FED, Meta, Repository, Signature, Tell, Trouble};

/// Names, versions, repositories: longer ones are mistakes.
const LONGEST_TEXT: usize = 1024;
/// Layout's bound.
const MOST_BLOCKS: u32 = 8192;

/// Blobs of an image: an index of some dozens of platforms has fewer.
const MOST_BLOBS: usize = 16_384;

/// Gathers what is wrong, so that one answer names all of it.
#[derive(Default)]
struct Faults(Vec<String>);

impl Faults {
    fn add(&mut self, field: &str, why: impl Display) {
        self.0.push(format!("{field}: {why}"));
    }

    fn text(&mut self, field: &str, text: &str) {
        if text.len() > LONGEST_TEXT {
            self.add(field, format_args!("longer than {LONGEST_TEXT} bytes"));
        }
    }

    fn signature(&mut self, field: &str, signature: &[u8]) {
        if signature.len() > LONGEST_SIGNATURE {
            self.add(field, format_args!("longer than {LONGEST_SIGNATURE} bytes"));
        }
    }

    /// Everything in `parts` was fine, unless a fault was added.
    fn or<T>(self, parts: Option<T>) -> Result<T, Status> {
        match parts {
            Some(parts) if self.0.is_empty() => Ok(parts),
            _ => Err(Status::invalid_argument(self.0.join("; "))),
        }
    }
}

pub(super) fn register(register: wire::Register) -> Result<Registration, Status> {
    let wire::Register { node_id, instance, name, version, facts, peer_port, pinned_cluster, role, takes_blob_orders } =
        register;
    let mut faults = Faults::default();
    let node = node_id.parse::<NodeId>().map_err(|error| faults.add("node_id", error)).ok();
    for (field, text) in [("name", &name), ("version", &version), ("pinned_cluster", &pinned_cluster)] {
        faults.text(field, text);
    }
    let wire::Facts { ip, idc, location } = facts.unwrap_or_default();
    let facts = Facts::parse(&ip, &idc, &location);
    if let Err(bad) = &facts {
        bad.iter().for_each(|fact| faults.add(&format!("facts.{}", fact.field), &fact.reason));
    }
    let peer_port = u16::try_from(peer_port).ok().filter(|port| *port > 0);
    if peer_port.is_none() {
        faults.add("peer_port", "a port is between 1 and 65535");
    }
    let role = match wire::Role::try_from(role) {
        Ok(wire::Role::Node) => Some(Role::Node),
        Ok(wire::Role::Seed) => Some(Role::Seed),
        Ok(wire::Role::Unspecified) | Err(_) => None,
    };
    if role.is_none() {
        faults.add("role", "node or seed");
    }
    let pin = Some(pinned_cluster).filter(|pin| !pin.trim().is_empty());
    let parts = node.zip(facts.ok()).zip(peer_port.zip(role));
    let ((node, facts), (peer_port, role)) = faults.or(parts)?;
    Ok(Registration {
        node,
        instance,
        name,
        version,
        facts,
        peer_port,
        pin,
        bound: None,
        role,
        takes_orders: takes_blob_orders,
    })
}

pub(super) fn load(heartbeat: &wire::Heartbeat) -> Load {
    Load {
        uploads: heartbeat.uploads,
        upload_slots: heartbeat.upload_slots,
        flights: heartbeat.flights,
        store_bytes: heartbeat.store_bytes,
        bytes_from_origin: heartbeat.bytes_from_origin,
        bytes_from_peers: heartbeat.bytes_from_peers,
        bytes_to_peers: heartbeat.bytes_to_peers,
        bytes_local: heartbeat.bytes_local,
    }
}

pub(super) fn announce(announce: wire::Announce) -> Result<Announced, Status> {
    let wire::Announce { reset, held, dropped, complete } = announce;
    let digest = |bytes: &Vec<u8>| {
        Digest::try_from(bytes.as_slice()).map_err(|_| Status::invalid_argument("dropped: a digest has 32 bytes"))
    };
    Ok(Announced {
        reset,
        held: held.into_iter().map(meta).collect::<Result<_, _>>()?,
        dropped: dropped.iter().map(digest).collect::<Result<_, _>>()?,
        complete,
    })
}

fn meta(held: wire::Held) -> Result<(Digest, Meta, Signature), Status> {
    let wire::Held { digest, size, root, media_type, signature } = held;
    let mut faults = Faults::default();
    let digest = Digest::try_from(digest.as_slice()).map_err(|_| faults.add("held.digest", "a digest has 32 bytes"));
    let root = Hash::try_from(root).map_err(|_| faults.add("held.root", "a root has 32 bytes"));
    faults.text("held.media_type", &media_type);
    faults.signature("held.signature", &signature);
    let (digest, root) = faults.or(digest.ok().zip(root.ok()))?;
    Ok((digest, Meta { size, root, media_type }, signature.into()))
}

/// A repository, and how long ago it was read.
pub(super) fn public(public: wire::Public) -> Result<Vec<(Repository, Duration)>, Status> {
    let one = |seen: wire::PublicRepository| {
        let repository = repository(seen.repository.unwrap_or_default())?;
        Ok((repository, Duration::from_secs(u64::from(seen.seconds_ago))))
    };
    public.repositories.into_iter().map(one).collect()
}

pub(super) fn repository(repository: wire::Repository) -> Result<Repository, Status> {
    let wire::Repository { registry, name, manifest } = repository;
    let mut faults = Faults::default();
    let manifest = (!manifest.is_empty()).then(|| Digest::try_from(manifest.as_slice()));
    if matches!(manifest, Some(Err(_))) {
        faults.add("repository.manifest", "a digest has 32 bytes");
    }
    for (field, text) in [("repository.registry", &registry), ("repository.name", &name)] {
        faults.text(field, text);
        if text.is_empty() {
            faults.add(field, "is empty");
        }
    }
    faults.or(Some(Repository { registry, name, manifest: manifest.and_then(Result::ok) }))
}

/// The session that the stream names, and what it asks for.
pub(super) fn start(start: wire::FindStart) -> Result<(Vec<u8>, Ask), Status> {
    let wire::FindStart { digest, session, size, registry, repository, kind, may_read_origin, .. } = start;
    let wire::FindStart { blocks_held, permit_id, permit_first_block, permit_blocks, takes_runs, .. } = start;
    let mut faults = Faults::default();
    let digest = Digest::try_from(digest.as_slice()).map_err(|_| faults.add("digest", "a digest has 32 bytes"));
    faults.text("registry", &registry);
    faults.text("repository", &repository);
    if registry.is_empty() && may_read_origin {
        faults.add("registry", "is empty, and the origin is to be read");
    }
    let kind = match wire::Kind::try_from(kind) {
        Ok(wire::Kind::Blob) => Some(Kind::Blob),
        Ok(wire::Kind::Manifest) => Some(Kind::Manifest),
        Ok(wire::Kind::Unspecified) | Err(_) => None,
    };
    if kind.is_none() {
        faults.add("kind", "blob or manifest");
    }
    if blocks_held > MOST_BLOCKS {
        faults.add("blocks_held", format_args!("a blob has at most {MOST_BLOCKS} blocks"));
    }
    for (field, blocks) in [("permit_first_block", permit_first_block), ("permit_blocks", permit_blocks)] {
        if blocks > MOST_BLOCKS {
            faults.add(field, format_args!("a blob has at most {MOST_BLOCKS} blocks"));
        }
    }
    let (digest, kind) = faults.or(digest.ok().zip(kind))?;
    let size = (size > 0).then_some(size);
    let permit = Grant { id: permit_id, first: permit_first_block, blocks: permit_blocks };
    let (blocks, runs) = (blocks_held, takes_runs);
    Ok((session, Ask { digest, size, registry, repository, kind, may_read_origin, blocks, permit, runs }))
}

/// What a stream for the digest `asked` may say after its start.
pub(super) fn tell(message: wire::find_request::Message, asked: Digest) -> Result<Tell, Status> {
    use wire::find_request::Message;
    fn invalid(field: &str, why: impl Display) -> Status {
        Status::invalid_argument(format!("{field}: {why}"))
    }
    Ok(match message {
        Message::Start(_) => return Err(invalid("start", "comes once")),
        Message::Headers(wire::OriginHeaders { permit_id, size, media_type, signature }) => {
            let mut faults = Faults::default();
            faults.text("headers.media_type", &media_type);
            faults.signature("headers.signature", &signature);
            let signature = signature.into();
            faults.or(Some(Tell::Headers { permit: permit_id, size, media_type, signature }))?
        }
        Message::List(wire::ListPart { first_block, hashes, author: _, signature }) => {
            if hashes.len() % 32 != 0 || hashes.len() > MOST_BLOCKS as usize * 32 || first_block >= MOST_BLOCKS {
                return Err(invalid("list", "at most 8192 hashes of 32 bytes"));
            }
            let mut faults = Faults::default();
            faults.signature("list.signature", &signature);
            faults.or(Some(Tell::Hashes { first: first_block, hashes: hashes.into(), signature: signature.into() }))?
        }
        Message::Failed(wire::OriginFailed { permit_id, failure, retry_after_ms }) => {
            let why = match wire::OriginFailure::try_from(failure) {
                Ok(wire::OriginFailure::Unreachable) => Trouble::Unreachable,
                Ok(wire::OriginFailure::NotFound) => Trouble::NotFound,
                Ok(wire::OriginFailure::Denied) => Trouble::Denied,
                Ok(wire::OriginFailure::Busy) => Trouble::Busy(Duration::from_millis(u64::from(retry_after_ms))),
                // What a newer node may say: it does not read, and another may.
                Ok(wire::OriginFailure::Abandoned) | Err(_) => Trouble::Abandoned,
                Ok(wire::OriginFailure::Unspecified) => return Err(invalid("failed.failure", "is missing")),
            };
            Tell::Failed { permit: permit_id, why }
        }
        Message::Progress(wire::Progress { blocks, origin_bytes, fed }) => {
            let fed = fed.into_iter().take(MOST_FED).map(|wire::Fed { node_id, bytes }| {
                let node = node_id.parse().map_err(|error| invalid("progress.fed.node_id", error))?;
                Ok((node, bytes))
            });
            let fed = fed.collect::<Result<_, Status>>()?;
            Tell::Progress { blocks: blocks.min(MOST_BLOCKS), origin_bytes, fed }
        }
        Message::Done(held) => match meta(held)? {
            (digest, meta, signature) if digest == asked => Tell::Done(meta, signature),
            _ => return Err(invalid("done.digest", "is not the one that was asked for")),
        },
        Message::Lied(wire::Lied { node_id, block }) => {
            Tell::Lied { node: node_id.parse().map_err(|error| invalid("lied.node_id", error))?, block }
        }
        Message::Lost(wire::Lost { node_id }) => {
            Tell::Lost { node: node_id.parse().map_err(|error| invalid("lost.node_id", error))? }
        }
        Message::Mismatch(wire::Mismatch { author }) => {
            Tell::Mismatch { author: author.parse().map_err(|error| invalid("mismatch.author", error))? }
        }
        Message::Unproven(wire::Unproven { author }) => {
            Tell::Unproven { author: author.parse().map_err(|error| invalid("unproven.author", error))? }
        }
    })
}

/// How far an order is, and its id.
pub(super) fn order(progress: wire::OrderProgress) -> Result<(String, Said), Status> {
    use wire::order_progress::State as Wire;
    let wire::OrderProgress { order_id, state, detail, manifest, blobs, refused } = progress;
    let mut faults = Faults::default();
    faults.text("order_id", &order_id);
    let state = match Wire::try_from(state) {
        // What a newer node may say: it lives, and has not ended.
        Ok(Wire::Running) | Err(_) => Some(State::Running),
        Ok(Wire::Done) => Some(State::Done),
        // For people: the beginning says enough.
        Ok(Wire::Failed) => Some(State::Failed(detail.chars().take(LONGEST_TEXT).collect())),
        Ok(Wire::Cancelled) => Some(State::Cancelled),
        Ok(Wire::Unspecified) => {
            faults.add("state", "running, done, failed or cancelled");
            None
        }
    };
    let digest = |bytes: &[u8]| <[u8; 32]>::try_from(bytes).ok().map(Digest::from_bytes);
    let known = digest(&manifest);
    if known.is_none() && !manifest.is_empty() {
        faults.add("manifest", "32 bytes, or none");
    }
    if blobs.len() > MOST_BLOBS {
        faults.add("blobs", format_args!("more than {MOST_BLOBS}"));
    }
    let blob = |blob: &wire::BlobProgress| {
        let digest = digest(&blob.digest)?;
        Some((Blob { digest, size: blob.size }, blob.bytes.min(blob.size)))
    };
    let blobs: Option<Vec<_>> = blobs.iter().map(blob).collect();
    if blobs.is_none() {
        faults.add("blobs.digest", "32 bytes");
    }
    faults.or(state.zip(blobs).map(|(state, blobs)| (order_id, Said { state, refused, manifest: known, blobs })))
}
