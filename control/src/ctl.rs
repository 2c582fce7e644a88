//! `shoalctl`: what operators type.
//!
//! Owns the command line, the words that it prints, and a client of REST. Knows nothing that REST does not tell: it
//! imports no other room, so that it can talk to any control service of the same API version. With `--output json` it
//! prints what REST answered, lists as lists.

mod apply;
mod cli;
mod client;
mod cluster;
mod node;
mod table;

use std::process::ExitCode;

pub use cli::Cli;
use cli::{Command, Output};
use client::Client;

/// Why a command failed; each kind has its exit code.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The server or this program.
    #[error("{0}")]
    Failed(String),
    /// What was asked for is not acceptable.
    #[error("refused: {0}")]
    Refused(String),
    /// There is no such thing.
    #[error("not found: {0}")]
    NotFound(String),
    /// It is not as the caller thought, or it is in use.
    #[error("conflict: {0}")]
    Conflict(String),
    /// No answer.
    #[error("can't reach {server}: {reason}")]
    Unreachable {
        /// Where.
        server: String,
        /// Why.
        reason: String,
    },
}

impl Error {
    /// 2 is also what clap exits with.
    fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Refused(_) => 2,
            Self::NotFound(_) => 3,
            Self::Conflict(_) => 4,
            Self::Unreachable { .. } => 5,
        }
    }
}

/// Runs one command. Standard output gets the answer, standard error the reason why there is none.
pub async fn run(cli: Cli) -> ExitCode {
    match answer(cli).await {
        Ok(text) => {
            print(&text);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("shoalctl: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

async fn answer(cli: Cli) -> Result<String, Error> {
    let client = Client::new(&cli.server)?;
    match cli.command {
        Command::Cluster(command) => cluster::run(&client, command, cli.output).await,
        Command::Apply(args) => apply::run(&client, &args, cli.output).await,
        Command::Node(command) => node::run(&client, &command, cli.output).await,
        Command::Explain(place) => node::explain(&client, &place, cli.output).await,
    }
}

/// A reader that went away (`| head`) is no error.
fn print(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
}

/// As JSON the value itself, else what `table` makes of it.
fn show(
    output: Output,
    value: &serde_json::Value,
    table: impl FnOnce() -> Result<String, Error>,
) -> Result<String, Error> {
    match output {
        Output::Json => serde_json::to_string_pretty(value).map_err(|error| Error::Failed(error.to_string())),
        Output::Table => table(),
    }
}

/// Reads an answer as what this version of `shoalctl` expects.
fn understand<'a, T: serde::Deserialize<'a>>(value: &'a serde_json::Value) -> Result<T, Error> {
    T::deserialize(value).map_err(|error| {
        Error::Failed(format!(
            "the server's answer is not understood ({error}); are shoalctl and shoal-control of one release?"
        ))
    })
}
