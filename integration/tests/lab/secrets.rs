//! No secret is where it has no business (I9): not in a log at its most talkative, a trace, a page, a database, a store or a command
//! line; and what a caller showed does not stay in a node's memory.
//!
//! All secrets of a world are planted so that they are found again in any form ([`lab::secrets`]); then nodes pull with success and
//! without, the registry and its storage fail them, strangers try what does not count, and everything that the run wrote is read.
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::{Request, header};
use lab::{
    conditions::Conditions,
    fault_proxy::{Fault, Injection, SIGNATURE, What, Who},
    http::{Client, empty},
    image::{Image, Plan},
    liar::Liar,
    process::output,
    registry::{self, Login},
    rights::User,
    secrets::{Found, Search, Secret, summary},
    tools::ShoalPrograms,
    world::{World, WorldPlan},
};

use crate::alone;

const SEED: u64 = 54_000;
const PRIVATE: &str = "lab/private";
const STRANGER: &str = "x1";
const NODES: [&str; 2] = ["a1", "a2"];
/// Everything that anybody could want to read.
const TALKATIVE: &str = "trace";

/// A world in which a lot has happened.
struct Scene {
    world: World,
    image: Image,
    users: Users,
    /// Everything that must not be found, with what may have it: paths below the run's directory.
    planted: Vec<(Secret, Vec<String>)>,
    /// An API token of a viewer.
    viewer: String,
}

struct Users {
    ann: User,
    ben: User,
    eve: User,
}

impl Scene {
    async fn set(login: Login) -> Result<Self> {
        let proxy = User::new("proxy");
        let through = format!("\"http://{}@10.77.0.9:3128\"", proxy.creds());
        let plan = WorldPlan { origin_rate: None, ..WorldPlan::one_cluster(2) }
            .with_login(login)
            .with_guest(STRANGER, [10, 77, 1, 200].into())
            .with_setting("telemetry.log", &format!("{TALKATIVE:?}"))
            .with_setting("origin.registry.\"elsewhere.test\".proxy", &through);
        let mut world = World::start(plan).await?;
        world.keep_traces(&world.dirs.state.join("traces.otlp"))?;
        let settings = vec![format!("telemetry.log={TALKATIVE}")];
        world.control()?.restart_under(Conditions { settings, ..Conditions::default() }).await?;
        let image = Image::obtain(&Plan::random(SEED, vec![3 << 20, 64 << 10]))?;
        world.registry.push(&image, PRIVATE, "1").await?;
        world.registry.rights().close(PRIVATE);
        let registry = &world.registry;
        let (ann, ben) = (registry.admit("ann", &[PRIVATE])?, registry.admit("ben", &[PRIVATE])?);
        let users = Users { ann, ben, eve: registry.admit("eve", &[])? };
        world.start_nodes().await?;
        let config = NODES.map(|node| format!("{node}/shoal-node.toml"));
        let planted = vec![(Secret::password(&proxy), config.to_vec())];
        let viewer = world.control()?.ctl(&["api-token", "create", "viewer", "--role", "viewer"]).await?;
        Ok(Self { world, image, users, planted, viewer: viewer.trim().to_owned() })
    }

    /// A secret that nothing may have.
    fn plant(&mut self, secret: Secret) {
        self.planted.push((secret, Vec::new()));
    }

    /// Pulls that succeed and that fail, with the registry up and down, and with a storage that is away.
    async fn pulls(&mut self) -> Result<()> {
        let Users { ann, ben, eve } = &self.users;
        let (ann, ben, eve, image) = (ann.clone(), ben.clone(), eve.clone(), self.image.clone());
        self.fails_by_storage(&ann).await?;
        for (node, user) in [("a1", &ann), ("a2", &ben)] {
            self.world.node(node)?.pull_as(user, PRIVATE, "1", &image).await?;
        }
        for (node, user) in [("a1", &ann.mistyped()), ("a2", &eve)] {
            let reference = format!("{}/{PRIVATE}:1", registry::HOST);
            let puller = self.world.node(node)?.containerd.puller();
            puller.remove(&reference).await?;
            ensure!(puller.pull_as(&reference, user).await.is_err(), "{user:?} pulled on {node}");
        }
        for user in [&ann, &ben, &eve] {
            self.asks("a1", self.world.registry.authorization(Some(user), PRIVATE)?).await?;
        }
        self.asks("a1", Some(ann.mistyped().basic())).await?;
        self.world.registry.go_away().await;
        let reference = format!("{}/{PRIVATE}:1", registry::HOST);
        let pulled = self.world.node("a2")?.containerd.puller().pull_as(&reference, &ann).await;
        ensure!(pulled.is_err(), "a pull of a tag without the registry succeeded");
        self.asks("a2", Some(ben.basic())).await?;
        self.world.registry.revive().await?;
        for user in [&ann, &ann.mistyped(), &ben, &eve] {
            self.plant(Secret::password(user));
        }
        for (number, token) in self.world.registry.desk().given_to_users().iter().enumerate() {
            self.plant(Secret::token(&format!("token {number} of a user"), token)?);
        }
        Ok(())
    }

    /// The registry sends to a storage that is not there, by a URL that is a credential.
    async fn fails_by_storage(&mut self, user: &User) -> Result<()> {
        let blobs = self.image.blobs().map(|blob| blob.digest.clone()).collect();
        let proxy = self.world.registry.proxy()?;
        proxy.inject(Injection { fault: Fault::DeadRedirect, who: Who::Ours, what: What::Blobs(blobs) });
        let shows = self.world.registry.authorization(Some(user), PRIVATE)?;
        self.asks("a1", shows).await?;
        let hit = self.world.registry.proxy()?.hits().ours;
        self.world.registry.proxy()?.clear();
        ensure!(hit > 0, "nobody was sent to the storage");
        self.plant(Secret::text("the signature of a storage's URL", SIGNATURE));
        Ok(())
    }

    /// Somebody on a node asks its mirror for everything, whatever comes of it.
    async fn asks(&self, node: &str, shows: Option<String>) -> Result<()> {
        let mirror = Client::plain(&self.world.net.namespace(node)?, ([127, 0, 0, 1], 5080).into());
        let manifest = format!("manifests/{}", self.image.digest);
        let blobs = self.image.blobs().map(|blob| format!("blobs/{}", blob.digest));
        for what in blobs.chain([manifest, "manifests/1".to_owned()]) {
            let uri = format!("/v2/{PRIVATE}/{what}?ns={}", registry::HOST);
            let mut request = Request::builder().uri(uri);
            if let Some(shows) = &shows {
                request = request.header(header::AUTHORIZATION, shows);
            }
            let asking = tokio::time::timeout(Duration::from_secs(40), mirror.send(request.body(empty())?));
            // A body that is cut short is an answer too.
            let _ = asking.await.with_context(|| format!("{what} was not answered within 40 s"))?;
        }
        Ok(())
    }

    /// Joins and questions with tokens that count, and with others.
    async fn members(&mut self) -> Result<()> {
        let (ns, grpc) = (self.world.net.namespace(STRANGER)?, self.world.grpc());
        let good = self.world.token()?.context("this world has certificates")?;
        let parts: Vec<&str> = good.trim().split('.').collect();
        let [prefix, id, secret, ca] = parts[..] else { anyhow::bail!("a join token of another form") };
        self.planted.push((Secret::hex("the secret of the join token", secret)?, vec!["control/join-token".into()]));
        let guessed = hex::encode(rand::random::<[u8; 32]>());
        self.plant(Secret::hex("the secret of a join token that does not count", &guessed)?);
        let wrong = format!("{prefix}.{id}.{guessed}.{ca}");
        ensure!(Liar::join(&ns, grpc, STRANGER, Some(&wrong)).await.is_err(), "joined by a guess");
        Liar::join(&ns, grpc, STRANGER, Some(&good)).await?.leave().await?;
        let other = self.world.control()?.ctl(&["join-token", "create"]).await?;
        let other = other.trim().split('.').nth(2).context("a join token of another form")?.to_owned();
        self.plant(Secret::hex("the secret of a join token that nobody used", &other)?);

        let admin = fs::read_to_string(self.world.dirs.state.join("control/admin-token"))?;
        self.planted.push((Secret::text("the admin's API token", admin.trim()), vec!["control/admin-token".into()]));
        let mistaken = hex::encode(rand::random::<[u8; 32]>());
        for token in [self.viewer.clone(), mistaken.clone()] {
            let rest = self.world.control()?.rest().clone().bearing(&token);
            for path in ["/api/v1/whoami", "/api/v1/audit", "/api/v1/api-tokens", "/api/v1/clusters"] {
                rest.get(path).await?;
            }
        }
        self.plant(Secret::text("a viewer's API token", &self.viewer.clone()));
        self.plant(Secret::text("an API token that does not count", &mistaken));
        self.keys()
    }

    /// Private keys: of the authority, and of each node.
    fn keys(&mut self) -> Result<()> {
        let state = self.world.dirs.state.clone();
        let pem = fs::read_to_string(state.join("control/state/ca.key"))?;
        let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let key = Secret::key("the authority's key", &BASE64.decode(body)?)?;
        self.planted.push((key, vec!["control/state/ca.key".into()]));
        for node in NODES {
            let own = format!("{node}/shoal/identity.json");
            let identity: serde_json::Value = serde_json::from_slice(&fs::read(state.join(&own))?)?;
            let der = BASE64.decode(identity["key"].as_str().context("an identity without a key")?)?;
            self.planted.push((Secret::key(&format!("the key of {node}"), &der)?, vec![own]));
        }
        for owners in ["control/state/ca.key".to_owned()]
            .into_iter()
            .chain(NODES.map(|node| format!("{node}/shoal/identity.json")))
        {
            let mode = fs::metadata(state.join(&owners))?.permissions().mode() & 0o777;
            ensure!(mode == 0o600, "{owners} has mode {mode:o}");
        }
        Ok(())
    }

    /// Every page and whatever else tells something of the daemons, written to files below the run's directory.
    async fn pages(&mut self) -> Result<()> {
        let dir = self.world.dirs.state.join("pages");
        fs::create_dir_all(&dir)?;
        let programs = ShoalPrograms::locate()?;
        for node in NODES {
            let shoal = self.world.node(node)?.shoal()?;
            let (pid, admin) = (shoal.pid(), shoal.admin().clone());
            for page in ["livez", "readyz", "metrics", "debug"] {
                fs::write(dir.join(format!("{node}-{page}")), admin.get(&format!("/{page}")).await?.body)?;
            }
            of_process(pid, &dir, node)?;
            let config = self.world.dirs.state.join(node).join("shoal-node.toml");
            described(&programs.node, &config, &dir, node)?;
        }
        let control = self.world.control()?;
        of_process(control.pid(), &dir, "control")?;
        let rest = control.rest();
        for page in [
            "livez",
            "readyz",
            "metrics",
            "api/v1/members",
            "api/v1/join-tokens",
            "api/v1/api-tokens",
            "api/v1/audit",
            "api/v1/ca",
            "api/v1/nodes",
        ] {
            let answer = rest.get(&format!("/{page}")).await?;
            ensure!(answer.status.is_success(), "/{page}: {}", answer.status);
            fs::write(dir.join(format!("control-{}", page.replace('/', "-"))), answer.body)?;
        }
        let config = self.world.dirs.state.join("control/shoal-control.toml");
        described(&programs.control, &config, &dir, "control")
    }

    /// Everything happens.
    async fn play(login: Login) -> Result<Self> {
        let mut scene = Self::set(login).await?;
        scene.pulls().await?;
        scene.members().await?;
        scene.pages().await?;
        Ok(scene)
    }

    fn search(&self) -> Search {
        let secrets: Vec<Secret> = self.planted.iter().map(|(secret, _)| secret.clone()).collect();
        Search::new(&secrets)
    }

    /// What is found in the memory of every daemon, with whose it is.
    fn memory(&mut self) -> Result<Vec<(String, Found)>> {
        let search = self.search();
        let mut pids = vec![("control", self.world.control()?.pid())];
        for node in NODES {
            pids.push((node, self.world.node(node)?.shoal()?.pid()));
        }
        let mut all = Vec::new();
        for (whose, pid) in pids {
            let (bytes, found) = tokio::task::block_in_place(|| search.memory(pid, whose))?;
            println!("{whose}: {} finds in {} KiB", found.len(), bytes / 1024);
            all.extend(found.into_iter().map(|one| (whose.to_owned(), one)));
        }
        Ok(all)
    }

    /// Whether it is where it belongs.
    fn belongs(&self, found: &Found) -> bool {
        let of = |planted: &&(Secret, Vec<String>)| planted.0.name == found.secret;
        self.planted.iter().find(of).is_some_and(|(_, places)| places.contains(&found.place))
    }
}

/// Its command line and environment.
fn of_process(pid: u32, dir: &Path, whose: &str) -> Result<()> {
    for what in ["cmdline", "environ"] {
        let bytes = fs::read(format!("/proc/{pid}/{what}")).with_context(|| format!("{what} of {whose}"))?;
        fs::write(dir.join(format!("{whose}-{what}")), bytes)?;
    }
    Ok(())
}

/// What a program says of settings, good ones and bad ones.
fn described(program: &Path, config: &Path, dir: &Path, whose: &str) -> Result<()> {
    let bad = dir.join(format!("{whose}-bad.toml"));
    // Broken where no secret stands.
    fs::write(&bad, format!("no_such_key = 1\n{}", fs::read_to_string(config)?))?;
    for (name, path) in [("good", config), ("bad", &bad)] {
        let mut check = std::process::Command::new(program);
        let said = output(check.args(["config", "check", "--config"]).arg(path))?;
        ensure!(said.status.success() == (name == "good"), "config check of a {name} one: {said:?}");
        fs::write(dir.join(format!("{whose}-check-{name}")), [said.stdout, said.stderr].concat())?;
    }
    // It is the operator's file once more.
    fs::remove_file(&bad).context("remove the bad settings")
}

#[test]
fn i9_no_secret_is_in_what_daemons_write_say_and_export_by_bearer() {
    alone(nothing_is_written(Login::Bearer));
}

#[test]
fn i9_no_secret_is_in_what_daemons_write_say_and_export_by_basic() {
    alone(nothing_is_written(Login::Basic));
}

async fn nothing_is_written(login: Login) -> Result<()> {
    let mut scene = Scene::play(login).await?;
    // A second look, for what is only there while they run: journals, and what is written with a delay.
    let state = scene.world.dirs.state.clone();
    let search = scene.search();
    let running = look(&search, &state).await?;
    for node in NODES {
        ensure!(scene.world.node(node)?.shoal()?.stop(Duration::from_secs(40)).await, "{node} did not end");
    }
    ensure!(scene.world.control()?.stop(Duration::from_secs(40)).await, "control did not end");
    let (files, mut found) = look(&search, &state).await?;
    let traces = fs::metadata(state.join("traces.otlp"))?.len();
    ensure!(traces > 10_000, "only {traces} bytes of traces came");
    let log = fs::read_to_string(state.join("a1/shoal-node.log"))?;
    ensure!(log.contains("\"level\":\"TRACE\""), "the log is not as talkative as it can be");
    // Or nothing was searched for well: what is where it belongs is found there.
    for (secret, places) in scene.planted.iter().filter(|(_, places)| places.len() == 1) {
        let there = found.iter().any(|one| one.secret == secret.name && places.contains(&one.place));
        ensure!(there, "{} is not even in {places:?}", secret.name);
    }
    found.extend(running.1);
    found.retain(|one| !scene.belongs(one));
    println!("{login}: {} secrets in {files} files, {traces} bytes of traces", scene.planted.len());
    ensure!(found.is_empty(), "{} finds:\n{}", found.len(), summary(&found));
    Ok(())
}

async fn look(search: &Search, dir: &Path) -> Result<(usize, Vec<Found>)> {
    let dir: PathBuf = dir.to_owned();
    tokio::task::block_in_place(|| search.below(&dir))
}

/// So long after the last pull nothing is left of what callers showed.
const AFTERWARDS: Duration = Duration::from_secs(30);

#[test]
fn i9_no_process_ever_has_in_memory_what_is_not_its_own_by_bearer() {
    alone(to_each_its_own(Login::Bearer));
}

#[test]
fn i9_no_process_ever_has_in_memory_what_is_not_its_own_by_basic() {
    alone(to_each_its_own(Login::Basic));
}

/// What has no business in a process is not there at any time. A node has its own key, control the authority's; what callers show a
/// node has while they are served.
async fn to_each_its_own(login: Login) -> Result<()> {
    let mut scene = Scene::play(login).await?;
    let found = scene.memory()?;
    // Or the search finds nothing whatever there is.
    for node in NODES {
        let own = format!("the key of {node}");
        ensure!(found.iter().any(|(whose, one)| whose == node && one.secret == own), "{node} has not even its own key");
    }
    let never: Vec<Found> = of(found, has_no_business);
    ensure!(never.is_empty(), "what has no business there:\n{}", summary(&never));
    Ok(())
}

#[test]
fn i9_what_callers_showed_does_not_stay_in_a_node_s_memory_by_bearer() {
    alone(nothing_stays(Login::Bearer));
}

#[test]
fn i9_what_callers_showed_does_not_stay_in_a_node_s_memory_by_basic() {
    alone(nothing_stays(Login::Basic));
}

async fn nothing_stays(login: Login) -> Result<()> {
    let mut scene = Scene::play(login).await?;
    let shown = |whose: &str, found: &Found| whose != "control" && is_shown_by_callers(found);
    println!("{login}, at once:\n{}", summary(&of(scene.memory()?, shown)));
    tokio::time::sleep(AFTERWARDS).await;
    let stays = of(scene.memory()?, shown);
    ensure!(stays.is_empty(), "{AFTERWARDS:?} after the last pull:\n{}", summary(&stays));
    Ok(())
}

/// Those of which it is true.
fn of(found: Vec<(String, Found)>, is: impl Fn(&str, &Found) -> bool) -> Vec<Found> {
    found.into_iter().filter(|(whose, one)| is(whose, one)).map(|(_, one)| one).collect()
}

fn is_shown_by_callers(found: &Found) -> bool {
    let passwords = ["ann", "ben", "eve"].map(|user| format!("the password of {user}"));
    passwords.contains(&found.secret) || found.secret.ends_with("of a user")
}

/// What a process is never told.
fn has_no_business(whose: &str, found: &Found) -> bool {
    let secret = found.secret.as_str();
    match whose {
        "control" => is_shown_by_callers(found) || secret.starts_with("the key of") || secret.contains("storage's URL"),
        node => {
            secret == "the authority's key"
                || secret.contains("API token")
                || secret.ends_with("that does not count")
                || secret.ends_with("that nobody used")
                || (secret.starts_with("the key of") && secret != format!("the key of {node}"))
        }
    }
}
