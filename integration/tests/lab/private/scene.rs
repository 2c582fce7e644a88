//! The cluster and the registry of these scenes, and who asks.
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use http::{HeaderMap, Method, Request, StatusCode, header};
use lab::{
    clock::Clock,
    conditions::Conditions,
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

/// For ann and ben.
pub(super) const PRIVATE: &str = "lab/private";
/// For eve.
pub(super) const OTHER: &str = "lab/others";
/// For everybody, as far as the registry has such a thing.
pub(super) const OPEN: &str = "lab/open";
const MIRROR: ([u8; 4], u16) = ([127, 0, 0, 1], 5080);
const SEED: u64 = 52_000;

/// What a repository's image is made of.
pub(super) fn plan_of(repository: &str) -> Plan {
    match repository {
        PRIVATE => Plan::random(SEED, vec![5 << 20, 1 << 20, 64 << 10]),
        OTHER => Plan::random(SEED + 1, vec![1 << 20, 32 << 10]),
        _ => Plan::random(SEED + 2, vec![1 << 20, 32 << 10]),
    }
}

/// A cluster of nodes before a registry with images of ann and ben, of eve, and of everybody.
pub(super) struct Scene {
    pub(super) world: World,
    pub(super) private: Image,
    pub(super) ann: User,
    pub(super) ben: User,
    pub(super) eve: User,
    /// Whether the registry is there.
    pub(super) up: bool,
}

impl Scene {
    pub(super) async fn set(plan: WorldPlan) -> Result<Self> {
        let mut world = World::start(WorldPlan { origin_rate: None, ..plan }).await?;
        let private = Image::obtain(&plan_of(PRIVATE))?;
        let registry = &world.registry;
        for repository in [OTHER, OPEN] {
            registry.push(&Image::obtain(&plan_of(repository))?, repository, "1").await?;
        }
        registry.push(&private, PRIVATE, "1").await?;
        registry.rights().close(PRIVATE);
        registry.rights().close(OTHER);
        let (ann, ben) = (registry.admit("ann", &[PRIVATE])?, registry.admit("ben", &[PRIVATE])?);
        let eve = registry.admit("eve", &[OTHER])?;
        world.start_nodes().await?;
        Ok(Self { world, private, ann, ben, eve, up: true })
    }

    pub(super) fn login(&self) -> Login {
        self.world.registry.login()
    }

    /// What containerd would show for a user, or for nobody, in a repository: a new token, or name and password.
    pub(super) fn shows(&self, user: Option<&User>, repository: &str) -> Result<Option<String>> {
        self.world.registry.authorization(user, repository)
    }

    pub(super) fn asker(&self, node: &str) -> Result<Asker> {
        let ns = self.world.net.namespace(node)?;
        let registry = self.world.registry.client(&ns)?;
        Ok(Asker { mirror: Client::plain(&ns, MIRROR.into()), registry })
    }

    /// Ann pulls on a node, which then holds everything.
    pub(super) async fn ann_pulls(&mut self, node: &str) -> Result<()> {
        let (ann, private) = (self.ann.clone(), self.private.clone());
        self.world.node(node)?.pull_as(&ann, PRIVATE, "1", &private).await?;
        let held = self.world.node(node)?.shoal()?.held()?;
        let all = private.blobs().map(|blob| blob.digest.as_str()).chain([private.digest.as_str()]);
        let lacks: Vec<&str> = all.filter(|digest| !held.contains(*digest)).collect();
        ensure!(lacks.is_empty(), "{node} pulled a private image and did not keep {lacks:?}");
        Ok(())
    }

    /// Starts a node again in a time of its own, which can be put forward.
    pub(super) async fn own_time(&mut self, node: &str) -> Result<Clock> {
        let clock = self.world.clock(node)?.of_all();
        let conditions = Conditions { clock: Some(clock.clone()), ..Conditions::default() };
        self.world.node(node)?.shoal()?.restart_under(conditions).await?;
        self.world.all_connected().await?;
        Ok(clock)
    }

    /// Bytes of content that the mirror of a node gave, whatever their source.
    pub(super) async fn given(&mut self, node: &str) -> Result<u64> {
        let metrics = self.world.node(node)?.shoal()?.admin().get_text("/metrics").await?;
        Ok(labelled(&metrics, "shoal_mirror_bytes_total", "source").values().sum())
    }

    /// Who is not let in by the registry, in words, and what he shows.
    pub(super) fn outsiders(&self) -> Result<Vec<(&'static str, Option<String>)>> {
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
    pub(super) fn all(&self) -> Vec<(String, u64)> {
        let manifest = self.private.manifest.len() as u64;
        let manifests =
            ["1".to_owned(), self.private.digest.clone()].map(|what| (format!("manifests/{what}"), manifest));
        let blobs = self.private.blobs().map(|blob| (format!("blobs/{}", blob.digest), blob.size));
        manifests.into_iter().chain(blobs).collect()
    }

    /// Whoever shows that gets not a byte of the private image out of a repository, and is told so with one of these statuses.
    pub(super) async fn gets_nothing(
        &mut self,
        node: &str,
        who: &str,
        caller: Caller<'_>,
        statuses: &[u16],
    ) -> Result<()> {
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
    pub(super) async fn gets_all(&self, node: &str, shows: Option<&str>) -> Result<()> {
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
    pub(super) fn read_of(&self, node: &str, log: &[AccessLine]) -> Vec<String> {
        let of_node = |line: &&AccessLine| self.world.name_of(line.from).as_deref() == Some(node);
        let lines = log.iter().filter(of_node).filter(|line| line.is_blob() || line.is_read());
        lines.map(|line| format!("{} {} {} {}", line.method, line.path, line.status, line.agent)).collect()
    }
}

/// Where somebody asks, and what he shows.
#[derive(Clone, Copy)]
pub(super) struct Caller<'a> {
    pub(super) repository: &'a str,
    pub(super) shows: Option<&'a str>,
}

impl<'a> Caller<'a> {
    pub(super) fn of(repository: &'a str, shows: Option<&'a str>) -> Self {
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
pub(super) struct Asker {
    mirror: Client,
    /// To compare with: the registry itself, asked from there.
    registry: Client,
}

impl Asker {
    pub(super) async fn ask(
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

    pub(super) async fn gets(&self, kind: &str, repository: &str, blob: &ImageBlob, shows: Option<&str>) -> Result<()> {
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
    pub(super) async fn challenged_as_by_the_registry(
        &self,
        headers: &HeaderMap,
        repository: &str,
        what: &str,
    ) -> Result<()> {
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
