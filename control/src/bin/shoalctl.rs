//! `shoalctl`: arguments, one command, exit code.

use std::process::ExitCode;

use clap::Parser;
use control::ctl::{self, Cli};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    ctl::run(Cli::parse()).await
}
