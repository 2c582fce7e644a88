//! `shoalctl`: what operators type.
//!
//! Owns the command line, the words that it prints, and a client of REST. Knows nothing that REST does not tell: it
//! imports no other room, so that it can talk to any control service of the same API version. With `--output json` it
//! prints what REST answered, lists as lists.

mod apply;
mod cli;
mod client;
mod cluster;
mod events;
mod identity;
mod node;
mod preheat;
mod swarm;
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
    /// The server can't do it now.
    #[error("failed at the server: {0}")]
    Server(String),
    /// What was asked for is not acceptable.
    #[error("refused: {0}")]
    Refused(String),
    /// There is no such thing.
    #[error("not found: {0}")]
    NotFound(String),
    /// It is not as the caller thought, or it is in use.
    #[error("conflict: {0}")]
    Conflict(String),
    /// The token is missing or not known, or lets its bearer do less.
    #[error("not allowed: {0}")]
    NotAllowed(String),
    /// There was no connection: nothing was asked.
    #[error("can't reach {server}: {reason}")]
    Unreachable {
        /// Where.
        server: String,
        /// Why.
        reason: String,
    },
    /// It was asked, and said nothing that is whole: it may have done what it was asked for.
    #[error("no answer: {0}")]
    NoAnswer(String),
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
            Self::NotAllowed(_) => 6,
            Self::Server(_) => 7,
            Self::NoAnswer(_) => 9,
        }
    }

    /// Whether it may pass by itself: a server that restarts is back soon.
    const fn may_pass(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::NoAnswer(_) | Self::Server(_))
    }
}

/// What goes to standard output, and the exit code that it goes with.
struct Said {
    text: String,
    code: u8,
}

impl From<String> for Said {
    fn from(text: String) -> Self {
        Self { text, code: 0 }
    }
}

/// With `--detailed-exitcode`: it would change something. Not 1 as `diff` has it, nor 2 as `terraform plan`: those are failures here.
const DIFFERENT: u8 = 8;

/// Runs one command. Standard output gets the answer, standard error the reason why there is none.
pub async fn run(cli: Cli) -> ExitCode {
    match answer(cli).await {
        Ok(Said { text, code }) => {
            print(&text);
            ExitCode::from(code)
        }
        Err(error) => {
            eprintln!("shoalctl: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

async fn answer(cli: Cli) -> Result<Said, Error> {
    if let Command::Completion { shell } = cli.command {
        return Ok(completion(shell).into());
    }
    let client = Client::new(&cli.server, cli.ca_file.as_deref(), token(&cli)?)?;
    let text = match cli.command {
        Command::Cluster(command) => cluster::run(&client, command, cli.output).await,
        Command::Apply(args) => return apply::run(&client, &args, cli.output).await,
        Command::Node(command) => node::run(&client, &command, cli.output).await,
        Command::Blob(command) => swarm::blob(&client, &command, cli.output).await,
        Command::Flight(command) => swarm::flight(&client, &command, cli.output).await,
        Command::Summary(args) => node::summary(&client, &args, cli.output).await,
        Command::Traffic(args) => swarm::traffic(&client, &args, cli.output).await,
        Command::Image(command) => swarm::image(&client, &command, cli.output).await,
        Command::Preheat(command) => preheat::run(&client, &command, cli.output).await,
        Command::Events(args) => events::follow(&client, &args, cli.output).await,
        Command::Completion { shell } => Ok(completion(shell)),
        Command::Explain(place) => node::explain(&client, &place, cli.output).await,
        Command::JoinToken(command) => identity::join_token(&client, command, cli.output).await,
        Command::Member(command) => identity::member(&client, command, cli.output).await,
        Command::ApiToken(command) => identity::api_token(&client, command, cli.output).await,
        Command::Audit(args) => identity::audit(&client, &args, cli.output).await,
        Command::Ca => identity::authority(&client, cli.output).await,
        Command::Whoami => identity::whoami(&client, cli.output).await,
    };
    text.map(Said::from)
}

fn completion(shell: clap_complete::Shell) -> String {
    use clap::CommandFactory as _;
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "shoalctl", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// The API token, from a file or the environment; never from an argument, which everybody on the machine may read.
fn token(cli: &Cli) -> Result<Option<String>, Error> {
    let (from, text) = match &cli.token_file {
        Some(path) => {
            let from = format!("--token-file {}", path.display());
            let read = std::fs::read_to_string(path).map_err(|error| Error::Refused(format!("{from}: {error}")))?;
            (from, read)
        }
        None => match std::env::var("SHOAL_TOKEN") {
            Ok(text) => ("SHOAL_TOKEN".to_owned(), text),
            Err(std::env::VarError::NotPresent) => return Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => {
                return Err(Error::Refused("SHOAL_TOKEN: is not UTF-8".to_owned()));
            }
        },
    };
    fit_for_a_header(&text).map_err(|why| Error::Refused(format!("{from}: {why}")))
}

/// A token without the space around it; `None`: nothing is there. What is wrong is told without the token.
fn fit_for_a_header(text: &str) -> Result<Option<String>, &'static str> {
    let text = text.trim();
    match () {
        () if text.is_empty() => Ok(None),
        () if text.lines().count() > 1 => Err("has several lines, and a token is one"),
        () if !text.chars().all(|c| c == ' ' || c.is_ascii_graphic()) => {
            Err("has characters in it that no token has: control characters, or others than ASCII")
        }
        () => Ok(Some(text.to_owned())),
    }
}

/// A reader that went away (`| head`) is no error.
fn print(text: &str) {
    use std::io::Write as _;
    // Who followed has printed already.
    let text = text.trim_end();
    if !text.is_empty() {
        let _ = writeln!(std::io::stdout(), "{text}");
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_line_that_a_header_can_hold() {
        assert_eq!(fit_for_a_header(" shoal-api.x.y\n"), Ok(Some("shoal-api.x.y".to_owned())));
        assert_eq!(fit_for_a_header("an admin's token"), Ok(Some("an admin's token".to_owned())));
        assert_eq!(fit_for_a_header(" \n"), Ok(None));
        for bad in ["one\ntwo", "one\r\ntwo", "one\ttwo", "one\u{0}two", "naïve", "one\rtwo"] {
            assert!(fit_for_a_header(bad).is_err(), "{bad:?}");
        }
    }
}
