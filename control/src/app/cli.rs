//! The command line of `shoal-control`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};
use shoal_base::config::Faults;
use shoal_base::privileges;

use super::App;
use crate::config::{Config, Raw};
use crate::identity::{self, Access, AccessError, FirstToken, NewToken, Role};
use crate::scope::{self, Facts};
use crate::store::{self, Identities};

/// Decides which nodes belong together, and tells them who has what.
#[derive(Debug, Parser)]
#[command(name = "shoal-control", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the control service.
    Serve(Settings),
    /// Say which cluster of a file a node would belong to, and why. Needs no server.
    Explain(Explain),
    /// Check or describe settings.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Make an API token of an admin in the database, for when all of them are lost, and print it once. The service must be stopped meanwhile.
    AdminToken(AdminToken),
    /// Copy the database to a new file, also while the service runs. The authority's key (ca.key, ca.pem) is not in it.
    Backup(Backup),
    /// Print the description of the REST API, as it is served at /api/v1/openapi.json (OpenAPI 3.1).
    Openapi,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Name every fault of the settings, and start nothing.
    Check(Settings),
    /// Print every setting as Markdown.
    Reference,
}

/// Where settings come from: file, then SHOAL_CONTROL_… variables, then these flags; the later the stronger.
#[derive(Debug, Args)]
struct Settings {
    /// A TOML file.
    #[arg(long, env = "SHOAL_CONTROL_CONFIG")]
    config: Option<PathBuf>,
    /// Where the database is; the same as `--set state_dir=…`.
    #[arg(long)]
    state_dir: Option<String>,
    /// One setting, `key.path=value`. May be given many times.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = shoal_base::config::setting)]
    sets: Vec<(String, String)>,
}

impl Settings {
    fn load(self) -> Result<Config, Faults> {
        let short = self.state_dir.map(|value| ("state_dir".to_owned(), value));
        let sets: Vec<_> = short.into_iter().chain(self.sets).collect();
        let raw: Raw = shoal_base::config::load(self.config.as_deref(), "SHOAL_CONTROL", std::env::vars(), &sets)?;
        Config::try_from(raw)
    }
}

#[derive(Debug, Args)]
struct Explain {
    /// A TOML file with any number of [[cluster]]: name, default, idc, location, cidrs.
    #[arg(long, value_name = "FILE")]
    clusters: PathBuf,
    /// The node's address.
    #[arg(long)]
    ip: String,
    /// The node's data centre.
    #[arg(long, default_value = "")]
    idc: String,
    /// The node's location, `a|b|c`.
    #[arg(long, default_value = "")]
    location: String,
    /// The cluster that the node's config names.
    #[arg(long, value_name = "NAME")]
    pin: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Backup {
    /// The copy. It must not be there yet.
    file: PathBuf,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Args)]
struct AdminToken {
    /// Its name, for the audit log. Unique.
    #[arg(long, default_value = "admin-recovered")]
    name: String,
    #[command(flatten)]
    settings: Settings,
}

/// Runs what was asked for. Exit codes: 0 well, 1 failed, 2 refused input.
pub fn main(cli: Cli) -> ExitCode {
    match cli.command {
        Command::Serve(settings) => match settings.load() {
            Ok(config) => serve(config),
            Err(faults) => refused(&format!("the settings have faults:\n{faults}")),
        },
        Command::Config(ConfigCommand::Check(settings)) => match settings.load() {
            Ok(_) => {
                println!("the settings are fine");
                ExitCode::SUCCESS
            }
            Err(faults) => refused(&format!("the settings have faults:\n{faults}")),
        },
        Command::Config(ConfigCommand::Reference) => {
            print!("{}", shoal_base::config::reference::<Raw>("Settings of shoal-control"));
            ExitCode::SUCCESS
        }
        Command::Backup(args) => match args.settings.load() {
            Ok(config) => backup(&config.state_dir, &args.file),
            Err(faults) => refused(&format!("the settings have faults:\n{faults}")),
        },
        Command::AdminToken(args) => match args.settings.load() {
            Ok(config) => admin_token(&config.state_dir, args.name),
            Err(faults) => refused(&format!("the settings have faults:\n{faults}")),
        },
        Command::Openapi => match crate::api::rest::openapi().to_pretty_json() {
            Ok(text) => {
                // A reader that went away (`| head`) is no error.
                let _ = writeln!(std::io::stdout(), "{text}");
                ExitCode::SUCCESS
            }
            Err(error) => refused(&error.to_string()),
        },
        Command::Explain(args) => match explain(&args) {
            Ok(text) => {
                println!("{text}");
                ExitCode::SUCCESS
            }
            Err(reasons) => refused(&reasons),
        },
    }
}

fn refused(reasons: &str) -> ExitCode {
    eprintln!("shoal-control: {reasons}");
    ExitCode::from(2)
}

fn explain(args: &Explain) -> Result<String, String> {
    let scopes = read_scopes(&args.clusters);
    let facts = Facts::parse(&args.ip, &args.idc, &args.location).map_err(|bad| {
        let lines: Vec<String> = bad.iter().map(|bad| format!("--{bad}")).collect();
        lines.join("\n")
    });
    let (scopes, facts) = match (scopes, facts) {
        (Ok(scopes), Ok(facts)) => (scopes, facts),
        (Err(file), Err(facts)) => return Err(format!("{file}\n{facts}")),
        (Err(reasons), _) | (_, Err(reasons)) => return Err(reasons),
    };
    let explanation = scopes.explain(&facts, args.pin.as_deref());
    if args.json {
        return serde_json::to_string(&explanation).map_err(|error| error.to_string());
    }
    let mut lines = vec![format!("cluster: {}", explanation.cluster.as_deref().unwrap_or("none"))];
    lines.push(format!("reason:  {}", explanation.reason));
    for considered in &explanation.considered {
        let matched = [("cidr", &considered.cidr), ("idc", &considered.idc), ("location", &considered.location)];
        let matched: Vec<String> =
            matched.iter().filter_map(|(what, value)| Some(format!("{what} {}", value.as_ref()?))).collect();
        let matched = if matched.is_empty() { "nothing".to_owned() } else { matched.join(", ") };
        lines.push(format!("  {} matches on {matched}", considered.cluster));
    }
    Ok(lines.join("\n"))
}

fn read_scopes(path: &Path) -> Result<scope::Scopes, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    scope::parse_file(&text).map_err(|error| format!("{}: {error}", path.display()))
}

fn backup(state_dir: &Path, file: &Path) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let made = runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(store::backup(state_dir, file)).map_err(anyhow::Error::from));
    match made {
        Ok(()) => {
            println!("{}", file.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("shoal-control: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whoever may write the state directory may do this: they could read and change all that is in it anyway.
fn admin_token(state_dir: &Path, name: String) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let made = runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(recover(state_dir, name)));
    match made {
        // Alone on standard output, so that it can be put into a file.
        Ok(token) => {
            println!("{token}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("shoal-control: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn recover(state_dir: &Path, name: String) -> anyhow::Result<String> {
    // A wrong directory would be given a database of its own.
    store::SqliteStore::must_be_in(state_dir)?;
    // Its lock is what keeps a running service out: that one knows the tokens by heart, and would not take one that is made beside it.
    let store = Arc::new(store::SqliteStore::open(state_dir).await.map_err(|error| match error {
        store::Error::Locked { .. } => anyhow::anyhow!("{error}; stop it first, and start it again afterwards"),
        other => other.into(),
    })?);
    let (access, first) = Access::open(Arc::clone(&store) as Arc<dyn Identities>, None).await?;
    let token = match first {
        FirstToken::Made(token) => Ok(token),
        FirstToken::Supplied | FirstToken::None => {
            let new = NewToken { name, role: Role::Admin, clusters: None, life: None };
            access.make(new, identity::CONTROL).await.map(|(_, token)| token)
        }
    };
    drop(access);
    store.close().await;
    token.map_err(|error| match error {
        AccessError::Refused { field: "name", reason } => anyhow::anyhow!("--name: {reason}"),
        other => other.into(),
    })
}

fn serve(config: Config) -> ExitCode {
    let pages = shoal_base::pages::keep_small();
    // Before there are threads.
    let kept = privileges::shed(&config.needs());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let ran = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(async move {
            let app = App::build(config).await?;
            kept.log();
            if let Err(error) = pages {
                tracing::info!(%error, "this process takes more memory than it needs");
            }
            app.run().await
        })
    });
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shoal-control: {error:#}");
            ExitCode::FAILURE
        }
    }
}
