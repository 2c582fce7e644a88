//! The origin: Debian's `docker-registry` over TLS, and what its access log says. Who asks it knows by tokens of its token server, or
//! by Basic; who may pull what stands in [`Rights`]. For faults, and where a user of Basic must not see all, it stands behind a proxy.
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use http::{Method, Request, StatusCode, header};

use crate::{
    fault_proxy::FaultProxy,
    http::{Answer, Client, empty, from_file, full},
    image::{Image, ImageBlob},
    net::Netns,
    process::Daemon,
    rights::{Rights, User},
    tls::{Authority, Leaf},
    token::{self, Desk, Signer, TokenServer},
    wait::eventually,
};

mod access;

pub use access::{AccessLine, Reads, reads_by_digest};

/// The registry's name, as images are named after it.
pub const HOST: &str = "registry.shoal.test";

const PORT: u16 = 443;
/// On loopback, when the proxy has its place.
const PORT_BEHIND: u16 = 5000;

/// Whether a proxy that can break answers stands before the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Front {
    /// Clients reach the registry itself.
    Bare,
    /// Clients reach a [`FaultProxy`].
    Proxy,
}

/// How the registry knows who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Login {
    /// By a token of its token server. What is not closed is for everybody.
    Bearer,
    /// By name and password with each request (`htpasswd`). Nothing is for everybody.
    Basic,
}

impl std::fmt::Display for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Bearer => "Bearer",
            Self::Basic => "Basic",
        })
    }
}

/// Who pushes where users log in by Basic.
const PUSHER: &str = "lab";

/// A registry with its token server.
pub struct Registry {
    daemon: Daemon,
    tokens: Option<TokenServer>,
    proxy: Option<FaultProxy>,
    leaf: Leaf,
    desk: Desk,
    rights: Rights,
    pusher: User,
    /// What pushes: on the registry's own machine, past the proxy.
    client: Client,
    setup: Setup,
}

/// What it takes to start it again.
struct Setup {
    program: PathBuf,
    ns: Netns,
    dir: PathBuf,
    authority: Authority,
    front: Front,
    login: Login,
}

impl Setup {
    fn config(&self) -> PathBuf {
        self.dir.join("config.json")
    }

    fn htpasswd(&self) -> PathBuf {
        self.dir.join("htpasswd")
    }

    /// Users and their hashes; the registry reads them again when they change.
    fn write_users(&self, rights: &Rights, pusher: &User) -> Result<()> {
        let lines = rights.htpasswd()? + &pusher.htpasswd()?;
        let new = self.dir.join("htpasswd.new");
        fs::write(&new, lines).with_context(|| format!("write {}", new.display()))?;
        fs::rename(&new, self.htpasswd()).context("put the registry's users in place")
    }

    fn spawn(&self) -> Result<Daemon> {
        let mut command = self.ns.command(&self.program);
        command.arg("serve").arg(self.config());
        Daemon::spawn("docker-registry", command, &self.dir.join("registry.log"))
    }

    fn behind() -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, PORT_BEHIND))
    }

    fn proxy(&self, rights: &Rights) -> Result<Option<FaultProxy>> {
        if self.front == Front::Bare {
            return Ok(None);
        }
        let gate = (self.login == Login::Basic).then(|| rights.clone());
        let own = (self.dir.as_path(), &self.authority);
        let proxy = FaultProxy::spawn(self.ns.bind(PORT)?, &self.ns, Self::behind(), own, gate)?;
        Ok(Some(proxy))
    }

    fn tokens(&self, leaf: &Leaf, desk: &Desk) -> Result<TokenServer> {
        TokenServer::spawn(self.ns.bind(token::PORT)?, leaf, desk.clone())
    }
}

impl Registry {
    /// Starts both in the namespace and waits until the registry answers.
    ///
    /// # Errors
    /// When either can't be started.
    pub async fn start(
        program: &Path,
        ns: &Netns,
        dir: &Path,
        authority: &Authority,
        (front, login): (Front, Login),
    ) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let leaf = authority.leaf(HOST)?;
        let files = leaf.write(dir, "registry")?;
        let (rights, pusher) = (Rights::default(), User::new(PUSHER));
        let desk = Desk::new(Signer::new(&leaf)?, rights.clone());
        let (program, ns, dir, authority) = (program.to_owned(), ns.clone(), dir.to_owned(), authority.clone());
        let setup = Setup { program, ns, dir, authority, front, login };
        let text = config_text(&setup, &files);
        fs::write(setup.config(), text).with_context(|| format!("write {}", setup.config().display()))?;
        setup.write_users(&rights, &pusher)?;
        let client = match front {
            Front::Proxy => Client::plain(&setup.ns, Setup::behind()),
            Front::Bare => {
                let address = SocketAddr::new(setup.ns.address.into(), PORT);
                Client::tls(&setup.ns, address, HOST, setup.authority.client()?)
            }
        };
        let (tokens, proxy) = (Some(setup.tokens(&leaf, &desk)?), setup.proxy(&rights)?);
        let mut registry = Self { daemon: setup.spawn()?, tokens, proxy, leaf, desk, rights, pusher, client, setup };
        registry.wait_ready().await?;
        Ok(registry)
    }

    async fn wait_ready(&mut self) -> Result<()> {
        let up = eventually(Duration::from_secs(20), "the registry", || async {
            let answer = self.client.get("/v2/").await?;
            if answer.status != StatusCode::UNAUTHORIZED {
                bail!("the registry answered {} instead of a challenge", answer.status);
            }
            Ok(())
        })
        .await;
        if let Err(error) = up {
            self.daemon.check_running()?;
            return Err(error);
        }
        Ok(())
    }

    /// Takes registry, proxy and token server away: nobody listens at their ports any more.
    pub async fn go_away(&mut self) {
        if let Some(proxy) = &mut self.proxy {
            proxy.close().await;
        }
        self.tokens = None;
        self.daemon.kill();
    }

    /// Starts again what has gone, and breaks nothing more.
    ///
    /// # Errors
    /// When something does not come up again.
    pub async fn revive(&mut self) -> Result<()> {
        if self.tokens.is_none() {
            // An aborted server lets its port go a moment later.
            let tokens = async || self.setup.tokens(&self.leaf, &self.desk);
            self.tokens = Some(eventually(Duration::from_secs(5), "the token server's port", tokens).await?);
        }
        if let Some(proxy) = &mut self.proxy {
            proxy.clear();
            if !proxy.is_open() {
                proxy.open(self.setup.ns.bind(PORT)?);
            }
        }
        if !self.daemon.resume() {
            self.daemon = self.setup.spawn()?;
            self.wait_ready().await?;
        }
        Ok(())
    }

    /// What breaks its answers.
    ///
    /// # Errors
    /// When clients reach the registry itself.
    pub fn proxy(&self) -> Result<&FaultProxy> {
        self.proxy.as_ref().context("this lab's registry stands without a proxy before it")
    }

    /// Pushes an image under `repository:tag`, from the registry's own machine, so that no shaped link is passed.
    ///
    /// # Errors
    /// When the registry refuses something.
    pub async fn push(&self, image: &Image, repository: &str, tag: &str) -> Result<()> {
        let authorization = match self.setup.login {
            Login::Bearer => format!("Bearer {}", self.signer().token(repository, &["pull", "push"])?),
            Login::Basic => self.pusher.basic(),
        };
        for blob in image.blobs() {
            self.push_blob(&authorization, repository, blob).await?;
        }
        let request = Request::builder()
            .method(Method::PUT)
            .uri(format!("/v2/{repository}/manifests/{tag}"))
            .header(header::CONTENT_TYPE, &image.media_type)
            .header(header::AUTHORIZATION, authorization);
        let answer = self.client.send(request.body(full(image.manifest.clone()))?).await?;
        expect(&answer, StatusCode::CREATED, "put the manifest")
    }

    async fn push_blob(&self, authorization: &str, repository: &str, blob: &ImageBlob) -> Result<()> {
        let start = Request::builder()
            .method(Method::POST)
            .uri(format!("/v2/{repository}/blobs/uploads/"))
            .header(header::AUTHORIZATION, authorization)
            .header(header::CONTENT_LENGTH, 0);
        let answer = self.client.send(start.body(empty())?).await?;
        expect(&answer, StatusCode::ACCEPTED, "start an upload")?;
        let location = answer.headers.get(header::LOCATION).context("an upload without a location")?.to_str()?;
        let uri: http::Uri = location.parse().context("parse the upload's location")?;
        let path = uri.path_and_query().context("the upload's location has no path")?.as_str();
        let joint = if path.contains('?') { '&' } else { '?' };
        let put = Request::builder()
            .method(Method::PUT)
            .uri(format!("{path}{joint}digest={}", blob.digest))
            .header(header::AUTHORIZATION, authorization)
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, blob.size);
        let file = tokio::fs::File::open(&blob.file).await.with_context(|| format!("open {}", blob.file.display()))?;
        let answer = self.client.send(put.body(from_file(file))?).await?;
        expect(&answer, StatusCode::CREATED, &format!("upload {}", blob.digest))
    }

    /// TLS for a client that trusts it.
    ///
    /// # Errors
    /// When the authority's certificate can't be read.
    pub fn tls(&self) -> Result<Arc<rustls::ClientConfig>> {
        self.setup.authority.client()
    }

    /// Who signs tokens for it.
    pub fn signer(&self) -> &Signer {
        self.desk.signer()
    }

    /// Who may pull what.
    pub fn rights(&self) -> &Rights {
        &self.rights
    }

    /// Who gives tokens.
    pub fn desk(&self) -> &Desk {
        &self.desk
    }

    /// How it knows who asks.
    pub fn login(&self) -> Login {
        self.setup.login
    }

    /// Lets a user in who may pull from these repositories, beside what is for everybody. Under Basic other repositories are denied
    /// him by the proxy alone.
    ///
    /// # Errors
    /// When the registry's file of users can't be written.
    pub fn admit(&self, name: &str, may_pull: &[&str]) -> Result<User> {
        let user = User::new(name);
        self.rights.admit(&user, may_pull);
        self.setup.write_users(&self.rights, &self.pusher)?;
        Ok(user)
    }

    /// The `Authorization` header that containerd would send for a user after the registry's challenge: Basic, or a new token. For a
    /// Bearer registry, nobody gets an anonymous token too.
    ///
    /// # Errors
    /// When a token can't be signed.
    pub fn authorization(&self, user: Option<&User>, repository: &str) -> Result<Option<String>> {
        let basic = user.map(User::basic);
        match self.setup.login {
            Login::Basic => Ok(basic),
            Login::Bearer => {
                let token = self.desk.token(basic.as_deref(), repository)?;
                Ok(token.map(|token| format!("Bearer {token}")))
            }
        }
    }

    /// A client of the registry's own address, over TLS, that stands in a namespace.
    ///
    /// # Errors
    /// When the authority's certificate can't be read.
    pub fn client(&self, from: &Netns) -> Result<Client> {
        Ok(Client::tls(from, SocketAddr::new(self.setup.ns.address.into(), PORT), HOST, self.tls()?))
    }

    /// The requests so far, in the order in which they ended; behind the proxy, in the order in which they came.
    ///
    /// # Errors
    /// When the log can't be read.
    pub fn access_log(&self) -> Result<Vec<AccessLine>> {
        if let Some(proxy) = &self.proxy {
            return Ok(proxy.access_log());
        }
        let text = fs::read(self.daemon.log()).with_context(|| format!("read {}", self.daemon.log().display()))?;
        Ok(String::from_utf8_lossy(&text).lines().filter_map(AccessLine::parse).collect())
    }

    /// The registry's log file.
    pub fn log(&self) -> &Path {
        self.daemon.log()
    }
}

fn expect(answer: &Answer, status: StatusCode, what: &str) -> Result<()> {
    if answer.status == status {
        return Ok(());
    }
    bail!("{what}: the registry answered {}: {}", answer.status, String::from_utf8_lossy(&answer.body))
}

/// The registry's configuration; JSON is YAML.
fn config_text(setup: &Setup, (certificate, key): &(PathBuf, PathBuf)) -> String {
    let storage: PathBuf = setup.dir.join("storage");
    let auth = match setup.login {
        Login::Bearer => serde_json::json!({
            "token": {
                "realm": format!("https://{HOST}:{}/token", token::PORT),
                "service": token::SERVICE,
                "issuer": token::ISSUER,
                "rootcertbundle": setup.authority.root_file
            }
        }),
        Login::Basic => serde_json::json!({ "htpasswd": { "realm": "shoal lab", "path": setup.htpasswd() } }),
    };
    let http = match setup.front {
        Front::Bare => serde_json::json!({ "addr": ":443", "tls": { "certificate": certificate, "key": key } }),
        Front::Proxy => serde_json::json!({ "addr": Setup::behind().to_string() }),
    };
    let mut config = serde_json::json!({
        "version": "0.1",
        "log": { "level": "warn", "accesslog": { "disabled": false } },
        "storage": {
            "filesystem": { "rootdirectory": storage },
            "maintenance": { "uploadpurging": { "enabled": false } },
            "redirect": { "disable": true }
        },
        "http": http,
        "auth": auth
    });
    config["http"]["secret"] = "one registry only".into();
    config.to_string()
}
