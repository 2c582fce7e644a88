//! The origin: Debian's `docker-registry` over TLS behind the token server, and what its access log says.
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use http::{Method, Request, StatusCode, header};

use crate::{
    http::{Answer, Client, empty, from_file, full},
    image::{Image, ImageBlob},
    net::Netns,
    process::Daemon,
    tls::Authority,
    token::{self, Signer, TokenServer},
    wait::eventually,
};

mod access;

pub use access::{AccessLine, Reads, reads_by_digest};

/// The registry's name, as images are named after it.
pub const HOST: &str = "registry.shoal.test";

/// A running registry with its token server.
pub struct Registry {
    daemon: Daemon,
    _tokens: TokenServer,
    signer: Signer,
    client: Client,
}

impl Registry {
    /// Starts both in the namespace and waits until the registry answers.
    ///
    /// # Errors
    /// When either can't be started.
    pub async fn start(program: &Path, ns: &Netns, dir: &Path, authority: &Authority) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let leaf = authority.leaf(HOST)?;
        let (certificate, key) = leaf.write(dir, "registry")?;
        let signer = Signer::new(&leaf)?;
        let tokens = TokenServer::spawn(ns.bind(token::PORT)?, &leaf, signer.clone())?;
        let config = dir.join("config.json");
        let text = config_text(dir, &certificate, &key, &authority.root_file);
        fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
        let mut command = ns.command(program);
        command.arg("serve").arg(&config);
        let mut daemon = Daemon::spawn("docker-registry", command, &dir.join("registry.log"))?;
        let client = Client::tls(ns, SocketAddr::new(ns.address.into(), 443), HOST, authority.client()?);
        let up = eventually(Duration::from_secs(20), "the registry", || async {
            let answer = client.get("/v2/").await?;
            if answer.status != StatusCode::UNAUTHORIZED {
                bail!("the registry answered {} instead of a challenge", answer.status);
            }
            Ok(())
        })
        .await;
        if let Err(error) = up {
            daemon.check_running()?;
            return Err(error);
        }
        Ok(Self { daemon, _tokens: tokens, signer, client })
    }

    /// Pushes an image under `repository:tag`, from the registry's own machine, so that no shaped link is passed.
    ///
    /// # Errors
    /// When the registry refuses something.
    pub async fn push(&self, image: &Image, repository: &str, tag: &str) -> Result<()> {
        let token = self.signer.token(repository, &["pull", "push"])?;
        for blob in image.blobs() {
            self.push_blob(&token, repository, blob).await?;
        }
        let request = Request::builder()
            .method(Method::PUT)
            .uri(format!("/v2/{repository}/manifests/{tag}"))
            .header(header::CONTENT_TYPE, &image.media_type)
            .header(header::AUTHORIZATION, format!("Bearer {token}"));
        let answer = self.client.send(request.body(full(image.manifest.clone()))?).await?;
        expect(&answer, StatusCode::CREATED, "put the manifest")
    }

    async fn push_blob(&self, token: &str, repository: &str, blob: &ImageBlob) -> Result<()> {
        let authorization = format!("Bearer {token}");
        let start = Request::builder()
            .method(Method::POST)
            .uri(format!("/v2/{repository}/blobs/uploads/"))
            .header(header::AUTHORIZATION, &authorization)
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
            .header(header::AUTHORIZATION, &authorization)
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, blob.size);
        let file = tokio::fs::File::open(&blob.file).await.with_context(|| format!("open {}", blob.file.display()))?;
        let answer = self.client.send(put.body(from_file(file))?).await?;
        expect(&answer, StatusCode::CREATED, &format!("upload {}", blob.digest))
    }

    /// Who signs tokens for it.
    pub fn signer(&self) -> &Signer {
        &self.signer
    }

    /// The requests so far, in the order in which they ended.
    ///
    /// # Errors
    /// When the log can't be read.
    pub fn access_log(&self) -> Result<Vec<AccessLine>> {
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
fn config_text(dir: &Path, certificate: &Path, key: &Path, root: &Path) -> String {
    let storage: PathBuf = dir.join("storage");
    serde_json::json!({
        "version": "0.1",
        "log": { "level": "warn", "accesslog": { "disabled": false } },
        "storage": {
            "filesystem": { "rootdirectory": storage },
            "maintenance": { "uploadpurging": { "enabled": false } },
            "redirect": { "disable": true }
        },
        "http": {
            "addr": ":443",
            "secret": "one registry only",
            "tls": { "certificate": certificate, "key": key }
        },
        "auth": {
            "token": {
                "realm": format!("https://{HOST}:{}/token", token::PORT),
                "service": token::SERVICE,
                "issuer": token::ISSUER,
                "rootcertbundle": root
            }
        }
    })
    .to_string()
}
