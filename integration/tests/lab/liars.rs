//! Liars in a cluster: a parent that serves what it should not, and an author whose piece list is of other bytes (I1).
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use lab::{
    containerd::edition::Edition,
    faults::{
        Row,
        stage::{Fresh, Pulled, Stage, Usually, expect_label, on_editions},
    },
    http::Client,
    image::{Image, ImageBlob, Plan},
    liar::{Asked, Claim, Liar, Lie, names, other_bytes},
    registry,
    wait::eventually,
    world::WorldPlan,
};
use sha2::{Digest as _, Sha256};
use shoal_proto::Digest;

use crate::alone;

const SEED: u64 = 47_000;
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Where the liar stands.
const PLACE: &str = "x1";
/// So long without a word means that control has said what it has to say.
const QUIET: Duration = Duration::from_millis(600);

fn plan(edition: Edition) -> WorldPlan {
    WorldPlan { edition, ..WorldPlan::one_cluster(2) }.with_guest(PLACE, Ipv4Addr::new(10, 77, 1, 200))
}

fn claim(blob: &ImageBlob, lie: Lie) -> Result<Claim> {
    let bytes = Bytes::from(fs::read(&blob.file).with_context(|| format!("read {}", blob.file.display()))?);
    Ok(Claim { digest: digest(blob)?, bytes, media_type: LAYER.into(), lie })
}

/// A claim of other bytes under the blob's digest, served as its list says.
fn false_claim(blob: &ImageBlob, more: usize) -> Result<Claim> {
    let mut claim = claim(blob, Lie::None)?;
    claim.bytes = [&other_bytes(&claim.bytes)[..], &vec![7; more]].concat().into();
    Ok(claim)
}

fn digest(blob: &ImageBlob) -> Result<Digest> {
    blob.digest.parse().context("an image's digest")
}

async fn join(stage: &mut Stage, id: &str) -> Result<Liar> {
    let ns = stage.world.net.namespace(PLACE)?;
    Liar::join(&ns, stage.world.grpc(), id, stage.world.token()?.as_deref()).await
}

/// Waits until control has taken what the liar announced.
async fn known(stage: &Stage, liar: &Liar, blobs: u64) -> Result<()> {
    eventually(Duration::from_secs(5), "control to know what the liar holds", || async {
        let held = held_by(stage, liar).await?;
        ensure!(held == blobs, "it knows of {held}");
        Ok(())
    })
    .await
}

async fn fault_count(stage: &mut Stage, fault: &str) -> Result<u64> {
    let metrics = stage.world.control()?.rest().get_text("/metrics").await?;
    Ok(expect_label(&metrics, "shoal_swarm_faults_total", "fault", fault).unwrap_or(0))
}

/// What is expected of one kind of lying parent.
struct Expected {
    fault: &'static str,
    lie: Lie,
    log: &'static str,
    metric: &'static str,
    /// What it did proves that it lied: it is named to control and never asked again, in that flight and in later ones.
    proven: bool,
}

/// a1 holds an image; the liar says that it does too; a2 pulls.
async fn lying_parent(stage: &mut Stage, expected: &Expected, number: usize) -> Result<Row> {
    let id = format!("0-parent-{number}");
    let liar = join(stage, &id).await?;
    let (mut announced, mut tries) = (0, 0);
    // Equals are named in random order: of some images the liar is asked for nothing that shows the lie.
    let (watch, before, seconds) = loop {
        let image = stage.fresh("lied").await?;
        stage.pull("a1", &image)?.end().await?;
        let claims: Vec<Claim> = image.image.blobs().map(|blob| claim(blob, expected.lie)).collect::<Result<_>>()?;
        announced += claims.len() as u64;
        liar.announce(claims).await?;
        known(stage, &liar, announced).await?;
        let (watch, before) = (stage.watch().await?, fault_count(stage, "parent_lied").await?);
        let seconds = stage.pull("a2", &image)?.end().await.context("the pull on a2")?;
        let mut asked = 0;
        for blob in image.image.blobs() {
            let opens = liar.asked(&digest(blob)?, Asked::Blob);
            // Once for the list and once for blocks. Who is only slow or gone may be tried again.
            ensure!(!expected.proven || opens <= 2, "asked {opens} times for {}", blob.digest);
            asked += opens;
        }
        ensure!(asked > 0, "nobody asked the liar: the fault hit nothing");
        ensure!(watch.origin_bytes(&stage.world)? == 0, "a lying parent cost reads of the origin");
        ensure!(watch.past_us(&stage.world)? == 0, "a lying parent sent containerd to the registry");
        tries += 1;
        if watch.line(("a2", expected.log)).is_ok() || tries == MOST_TRIES {
            break (watch, before, seconds);
        }
    };
    let line = watch.line(("a2", expected.log))?;
    let raw = fs::read_to_string(stage.world.node("a2")?.shoal()?.log())?;
    let named = raw.lines().any(|line| line.contains(expected.log) && line.contains(&id));
    ensure!(named, "the log does not name the liar: {line}");
    let pulled = Pulled {
        node: "a2",
        seconds,
        usually: Usually::Peer,
        log: ("a2", expected.log),
        metric: ("a2", expected.metric),
    };
    let row = stage.row(expected.fault, &watch, pulled).await?;
    if expected.proven {
        ensure!(fault_count(stage, "parent_lied").await? > before, "control was not told of the liar");
        is_shunned(stage, &liar, announced).await?;
    }
    liar.leave().await?;
    Ok(row)
}

/// Control does not name the liar to the one that it lied to, whatever else it says it holds.
async fn is_shunned(stage: &mut Stage, liar: &Liar, announced: u64) -> Result<()> {
    let image = stage.fresh("shunned").await?;
    stage.pull("a1", &image)?.end().await?;
    let blobs: Vec<&ImageBlob> = image.image.blobs().collect();
    liar.announce(blobs.iter().map(|blob| claim(blob, Lie::None)).collect::<Result<_>>()?).await?;
    known(stage, liar, announced + blobs.len() as u64).await?;
    stage.pull("a2", &image)?.end().await.context("the pull after the lie")?;
    for blob in blobs {
        let asked = liar.asked(&digest(blob)?, Asked::Blob);
        ensure!(asked == 0, "a liar was named again, and asked {asked} times for {}", blob.digest);
    }
    Ok(())
}

/// One image in two shows the lie, at least.
const MOST_TRIES: u32 = 10;

const LIED: &str = "peer sent bytes that do not match";
const LOST: &str = "parent lost in the middle";
const LATE: &str = "parent is late with what it shows";

/// Seen at once.
const QUICK: [Expected; 8] = [
    Expected {
        fault: "a parent waits for ever instead of giving the list",
        lie: Lie::NoList,
        log: LATE,
        metric: "shoal_swarm_late_parents_total ",
        proven: false,
    },
    Expected {
        fault: "a parent lies: right length, other bytes",
        lie: Lie::OtherBytes,
        log: LIED,
        metric: "shoal_swarm_refused_blocks_total ",
        proven: true,
    },
    Expected {
        fault: "a parent lies: blocks a byte too long",
        lie: Lie::LongBlocks,
        log: LIED,
        metric: "shoal_swarm_refused_blocks_total ",
        proven: true,
    },
    Expected {
        fault: "a parent lies: blocks a byte too short",
        lie: Lie::ShortBlocks,
        log: LIED,
        metric: "shoal_swarm_refused_blocks_total ",
        proven: true,
    },
    Expected {
        fault: "a parent lies: blocks that nobody asked for",
        lie: Lie::UnaskedBlocks,
        log: LIED,
        metric: "shoal_swarm_refused_blocks_total ",
        proven: true,
    },
    Expected {
        fault: "a parent lies: another piece list for the root",
        lie: Lie::OtherList,
        log: LIED,
        metric: "shoal_swarm_refused_lists_total ",
        proven: true,
    },
    Expected {
        fault: "a parent ends the connection in the middle, each time",
        lie: Lie::Ends,
        log: LOST,
        metric: "shoal_swarm_lost_parents_total{reason=\"Connection\"} ",
        proven: false,
    },
    Expected {
        fault: "a parent says another size",
        lie: Lie::OtherSize,
        log: LOST,
        metric: "shoal_swarm_lost_parents_total{reason=\"Protocol\"} ",
        proven: false,
    },
];

/// Seen after the two seconds that a parent may be silent.
const SLOW: [Expected; 3] = [
    Expected {
        fault: "a parent falls silent in the middle, each time",
        lie: Lie::FallsSilent,
        log: LOST,
        metric: "shoal_swarm_lost_parents_total{reason=\"Silent\"} ",
        proven: false,
    },
    Expected {
        fault: "a parent shows everything and waits for ever",
        lie: Lie::Waits,
        log: LATE,
        metric: "shoal_swarm_late_parents_total ",
        proven: false,
    },
    Expected {
        fault: "a parent sends a byte a second",
        lie: Lie::Drips,
        log: LOST,
        metric: "shoal_swarm_lost_parents_total{reason=\"Silent\"} ",
        proven: false,
    },
];

#[test]
fn a_lying_parent_costs_nothing_and_is_shunned() {
    alone(async {
        on_editions(&Edition::USUAL, plan, SEED, async |stage| {
            for (number, expected) in QUICK.iter().enumerate() {
                stage.scene(expected.fault, async |stage| lying_parent(stage, expected, number).await).await;
            }
            Ok(())
        })
        .await
    });
}

#[test]
fn a_parent_that_gives_nothing_costs_the_wait_for_it_at_most() {
    alone(async {
        // Slow enough that two seconds of silence pass within a pull, whenever in it the liar is asked first.
        let plan = |edition| WorldPlan { node_rate: Some(20_000_000), ..plan(edition) };
        on_editions(&Edition::USUAL, plan, SEED + 200, async |stage| {
            for (number, expected) in SLOW.iter().enumerate() {
                stage.scene(expected.fault, async |stage| lying_parent(stage, expected, number).await).await;
            }
            Ok(())
        })
        .await
    });
}

/// How an author lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Author {
    /// It got the permit, and says that it still reads.
    Reads,
    /// It got the permit, and says that it holds the whole.
    Done,
    /// The same, and the size is wrong too.
    OtherSize,
    /// It never asked, and announces the blob as held.
    Announces,
}

/// With it containerd collects garbage as soon as a failed pull's lease is gone; without, after a hundred changes.
const COLLECT_AT_ONCE: &str = "[plugins.\"io.containerd.gc.v1.scheduler\"]\ndeletion_threshold = 1";

/// The liar is the author of every layer's list; a2 and then a1 pull. At most one pull a node fails, and nobody believes it.
async fn lying_author(stage: &mut Stage, fault: &str, how: Author, collects: bool, number: usize) -> Result<Row> {
    if collects {
        for node in ["a1", "a2"] {
            stage.world.node(node)?.containerd.reconfigure(COLLECT_AT_ONCE).await?;
        }
    }
    let image = stage.fresh("authored").await?;
    let liar = join(stage, &format!("0-author-{number}")).await?;
    let claims: Vec<Claim> = image
        .image
        .layers
        .iter()
        .map(|layer| false_claim(layer, if how == Author::OtherSize { 1000 } else { 0 }))
        .collect::<Result<_>>()?;
    let mut findings = Vec::new();
    match how {
        Author::Announces => {
            let blobs = claims.len() as u64;
            liar.announce(claims.clone()).await?;
            known(stage, &liar, blobs).await?;
        }
        Author::Reads | Author::Done | Author::OtherSize => {
            let before = holdings(stage).await?;
            for claim in &claims {
                let finding = liar.read_as_author(claim.clone(), &image.repository).await?;
                if how != Author::Reads {
                    finding.done(&liar, claim).await?;
                }
                findings.push(finding);
            }
            let said = if how == Author::Reads { 0 } else { claims.len() as u64 };
            eventually(Duration::from_secs(5), "control to take what the liar said", || async {
                ensure!(holdings(stage).await? >= before + said, "not yet");
                Ok(())
            })
            .await?;
        }
    }
    let watch = stage.watch().await?;
    let since = Instant::now();
    let failed = at_most_one_failure(stage, "a2", &image, collects).await?;
    let seconds = since.elapsed().as_secs_f64();
    let taken = |digest: &Digest| liar.asked(digest, Asked::Blocks) > 0;
    let mut lied: Vec<Digest> = claims.iter().map(|claim| claim.digest).collect();
    if how == Author::OtherSize {
        // The manifest says another size: no byte of the liar's is taken, and no pull fails.
        ensure!(failed == 0 && !lied.iter().any(taken), "{failed} pulls failed of what the manifest contradicts");
    } else {
        lied.retain(taken);
        ensure!(!lied.is_empty(), "nobody took anything of the liar: the fault hit nothing");
    }
    println!("    {failed} pulls failed on a2, lied to about {} blobs", lied.len());
    for digest in &lied {
        is_refused(stage, &image, digest).await?;
    }
    names_the_author(stage, &liar)?;
    ensure!(fault_count(stage, "author_lied").await? > 0, "control does not count the liar");
    at_most_one_failure(stage, "a1", &image, collects).await?;
    let pulled = Pulled {
        node: "a2",
        seconds,
        usually: Usually::Origin,
        log: ("a2", "threw a blob away"),
        metric: ("a2", "shoal_blob_flights_ended_total{outcome=\"Mismatched\"} "),
    };
    let row = stage.row(fault, &watch, pulled).await?;
    drop(findings);
    nobody_is_told(stage, liar, &image, claims).await?;
    Ok(row)
}

async fn holdings(stage: &Stage) -> Result<u64> {
    let metrics = stage.world.control_ref()?.rest().get_text("/metrics").await?;
    let value = metrics.lines().find_map(|line| line.strip_prefix("shoal_swarm_holdings ")?.trim().parse().ok());
    value.context("control has no shoal_swarm_holdings")
}

/// Pulls until it ends well, and says how many pulls failed for what the liar gave.
///
/// containerd keeps the bytes of a blob that did not match. Until it collects its garbage later pulls fail inside it, without
/// asking anybody: those don't count, and removing an image makes it collect. If it `collects` at once, no second pull fails.
async fn at_most_one_failure(stage: &mut Stage, node: &str, image: &Fresh, collects: bool) -> Result<usize> {
    let throwaway = throwaway(stage, node).await?;
    let Some(first) = bad_end(stage, node, image).await? else { return Ok(0) };
    if let Some(second) = bad_end(stage, node, image).await? {
        // A pull that hung holds what it got until its lease ends, whatever collects.
        let may_keep = !collects || first.hung || second.hung;
        let kept = may_keep && (second.hung || format!("{:#}", second.why).contains("unexpected commit"));
        ensure!(kept, "the second pull on {node} failed too, after {:#}: {:#}", first.why, second.why);
        println!("    containerd on {node} keeps the bytes that did not match until it collects garbage");
        stage.world.node(node)?.containerd.puller().remove(&throwaway).await?;
        let third = stage.pull(node, image)?.end().await;
        third.with_context(|| format!("a pull on {node} after the garbage was collected, after {:#}", first.why))?;
    }
    Ok(1)
}

/// A pull that did not end well.
struct Bad {
    why: anyhow::Error,
    /// It would never have ended.
    hung: bool,
}

/// No pull of these images takes as long.
const HANGS: Duration = Duration::from_secs(60);

/// Pulls. `None`: it ended well.
///
/// containerd 2.1 with a fetch buffer may wait for itself for ever when one layer fails while another begins to come in ranges:
/// the pull's context is gone, so that nobody closes the pipe that is read. What its goroutines do shows that this is it: one reads the
/// pipe, and none reads a body, ours or the registry's; then it is started again, as an operator would have to, and the pull has failed.
async fn bad_end(stage: &mut Stage, node: &str, image: &Fresh) -> Result<Option<Bad>> {
    let pulling = stage.pull(node, image)?;
    match tokio::time::timeout(HANGS, pulling.end()).await {
        Ok(ended) => Ok(ended.err().map(|why| Bad { why, hung: false })),
        Err(_) => {
            let containerd = &mut stage.world.node(node)?.containerd;
            let stacks = containerd.stacks().await?;
            let itself = stage.edition.starts_with("2.1") && stage.edition.ends_with("-buffer");
            let reads = |what: &str| stacks.contains(what);
            let itself = itself && reads("(*pipeReader).Read") && !reads("(*bodyEOFSignal).Read");
            ensure!(itself, "a pull on {node} is not over after {HANGS:?}");
            println!(
                "    containerd on {node} waits for itself: one layer failed while another began to come in ranges"
            );
            stage.world.node(node)?.containerd.restart().await?;
            Ok(Some(Bad { why: anyhow!("containerd waited for itself"), hung: true }))
        }
    }
}

/// Pulls a small image that may be removed.
async fn throwaway(stage: &mut Stage, node: &str) -> Result<String> {
    let image = Image::obtain(&Plan::random(SEED + 999, vec![4096]))?;
    let repository = "lab/throwaway";
    stage.world.registry.push(&image, repository, "1").await?;
    let name = format!("{}/{repository}:1", registry::HOST);
    stage.world.node(node)?.containerd.crictl_pull(&name).await?;
    Ok(name)
}

fn names_the_author(stage: &mut Stage, liar: &Liar) -> Result<()> {
    for log in [stage.world.node("a2")?.shoal()?.log().to_owned(), stage.world.control()?.log().to_owned()] {
        let text = fs::read_to_string(&log)?;
        let named = text.lines().any(|line| line.contains("\"WARN\"") && line.contains(liar.node().as_str()));
        ensure!(named, "{} does not name the author", log.display());
    }
    Ok(())
}

/// The node answers 404 for what it threw away.
async fn is_refused(stage: &mut Stage, image: &Fresh, digest: &Digest) -> Result<()> {
    let mirror = Client::plain(&stage.world.net.namespace("a2")?, SocketAddr::from((Ipv4Addr::LOCALHOST, 5080)));
    let path = format!("/v2/{}/blobs/{digest}?ns={}", image.repository, registry::HOST);
    let answer = mirror.get(&path).await?;
    ensure!(answer.status == 404, "a2 answers {} for {digest}", answer.status);
    Ok(())
}

/// The liar comes back and says again that it holds what it lied about. Who asks control hears nothing of it.
async fn nobody_is_told(stage: &mut Stage, liar: Liar, image: &Fresh, claims: Vec<Claim>) -> Result<()> {
    let id = liar.node().to_string();
    liar.leave().await?;
    let liar = join(stage, &id).await?;
    let lied: Vec<Digest> = claims.iter().map(|claim| claim.digest).collect();
    // One more, that nobody knows to be false: when control knows of it, it has taken the others of the same message.
    let bytes = Bytes::from_static(b"another blob");
    let digest = Digest::from_bytes(Sha256::digest(&bytes).into());
    let another = Claim { digest, bytes, media_type: LAYER.into(), lie: Lie::None };
    liar.announce(claims.into_iter().chain([another]).collect()).await?;
    eventually(Duration::from_secs(5), "control to take what the liar announced", || async {
        ensure!(held_by(stage, &liar).await? > 0, "not yet");
        Ok(())
    })
    .await?;
    let (place, token) = (stage.world.net.namespace("x2")?, stage.world.token()?);
    // Another one each time: a node id is that of one key.
    let name = format!("onlooker-of-{}", liar.node());
    let onlooker = Liar::join(&place, stage.world.grpc(), &name, token.as_deref()).await?;
    for digest in lied {
        let mut finding = onlooker.find(digest, &image.repository, false).await?;
        let said = finding.all(QUIET).await?;
        ensure!(!names(&said, liar.node()), "control names the liar again: {said:?}");
    }
    onlooker.leave().await?;
    liar.leave().await
}

async fn held_by(stage: &Stage, liar: &Liar) -> Result<u64> {
    let nodes = stage.world.control_ref()?.nodes().await?;
    Ok(nodes.iter().find(|node| node.id == liar.node().as_str()).map_or(0, |node| node.held_blobs))
}

#[test]
fn a_lying_author_fails_at_most_one_pull_a_node_and_nobody_believes_it() {
    alone(async {
        // Slow enough that containerd has bytes of a blob before its last block.
        let plan = |edition| WorldPlan { node_rate: Some(60_000_000), ..plan(edition) };
        let plan = |edition| plan(edition).with_guest("x2", Ipv4Addr::new(10, 77, 1, 201));
        on_editions(&Edition::USUAL, plan, SEED + 500, async |stage| {
            let cases = [
                ("an author lies: other bytes, while it reads", Author::Reads, false),
                ("an author lies: other bytes, as held", Author::Done, false),
                ("an author lies: other bytes and another size", Author::OtherSize, false),
                ("an author lies: announces other bytes, without a permit", Author::Announces, false),
                // The last: it stays so.
                ("an author lies: other bytes, and containerd collects garbage at once", Author::Done, true),
            ];
            for (number, (fault, how, collects)) in cases.into_iter().enumerate() {
                stage.scene(fault, async |stage| lying_author(stage, fault, how, collects, number).await).await;
            }
            Ok(())
        })
        .await
    });
}
