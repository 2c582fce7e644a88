//! The command line of `shoal-node`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use shoal_base::config::Faults;
use shoal_base::privileges::{self, Needs};

use super::content::{self, Direction};
use super::{App, Reread};
use crate::config::{Config, Raw};
use crate::install;

mod pull;
mod status;

/// Serves containerd's image pulls from peers of the same cluster.
#[derive(Debug, Parser)]
#[command(name = "shoal-node", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon.
    Run(Settings),
    /// Print what to put into certs.d, so that containerd asks this node.
    HostsToml(HostsToml),
    /// Move containerd's content between its own store and this node's, while the daemon is down.
    #[command(subcommand)]
    Content(ContentCommand),
    /// What the daemon on this machine holds and does.
    Status(status::Status),
    /// Fetch an image into the reach of the cluster, through the daemon on this machine.
    Pull(pull::Pull),
    /// Check or describe settings.
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Debug, Subcommand)]
enum ContentCommand {
    /// Take what containerd's own store has, before this node becomes its content store. May be repeated and interrupted.
    Adopt(Content),
    /// Give what this node has to containerd's own store, before that is used again. May be repeated and interrupted.
    Release(Content),
}

#[derive(Debug, Args)]
struct Content {
    #[command(flatten)]
    settings: Settings,
    /// containerd's directory, `root` in its settings; the same as `--set containerd.root=…`.
    #[arg(long)]
    root: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Name every fault of the settings, and start nothing.
    Check(Settings),
    /// Print every setting as Markdown.
    Reference,
}

/// Where settings come from: file, then SHOAL_NODE_… variables, then these flags; the later the stronger.
#[derive(Debug, Clone, Args)]
struct Settings {
    /// A TOML file.
    #[arg(long, env = "SHOAL_NODE_CONFIG")]
    config: Option<PathBuf>,
    /// Where the node keeps its state; the same as `--set state_dir=…`.
    #[arg(long)]
    state_dir: Option<String>,
    /// The control service, `http://host:6080`; the same as `--set control.endpoint=…`.
    #[arg(long)]
    control: Option<String>,
    /// One setting, `key.path=value`. May be given many times.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = shoal_base::config::setting)]
    sets: Vec<(String, String)>,
}

impl Settings {
    fn raw(&self) -> Result<Raw, Faults> {
        let short = [("state_dir", &self.state_dir), ("control.endpoint", &self.control)];
        let short = short.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?)));
        let sets: Vec<_> = short.chain(self.sets.iter().cloned()).collect();
        shoal_base::config::load(self.config.as_deref(), "SHOAL_NODE", std::env::vars(), &sets)
    }

    fn load(&self) -> Result<(Raw, Config), Faults> {
        let raw = self.raw()?;
        Ok((raw.clone(), Config::read(raw)?))
    }
}

#[derive(Debug, Args)]
struct HostsToml {
    /// The registry, as images name it. Without it, the output is for `_default`, every registry.
    #[arg(long)]
    registry: Option<String>,
    /// Where the mirror listens.
    #[arg(long, default_value = "127.0.0.1:5080")]
    mirror: SocketAddr,
    /// A CA file for containerd's own way to the registry.
    #[arg(long)]
    ca: Option<PathBuf>,
    /// Give containerd no way to the registry but through this node.
    #[arg(long)]
    no_fallback: bool,
    /// How long containerd waits for a connection to the mirror. Only containerd 2.0.7, 2.1 and later know it.
    #[arg(long)]
    dial_timeout: Option<shoal_base::units::Span>,
}

/// Two threads are plenty: hashing and disk run on tokio's blocking threads. The node belongs to its workload.
const WORKERS: usize = 2;
/// Each costs a stack while it lives, and a few saturate a disk.
const BLOCKING: usize = 32;

/// Runs what was asked for. Exit codes: 0 well, 1 failed, 2 refused input.
pub fn main(cli: Cli) -> ExitCode {
    match cli.command {
        Command::Run(settings) => match settings.load() {
            Ok((raw, config)) => {
                // It is read again at SIGHUP.
                let file = settings.config.clone();
                let needs = config.needs();
                let needs = Needs { files: needs.files.into_iter().chain(file).collect(), ..needs };
                run(config, &needs, Reread::new(raw, move || settings.raw()))
            }
            Err(faults) => refused(&faults),
        },
        Command::Content(ContentCommand::Adopt(args)) => move_content(&args, Direction::Adopt),
        Command::Content(ContentCommand::Release(args)) => move_content(&args, Direction::Release),
        Command::Config(ConfigCommand::Check(settings)) => match settings.load() {
            Ok(_) => {
                println!("the settings are fine");
                ExitCode::SUCCESS
            }
            Err(faults) => refused(&faults),
        },
        Command::Config(ConfigCommand::Reference) => {
            print!("{}", shoal_base::config::reference::<Raw>("Settings of shoal-node"));
            ExitCode::SUCCESS
        }
        Command::HostsToml(args) => hosts_toml(&args),
        Command::Status(args) => ask(args.run()),
        Command::Pull(args) => ask(args.run()),
    }
}

fn move_content(args: &Content, direction: Direction) -> ExitCode {
    let (raw, config) = match args.settings.load() {
        Ok(loaded) => loaded,
        Err(faults) => return refused(&faults),
    };
    let socket = &raw.containerd.content_listen;
    let root = args.root.clone().unwrap_or_else(|| config.containerd.root.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let moved = runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(content::moved(&config, (&root, socket), direction)));
    match moved {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("shoal-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn refused(faults: &Faults) -> ExitCode {
    eprintln!("shoal-node: the settings have faults:\n{faults}");
    ExitCode::from(2)
}

/// Runs something short-lived that asks a daemon.
fn ask(work: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(work)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shoal-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn hosts_toml(args: &HostsToml) -> ExitCode {
    let options = install::Options {
        server: None,
        ca: args.ca.clone(),
        fallback: !args.no_fallback,
        dial_timeout: args.dial_timeout.map(Into::into),
    };
    match install::hosts_toml(args.registry.as_deref(), args.mirror, &options) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("shoal-node: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(config: Config, needs: &Needs, reread: Reread) -> ExitCode {
    // Before there are threads.
    let kept = privileges::shed(needs);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING)
        .thread_keep_alive(std::time::Duration::from_secs(5))
        .enable_all()
        .build();
    let ran = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(async move {
            let app = App::build(config).await?;
            kept.log();
            app.run(reread).await
        })
    });
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shoal-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}
