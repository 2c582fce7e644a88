//! Private images (I10): who may read a repository gets from the cluster what the cluster holds, and the registry is asked for its
//! word, not for bytes; who may not gets not a byte of what lies on the very disk that he asks.
//!
//! Everything is played on a registry of Bearer tokens and on one of Basic. Who asks a mirror by hand here stands in the node's own
//! namespace, as any program of that machine may.
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use http::{HeaderMap, Method, Request, StatusCode, header};
use lab::{
    aftermath,
    clock::Clock,
    conditions::Conditions,
    containerd::edition::Edition,
    http::{Answer, Client, empty},
    image::{Image, ImageBlob, Plan},
    node::labelled,
    registry::{self, AccessLine, Login},
    rights::User,
    tls::Authority,
    token::Signer,
    world::{World, WorldPlan},
};
use sha2::{Digest as _, Sha256};

use crate::alone;

const MIRROR: ([u8; 4], u16) = ([127, 0, 0, 1], 5080);
const SEED: u64 = 52_000;
/// For ann and ben.
const PRIVATE: &str = "lab/private";
/// For eve.
const OTHER: &str = "lab/others";
/// For everybody, as far as the registry has such a thing.
const OPEN: &str = "lab/open";
/// What a registry says to whom it does not let read.
const NO: [u16; 3] = [401, 403, 404];
/// A yes of the registry's is remembered for less than this.
const FORGOTTEN: i64 = 301;

/// A cluster of nodes before a registry with images of ann and ben, of eve, and of everybody.
struct Scene {
    world: World,
    private: Image,
    ann: User,
    ben: User,
    eve: User,
    /// Whether the registry is there.
    up: bool,
}

/// A layer that is in every image, as base images are.
const SHARED: u64 = 1 << 20;

impl Scene {
    async fn set(plan: WorldPlan) -> Result<Self> {
        let mut world = World::start(WorldPlan { origin_rate: None, ..plan }).await?;
        let private = Image::obtain(&Plan::random(SEED, vec![5 << 20, SHARED, 64 << 10]))?;
        let registry = &world.registry;
        for (number, repository) in (1..).zip([OTHER, OPEN]) {
            let image = Image::obtain(&Plan::random(SEED + number, vec![SHARED, 32 << 10]))?;
            registry.push(&image, repository, "1").await?;
        }
        registry.push(&private, PRIVATE, "1").await?;
        registry.rights().close(PRIVATE);
        registry.rights().close(OTHER);
        let (ann, ben) = (registry.admit("ann", &[PRIVATE])?, registry.admit("ben", &[PRIVATE])?);
        let eve = registry.admit("eve", &[OTHER])?;
        world.start_nodes().await?;
        Ok(Self { world, private, ann, ben, eve, up: true })
    }

    fn login(&self) -> Login {
        self.world.registry.login()
    }

    /// What containerd would show for a user, or for nobody, in a repository: a new token, or name and password.
    fn shows(&self, user: Option<&User>, repository: &str) -> Result<Option<String>> {
        self.world.registry.authorization(user, repository)
    }

    fn asker(&self, node: &str) -> Result<Asker> {
        let ns = self.world.net.namespace(node)?;
        let registry = self.world.registry.client(&ns)?;
        Ok(Asker { mirror: Client::plain(&ns, MIRROR.into()), registry })
    }

    /// Ann pulls on a node, which then holds everything.
    async fn ann_pulls(&mut self, node: &str) -> Result<()> {
        let (ann, private) = (self.ann.clone(), self.private.clone());
        self.world.node(node)?.pull_as(&ann, PRIVATE, "1", &private).await?;
        let held = self.world.node(node)?.shoal()?.held()?;
        let all = private.blobs().map(|blob| blob.digest.as_str()).chain([private.digest.as_str()]);
        let lacks: Vec<&str> = all.filter(|digest| !held.contains(*digest)).collect();
        ensure!(lacks.is_empty(), "{node} pulled a private image and did not keep {lacks:?}");
        Ok(())
    }

    /// Starts a node again in a time of its own, which can be put forward.
    async fn own_time(&mut self, node: &str) -> Result<Clock> {
        let clock = self.world.clock(node)?.of_all();
        let conditions = Conditions { clock: Some(clock.clone()), ..Conditions::default() };
        self.world.node(node)?.shoal()?.restart_under(conditions).await?;
        self.world.all_connected().await?;
        Ok(clock)
    }

    /// Bytes of content that the mirror of a node gave, whatever their source.
    async fn given(&mut self, node: &str) -> Result<u64> {
        let metrics = self.world.node(node)?.shoal()?.admin().get_text("/metrics").await?;
        Ok(labelled(&metrics, "shoal_mirror_bytes_total", "source").values().sum())
    }

    /// Who is not let in by the registry, in words, and what he shows.
    fn outsiders(&self) -> Result<Vec<(&'static str, Option<String>)>> {
        let wrong = Some(self.ann.mistyped().basic());
        let bearer = |token: String| Some(format!("Bearer {token}"));
        Ok(match self.login() {
            Login::Basic => vec![
                ("nobody", None),
                ("ann with a wrong password", wrong),
                ("a user that the registry does not know", Some(User::new("mallory").basic())),
                ("eve, who has no right to it", Some(self.eve.basic())),
                ("somebody with a token where passwords are asked for", Some("Bearer not.a.token".to_owned())),
            ],
            Login::Bearer => vec![
                ("nobody", None),
                ("nobody with an anonymous token", self.shows(None, PRIVATE)?),
                ("ann with a wrong password in place of a token", wrong),
                ("eve, who has no right to it", self.shows(Some(&self.eve), PRIVATE)?),
                ("eve with a token for what is hers", self.shows(Some(&self.eve), OTHER)?),
                ("ann with a token for what is open", self.shows(Some(&self.ann), OPEN)?),
                ("somebody with a token that was good", bearer(self.world.registry.signer().stale(PRIVATE)?)),
                ("somebody with a token of his own signing", bearer(forged(&self.world)?)),
                ("somebody with no token at all", Some("Bearer not.a.token".to_owned())),
            ],
        })
    }

    /// Everything of the private image that a mirror can be asked for, and the length of each.
    fn all(&self) -> Vec<(String, u64)> {
        let manifest = self.private.manifest.len() as u64;
        let manifests =
            ["1".to_owned(), self.private.digest.clone()].map(|what| (format!("manifests/{what}"), manifest));
        let blobs = self.private.blobs().map(|blob| (format!("blobs/{}", blob.digest), blob.size));
        manifests.into_iter().chain(blobs).collect()
    }

    /// Whoever shows that gets not a byte of the private image out of a repository, and is told so with one of these statuses.
    async fn gets_nothing(&mut self, node: &str, who: &str, caller: Caller<'_>, statuses: &[u16]) -> Result<()> {
        let (asker, before) = (self.asker(node)?, self.given(node).await?);
        for (what, size) in self.all() {
            // A tag is another image's in another repository.
            if caller.repository != PRIVATE && what == "manifests/1" {
                continue;
            }
            for (method, range) in [
                (Method::HEAD, None),
                (Method::GET, None),
                (Method::GET, Some("bytes=0-")),
                (Method::GET, Some("bytes=7-")),
            ] {
                let answer = asker.ask(&method, caller.repository, &what, caller.shows, range).await?;
                let told = format!("{who}: {method} {what} {range:?}: {}", answer.status);
                ensure!(statuses.contains(&answer.status.as_u16()), "{told}");
                is_empty_of(&answer, size).with_context(|| told.clone())?;
                // While it is down nobody can tell what it would say.
                if self.up && caller.shows.is_none() && answer.status == StatusCode::UNAUTHORIZED {
                    asker
                        .challenged_as_by_the_registry(&answer.headers, caller.repository, &what)
                        .await
                        .context(told)?;
                }
            }
        }
        let after = self.given(node).await?;
        ensure!(after == before, "{who}: the mirror of {node} gave {} bytes", after - before);
        println!("{:8} {node}: {who:60} gets nothing", self.login());
        Ok(())
    }

    /// Whoever shows that gets all of the private image, right bytes, from a mirror.
    async fn gets_all(&self, node: &str, shows: Option<&str>) -> Result<()> {
        let asker = self.asker(node)?;
        let manifest = ImageBlob {
            digest: self.private.digest.clone(),
            size: self.private.manifest.len() as u64,
            file: std::path::PathBuf::new(),
        };
        let all = self.private.blobs().map(|blob| ("blobs", blob)).chain([("manifests", &manifest)]);
        for (kind, blob) in all {
            asker.gets(kind, PRIVATE, blob, shows).await?;
        }
        Ok(())
    }

    /// Lines of the registry's log that are of a node and say that content was given, or that a blob was asked for at all.
    fn read_of(&self, node: &str, log: &[AccessLine]) -> Vec<String> {
        let of_node = |line: &&AccessLine| self.world.name_of(line.from).as_deref() == Some(node);
        let lines = log.iter().filter(of_node).filter(|line| line.is_blob() || line.is_read());
        lines.map(|line| format!("{} {} {} {}", line.method, line.path, line.status, line.agent)).collect()
    }
}

/// Where somebody asks, and what he shows.
#[derive(Clone, Copy)]
struct Caller<'a> {
    repository: &'a str,
    shows: Option<&'a str>,
}

impl<'a> Caller<'a> {
    fn of(repository: &'a str, shows: Option<&'a str>) -> Self {
        Self { repository, shows }
    }
}

/// A token for the private repository by somebody who is not the registry's signer.
fn forged(world: &World) -> Result<String> {
    let dir = world.dirs.state.join("forger");
    std::fs::create_dir_all(&dir)?;
    Signer::new(&Authority::create(&dir)?.leaf(registry::HOST)?)?.token(PRIVATE, &["pull"])
}

/// Neither content nor what tells anything of it.
fn is_empty_of(answer: &Answer, size: u64) -> Result<()> {
    let headers = &answer.headers;
    for tells in ["docker-content-digest", "content-range", "etag", "location"] {
        ensure!(!headers.contains_key(tells), "the answer has {tells}: {:?}", headers[tells]);
    }
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    ensure!(length != Some(size), "the answer tells the length of the content");
    if answer.body.is_empty() {
        return Ok(());
    }
    let says: serde_json::Value = serde_json::from_slice(&answer.body).context("the body is no error in JSON")?;
    ensure!(says.get("errors").is_some_and(serde_json::Value::is_array), "the body is {says}");
    Ok(())
}

/// Somebody on a node who asks its mirror by hand.
struct Asker {
    mirror: Client,
    /// To compare with: the registry itself, asked from there.
    registry: Client,
}

impl Asker {
    async fn ask(
        &self,
        method: &Method,
        repository: &str,
        what: &str,
        shows: Option<&str>,
        range: Option<&str>,
    ) -> Result<Answer> {
        let uri = format!("/v2/{repository}/{what}?ns={}", registry::HOST);
        let mut request = Request::builder().method(method).uri(uri);
        request = request.header(header::ACCEPT, "application/vnd.oci.image.manifest.v1+json, */*");
        for (name, value) in [(header::AUTHORIZATION, shows), (header::RANGE, range)] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        let asking = tokio::time::timeout(Duration::from_secs(25), self.mirror.send(request.body(empty())?));
        asking.await.with_context(|| format!("{method} {what} was not answered within 25 s"))?
    }

    async fn gets(&self, kind: &str, repository: &str, blob: &ImageBlob, shows: Option<&str>) -> Result<()> {
        let what = format!("{kind}/{}", blob.digest);
        let head = self.ask(&Method::HEAD, repository, &what, shows, None).await?;
        ensure!(head.status == StatusCode::OK, "HEAD {what} in {repository}: {}", head.status);
        let got = self.ask(&Method::GET, repository, &what, shows, None).await?;
        if got.status != StatusCode::OK {
            bail!("GET {what} in {repository}: {} {}", got.status, String::from_utf8_lossy(&got.body));
        }
        let found = format!("sha256:{}", hex::encode(Sha256::digest(&got.body)));
        ensure!(found == blob.digest, "GET {what} gave bytes of {found}");
        Ok(())
    }

    /// The challenge is the registry's own, unchanged.
    async fn challenged_as_by_the_registry(&self, headers: &HeaderMap, repository: &str, what: &str) -> Result<()> {
        let asked = Request::builder().method(Method::GET).uri(format!("/v2/{repository}/{what}")).body(empty())?;
        let all = |headers: &HeaderMap| headers.get_all(header::WWW_AUTHENTICATE).iter().cloned().collect::<Vec<_>>();
        let ours = all(headers);
        // While it is down the node says what it remembers; the scenes before have compared that.
        let Ok(registry) = self.registry.send(asked).await else {
            ensure!(!ours.is_empty(), "401 without a challenge");
            return Ok(());
        };
        ensure!(registry.status == StatusCode::UNAUTHORIZED, "the registry says {} itself", registry.status);
        let theirs = all(&registry.headers);
        ensure!(!ours.is_empty() && ours == theirs, "the challenge is {ours:?}, the registry's {theirs:?}");
        Ok(())
    }
}

fn plan(login: Login) -> WorldPlan {
    WorldPlan::one_cluster(2).with_login(login)
}

#[test]
fn i10_a_private_image_is_read_of_the_registry_once_and_then_given_within_the_cluster_by_bearer() {
    alone(given_within_the_cluster(Login::Bearer));
}

#[test]
fn i10_a_private_image_is_read_of_the_registry_once_and_then_given_within_the_cluster_by_basic() {
    alone(given_within_the_cluster(Login::Basic));
}

async fn given_within_the_cluster(login: Login) -> Result<()> {
    for edition in Edition::from_env(&Edition::RELEASES)? {
        let scene = Scene::set(WorldPlan { edition, ..plan(login) }).await?;
        once_then_from_the_peer(scene).await.with_context(|| format!("{login}, containerd {edition}"))?;
    }
    Ok(())
}

/// Ann pulls on one node, ben on the other; then both ask again for what is there.
async fn once_then_from_the_peer(mut scene: Scene) -> Result<()> {
    let version = scene.world.node("a1")?.containerd.version().await?;
    let whole = scene.private.size() + scene.private.manifest.len() as u64;
    scene.ann_pulls("a1").await?;
    let fetched = scene.world.node("a1")?.shoal()?.bytes_by_source().await?;
    ensure!(fetched["origin"] == whole && fetched["peer"] == 0, "a1 fetched {fetched:?} of {whole} bytes");
    let log = scene.world.registry.access_log()?;
    let mut reads: Vec<&str> = log.iter().filter(|line| line.is_read()).filter_map(AccessLine::digest).collect();
    let all = reads.len();
    reads.sort_unstable();
    reads.dedup();
    ensure!(all == reads.len(), "the registry gave something twice: {:?}", scene.read_of("a1", &log));

    let (ben, private) = (scene.ben.clone(), scene.private.clone());
    scene.world.node("a2")?.pull_as(&ben, PRIVATE, "1", &private).await?;
    let fetched = scene.world.node("a2")?.shoal()?.bytes_by_source().await?;
    ensure!(fetched["peer"] == whole && fetched["origin"] == 0, "a2 fetched {fetched:?} of {whole} bytes");
    let asked = scene.read_of("a2", &scene.world.registry.access_log()?);
    ensure!(asked.is_empty(), "a2 asked the registry for what a1 holds: {asked:#?}");

    // What a node has on its own disk is given to another who may read it, after a word of the registry's.
    let before = scene.world.registry.access_log()?.len();
    for (node, user) in [("a1", &scene.ben), ("a2", &scene.ann)] {
        let shows = scene.shows(Some(user), PRIVATE)?;
        scene.gets_all(node, shows.as_deref()).await.with_context(|| format!("{} on {node}", user.name))?;
    }
    let log = scene.world.registry.access_log()?;
    for node in ["a1", "a2"] {
        let read: Vec<_> = log[before..].iter().filter(|line| line.is_read()).collect();
        ensure!(read.is_empty(), "{node} read what it holds: {read:?}");
    }
    println!("{:8} {version}: {whole} bytes once from the registry, then from the peer", scene.login());
    aftermath::check(&mut scene.world).await
}

#[test]
fn i10_who_may_not_read_a_repository_gets_not_a_byte_of_what_the_node_holds_by_bearer() {
    alone(outsiders_get_nothing(Login::Bearer));
}

#[test]
fn i10_who_may_not_read_a_repository_gets_not_a_byte_of_what_the_node_holds_by_basic() {
    alone(outsiders_get_nothing(Login::Basic));
}

async fn outsiders_get_nothing(login: Login) -> Result<()> {
    let mut scene = Scene::set(plan(login)).await?;
    scene.ann_pulls("a1").await?;
    // The one node holds it, the other would have it from its peer.
    for node in ["a1", "a2"] {
        for (who, shows) in scene.outsiders()? {
            scene.gets_nothing(node, who, Caller::of(PRIVATE, shows.as_deref()), &NO).await?;
        }
    }
    let held = scene.world.node("a2")?.shoal()?.held()?;
    let got: Vec<_> = scene.private.blobs().filter(|blob| held.contains(&blob.digest)).collect();
    ensure!(got.is_empty(), "a2 fetched for an outsider: {got:?}");
    // Nor does what was refused stand in the way of who may.
    let shows = scene.shows(Some(&scene.ben), PRIVATE)?;
    scene.gets_all("a2", shows.as_deref()).await?;
    // containerd with a wrong password has nothing either.
    let (mistyped, image) = (scene.ann.mistyped(), scene.private.clone());
    let pulled = scene.world.node("a2")?.pull_as(&mistyped, PRIVATE, "1", &image).await;
    ensure!(pulled.is_err(), "a pull with a wrong password succeeded");
    let content = scene.world.node("a2")?.containerd.held();
    ensure!(scene.private.blobs().all(|blob| !content.contains(&blob.digest)), "containerd has {content:?}");
    aftermath::check(&mut scene.world).await
}

#[test]
fn i10_a_blob_is_given_out_of_no_repository_that_it_is_not_in_by_bearer() {
    alone(out_of_another_repository(Login::Bearer));
}

#[test]
fn i10_a_blob_is_given_out_of_no_repository_that_it_is_not_in_by_basic() {
    alone(out_of_another_repository(Login::Basic));
}

async fn out_of_another_repository(login: Login) -> Result<()> {
    let mut scene = Scene::set(plan(login)).await?;
    scene.ann_pulls("a1").await?;
    // Eve has pulled what is hers: the node knows what belongs there.
    let (eve, others) = (scene.eve.clone(), Image::obtain(&Plan::random(SEED + 1, vec![SHARED, 32 << 10]))?);
    scene.world.node("a1")?.pull_as(&eve, OTHER, "1", &others).await?;
    let mut callers = vec![("eve, out of what is hers", OTHER, scene.shows(Some(&eve), OTHER)?)];
    if login == Login::Bearer {
        callers.push(("nobody, out of what is open", OPEN, scene.shows(None, OPEN)?));
        callers.push(("eve, out of what is open", OPEN, scene.shows(Some(&eve), OPEN)?));
    }
    for node in ["a1", "a2"] {
        for (who, repository, shows) in &callers {
            scene.gets_nothing(node, who, Caller::of(repository, shows.as_deref()), &[404]).await?;
        }
    }
    // What is in both is given out of both: the registry says so, and gives no byte.
    let both = Image::obtain(&Plan::random(SEED, vec![5 << 20, SHARED, 64 << 10]))?;
    scene.world.registry.push(&both, OTHER, "both").await?;
    let before = scene.world.registry.access_log()?.len();
    let (asker, shows) = (scene.asker("a1")?, scene.shows(Some(&eve), OTHER)?);
    // Until then the node may remember that it is not there.
    let layer = &both.layers[0];
    let got = lab::wait::eventually(Duration::from_secs(40), "the node to ask again", || async {
        asker.gets("blobs", OTHER, layer, shows.as_deref()).await
    });
    got.await.context("a blob of both repositories")?;
    let log = scene.world.registry.access_log()?;
    let read: Vec<_> = log[before..].iter().filter(|line| line.is_read() && line.is_blob()).collect();
    ensure!(read.is_empty(), "a1 read what it holds: {read:?}");
    aftermath::check(&mut scene.world).await
}

#[test]
fn i10_a_right_that_was_taken_away_is_gone_with_the_next_token() {
    alone(async {
        let mut scene = Scene::set(plan(Login::Bearer)).await?;
        scene.ann_pulls("a1").await?;
        let ann = scene.ann.clone();
        scene.world.registry.rights().take_away(&ann, PRIVATE);
        for node in ["a1", "a2"] {
            let shows = scene.shows(Some(&ann), PRIVATE)?;
            let caller = Caller::of(PRIVATE, shows.as_deref());
            scene.gets_nothing(node, "ann, with the token of who lost the right", caller, &NO).await?;
        }
        may_pull_no_more(&mut scene).await
    });
}

#[test]
fn i10_a_right_that_was_taken_away_is_gone_where_nobody_asked_and_within_five_minutes_everywhere() {
    alone(async {
        let mut scene = Scene::set(plan(Login::Basic)).await?;
        let clock = scene.own_time("a1").await?;
        scene.ann_pulls("a1").await?;
        let (ann, basic) = (scene.ann.clone(), scene.ann.basic());
        scene.world.registry.rights().take_away(&ann, PRIVATE);
        let caller = Caller::of(PRIVATE, Some(&basic));
        scene.gets_nothing("a2", "ann, who lost the right, where nobody asked for her", caller, &NO).await?;
        clock.set(FORGOTTEN)?;
        scene.gets_nothing("a1", "ann, who lost the right, five minutes later", caller, &NO).await?;
        may_pull_no_more(&mut scene).await
    });
}

/// Ann can pull no more, and ben can.
async fn may_pull_no_more(scene: &mut Scene) -> Result<()> {
    let (ann, image) = (scene.ann.clone(), scene.private.clone());
    let pulled = scene.world.node("a2")?.pull_as(&ann, PRIVATE, "1", &image).await;
    ensure!(pulled.is_err(), "ann pulled what she has no right to any more");
    let shows = scene.shows(Some(&scene.ben), PRIVATE)?;
    for node in ["a1", "a2"] {
        scene.gets_all(node, shows.as_deref()).await.with_context(|| format!("ben on {node}"))?;
    }
    aftermath::check(&mut scene.world).await
}

/// What says who reads what is private while the registry is down.
const WHEN_DOWN: &str = "origin.private_when_down";
/// What a mirror says when nobody can be asked.
const NO_WORD: [u16; 5] = [401, 403, 404, 502, 503];

/// Ann has pulled on a1; then the registry went down, and five minutes passed at a1.
async fn down(login: Login, wanted: Option<&str>) -> Result<(Scene, Option<String>)> {
    let plan = plan(login).only(1);
    let plan = match wanted {
        Some(wanted) => plan.with_setting(WHEN_DOWN, &format!("{wanted:?}")),
        None => plan,
    };
    let mut scene = Scene::set(plan).await?;
    let clock = scene.own_time("a1").await?;
    scene.ann_pulls("a1").await?;
    let shows = scene.shows(Some(&scene.ann), PRIVATE)?;
    scene.gets_all("a1", shows.as_deref()).await.context("before the registry is down")?;
    scene.world.registry.go_away().await;
    scene.up = false;
    clock.set(FORGOTTEN)?;
    Ok((scene, shows))
}

#[test]
fn i10_with_the_registry_down_what_is_private_is_refused_by_bearer() {
    alone(refused_while_it_is_down(Login::Bearer));
}

#[test]
fn i10_with_the_registry_down_what_is_private_is_refused_by_basic() {
    alone(refused_while_it_is_down(Login::Basic));
}

/// As it comes: the registry is down, and what it said a while ago counts no more.
async fn refused_while_it_is_down(login: Login) -> Result<()> {
    let (mut scene, ann) = down(login, None).await?;
    let ben = scene.shows(Some(&scene.ben), PRIVATE)?;
    for (who, shows) in [("ben, for whom nobody asked in time", ben), ("ann, long after the registry's last word", ann)]
    {
        scene.gets_nothing("a1", who, Caller::of(PRIVATE, shows.as_deref()), &NO_WORD).await?;
    }
    outsiders_get_nothing_of_a1(&mut scene).await
}

#[test]
fn i10_with_the_registry_down_only_a_credential_that_it_let_in_gets_what_is_held_where_the_operator_wants_it_by_bearer()
{
    alone(the_same_credential(Login::Bearer));
}

#[test]
fn i10_with_the_registry_down_only_a_credential_that_it_let_in_gets_what_is_held_where_the_operator_wants_it_by_basic()
{
    alone(the_same_credential(Login::Basic));
}

async fn the_same_credential(login: Login) -> Result<()> {
    let (mut scene, ann) = down(login, Some("same_credential")).await?;
    scene.gets_all("a1", ann.as_deref()).await.context("ann, with what the registry took before")?;
    println!("{login:8} a1: ann gets everything in the outage");
    let ben = scene.shows(Some(&scene.ben), PRIVATE)?;
    let caller = Caller::of(PRIVATE, ben.as_deref());
    scene.gets_nothing("a1", "ben, for whom nobody asked in time", caller, &NO_WORD).await?;
    outsiders_get_nothing_of_a1(&mut scene).await
}

async fn outsiders_get_nothing_of_a1(scene: &mut Scene) -> Result<()> {
    for (who, shows) in scene.outsiders()? {
        scene.gets_nothing("a1", who, Caller::of(PRIVATE, shows.as_deref()), &NO_WORD).await?;
    }
    aftermath::check(&mut scene.world).await
}

#[test]
fn with_the_registry_down_anyone_gets_what_is_held_where_the_operator_wants_it() {
    alone(async {
        let (mut scene, _) = down(Login::Basic, Some("anyone")).await?;
        scene.gets_all("a1", None).await.context("nobody in particular")?;
        aftermath::check(&mut scene.world).await
    });
}
